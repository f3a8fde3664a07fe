"""How the cost grows with the work: seconds and memory against images, resolution, tokens and pairs.

    python -m tests.lab.growth tests/lab/growth.png      # five minutes on two cores

It prints a table of slopes and draws two of its rows. On logarithmic axes a line's slope is the power with
which its cost grows: 1 is linear. It is fitted to the upper half of the sizes. Time is the median of three
calls; memory is what a call takes beyond what the process held before (as in tests/lab/benchmark.py). The
towers are of align-base's size. Their weights are random, which cost as much as trained ones.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from align_minimal import AlignConfig, AlignModel, contrastive_loss
from align_minimal.support.outputs import Batch
from align_minimal.training.command import INK, spread
from align_minimal.training.large_batch import backward_in_chunks
from align_minimal.training.step import PairEncoder, split
from align_minimal.using.retrieval import top_k
from tests.lab.benchmark import SIDE, peak_of, pixels_of, seconds
from tests.reference.parity import copy_to_hugging_face, healthy

IMAGES, PAIRS = f"images in a call ({SIDE} px)", "pairs in a training step (emoji preset)"
SIDES, TOKENS = "side of one image, pixels", "tokens in a text (8 texts)"
SEARCHED = "images searched (640 numbers each)"
DPI = 160
COLOURS = ("#c9a227", "#7aa6c2", "#2a7f62")  # Hugging Face, the clear path, the served one


@dataclass
class Line:
    """One way of doing the work: what it is called, and the cost of each size."""

    name: str
    sizes: list[int]
    call: Callable[[int], Callable[[], object]]  # size → what is measured
    seconds: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)

    def measure(self) -> None:
        for size in self.sizes:
            call = self.call(size)
            call()  # to warm up
            self.megabytes.append(peak_of(call))
            self.seconds.append(statistics.median(seconds(call) for _ in range(3)))
            print(f"{self.name}, {size}: {self.seconds[-1]:.3f} s, {self.megabytes[-1]:.0f} MB", flush=True)


def slope(sizes: list[int], costs: list[float]) -> float:
    """The power of the size that the cost follows, over the upper half of the sizes."""
    half = len(sizes) // 2
    return np.polyfit(np.log(sizes[half:]), np.log(np.maximum(costs[half:], 1e-9)), 1)[0]


def towers() -> tuple:
    """(theirs, the clear path, the served one), of align-base's size"""
    import transformers

    ours = healthy(AlignModel(AlignConfig.preset("b7_base")), sample=pixels_of(2)).eval()
    theirs = transformers.AlignModel(transformers.AlignConfig(**ours.config.to_dict()))
    return copy_to_hugging_face(ours, theirs), ours, ours.for_inference()


def works() -> Iterator[tuple[str, list[Line]]]:
    """(what is counted, a line for each way of doing the work)"""
    named = dict(zip(("Hugging Face", "AlignModel", "for_inference()"), towers(), strict=True))

    def image(model: AlignModel, batch: int, side: int) -> Callable:
        pixels = torch.rand(batch, 3, side, side)
        return lambda: model.get_image_features(pixel_values=pixels)

    def text(model: AlignModel, length: int) -> Callable:
        ids = torch.randint(1000, 30_000, (8, length))
        mask = torch.ones_like(ids)
        return lambda: model.get_text_features(input_ids=ids, attention_mask=mask)

    batches, sides, lengths = [1, 2, 4, 8, 16], [64, 128, 256, 384, 512], [8, 16, 32, 64, 128, 256, 512]
    yield IMAGES, [Line(n, batches, lambda b, m=m: image(m, b, SIDE)) for n, m in named.items()]
    yield SIDES, [Line(n, sides, lambda s, m=m: image(m, 1, s)) for n, m in named.items()]
    yield TOKENS, [Line(n, lengths, lambda t, m=m: text(m, t)) for n, m in named.items()]
    yield SEARCHED, [Line("top_k", [10**4, 10**5, 10**6], searching)]
    pairs = [32, 64, 128, 256, 512]
    whole, chunked = (lambda n, chunk=chunk: training(n, chunk) for chunk in (None, 32))
    yield PAIRS, [Line("the whole batch", pairs, whole), Line("--chunk 32", pairs, chunked)]


