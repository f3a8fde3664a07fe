"""What `train_emoji.py` learns from: pictures in memory, captions in pieces, and distortions.

Faster than the package for a set this small: all pictures are decoded once, into a file that is mapped into
memory, and each caption is cut into pieces once.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from align_minimal import AlignModel, AlignProcessor
from align_minimal.support.hub import write_atomically
from align_minimal.tokenizer import BertTokenizer
from align_minimal.training.batches import Prepare
from align_minimal.training.pairs import Pair, read_folder
from weights import ablations, prepare_emoji


def read_pairs(args: argparse.Namespace) -> tuple[list[Pair], list[Pair]]:
    """The emoji to learn from, and the noise."""
    held_out = next((f for f in prepare_emoji.FAMILIES if args.hold_out in f), (args.hold_out,))
    known = args.sets or [name for name in prepare_emoji.TRAINING if name not in prepare_emoji.ONE_COLOUR]
    sets = [name for name in known if name not in held_out]
    pairs = [pair for name in sets for pair in read_set(args.data / name, args.languages, args.halve)]
    noise = []
    if args.noise:
        noise = [pair for name in prepare_emoji.NOISE for pair in read_folder(args.noise / name)]
    if args.small:
        pairs = list(filter(ablations.used, pairs))
    return pairs, noise


def read_set(folder: Path, languages: list[str], halve: list[str]) -> list[Pair]:
    """Pairs with captions in English and `languages`; those of `halve` for half of the concepts only."""
    pairs = read_folder(folder)
    lines = (folder / "metadata.jsonl").read_text("utf-8").splitlines()
    for i, entry in enumerate(map(json.loads, lines)):
        texts = [
            text
            for language in languages
            if language not in halve or first_half(entry["concept"])
            for text in entry["world"].get(language, [])
        ]
        pairs[i] = dataclasses.replace(pairs[i], texts=(*pairs[i].texts, *texts))
    return pairs


def first_half(concept: str) -> bool:
    """Is it of the half of the concepts whose captions a language of --halve has? The same ones always."""
    return random.Random(f"half {concept}").random() < 0.5


class Pictures:
    """All pictures decoded once, as red, green, blue times alpha, and alpha: `pixels` (N, 4, R, R) uint8.

    They lie in a file beside the run, mapped into memory.
    """

    def __init__(self, pairs: list[Pair], processor: AlignProcessor, path: Path):
        self.pairs = pairs
        self.rows = {pair.name: row for row, pair in enumerate(pairs)}
        if not path.exists():
            prepare = Prepare(processor.image_processor, processor.tokenizer, augmentation="drawings")
            pixels = np.stack([prepare.pixels(pair).numpy() for pair in pairs])
            write_atomically(path, lambda temporary: save_array(temporary, pixels))
        self.pixels = np.load(path, mmap_mode="r")
        if len(self.pixels) != len(pairs):
            raise ValueError(f"{path}: {len(self.pixels)} pictures, where the data have {len(pairs)}")

    def digest(self) -> str:
        """Of the pictures' names, in order."""
        return hashlib.sha256("\n".join(pair.name for pair in self.pairs).encode()).hexdigest()

    def __call__(self, pairs: list[Pair]) -> Tensor:
        return torch.from_numpy(self.pixels[[self.rows[pair.name] for pair in pairs]])


