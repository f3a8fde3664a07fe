"""Draw README's picture: the samples, and what the shipped checkpoint says of each.

    pip install -e '.[train]' && python weights/draw_readme.py

The labels are the samples' file names, for every picture the same list.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt

from align_minimal import AlignModel, AlignProcessor
from align_minimal.image_processor import load_image
from align_minimal.using.zero_shot import ZeroShotClassifier

HERE = Path(__file__).resolve().parent
COLUMNS, SHOWN = 4, 3  # pictures in a row, labels under each


def main() -> None:
    paths = sorted(p for p in (HERE / "samples").iterdir() if p.suffix in (".png", ".jpg"))
    labels = [path.stem.replace("_", " ") for path in paths]
    model, processor = AlignModel.from_pretrained("emoji"), AlignProcessor.from_pretrained("emoji")
    images = [load_image(path) for path in paths]
    probabilities = ZeroShotClassifier(model, processor, labels)(images).softmax(-1)  # (B, K)

    rows = -(-len(paths) // COLUMNS)
    figure, axes = plt.subplots(
        2 * rows, COLUMNS, figsize=(9, 2.9 * rows), height_ratios=[3, 1.2] * rows, layout="constrained"
    )
    for axis in axes.flat:
        axis.axis("off")
    for i, (image, row) in enumerate(zip(images, probabilities, strict=True)):
        top, bottom = axes[2 * (i // COLUMNS) : 2 * (i // COLUMNS) + 2, i % COLUMNS]
        top.imshow(image)
        best = row.topk(SHOWN)
        bottom.barh(range(SHOWN), best.values, color=["#2a7f62", "#b9cfc6", "#b9cfc6"])
        bottom.set(xlim=(0, 1), ylim=(SHOWN - 0.4, -0.6))
        for y, (p, k) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            bottom.text(0.02, y, f"{labels[k]}  {p:.0%}", va="center", fontsize=9)
    figure.savefig(HERE / "readme.png", dpi=80)


if __name__ == "__main__":
    main()
