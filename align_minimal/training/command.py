"""`align-minimal train`: from the flags to a finished run, over one process or several.

align-minimal train DATA --out RUN
torchrun --nproc_per_node 2 -m align_minimal train DATA --out RUN
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..support.hub import read_json, write_atomically, write_json
from ..support.image_files import open_image
from ..using.retrieval import evaluate, print_recall
from .batches import batches
from .dataset import Pairs
from .filters import filter_pairs
from .loop import Trainer, steps_of
from .options import PAPER, TrainOptions, check_arguments, resolve
from .processes import keep_freed_memory, note_signals, processes
from .run_folder import BESIDE, Run, bests, checkpoints, locked, model_files
from .step import reason

if TYPE_CHECKING:
    from matplotlib.axes import Axes


INK, GREY = "#1a1a1a", "#595959"
CURVES = {  # what a panel shows: its lines, each with its key in metrics.jsonl, its name and its colour
    "loss (nats)": (
        ("log_n", "log N: chance", GREY),
        ("loss", "loss", "#2a7f62"),
        ("floor", "label smoothing's floor", GREY),
    ),
    "temperature": (("temperature", "temperature", "#7aa6c2"),),
    "learning rate": (("lr", "learning rate", "#c9a227"),),
}


def spread(places: Sequence[float], gap: float) -> list[float]:
    """The places, moved down where they would be less than `gap` below the next one above.

    >>> spread([10, 0, 9], 4)
    [10, 0, 6]
    """
    moved, above = list(places), float("inf")
    for i in sorted(range(len(places)), key=places.__getitem__, reverse=True):
        above = moved[i] = min(places[i], above - gap)
    return moved


def name_lines(axis: Axes, lines: Sequence[tuple[str, str, str]], last: Sequence[dict]) -> None:
    """Each line's name and last value at its right end; `last` is the last row, if there is one."""
    finite = ((key, name, row) for row in last for key, name, _ in lines if math.isfinite(row[key]))
    named = {name: (row["step"], row[key]) for key, name, row in finite}
    heights = [axis.transData.transform(end)[1] for end in named.values()]  # pixels
    point = axis.figure.dpi / 72  # in pixels
    for (name, end), height, place in zip(named.items(), heights, spread(heights, 14 * point), strict=True):
        offset, text = (8, (place - height) / point), f"{name} {end[1]:.3g}"
        axis.annotate(text, end, offset, textcoords="offset points", va="center", color=INK)


