"""The flags of `align-minimal train`, and what they set: one typed record, which the trainer reads.

What is None here, and was not given, is decided when the size of the data is known: see `resolve`.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..config import PRESETS
from ..support.terminal import given
from .augment import AUGMENTATIONS


@dataclass
class TrainOptions:
    """Every choice of a run, by the name of its flag (--batch-size is batch_size).

    >>> options = TrainOptions(data=["photos"], out=Path("run"), steps=500)
    >>> options.save_every, options.chunk
    (500, None)
    """

    data: list[str]
    out: Path
    # the model
    preset: str = "emoji"
    config: str | None = None
    init: str | None = None
    vocab: str | None = None
    vocab_size: int | None = None
    image_size: int | None = None
    freeze: str | None = None
    # the data
    augment: str = "paper"
    flip: bool = False
    filter: bool = False
    eval: list[str] | None = None
    eval_every: int | None = None
    workers: int = 0
    # the recipe
    recipe: str = "auto"
    steps: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    optimizer: str | None = None
    lr: float | None = None
    warmup: int | None = None
    weight_decay: float | None = None
    label_smoothing: float = 0.1
    temperature: float | None = None
    seed: int = 0
    # the run
    resume: bool = False
    save_every: int = 500
    keep: int = 3
    device: str = "cpu"
    precision: str = "float32"
    chunk: int | None = None
    tile: int | None = None

    @classmethod
    def from_flags(cls, args: argparse.Namespace) -> TrainOptions:
        """The flags that were given; the fields' own defaults for the rest."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{k: v for k, v in vars(args).items() if k in names and v is not None})


PAPER = dict(batch_size=256, optimizer="lamb", lr=1e-3, weight_decay=1e-5)
SHORT = dict(batch_size=64, optimizer="adamw", lr=1e-3, weight_decay=0.05)
TUNE = SHORT | dict(lr=1e-4)
EPOCHS, LEAST = 10, 2000  # what a run is long, and what one from nothing is at least, in steps
ENOUGH = 10_000  # steps of LAMB at 1e-3: as many as the paper's warm-up alone


def resolve(options: TrainOptions, steps: int) -> TrainOptions:
    """Fill in what was not given, for a run of so many `steps` of its own batch size, or else of 256 pairs.

    LAMB moves a weight by at most lr times its own norm in a step, whatever the gradient. A short run gets
    nowhere with that, and takes AdamW and smaller batches, which are more steps.

    >>> options = TrainOptions(data=["photos"], out=Path("run"), batch_size=32)
    >>> [resolve(options, steps).optimizer for steps in (60, 300_000)], resolve(options, 60).batch_size
    (['adamw', 'lamb'], 32)
    """
    short = options.recipe == "auto" and steps < ENOUGH
    chosen = (TUNE if options.init else SHORT) if short else PAPER
    if options.optimizer == "lamb":  # its rate and decay go with it, however short the run
        chosen = PAPER | dict(batch_size=chosen["batch_size"])
    missing = {name: value for name, value in chosen.items() if getattr(options, name) is None}
    return dataclasses.replace(options, recipe="short" if short else "paper", **missing)


def whole(low: int, high: int = 10**12) -> Callable[[str], int]:
    """A whole number of the command line.

    >>> whole(1)("7")
    7
    """

    def number(text: str) -> int:
        if int(text) < low:
            raise argparse.ArgumentTypeError(f"{text} is not at least {low}")
        if int(text) > high:
            raise argparse.ArgumentTypeError(f"{text:.40} is more than {high:,}")
        return int(text)

    return number


positive, count = whole(1), whole(0)


def share(text: str) -> float:
    number = float(text)
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return number


def at_least_zero(text: str) -> float:
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 up")
    return number


