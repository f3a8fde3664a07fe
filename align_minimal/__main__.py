"""The command line: `align-minimal`, or `python -m align_minimal`.

Results go to stdout; progress, warnings and errors of one line go to stderr. The exit status is 0, or 1 for
bad data (or a mistake of ours), 2 for bad usage, 128 + its number after a signal (130: Ctrl-C).
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import traceback
import warnings

from .commands.flags import parse
from .support.terminal import Messages, Output, busy, fill_descriptors, message

# What PyTorch, and Python's threads, say in a RuntimeError.
NO_MEMORY = re.compile(r"out of memory|not enough memory|can't allocate memory|can't start new thread")


def say(text: object) -> None:
    """One line on stderr."""
    print(f"align-minimal: {message(text)}", file=sys.stderr)


def warn(text: object, *_) -> None:
    """A warning, above the progress bar if there is one."""
    from tqdm import tqdm

    tqdm.write(f"align-minimal: warning: {message(text)}", file=sys.stderr)


def import_commands() -> dict:
    """The commands, which need PyTorch. It takes seconds from a cold disk, and while it is imported an
    interruption may be taken for a failed import; nothing is lost if the process ends at once."""

    def end(*_) -> None:
        say("interrupted")
        os._exit(130)

    before = signal.getsignal(signal.SIGINT)
    with contextlib.suppress(ValueError):  # only the main thread may
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, end)
    try:
        with busy("loading PyTorch"):
            from .commands.commands import RUN
    finally:
        with contextlib.suppress(ValueError):
            if before is signal.default_int_handler:
                signal.signal(signal.SIGINT, before)
    return RUN


def main(argv: list[str] | None = None) -> int:
    """Run a command. Returns the exit status; bad usage ends in SystemExit, as argparse has it."""
    argv = sys.argv[1:] if argv is None else argv
    fill_descriptors()
    for stream in (sys.stdout, sys.stderr):  # a file name need not be valid Unicode, nor the terminal UTF-8
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    output, usage, status = Output(sys.stdout), None, 0
    with contextlib.redirect_stderr(Messages(sys.stderr)):
        try:
            with contextlib.redirect_stdout(output):
                try:
                    status = run(argv)
                except SystemExit as error:  # after --help, or bad usage
                    usage = error
            output.deliver()
        except BrokenPipeError:  # what reads our output, such as `head`, has seen enough
            return 1
        except KeyboardInterrupt:
            say("interrupted")
            return 130
        except Exception as error:
            return explain(error, "--debug" in argv)
    if usage:
        raise usage
    return status


def run(argv: list[str]) -> int:
    """Read the flags, then call the command. Returns the exit status."""
    args, parser = parse(argv)
    warnings.showwarning = warn
    return import_commands()[args.command](args, parser) or 0


def explain(error: Exception, debug: bool) -> int:
    """Say what went wrong in one line: bad data (an OSError or a ValueError), or a mistake of ours."""
    if debug:
        traceback.print_exception(error)
    rank = f"process {os.environ.get('RANK')}: " if os.environ.get("WORLD_SIZE", "1") != "1" else ""
    if isinstance(error, (OSError, ValueError, ModuleNotFoundError)):
        say(f"{rank}{error}")
    elif isinstance(error, MemoryError) or NO_MEMORY.search(str(error)):
        say(f"{rank}no memory left for this ({str(error) or type(error).__name__})")
    else:
        hint = "This is a mistake in align-minimal; please report it with the command"
        hint += "." if debug else " and what --debug shows."
        say(f"{rank}{type(error).__name__}: {error}. {hint}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