def save_array(path: Path, array: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.save(file, array)


class Captions:
    """Texts → input_ids, each text cut into pieces once."""

    def __init__(self, tokenizer: BertTokenizer):
        self.tokenizer, self.known = tokenizer, {}

    def __call__(self, texts: list[str]) -> list[Tensor]:
        for text in texts:
            if text not in self.known:
                self.known[text] = self.tokenizer(text, truncation=True, max_length=32)["input_ids"]
        return [torch.tensor(self.known[text]) for text in texts]


def embed_texts(model: AlignModel, ids: list[Tensor], parts: int = 4) -> Tensor:
    """Text features in the order of `ids`, in parts of like length, as most captions are short. (B, D)"""
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    size, found = -(-len(ids) // parts), []
    for start in range(0, len(ids), size):
        padded = nn.utils.rnn.pad_sequence([ids[i] for i in order[start : start + size]], batch_first=True)
        found.append(model.get_text_features(padded, (padded != 0).long()))  # [PAD] is 0
    return torch.cat(found)[torch.tensor(order).argsort()]


def bumps(count: int, channels: int, knots: int, size: int, draw: torch.Generator) -> Tensor:
    """Smooth noise through knots × knots points of the standard normal. (count, channels, size, size)"""
    points = torch.empty(count, channels, knots, knots).normal_(generator=draw)
    return F.interpolate(points, (size, size), mode="bicubic", align_corners=True)


def turn_hues(rgb: Tensor, angle: Tensor) -> Tensor:
    """Colours turned about the axis of greys, by (B,) angles: red is green at 2π/3. (B, 3, H, W)"""
    cos, sin, third = angle.cos(), angle.sin() / 3**0.5, (1 - angle.cos()) / 3
    first = torch.stack([cos + third, third - sin, third + sin], dim=1)  # (B, 3): the matrix' first row
    matrix = torch.stack([first, first.roll(1, 1), first.roll(2, 1)], dim=1)  # (B, 3, 3), the others
    return torch.einsum("bij,bjhw->bihw", matrix, rgb)


def distort(
    pixels: Tensor,
    size: int,
    flip: Tensor,
    strength: float,
    draw: torch.Generator,
    *,
    bend: float = 0.0,
    turn: Tensor | None = None,
) -> Tensor:
    """`training.augment.distort` of a given strength: 1 as there, 0 for the picture as it is, over white.

    Another hand's, with `bend`: other proportions; and with `turn`: another light and other colours, whose
    hues turn where it is True. (B, 4, R, R) in [0, 255] → (B, 3, size, size) in [−1, 1].
    """
    count, s = len(pixels), strength

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(count, *shape).uniform_(low, high, generator=draw)

    angle = uniform(-0.35 * s, 0.35 * s)  # radians, about 20 degrees
    scale, stretch = uniform(1 - 0.2 * s, 1 + 0.25 * s), uniform(-0.12 * s, 0.12 * s).exp()
    cos, sin, shear = angle.cos() * scale, angle.sin() * scale, uniform(-0.15 * s, 0.15 * s)
    mirror = torch.where(flip, -1.0, 1.0)
    x_row = torch.stack([mirror * cos * stretch, shear - sin, uniform(-0.12 * s, 0.12 * s)], dim=1)
    y_row = torch.stack([mirror * sin, cos / stretch, uniform(-0.12 * s, 0.12 * s)], dim=1)
    grid = F.affine_grid(torch.stack([x_row, y_row], dim=1), [count, 4, size, size], align_corners=False)
    if bend:
        grid = grid + bend * s * bumps(count, 2, 4, size, draw).permute(0, 2, 3, 1)  # (B, size, size, 2)
    rgba = F.grid_sample(pixels.float() / 255, grid, align_corners=False)  # (B, 4, size, size), 0 outside

    if turn is not None:
        light = (0.25 * s * bumps(count, 1, 3, size, draw)).exp()
        colours, alpha = rgba.split([3, 1], dim=1)  # the colours times alpha
        rgba = torch.cat([(colours * light).minimum(alpha), alpha], dim=1)
    one = (1, 1, 1)
    background = torch.where(uniform(0, 1, *one) < 0.5 * s, uniform(0, 1, 3, 1, 1), 1.0)
    rgb = rgba[:, :3] + (1 - rgba[:, 3:]) * background  # (B, 3, size, size)
    if turn is not None:
        angle = torch.where(turn & (uniform(0, 1) < 0.5 * s), uniform(-1, 1), 0.0)  # radians
        rgb = turn_hues(rgb, angle).clamp(1e-4, 1) ** uniform(-0.5 * s, 0.5 * s, 3, 1, 1).exp()
    grey = rgb.mean(dim=1, keepdim=True)
    saturation = torch.where(uniform(0, 1, *one) < 0.1 * s, 0.0, uniform(1 - 0.5 * s, 1 + 0.5 * s, *one))
    rgb = grey + saturation * (rgb - grey)
    rgb = rgb * uniform(1 - 0.25 * s, 1 + 0.2 * s, 3, 1, 1) + uniform(-0.1 * s, 0.1 * s, *one)
    blurred = F.avg_pool2d(rgb, 3, stride=1, padding=1, count_include_pad=False)
    return torch.where(uniform(0, 1, *one) < 0.2 * s, blurred, rgb).clamp(0, 1) * 2 - 1