def temperature(text: str) -> float:
    number = at_least_zero(text)
    if not number:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    if not 1e-6 <= number <= 1e6:
        raise argparse.ArgumentTypeError(f"{text} is not from 0.000001 to 1,000,000")
    return number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All flags of `train`, in four groups."""
    pairs = "folders with metadata.jsonl or metadata.csv (file_name, text), or a .txt beside each picture; "
    pairs += "WebDataset tar shards"
    parser.add_argument("data", nargs="+", type=given, metavar="DATA", help=pairs)
    add_model_arguments(parser.add_argument_group("the model"))
    add_data_arguments(parser.add_argument_group("the data"))
    add_recipe_arguments(parser.add_argument_group("the recipe"))
    add_run_arguments(parser.add_argument_group("the run"))


def add_model_arguments(group) -> None:
    model = group.add_mutually_exclusive_group()
    model.add_argument("--preset", choices=PRESETS, help="its size (default: emoji)")
    model.add_argument("--config", type=given, metavar="FILE", help="a config.json instead of a preset")
    tune = "fine-tune this checkpoint, with its vocabulary"
    model.add_argument("--init", type=given, metavar="DIR_OR_NAME", help=tune)
    vocab = group.add_mutually_exclusive_group()
    pieces = "word pieces to learn at most (30522)"
    vocab.add_argument("--vocab-size", type=positive, metavar="N", help=pieces)
    instead = "a vocab.txt, instead of learning one from the texts"
    vocab.add_argument("--vocab", type=given, metavar="FILE", help=instead)
    side = "height and width of the pictures it sees (default: the preset's or checkpoint's)"
    group.add_argument("--image-size", type=positive, metavar="PIXELS", help=side)
    frozen = "a tower that stays as it is, of --init: only the other one learns"
    group.add_argument("--freeze", choices=("image", "text"), help=frozen)


def add_data_arguments(group) -> None:
    add = group.add_argument
    crops = "random crops, the paper's (default), or more of everything, for drawings"
    add("--augment", choices=AUGMENTATIONS, help=crops)
    add("--flip", action="store_true", help="mirror half of the pictures, at random")
    add("--filter", action="store_true", help="drop pictures and texts as the paper does, and say how many")
    at_end = "measure R@1, R@5 and R@10 on these pairs at the end"
    add("--eval", nargs="+", type=given, metavar="DATA", help=at_end)
    every = "measure on --eval every N steps too, and keep the best model in OUT/best"
    add("--eval-every", type=positive, metavar="N", help=every)
    add("--workers", type=whole(0, 1000), metavar="N", help="extra processes that read pictures (0: none)")


def add_recipe_arguments(group) -> None:
    length = group.add_mutually_exclusive_group()
    length.add_argument("--steps", type=positive, metavar="N", help="how many batches to learn from")
    epochs = "or how many times to see each pair (10; without --init at least 2,000 steps)"
    length.add_argument("--epochs", type=positive, metavar="N", help=epochs)
    add = group.add_argument
    recipe = "paper: LAMB at 1e-3, decay 1e-5, batches of 256. auto (default): the same for 10,000 steps or "
    recipe += "more; for fewer, AdamW at 1e-3 (with --init 1e-4), decay 0.05, batches of 64"
    add("--recipe", choices=("auto", "paper"), help=recipe)
    add("--batch-size", type=positive, metavar="N", help="pairs a step, over all processes (see --recipe)")
    add("--optimizer", choices=("lamb", "adamw"), help="the paper's LAMB, or AdamW (see --recipe)")
    add("--lr", type=at_least_zero, metavar="RATE", help="the highest learning rate (see --recipe)")
    add("--warmup", type=count, metavar="N", help="steps that lead up to it (a tenth, at most 10,000)")
    decay = "pull of the weights towards 0, but not BatchNorm's (see --recipe)"
    add("--weight-decay", type=at_least_zero, metavar="RATE", help=decay)
    smoothing = "how much of each target is spread over the whole batch (0.1)"
    add("--label-smoothing", type=share, metavar="SHARE", help=smoothing)
    fixed = "hold the temperature at this, as in table 8, instead of learning it"
    add("--temperature", type=temperature, metavar="SIGMA", help=fixed)
    seed = whole(-(2**63), 2**63 - 1)
    add("--seed", type=seed, metavar="N", help="another number, other random choices (0)")


def add_run_arguments(group) -> None:
    add = group.add_argument
    about = "folder for the model and all about the run"
    add("--out", type=lambda text: Path(given(text)), required=True, metavar="DIR", help=about)
    add("--resume", action="store_true", help="go on from the newest whole checkpoint in --out")
    add("--save-every", type=positive, metavar="N", help="steps between checkpoints (500)")
    add("--keep", type=positive, metavar="K", help="how many checkpoints to keep (3)")
    add("--device", default="cpu", help="cpu, cuda or mps (default: cpu)")
    towers = "of the towers; the loss is always float32 (float32)"
    add("--precision", choices=("float32", "bf16"), help=towers)
    chunk = "pairs in memory at a time: the batch can then be of any size (default: all of it)"
    add("--chunk", type=positive, metavar="N", help=chunk)
    tile = "compute the loss in N by N blocks, never the whole table of scores (default: whole)"
    add("--tile", type=positive, metavar="N", help=tile)


def check_arguments(options: TrainOptions, parser: argparse.ArgumentParser) -> None:
    """Usage errors that argparse does not see."""
    if options.init and (options.vocab or options.vocab_size):
        parser.error("--vocab and --vocab-size: not with --init, which brings its own vocabulary")
    if options.freeze and not options.init:
        parser.error("--freeze: a tower of what? give --init")
    if options.eval_every and not options.eval:
        parser.error("--eval-every: give --eval, too")
    size = options.batch_size or SHORT["batch_size"]
    if size < int(os.environ.get("WORLD_SIZE", 1)):
        parser.error(f"--batch-size {size}: less than a pair for each process")
