"""Cost as the work grows: seconds and memory against batch, resolution, text length, images and pairs.

    python -m tests.lab.growth tests/lab/growth.png      # five minutes on two cores

Drawn on logarithmic axes; a line's slope there is the power with which its cost grows, fitted to its upper
half and written beside it: 1 is linear. Time is the median of three calls, memory what a call takes beyond
what the process held before (as in tests/lab/benchmark.py). The towers are of align-base's size, with random
weights, which cost as much as trained ones.
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
from align_minimal.training.large_batch import backward_in_chunks
from align_minimal.training.step import PairEncoder, split
from align_minimal.using.retrieval import top_k
from tests.lab.benchmark import SIDE, peak_of, pixels_of, seconds
from tests.reference.parity import copy_to_hugging_face, healthy


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


def panels() -> Iterator[tuple[str, list[Line]]]:
    """(what the horizontal axis counts, its lines)"""
    named = dict(zip(("Hugging Face", "AlignModel", "for_inference()"), towers(), strict=True))

    def image(model: AlignModel, batch: int, side: int) -> Callable:
        pixels = torch.rand(batch, 3, side, side)
        return lambda: model.get_image_features(pixel_values=pixels)

    def text(model: AlignModel, length: int) -> Callable:
        ids = torch.randint(1000, 30_000, (8, length))
        mask = torch.ones_like(ids)
        return lambda: model.get_text_features(input_ids=ids, attention_mask=mask)

    batches, sides, lengths = [1, 2, 4, 8, 16], [64, 128, 256, 384, 512], [8, 16, 32, 64, 128, 256, 512]
    yield (
        f"images a call ({SIDE} px)",
        [Line(n, batches, lambda b, m=m: image(m, b, SIDE)) for n, m in named.items()],
    )
    yield (
        "side of one image, pixels",
        [Line(n, sides, lambda s, m=m: image(m, 1, s)) for n, m in named.items()],
    )
    yield "tokens a text (8 texts)", [Line(n, lengths, lambda t, m=m: text(m, t)) for n, m in named.items()]
    yield "images searched (640 numbers each)", [Line("top_k", [10**4, 10**5, 10**6], searching)]
    pairs = [32, 64, 128, 256, 512]
    whole, chunked = (lambda n, chunk=chunk: training(n, chunk) for chunk in (None, 32))
    yield "pairs a step (emoji preset)", [Line("whole", pairs, whole), Line("--chunk 32", pairs, chunked)]


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


def draw(measured: list[tuple[str, list[Line]]], path: Path) -> None:
    import matplotlib.pyplot as plt  # here, as collecting the tests imports this file

    figure, axes = plt.subplots(2, len(measured), figsize=(4 * len(measured), 6.4), layout="constrained")
    for column, (label, lines) in zip(axes.T, measured, strict=True):
        for axis, cost, unit in zip(column, ("seconds", "megabytes"), ("seconds", "MB"), strict=True):
            for line in lines:
                costs = getattr(line, cost)
                axis.loglog(
                    line.sizes, costs, "o-", label=f"{line.name}: slope {slope(line.sizes, costs):.2f}"
                )
            axis.set(xlabel=label, ylabel=unit)
            axis.set_xticks(lines[0].sizes, [f"{size:,}" for size in lines[0].sizes], rotation=45)
            axis.minorticks_off()
            axis.legend(fontsize=8)
            axis.grid(alpha=0.3)
    figure.savefig(path, dpi=70)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("png", type=Path, help="where the picture goes")
    path = parser.parse_args().png
    torch.manual_seed(0)
    measured = []
    with torch.no_grad():
        for label, lines in panels():
            for line in lines:
                line.measure()
            measured.append((label, lines))
    draw(measured, path)


if __name__ == "__main__":
    main()
