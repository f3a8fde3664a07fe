"""The commands and their flags, as `--help` shows them, and the checks of single values."""

from __future__ import annotations

import argparse

from .. import __version__
from ..support.hub import weights_folder
from ..support.terminal import given, one_line, unicode

SHIPPED = str(weights_folder() / "emoji")
DRAWINGS = (
    "The model that comes with the program knows drawings, such as emoji, but not photographs. "
    "For photographs, use --model kakaobrain/align-base."
)


class Parser(argparse.ArgumentParser):
    """argparse, with errors of one line."""

    def error(self, text: str):
        self.exit(2, f"{self.prog}: {one_line(text)} (see {self.prog} --help)\n")


def parse(argv: list[str]) -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    """The flags of a call, and the parser of its command, which reports what is wrong with them."""
    parser, commands = build_parser(argv[0] if argv else None)
    args, rest = parser.parse_known_args(argv)
    command = commands.choices[args.command]
    del args.debug  # main looks for it by itself: an error may come before the flags are read
    if args.command == "search" and not any(text.startswith("-") for text in rest):
        # Before Python 3.12, argparse reads no more queries after a flag: `search FOLDER --top 1 apple`.
        args.queries += map(unicode, rest)
    elif rest:
        command.error(f"unrecognized arguments: {' '.join(rest)}")
    return args, command


def build_parser(command: str | None):
    """The flags of all commands. Those of `train` need PyTorch, so only this command has them."""
    parser = Parser(prog="align-minimal", description="ALIGN: pictures and words in one space.")
    parser.add_argument("--version", action="version", version=f"align-minimal {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    add_classify(commands)
    add_search(commands)
    add_evaluate(commands)
    add_demo(commands)
    add_trace(commands)
    train = commands.add_parser(
        "train",
        help="train a model on pairs of your own",
        description="Train both towers by the paper's recipe: contrastive loss, LAMB (short runs: AdamW), "
        "warm-up, linear decay.",
    )
    if command == "train":
        from ..training.options import add_arguments

        add_arguments(train)
    for each in commands.choices.values():
        each.add_argument("--debug", action="store_true", help="show where in the code an error was raised")
    return parser, commands


def add_classify(commands) -> None:
    parser = commands.add_parser(
        "classify",
        help="which of these labels fits each picture?",
        description="Zero-shot classification: the probability of each label for each picture.",
        epilog=DRAWINGS,
    )
    parser.add_argument(
        "images", nargs="+", type=given, metavar="IMAGE_OR_FOLDER", help="pictures, or folders of them"
    )
    labels = parser.add_mutually_exclusive_group(required=True)
    labels.add_argument("--labels", nargs="+", type=unicode, metavar="LABEL", help="what a picture may show")
    labels.add_argument("--labels-file", metavar="FILE", help="a file with one label per line, instead")
    templates = parser.add_mutually_exclusive_group()
    templates.add_argument(
        "--template",
        action="append",
        type=unicode,
        metavar="TEXT",
        help="a text with {} in place of the label, such as 'a photo of a {}'; of several, the "
        "embeddings are averaged (default: the label alone)",
    )
    templates.add_argument(
        "--ensemble", action="store_true", help="average over the 15 templates that come with the program"
    )
    parser.add_argument("--top", type=count, metavar="K", help="only the K likeliest labels (default: all)")
    add_model_arguments(parser)
    output = add_output_arguments(parser)
    output.add_argument(
        "--csv", action="store_true", help="print one line per picture and label, with commas"
    )


def add_search(commands) -> None:
    parser = commands.add_parser(
        "search",
        help="find pictures in a folder by words, by a picture, or by both",
        description="Find the pictures most similar to a text, to a picture, or to a picture plus or minus a "
        "text. The pictures of the folder are embedded once; later calls embed only what has changed.",
        epilog=DRAWINGS,
    )
    inside = "its pictures, and those of all folders in it"
    parser.add_argument("folder", type=given, metavar="FOLDER", help=inside)
    parser.add_argument(
        "queries", nargs="*", type=unicode, metavar="QUERY", help="texts, each of which is answered by itself"
    )
    parser.add_argument("--image", metavar="REF", help="a picture to search with; texts are added to it")
    parser.add_argument(
        "--minus", type=unicode, metavar="TEXT", help="a text that is subtracted from the query"
    )
    weight = "the weight of texts beside a picture, whose weight is 1 (default: 2, as in the paper)"
    parser.add_argument("--text-weight", type=text_weight, default=2.0, metavar="W", help=weight)
    parser.add_argument(
        "--top", type=count, default=10, metavar="K", help="how many pictures per query (default: 10)"
    )
    kept = "where to keep the embeddings (default: in the cache)"
    parser.add_argument("--index", type=given, metavar="DIR", help=kept)
    add_model_arguments(parser)
    add_output_arguments(parser)


def add_evaluate(commands) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="how often is the right text, picture or label found?",
        description="Measure retrieval: R@1, R@5 and R@10, from picture to text and from text to picture. "
        "With --zero-shot, measure classification: top-1, top-5 and the accuracy of each class.",
    )
    pairs = "folders with metadata.jsonl or metadata.csv (file_name, text), or a .txt beside each picture; "
    pairs += "WebDataset tar shards; for --zero-shot folders with metadata (file_name, label or text), or "
    pairs += "with a folder for each class"
    parser.add_argument("data", nargs="+", type=given, metavar="DATA", help=pairs)
    labels = "the classes: a file with one label per line, or CLASS<tab>LABEL if DATA names a class otherwise"
    parser.add_argument("--zero-shot", metavar="LABELS", help=labels)
    ensemble = "with --zero-shot, average over the templates that come with the program"
    parser.add_argument("--ensemble", action="store_true", help=ensemble)
    add_model_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def add_demo(commands) -> None:
    parser = commands.add_parser(
        "demo",
        help="zero-shot classification in the browser",
        description="Serve a page: drop a picture, type labels, see a bar for each. Needs gradio.",
        epilog=DRAWINGS,
    )
    host = "who may use it: 127.0.0.1 is this machine only (default), 0.0.0.0 everybody in the network"
    parser.add_argument("--host", default="127.0.0.1", help=host)
    parser.add_argument("--port", type=port, default=7860, help="default: 7860")
    add_model_arguments(parser)


