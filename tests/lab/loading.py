"""How fast pairs are read: the time to a resumed run's first batch, and pairs a second by workers.

    python -m tests.lab.loading                       # writes shards of small pictures, and removes them
    python -m tests.lab.loading shards/ --batch 256   # shards of your own
    python -m tests.lab.loading --photographs         # how fast JPEGs of 12 megapixels are decoded

Tables in Markdown. "resumed after" so many batches: the time to the next one.
Pairs a second: of all batches after the first, pictures prepared at 64 pixels. The plan alone, which is made
of headers and texts and shared by no worker, is the most that any number of workers could reach.
"""

from __future__ import annotations

import argparse
import io
import itertools
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from align_minimal import BertTokenizer
from align_minimal.support.image_files import load_image, open_image
from align_minimal.support.rgb import to_rgb
from align_minimal.training.augment import RESIZE
from align_minimal.training.batches import BatchStream, Position, Prepare, batches
from align_minimal.training.build import new_image_processor
from align_minimal.training.dataset import Pairs


def write_shards(folder: Path, shards: int, a_shard: int, side: int = 128) -> None:
    """Shards of JPEG noise, 128 × 128, of which there are 32 different pictures."""
    rng, pictures = np.random.default_rng(0), []
    for _ in range(32):
        file = io.BytesIO()
        noise = Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), np.uint8))
        noise.resize((side, side)).save(file, "JPEG", quality=95)
        pictures.append(file.getvalue())
    for number in range(shards):
        with tarfile.open(folder / f"{number:05}.tar", "w") as tar:
            for i in range(a_shard):
                text = f"picture {i} of shard {number}".encode()
                for suffix, content in (("jpg", pictures[i % len(pictures)]), ("txt", text)):
                    member = tarfile.TarInfo(f"{number:05}{i:05}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def stream(folder: Path, batch: int, workers: int = 0, **where) -> BatchStream:
    processor = new_image_processor(64, "paper")
    prepare = Prepare(processor, BertTokenizer.train(["picture of shard 0123456789"], 60))
    return BatchStream(Pairs([folder]), prepare, batch, seed=0, workers=workers, **where)


def first_batch(folder: Path, batch: int, after: int) -> float:
    """Seconds to the first batch of a run that resumes after so many. The plan alone leads there."""
    position = Position()
    if after:
        *_, (_, position) = itertools.islice(batches(Pairs([folder]), batch, 0), after)
    began = time.perf_counter()
    next(iter(stream(folder, batch, position=position, drawn=after)))
    return time.perf_counter() - began


def pairs_a_second(folder: Path, batch: int, workers: int, count: int) -> float:
    found = iter(stream(folder, batch, workers))
    next(found)
    began = time.perf_counter()
    for _ in itertools.islice(found, count):
        pass
    rate = batch * count / (time.perf_counter() - began)
    found.close()
    return rate


def plan_a_second(folder: Path, batch: int) -> float:
    """Pairs a second, over one epoch."""
    began = time.perf_counter()
    steps = itertools.takewhile(lambda step: step[1].epoch == 0, batches(Pairs([folder]), batch, 0))
    count = sum(len(pairs) for pairs, _ in steps)
    return count / (time.perf_counter() - began)


def photographs(rounds: int) -> int:
    """A table: 12 megapixels made small, decoded whole and, in turns, at a fraction, as in training."""
    file = io.BytesIO()
    noise = Image.effect_noise((4000, 3000), 60).convert("RGB")
    cat = load_image("weights/samples/cat.jpg").resize(noise.size)
    Image.blend(cat, noise, 0.2).save(file, "JPEG", quality=90)
    print(f"One JPEG of {len(file.getvalue()) / 2**20:.1f} MB.\n")
    print("| seen at | decoded whole, a second | as in training | ratio |\n| --- | --- | --- | --- |")
    for size in (64, 289):
        side, seconds = round(size * RESIZE), {None: [], 2 * round(size * RESIZE): []}
        for at_least in [*seconds] * rounds:
            began = time.perf_counter()
            to_rgb(open_image(file.getvalue(), "cat", at_least)).resize((side, side), 2)
            seconds[at_least].append(time.perf_counter() - began)
        whole, fraction = map(median, seconds.values())
        print(f"| {size} px | {1 / whole:.1f} | {1 / fraction:.1f} | {whole / fraction:.1f}× |")
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path, help="a folder of shards (default: 60 × 1,000)")
    parser.add_argument("--batch", type=int, default=64, help="default: 64")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many (default: 3)")
    parser.add_argument("--photographs", action="store_true", help="time decoding instead")
    args = parser.parse_args(argv)
    if args.photographs:
        return photographs(args.rounds)
    with tempfile.TemporaryDirectory() as made:
        folder = args.data or Path(made)
        if not args.data:
            write_shards(folder, 60, 1000)
        print("| resumed after | first batch |\n| --- | --- |")
        for after in (0, 100, 400, 800):
            seconds = median(first_batch(folder, args.batch, after) for _ in range(args.rounds))
            print(f"| {after} batches | {seconds:.2f} s |")
        print("\n| workers | pairs a second |\n| --- | --- |")
        for workers in args.workers:
            rate = median(pairs_a_second(folder, args.batch, workers, 50) for _ in range(args.rounds))
            print(f"| {workers} | {rate:,.0f} |")
        rate = median(plan_a_second(folder, args.batch) for _ in range(args.rounds))
        print(f"| the plan alone | {rate:,.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
