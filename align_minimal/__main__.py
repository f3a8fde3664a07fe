"""The command line: `align-minimal`, or `python -m align_minimal`.

Results go to stdout; progress, warnings and errors of one line go to stderr. The exit status is 0, or 1 for
bad data, 2 for bad usage, 130 after Ctrl-C.
"""

from __future__ import annotations

import os
import sys
import warnings

from .commands.flags import build_parser


def warn(message: str) -> None:
    from tqdm import tqdm

    tqdm.write(f"align-minimal: warning: {message}", file=sys.stderr)  # above a progress bar, if there is one


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = build_parser(argv[0] if argv else None)
    args = parser.parse_args(argv)
    warnings.showwarning = lambda message, *_: warn(" ".join(str(message).split()))
    for stream in (sys.stdout, sys.stderr):  # a file name need not be valid Unicode, nor the terminal UTF-8
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        from .commands.commands import RUN

        status = RUN[args.command](args, parser)
        sys.stdout.flush()
    except BrokenPipeError:  # what reads our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, ValueError, ModuleNotFoundError) as error:
        rank = f"process {os.environ.get('RANK')}: " if os.environ.get("WORLD_SIZE", "1") != "1" else ""
        print(f"align-minimal: {rank}{' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("align-minimal: interrupted", file=sys.stderr)
        return 130
    return status or 0


if __name__ == "__main__":
    sys.exit(main())