def add_trace(commands) -> None:
    parser = commands.add_parser(
        "trace",
        help="what each layer does to a picture and a text",
        description="Print the output shape, parameters, multiply-adds, mean and deviation of each layer.",
    )
    parser.add_argument("image", type=given, metavar="IMAGE")
    parser.add_argument("text", type=unicode, metavar="TEXT")
    depth = "show N levels of layers, each layer by itself (default: 2, the blocks of a stage together)"
    parser.add_argument("--depth", type=count, metavar="N", help=depth)
    add_model_arguments(parser)


def about_model(name: str) -> str:
    """A sentence about what a model can be asked; empty for a model that others have made.

    >>> about_model(SHIPPED)[:60], about_model("kakaobrain/align-base")
    ('The model that comes with the program knows drawings, such a', '')
    """
    return DRAWINGS if name == SHIPPED else ""


# ---- checks of single values -------------------------------------------------------------------------------


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


def text_weight(text: str) -> float:
    number = float(text)
    if not 0.001 <= number <= 1000:
        raise argparse.ArgumentTypeError(f"must be a number from 0.001 to 1000, not {text}")
    return number


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        type=given,
        default=SHIPPED,
        metavar="DIR_OR_NAME",
        help="a checkpoint: a folder, or a name such as kakaobrain/align-base (default: the one that "
        "comes with the program)",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps (default: cpu)")


def add_output_arguments(parser: argparse.ArgumentParser):
    """Add --html, and --json in a group of which only one flag may be given; returns the group."""
    parser.add_argument("--html", type=given, metavar="FILE", help="also write a page with thumbnails")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print one JSON document")
    return output
