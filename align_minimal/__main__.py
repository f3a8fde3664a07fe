"""The command line: `align-minimal`, or `python -m align_minimal`.

Results go to stdout; progress, warnings and one-line errors to stderr. Exit status: 0, 1 for bad data,
2 for bad usage.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

BATCH_SIZE = 32  # images through the model at a time


class Parser(argparse.ArgumentParser):
    """argparse, with errors on one line."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """The flags of all commands; those of `train` only for it: they come with PyTorch, which is slow."""
    parser = Parser(prog="align-minimal", description="ALIGN: pictures and words in one space.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    classify = commands.add_parser(
        "classify",
        help="which of these labels fits each picture?",
        description="Zero-shot classification: the probability of each label for each picture.",
    )
    classify.add_argument("images", nargs="+", metavar="IMAGE_OR_FOLDER", help="pictures, or folders of them")
    classify.add_argument("--labels", nargs="+", required=True, metavar="LABEL", help="what it may show")
    classify.add_argument(
        "--template",
        action="append",
        metavar="TEXT",
        help="a text with {} for the label, as 'a photo of a {}'; several are averaged (default: the label)",
    )
    add_model_arguments(classify)
    classify.set_defaults(run=run_classify)
    evaluate = commands.add_parser(
        "evaluate",
        help="how often is the right text, or picture, found?",
        description="Retrieval: R@1, R@5 and R@10 of pictures' texts, and of texts' pictures.",
    )
    pairs = "folders with metadata.jsonl or metadata.csv (file_name, text), or WebDataset tar shards"
    evaluate.add_argument("data", nargs="+", metavar="DATA", help=pairs)
    add_model_arguments(evaluate)
    evaluate.set_defaults(run=run_evaluate)
    train = commands.add_parser(
        "train",
        help="train a model on pairs of your own",
        description="Train both towers by the paper's recipe: contrastive loss, LAMB, warm-up, linear decay.",
    )
    if command == "train":
        from .train_options import add_arguments

        add_arguments(train)
        train.set_defaults(run=run_train)
    return parser


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    from .hub import weights_folder

    parser.add_argument(
        "--model",
        default=str(weights_folder() / "emoji"),
        metavar="DIR_OR_NAME",
        help="a checkpoint: a folder, or a name as kakaobrain/align-base (default: the one shipped)",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps (default: cpu)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def warn(message: str) -> None:
    from tqdm import tqdm

    tqdm.write(f"align-minimal: warning: {message}", file=sys.stderr)  # above the bar, if there is one


def find_images(arguments: list[str]) -> list[tuple[Path, bool]]:
    """(path, was it named) in the order given; folders are searched to the bottom, sorted.

    Raises ValueError for a folder without a picture. Hidden files and folders are passed over.
    """
    from PIL import Image

    suffixes = set(Image.registered_extensions())
    found: list[tuple[Path, bool]] = []
    for argument in arguments:
        path = Path(argument)
        if not path.is_dir():
            found.append((path, True))
            continue
        inside = [
            p
            for p in sorted(path.rglob("*"))
            if p.suffix.lower() in suffixes
            and p.is_file()
            and not any(part.startswith(".") for part in p.relative_to(path).parts)
        ]
        if not inside:
            raise ValueError(f"{path}: no picture in this folder")
        found += [(p, False) for p in inside]
    return found


def read_images(paths: Iterable[tuple[Path, bool]]) -> Iterator[tuple[Path, object]]:
    """Each readable picture; one that lies in a folder and cannot be read is skipped with a warning."""
    from .image_processor import load_image

    for path, named in paths:
        try:
            image = load_image(path)
        except (OSError, ValueError) as error:
            if named:
                raise
            warn(f"skipped: {error}")
            continue
        yield path, image


def batches(items: Iterator, size: int) -> Iterator[list]:
    """Lists of `size` items; the last may be shorter."""
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def check_device(name: str, parser: argparse.ArgumentParser) -> None:
    """A usage error unless this machine's PyTorch can put a tensor on the device called `name`."""
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        parser.error(f"--device {name}: {str(error).splitlines()[0]}")


def run_classify(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    from tqdm import tqdm

    from .model import AlignModel
    from .processor import AlignProcessor
    from .retrieval import ZeroShotClassifier, check_labels

    templates = args.template or ["{}"]
    try:
        check_labels(args.labels, templates)
    except ValueError as error:
        parser.error(str(error))
    check_device(args.device, parser)
    paths = find_images(args.images)
    for path, named in paths:  # the cheap mistakes first, before a model is loaded
        if named and not path.exists():
            raise FileNotFoundError(f"{path}: no such file")
    model = AlignModel.from_pretrained(args.model).to(args.device)
    classifier = ZeroShotClassifier(model, AlignProcessor.from_pretrained(args.model), args.labels, templates)
    results = []
    bar = tqdm(paths, unit="picture", leave=False, disable=len(paths) <= BATCH_SIZE)
    for batch in batches(read_images(bar), BATCH_SIZE):
        for (path, _), logits in zip(batch, classifier([image for _, image in batch]).cpu(), strict=True):
            scored = zip(args.labels, logits.softmax(-1).tolist(), logits.tolist(), strict=True)
            labels = [{"label": n, "probability": p, "logit": x} for n, p, x in scored]
            labels.sort(key=lambda entry: -entry["logit"])
            results.append({"image": str(path), "labels": labels})
    if not results:
        raise ValueError(f"{', '.join(args.images)}: no picture here could be read")
    if args.json:
        print(json.dumps({"model": args.model, "results": results}, indent=2))
    else:
        print_table(results)


def run_evaluate(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    from .data import Pairs
    from .model import AlignModel
    from .processor import AlignProcessor
    from .retrieval import evaluate, print_recall

    check_device(args.device, parser)
    pairs = Pairs(args.data)
    model = AlignModel.from_pretrained(args.model).to(args.device)
    result = evaluate(model, AlignProcessor.from_pretrained(args.model), pairs)
    if args.json:
        print(json.dumps({"model": args.model, **result}, indent=2))
    else:
        print_recall(result)


def run_train(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int | None:
    from .train import train

    check_device(args.device, parser)
    return train(args, parser)


def print_table(results: list[dict]) -> None:
    """A block a picture: label, probability, and a bar as long as it is likely."""
    for result in results:
        print(result["image"])
        width = max(len(entry["label"]) for entry in result["labels"])
        for entry in result["labels"]:
            bar = "█" * round(30 * entry["probability"])
            print(f"  {entry['label']:<{width}}  {entry['probability']:6.1%}  {bar}".rstrip())


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = build_parser(argv[0] if argv else None)
    args = parser.parse_args(argv)
    warnings.showwarning = lambda message, *_: warn(" ".join(str(message).split()))
    for stream in (sys.stdout, sys.stderr):  # a file name need not be valid Unicode, nor the terminal UTF-8
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = args.run(args, parser)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, say `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, ValueError) as error:
        rank = f"process {os.environ.get('RANK')}: " if os.environ.get("WORLD_SIZE", "1") != "1" else ""
        print(f"align-minimal: {rank}{' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("align-minimal: interrupted", file=sys.stderr)
        return 130
    return status or 0


if __name__ == "__main__":
    sys.exit(main())
