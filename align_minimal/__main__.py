"""The command line: `align-minimal`, or `python -m align_minimal`.

Results go to stdout; progress, warnings and one-line errors to stderr. Exit status: 0, 1 for bad data,
2 for bad usage.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import warnings


class Parser(argparse.ArgumentParser):
    """argparse, with errors on one line."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """The flags of all commands; those of `train` only for it: they come with PyTorch, which is slow."""
    parser = Parser(prog="align-minimal", description="ALIGN: pictures and words in one space.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    add_classify(commands)
    add_search(commands)
    add_evaluate(commands)
    add_demo(commands)
    add_trace(commands)
    train = commands.add_parser(
        "train",
        help="train a model on pairs of your own",
        description="Train both towers by the paper's recipe: contrastive loss, LAMB, warm-up, linear decay.",
    )
    if command == "train":
        from .training.options import add_arguments

        add_arguments(train)
    return parser


def add_classify(commands) -> None:
    parser = commands.add_parser(
        "classify",
        help="which of these labels fits each picture?",
        description="Zero-shot classification: the probability of each label for each picture.",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE_OR_FOLDER", help="pictures, or folders of them")
    labels = parser.add_mutually_exclusive_group(required=True)
    labels.add_argument("--labels", nargs="+", metavar="LABEL", help="what it may show")
    labels.add_argument("--labels-file", metavar="FILE", help="a file with a label a line instead")
    templates = parser.add_mutually_exclusive_group()
    templates.add_argument(
        "--template",
        action="append",
        metavar="TEXT",
        help="a text with {} for the label, as 'a photo of a {}'; several are averaged (default: the label)",
    )
    templates.add_argument("--ensemble", action="store_true", help="average over the templates that ship")
    parser.add_argument("--top", type=count, metavar="K", help="only the K likeliest labels (default: all)")
    add_model_arguments(parser)
    output = add_output_arguments(parser)
    output.add_argument("--csv", action="store_true", help="print a line a picture and label, with commas")


def add_search(commands) -> None:
    parser = commands.add_parser(
        "search",
        help="find pictures in a folder by words, by a picture, or by both",
        description="Search: the pictures nearest to a text, to a picture, or to a picture ± a text. The "
        "folder is embedded once; later calls embed what has changed.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="searched to the bottom")
    parser.add_argument("queries", nargs="*", metavar="QUERY", help="texts, answered one after the other")
    parser.add_argument("--image", metavar="REF", help="a picture to start from; the texts are added to it")
    parser.add_argument("--minus", metavar="TEXT", help="a text to take away from the query")
    weight = "of a text beside the picture, whose weight is 1 (default: 2, as in the paper)"
    parser.add_argument("--text-weight", type=positive_number, default=2.0, metavar="W", help=weight)
    parser.add_argument("--top", type=count, default=10, metavar="K", help="answers a query (default: 10)")
    parser.add_argument("--index", metavar="DIR", help="where to keep the embeddings (default: in the cache)")
    add_model_arguments(parser)
    add_output_arguments(parser)


def add_evaluate(commands) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="how often is the right text, picture or label found?",
        description="Retrieval: R@1, R@5 and R@10 of pictures' texts, and of texts' pictures. With "
        "--zero-shot classification: top-1, top-5 and the accuracy of each class.",
    )
    pairs = "folders with metadata.jsonl or metadata.csv (file_name, text), or WebDataset tar shards; for "
    pairs += "--zero-shot folders with metadata (file_name, label or text), or with a folder a class"
    parser.add_argument("data", nargs="+", metavar="DATA", help=pairs)
    labels = "the classes: a file with a label a line, or CLASS<tab>LABEL where DATA calls them otherwise"
    parser.add_argument("--zero-shot", metavar="LABELS", help=labels)
    ensemble = "with --zero-shot, average over the templates that ship"
    parser.add_argument("--ensemble", action="store_true", help=ensemble)
    add_model_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def add_demo(commands) -> None:
    parser = commands.add_parser(
        "demo",
        help="zero-shot classification in the browser",
        description="Serve a page: drop a picture, type labels, see bars. Needs gradio.",
    )
    host = "who may see it: 127.0.0.1, this machine only (default), or 0.0.0.0, everybody in the network"
    parser.add_argument("--host", default="127.0.0.1", help=host)
    parser.add_argument("--port", type=port, default=7860, help="default: 7860")
    add_model_arguments(parser)


def add_trace(commands) -> None:
    parser = commands.add_parser(
        "trace",
        help="what each layer does to a picture and a text",
        description="Print each layer's output shape, parameters, multiply-adds, mean and deviation.",
    )
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("text", metavar="TEXT")
    parser.add_argument("--depth", type=count, metavar="N", help="only the outer N levels (default: all)")
    add_model_arguments(parser)


def count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return number


def port(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"must be from 1 to 65535, not {text}")
    return number


def positive_number(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text}")
    return number


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    from .support.hub import weights_folder

    parser.add_argument(
        "--model",
        default=str(weights_folder() / "emoji"),
        metavar="DIR_OR_NAME",
        help="a checkpoint: a folder, or a name as kakaobrain/align-base (default: the one shipped)",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps (default: cpu)")


def add_output_arguments(parser: argparse.ArgumentParser):
    """--html, and --json in a group of what excludes it, which is returned."""
    parser.add_argument("--html", metavar="FILE", help="write a page with thumbnails, too")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print one JSON document")
    return output


def warn(message: str) -> None:
    from tqdm import tqdm

    tqdm.write(f"align-minimal: warning: {message}", file=sys.stderr)  # above the bar, if there is one


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
    except BrokenPipeError:  # the reader, say `head`, has seen enough
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
