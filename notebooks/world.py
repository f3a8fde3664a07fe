"""A small world to train on: coloured shapes in the corners of a picture, and what they are called.

    6 colours × 6 shapes × 4 places = 144 things; each picture of a thing differs in size, place and shade

Notebook 08 trains on it as it is, notebook 10 on captions that lie as captions on the web do.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {"red": (214, 39, 40), "green": (44, 160, 44), "blue": (31, 90, 200)}
COLOURS |= {"yellow": (240, 200, 20), "purple": (150, 60, 190), "black": (20, 20, 20)}
SHAPES = ("circle", "square", "triangle", "cross", "ring", "bar")
PLACES = {"top left": (10, 10), "top right": (28, 10), "bottom left": (10, 28), "bottom right": (28, 28)}
Thing = tuple[str, str, str]  # colour, shape, place

WORLD = [(c, s, p) for c in COLOURS for s in SHAPES for p in PLACES]
HELD_BACK = set(zip(COLOURS, SHAPES, strict=True))  # red circle, green square, …: never trained on
SEEN = [thing for thing in WORLD if thing[:2] not in HELD_BACK]
UNSEEN = [thing for thing in WORLD if thing[:2] in HELD_BACK]


def caption(thing: Thing) -> str:
    colour, shape, place = thing
    return f"a {colour} {shape} at the {place}"


def paint(pen: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float, fill: tuple) -> None:
    """One shape with its middle at (x, y) and a radius of r pixels."""
    if shape in ("circle", "ring"):
        pen.ellipse([x - r, y - r, x + r, y + r], fill if shape == "circle" else None, fill, round(r / 3))
    elif shape == "triangle":
        pen.polygon([x - r, y + r, x + r, y + r, x, y - r], fill)
    else:
        high = r if shape == "square" else r / 3
        pen.rectangle([x - r, y - high, x + r, y + high], fill)
        if shape == "cross":
            pen.rectangle([x - r / 3, y - r, x + r / 3, y + r], fill)


def draw(thing: Thing, rng: random.Random, side: int = 38, radius: tuple = (5, 7)) -> Image.Image:
    """A picture of side × side pixels. Of 38, training sees a crop of 32. A place not known is the middle."""
    colour, shape, place = thing
    x, y = (4 * (c + rng.uniform(-2, 2)) for c in PLACES.get(place, (19, 19)))  # drawn 4 times as large
    fill = tuple(max(0, min(255, c + rng.randint(-15, 15))) for c in COLOURS[colour])
    picture = Image.new("RGB", (152, 152), tuple(rng.randint(200, 255) for _ in range(3)))
    paint(ImageDraw.Draw(picture), shape, x, y, 4 * rng.uniform(*radius), fill)
    return picture.resize((side, side), Image.Resampling.BILINEAR)


def write(
    path: Path,
    things: list[Thing],
    copies: int,
    rng: random.Random,
    side: int = 38,
    radius: tuple = (5, 7),
) -> None:
    """An imagefolder: `copies` pictures of each thing, and metadata.jsonl, which says what each shows."""
    path.mkdir()
    with open(path / "metadata.jsonl", "w") as metadata:
        for thing in things:
            for i in range(copies):
                name, text = f"{'-'.join(thing)}-{i}.png", caption(thing)
                draw(thing, rng, side, radius).save(path / name)
                metadata.write(json.dumps({"file_name": name, "text": text, "concept": text}) + "\n")