def draw_curves(run: Run) -> None:
    """`curves.png`: loss, temperature and learning rate by step; without matplotlib, a warning."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        warnings.warn("no curves.png: matplotlib is not installed", stacklevel=2)
        return
    names = ["step", *(name for lines in CURVES.values() for name, _, _ in lines)]
    rows = [row for row in run.metrics() if all(isinstance(row.get(n), (int, float)) for n in names)]
    figure = Figure(figsize=(9, 8), dpi=160, layout="constrained")
    axes = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1))
    for axis, (label, lines) in zip(axes, CURVES.items(), strict=True):
        for name, _, colour in lines:
            style = "--" if colour == GREY else "-"
            axis.plot([row["step"] for row in rows], [row[name] for row in rows], style, color=colour, lw=1.5)
        axis.set_ylabel(label, color=INK)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0)
        axis.grid(alpha=0.3)
        axis.tick_params(colors=INK)
    axes[-1].set_xlabel("step", color=INK)
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    figure.align_ylabels()
    figure.draw_without_rendering()  # only then it is known where a line ends
    for axis, lines in zip(axes, CURVES.values(), strict=True):
        name_lines(axis, lines, rows[-1:])
    write_atomically(run.out / "curves.png", lambda temporary: figure.savefig(temporary, format="png"))


def finish(trainer: Trainer) -> None:
    """Curves and R@K, beside the checkpoint."""
    if trainer.unreadable:
        warnings.warn(f"{len(trainer.unreadable)} images could not be read and were skipped", stacklevel=2)
    draw_curves(trainer.run)
    if trainer.evaluation is not None:
        result = evaluate(trainer.model.eval(), trainer.processor, trainer.evaluation)
        write_json(trainer.options.out / "evaluation.json", result)
        print_recall(result)
        if trainer.options.eval_every:
            trainer.keep_best(result)
            best = trainer.options.out / "best"
            step = read_json(best / "evaluation.json")["step"]
            print(f"align-minimal: the best model, of step {step}, is in {best}", file=sys.stderr)


def check_out(options: TrainOptions) -> None:
    """Refuse to train over a model or an earlier run, or into what is no folder.

    >>> from pathlib import Path
    >>> check_out(TrainOptions(data=[], out=Path("setup.cfg")))
    Traceback (most recent call last):
    ValueError: setup.cfg: not a folder
    """
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"{options.out}: not a folder")
    found, files = checkpoints(options.out), model_files(options.out)
    if options.resume and not found and files:
        raise ValueError(
            f"{options.out}: holds {files[0]}, but no checkpoint to resume from; give another --out"
        )
    if not options.resume and (found or files):
        raise ValueError(f"{options.out}: holds a model already; give --resume, or another --out")
    ours = found or (options.out / "run.lock").exists()
    foreign = [options.out / name for name in BESIDE if not ours and (options.out / name).exists()]
    # A best without a checkpoint is an older run's, unless the run was killed before its first one.
    if not (found or (ours and options.resume)):
        foreign += [path for path in bests(options.out) if path.exists()]
    if foreign:
        raise FileExistsError(f"{foreign[0]}: not of a run to go on with, so it is not replaced")


def begun_with(options: TrainOptions) -> TrainOptions:
    """Of a run that is resumed, what it began with in place of what was not given, however long it is now.

    >>> from pathlib import Path
    >>> begun_with(TrainOptions(data=[], out=Path("no such folder"), resume=True)).optimizer is None
    True
    """
    if options.resume and options.recipe == "auto":
        for folder in checkpoints(options.out):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                before = read_json(folder / "training.json")["options"]
                missing = [name for name in PAPER if getattr(options, name) is None]
                begun = {name: before[name] for name in missing if type(before[name]) is type(PAPER[name])}
                return dataclasses.replace(options, **begun)
    return options


def check_readable(pairs: Pairs) -> None:
    """ValueError if not one image can be read; the first that can ends the search.

    >>> from align_minimal.training.pairs import Pair
    >>> pairs = Pairs([])
    >>> pairs.label, pairs.pairs = "photos", [Pair("photos/1.png", b"", ("a cat",))]
    >>> check_readable(pairs)
    Traceback (most recent call last):
    ValueError: photos: no image can be read; photos/1.png: an empty file
    """
    first = None
    for pair in pairs.unread():
        try:
            open_image(pair.picture(), pair.name)
            return
        except (OSError, ValueError) as error:
            first = first or error
    raise ValueError(f"{pairs.label}: " + (f"no image can be read; {first}" if first else "no pairs in it"))


def prepare_data(options: TrainOptions) -> tuple[TrainOptions, Pairs, Pairs | None]:
    """The options, now complete, and the pairs to learn from and to evaluate on.

    What is wrong is an error now, not hours later.
    """
    pairs = Pairs(options.data)
    evaluation = Pairs(options.eval) if options.eval else None
    if options.filter:
        report = filter_pairs(pairs)
        if os.environ.get("RANK", "0") == "0":
            counts = "; ".join(f"{count:,} {what}" for what, count in report.items())
            print(f"align-minimal: filter: {counts}", file=sys.stderr)
    for some in (pairs, evaluation):
        if some is not None:
            check_readable(some)
    options = begun_with(options)
    options = resolve(options, steps_of(options, pairs, options.batch_size or PAPER["batch_size"]))
    first, _ = next(batches(pairs, options.batch_size, options.seed))
    if len(first) < int(os.environ.get("WORLD_SIZE", 1)):
        raise ValueError(f"{pairs.label}: batches of {len(first)}, less than a pair for each process")
    if len(first) < options.batch_size:
        what = f"batches of {len(first)} only, for want of pairs that differ"
        warnings.warn(f"{pairs.label}: {what}", stacklevel=2)
    return options, pairs, evaluation


def train(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int | None:
    """The command. Returns 128 + the signal's number if one ended it."""
    options = TrainOptions.from_flags(args)
    check_arguments(options, parser)
    check_out(options)
    options, pairs, evaluation = prepare_data(options)
    first = os.environ.get("RANK", "0") == "0"
    try:
        with locked(options.out) if first else contextlib.nullcontext(), processes(options.device) as group:
            check_out(options)  # again: another run may have come in between
            group.wait()
            keep_freed_memory()
            with note_signals() as received:
                trainer = Trainer(options, group, pairs, evaluation)
                trainer.begin()
                if first:
                    trainer.announce()
                group.wait()
                stopped = trainer.train(received)
            if first and stopped:
                name = signal.Signals(stopped).name
                print(f"align-minimal: stopped by {name}, saved step {trainer.step}", file=sys.stderr)
            elif first:
                finish(trainer)
    except RuntimeError as error:  # PyTorch's: no memory left, or another process is gone
        raise ValueError(f"{options.out}: {reason(error)}") from error
    return 128 + stopped if stopped else None
