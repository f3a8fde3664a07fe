"""What the tests of `train` share: 24 pairs, a model that learns them in seconds, and ways to run it."""

import json
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = ("red", "green", "blue", "white", "yellow", "magenta", "cyan", "black")
PLACES = {"left": (0, 6, 10, 17), "middle": (7, 6, 17, 17), "right": (13, 6, 23, 17)}
TEXTS = [f"{colour} {place}" for colour in COLOURS for place in PLACES]


def write_pairs(folder: Path, texts=TEXTS) -> Path:
    """An imagefolder of drawings, 24 × 24: a bar of that colour in that place, on grey."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, text in enumerate(texts):
        colour, place = text.split()
        image = Image.new("RGB", (24, 24), "gray")
        ImageDraw.Draw(image).rectangle(PLACES[place], fill=colour)
        image.save(folder / f"{i}.png")
        rows.append({"file_name": f"{i}.png", "text": text})
    write_metadata(folder, rows)
    return folder


def write_metadata(folder: Path, rows: list[dict]) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_config(path: Path, dropout: float = 0.1, size: int = 16, **more) -> Path:
    """Three blocks; dropout and drop-connect on, so that a resumed run has to draw them alike."""
    text = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    text |= dict(
        max_position_embeddings=16, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout
    )
    vision = dict(image_size=size, width_coefficient=0.5, depth_coefficient=1.0, hidden_dim=16)
    vision |= dict(kernel_sizes=[3, 3], in_channels=[32, 16], out_channels=[16, 32], strides=[1, 2])
    vision |= dict(num_block_repeats=[1, 2], expand_ratios=[1, 2], drop_connect_rate=dropout)
    content = dict(text_config=text, vision_config=vision, projection_dim=16, temperature_init_value=0.1)
    path.write_text(json.dumps(content | more))
    return path


def program(*argv, module: str = "align_minimal", torchrun: tuple = ()) -> list[str]:
    start = [sys.executable, "-m", "torch.distributed.run", *torchrun] if torchrun else [sys.executable]
    return [*start, "-m", module, *map(str, argv)]


def start(argv: list[str], **more) -> subprocess.Popen:
    env = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(argv, env=env, **pipes | more)


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def newest(out: Path) -> Path:
    return max((out / "checkpoints").glob("step-*"))


def same_bits(a: Path, b: Path) -> bool:
    """Do two runs' newest checkpoints hold the same files, byte for byte, and the same are at the top?"""
    names = ("model.safetensors", "optimizer.safetensors", "vocab.txt", "config.json")
    steps = newest(a).name == newest(b).name
    whole = all((newest(a) / name).read_bytes() == (newest(b) / name).read_bytes() for name in names)
    top = (a / "model.safetensors").read_bytes() == (newest(b) / "model.safetensors").read_bytes()
    return steps and whole and top