def searching(images: int) -> Callable:
    embeds, query = torch.rand(images, 640), torch.rand(1, 640)
    return lambda: top_k(query, embeds, 10)


def training(pairs: int, chunk: int | None) -> Callable:
    """Forward, loss and gradients."""
    encoder = PairEncoder(AlignModel(AlignConfig.preset("emoji")), "float32").train()
    ids = torch.randint(1000, 30_000, (pairs, 12))
    batch = Batch(
        pixel_values=torch.rand(pairs, 3, 64, 64), input_ids=ids, attention_mask=torch.ones_like(ids)
    )

    @torch.enable_grad()
    def step() -> None:
        encoder.zero_grad()
        if chunk is None:
            contrastive_loss(*encoder(batch)).backward()
        else:
            backward_in_chunks(encoder, split(Batch(**batch, names=[""] * pairs), chunk), contrastive_loss)

    return step


def print_table(measured: dict[str, list[Line]]) -> None:
    """The slopes, as README has them."""
    print("\n| the work grows by | | slope of time | slope of memory |\n| --- | --- | --- | --- |")
    for label, lines in measured.items():
        for line in lines:
            slopes = slope(line.sizes, line.seconds), slope(line.sizes, line.megabytes)
            print(f"| {label} | {line.name} | {slopes[0]:.2f} | {slopes[1]:.2f} |")


def draw_panel(axis, lines: list[Line], label: str, cost: str) -> None:
    """One cost of one work, on logarithmic axes."""
    from matplotlib.ticker import LogLocator

    for line, colour in zip(lines, COLOURS[-len(lines) :], strict=True):
        thick = 6 if line.name == "Hugging Face" else 2.5  # the next line may lie on it
        axis.loglog(line.sizes, getattr(line, cost), "o-", color=colour, lw=thick, ms=thick + 4)
    axis.set_xticks(lines[0].sizes, [f"{size:,}" for size in lines[0].sizes])
    axis.set_xlim(lines[0].sizes[0] * 0.85, lines[0].sizes[-1] * 4.5)  # room for the names
    axis.set_title(f"{cost} against {label}", loc="left", size=12, color=INK)
    axis.minorticks_off()
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:,g}")
    axis.tick_params(labelsize=11, colors=INK)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.3)


def name_lines(axis, lines: list[Line], cost: str) -> None:
    """Each line's name and slope at its right end, so that there is no legend to go back to."""
    ends = [(line.sizes[-1], getattr(line, cost)[-1]) for line in lines]
    heights = axis.transData.transform(ends)[:, 1].tolist()  # pixels
    for line, end, height, place in zip(lines, ends, heights, spread(heights, 0.5 * DPI), strict=True):
        text = f"{line.name}\nslope {slope(line.sizes, getattr(line, cost)):.1f}"
        offset = (12, (place - height) * 72 / DPI)  # points
        axis.annotate(text, end, offset, textcoords="offset points", va="center", color=INK, size=11)


def draw(measured: dict[str, list[Line]], path: Path) -> None:
    """Two plots, side by side: the time for images, the memory for pairs."""
    from matplotlib.figure import Figure  # here, as collecting the tests imports this file

    figure = Figure(figsize=(11, 4.6), dpi=DPI, layout="constrained")
    panels = list(zip(figure.subplots(1, 2), (IMAGES, PAIRS), ("seconds", "megabytes"), strict=True))
    for axis, label, cost in panels:
        draw_panel(axis, measured[label], label, cost)
    figure.draw_without_rendering()  # only then it is known where a line ends
    for axis, label, cost in panels:
        name_lines(axis, measured[label], cost)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("png", type=Path, help="where the picture goes")
    path = parser.parse_args().png
    torch.manual_seed(0)
    measured = {}
    with torch.no_grad():
        for label, lines in works():
            for line in lines:
                line.measure()
            measured[label] = lines
    print_table(measured)
    draw(measured, path)


if __name__ == "__main__":
    main()
