"""Draw README's picture: the samples, and what the shipped checkpoint says of each.

    pip install -e '.[train]'
    python weights/draw_readme.py weights/readme.png

The labels are the samples' file names, the same list for every picture.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a checkout without installing
from align_minimal import AlignModel, AlignProcessor
from align_minimal.support.image_files import load_image
from align_minimal.using.zero_shot import ZeroShotClassifier

SAMPLES = Path(__file__).resolve().parent / "samples"
COLUMNS, SHOWN, DPI = 4, 3, 160  # pictures in a row, labels under each, dots per inch
GROUPS = {  # suffix → what stands above these pictures
    ".png": "Drawings, the kind of picture that the shipped checkpoint knows (green: the right name)",
    ".jpg": "Photographs, a kind of picture that it has never seen",
}
INK, RIGHT, OTHER = "#1a1a1a", "#0b5d3b", "#d4d4d4"  # text and outlines, the right name's bar, the other bars
BAR, NUMBER = (0.41, 0.35), 0.99  # where a bar starts, how long 100 % is; where the number on its right ends


def classify(paths: list[Path]) -> tuple[list[str], Tensor]:
    """The labels, and for each picture the probability of each: (B, K)."""
    labels = [path.stem for path in paths]
    model, processor = AlignModel.from_pretrained("emoji"), AlignProcessor.from_pretrained("emoji")
    images = [load_image(path) for path in paths]
    return labels, ZeroShotClassifier(model, processor, labels)(images).softmax(-1)


def draw_answer(axis, labels: list[str], probabilities: Tensor, right: str) -> None:
    """The likeliest labels: name, bar, number. The right one's bar is green, and its name bold."""
    start, whole = BAR
    best = probabilities.topk(SHOWN)
    for y, (p, k) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
        is_right = labels[k] == right
        weight = "bold" if is_right else "normal"
        axis.barh(
            y, p * whole, left=start, height=0.7, color=RIGHT if is_right else OTHER, edgecolor=INK, lw=0.6
        )
        axis.text(start - 0.03, y, labels[k], ha="right", va="center", size=10, color=INK, weight=weight)
        axis.text(NUMBER, y, f"{p:.0%}", ha="right", va="center", size=10, color=INK, weight=weight)
    axis.set(xlim=(0, 1), ylim=(SHOWN - 0.3, -0.7))
    axis.axis("off")


def draw(path: Path) -> None:
    from matplotlib.figure import Figure  # here, so that --help needs no matplotlib

    groups = {title: sorted(SAMPLES.glob(f"*{suffix}")) for suffix, title in GROUPS.items()}
    paths = [picture for pictures in groups.values() for picture in pictures]
    labels, probabilities = classify(paths)
    rows = {title: -(-len(pictures) // COLUMNS) for title, pictures in groups.items()}
    figure = Figure(
        figsize=(9, 2.15 * sum(rows.values()) + 0.7), dpi=DPI, facecolor="white", layout="constrained"
    )
    parts = figure.subfigures(len(groups), height_ratios=list(rows.values()), hspace=0.04)
    answers = dict(zip(paths, probabilities, strict=True))
    for part, (title, pictures) in zip(parts, groups.items(), strict=True):
        part.suptitle(title, size=12, color=INK, x=0.01, ha="left", weight="bold")
        axes = part.subplots(2 * rows[title], COLUMNS, height_ratios=[2.1, 1.3] * rows[title])
        for axis in axes.flat:
            axis.axis("off")
        for i, picture in enumerate(pictures):
            top, bottom = axes[2 * (i // COLUMNS) : 2 * (i // COLUMNS) + 2, i % COLUMNS]
            top.imshow(load_image(picture))
            draw_answer(bottom, labels, answers[picture], picture.stem)
    figure.savefig(path, format="png", pil_kwargs={"optimize": True})


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("png", type=Path, help="where the picture goes; README shows weights/readme.png")
    draw(parser.parse_args(argv).png)


if __name__ == "__main__":
    main()
