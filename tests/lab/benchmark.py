"""This package beside Hugging Face: the same weights and inputs, alternating runs, one table.

    python -m tests.lab.benchmark                       # the table of README.md here: a quarter of an hour
    python -m tests.lab.benchmark image-8 tokenizer     # some of its rows

Each row runs in a process of its own. Both sides run once to warm up; then their runs alternate, so that
whatever else the machine does slows both. The columns:

    ratio    the median of theirs / ours over the pairs of runs
    error    ‖ours − theirs‖ / ‖theirs‖ of what the two return
    limit    the time of the arithmetic alone at the rate of a large matrix product, or of the bytes at the
             rate of a copy; both rates are measured here too
    faults   pages of memory that the kernel had to map in one call
    peak     the memory that one call takes, in a process of its own
    last     the ratio if malloc may keep large blocks (MALLOC_MMAP_THRESHOLD_). That saves Hugging Face most
             of its faults, but hardly anybody sets it, so the first ratio is the one that counts

Theirs is the newest transformers in eager mode, the default install. The weights are random and healthy, of
align-base's size (`b7_base`); one side writes them and both load them.
"""

from __future__ import annotations

import argparse
import ast
import ctypes
import functools
import json
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from align_minimal import AlignConfig, AlignModel, AlignProcessor, BertTokenizer, EfficientNetImageProcessor
from align_minimal.checkpoint import hugging_face_key
from align_minimal.contrastive import contrastive_loss
from align_minimal.support.outputs import Batch
from align_minimal.training.step import PairEncoder
from align_minimal.using.trace import trace
from tests.lab import runtimes
from tests.reference.parity import copy_to_hugging_face, healthy, relative_error

TUNED = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
SIDE, TOKENS = 289, 64  # of align-base


@dataclass
class Work:
    """What both sides do; each function returns the tensor that is compared."""

    theirs: Callable[[], Tensor]
    ours: Callable[[], Tensor]
    limit: Callable[[], float] | None = None  # seconds; asked for last, so as to leave memory as it was
    pairs: int = 5
    rounded: Callable[[], Tensor] | None = None  # theirs once more, in ours' precision


# ---- what the machine can do


@functools.cache
def product_rate(dtype: torch.dtype) -> float:
    """Multiply-adds a second of a 2048 × 2048 × 2048 matrix product, the best of ten."""
    a, b = torch.rand(2, 2048, 2048).to(dtype)
    return 2048**3 / min(seconds(lambda: a @ b) for _ in range(10))


@functools.cache
def copy_rate() -> float:
    """Bytes a second, read or written, of a copy of 256 MB, the best of ten."""
    a, b = torch.rand(2, 2**26)
    return 2 * a.nbytes / min(seconds(lambda: b.copy_(a)) for _ in range(10))


def seconds(call: Callable) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def arithmetic(model: AlignModel, tower: str, batch: dict[str, Tensor]) -> float:
    """Multiply-adds of a tower for this batch, as `align-minimal trace` counts them."""
    return next(row.multiply_adds for row in trace(model, batch) if row.name == tower)


# ---- inputs


def photographs(count: int, size: tuple[int, int]) -> list[Image.Image]:
    """Smooth noise, `size` (height, width): as compressible, and as little uniform, as photographs are."""
    draw = np.random.default_rng(0)
    small = draw.integers(0, 256, (count, 24, 32, 3), np.uint8)
    return [Image.fromarray(x).resize(size[::-1], Image.Resampling.BICUBIC) for x in small]


def align_base_processor() -> EfficientNetImageProcessor:
    """Resize to 346, bilinear; keep the middle 289."""
    return EfficientNetImageProcessor(
        resample=Image.Resampling.BILINEAR, do_center_crop=True, include_top=False
    )


def pixels_of(images: int) -> Tensor:
    """(images, 3, 289, 289)"""
    return align_base_processor()(photographs(images, (480, 640)), return_tensors="pt").pixel_values


@functools.cache
def captions(count: int) -> list[str]:
    """Different runs of 3 to 16 words of real English, out of the standard library's docstrings."""
    draw, found = random.Random(0), {}
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("**/*.py")):
        if re.search("site-packages|test", str(path)):
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            words = ((documented and ast.get_docstring(node)) or "").split()
            while len(words) >= 3:
                length = draw.randint(3, 16)
                found[" ".join(words[:length])] = None
                words = words[length:]
    texts = [text for text in found if text.count(" ") >= 2 and re.fullmatch(r"[A-Za-z0-9 ,.;:'()-]+", text)]
    draw.shuffle(texts)
    if len(texts) < count:
        raise ValueError(f"only {len(texts)} captions in this Python's standard library")
    return texts[:count]


def unseen_words(count: int) -> list[str]:
    """As many captions of pronounceable words, none of which comes twice: remembering words does not help."""
    draw, seen = random.Random(0), set()

    def word() -> str:
        new = "".join(
            draw.choice("bcdfghjklmnprstvwz") + draw.choice("aeiouy") for _ in range(draw.randint(2, 5))
        )
        new += draw.choice(["", "s", "n", "r", "ng"])
        return word() if new in seen else seen.add(new) or new

    return [" ".join(word() for _ in range(draw.randint(3, 16))) for _ in range(count)]


# ---- the rows


def both(folder: Path) -> tuple:
    """(theirs, ours) from the same files."""
    import transformers

    return transformers.AlignModel.from_pretrained(folder).eval(), AlignModel.from_pretrained(folder).eval()


def both_processors(folder: Path) -> tuple:
    import transformers

    return transformers.AlignProcessor.from_pretrained(folder), AlignProcessor.from_pretrained(folder)


def image(folder: Path, images: int, dtype: torch.dtype = torch.float32, pairs: int = 5) -> Work:
    theirs, model = both(folder)
    ours, pixels = model.for_inference(dtype), pixels_of(images)
    one = {"pixel_values": pixels[:1], "input_ids": torch.ones(1, 2, dtype=torch.long)}
    return Work(
        lambda: theirs.vision_model(pixels).pooler_output,
        lambda: ours.vision_model(pixels).pooler_output,
        lambda: images * arithmetic(model, "vision_model", one) / product_rate(dtype),
        pairs,
        None
        if dtype == torch.float32
        else lambda: theirs.to(dtype).vision_model(pixels.to(dtype)).pooler_output,
    )


def text(folder: Path) -> Work:
    theirs, model = both(folder)
    ours, (_, processor) = model.for_inference(), both_processors(folder)
    batch = processor(text=captions(32), return_tensors="pt")
    mean_length = round(batch.attention_mask.sum().item() / len(batch.input_ids))
    one = {"pixel_values": torch.zeros(1, 3, 32, 32), "input_ids": batch.input_ids[:1, :mean_length]}
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return Work(
        lambda: theirs.text_model(**inputs).last_hidden_state[:, 0],
        lambda: ours.text_model(**inputs).last_hidden_state[:, 0],
        lambda: len(batch.input_ids) * arithmetic(model, "text_model", one) / product_rate(torch.float32),
    )


PADDED = dict(padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")


def tokenizer(folder: Path, texts: list[str], one_a_call: bool = False) -> Work:
    def encode(tokenizer) -> Tensor:
        if one_a_call:
            return torch.cat([tokenizer(text, **PADDED)["input_ids"] for text in texts])
        return tokenizer(texts, **PADDED)["input_ids"]

    theirs, ours = (processor.tokenizer for processor in both_processors(folder))
    return Work(lambda: encode(theirs), lambda: encode(ours))


def tokenizer_first_call(folder: Path, texts: list[str]) -> Work:
    """New tokenizers at every call, which have seen no word yet; making them is not timed."""
    encoded = {}

    def first_call(side: int) -> float:
        tokenizer = both_processors(folder)[side].tokenizer
        tokenizer("a text")
        start = time.perf_counter()
        encoded[side] = tokenizer(texts, **PADDED)["input_ids"]
        spent = time.perf_counter() - start
        if len(encoded) == 2 and not torch.equal(encoded[0], encoded[1]):
            raise ValueError("the ids differ")
        return spent

    return Work(lambda: first_call(0), lambda: first_call(1))


def pictures(folder: Path) -> Work:
    theirs, ours = (processor.image_processor for processor in both_processors(folder))
    images = photographs(32, (480, 640))
    return Work(
        lambda: theirs(images, return_tensors="pt")["pixel_values"],
        lambda: ours(images, return_tensors="pt").pixel_values,
    )


def end_to_end(folder: Path) -> Work:
    theirs, model = both(folder)
    ours, processors = model.for_inference(), both_processors(folder)
    images, texts = photographs(32, (480, 640)), captions(32)

    def logits(model, processor) -> Tensor:
        inputs = processor(text=texts, images=images, padding="max_length", return_tensors="pt")
        return model(**inputs).logits_per_image

    return Work(lambda: logits(theirs, processors[0]), lambda: logits(ours, processors[1]), pairs=3)


def training_step(folder: Path, longest: bool) -> Work:
    """128 pairs of the emoji preset: encode the texts, forward, loss, backward, AdamW.

    Theirs pads to 64 tokens, as its processor does; ours, as `align-minimal train`, to the longest, or
    (`longest` False) to 64 too, which leaves the models alone to differ: ours computes no padding.
    """
    import transformers

    torch.manual_seed(0)
    config, pixels = AlignConfig.preset("emoji"), torch.randn(128, 3, 64, 64)
    ours = healthy(AlignModel(config), sample=pixels)
    theirs = copy_to_hugging_face(ours, transformers.AlignModel(transformers.AlignConfig(**config.to_dict())))
    encoder = PairEncoder(ours, "float32")
    tokenizers, texts = [p.tokenizer for p in both_processors(folder)], captions(128)
    padding = True if longest else "max_length"
    optimizers = {id(m): torch.optim.AdamW(m.parameters(), lr=1e-6, fused=True) for m in (theirs, ours)}

    def learn(model, loss: Tensor, names: tuple[str, str]) -> Tensor:
        optimizers[id(model)].zero_grad()
        loss.backward()
        optimizers[id(model)].step()
        return torch.cat([model.get_parameter(name).grad.flatten() for name in names])

    def their_step() -> Tensor:
        ids = tokenizers[0](texts, **PADDED)
        loss = theirs.train()(pixel_values=pixels, return_loss=True, **ids).loss
        return learn(
            theirs, loss, (hugging_face_key("vision_model.stem.conv.weight"), "text_projection.weight")
        )

    def our_step() -> Tensor:
        ids = tokenizers[1](texts, **PADDED | {"padding": padding})
        loss = contrastive_loss(*encoder.train()(Batch(pixel_values=pixels, **ids)))
        return learn(ours, loss, ("vision_model.stem.conv.weight", "text_projection.weight"))

    return Work(their_step, our_step, pairs=7)


def loading(folder: Path) -> Work:
    """From disk (the files in the page cache) to a model, a number of each page of its weights looked at."""
    import transformers

    def touched(model: torch.nn.Module) -> Tensor:
        return sum(p.detach().flatten()[:: 4096 // 4].abs().sum() for p in model.parameters())

    size = (folder / "model.safetensors").stat().st_size
    return Work(
        lambda: touched(transformers.AlignModel.from_pretrained(folder)),
        lambda: touched(AlignModel.from_pretrained(folder)),
        lambda: 2 * size / copy_rate(),  # read and written once
    )


def importing(folder: Path) -> Work:
    """What `import` costs once PyTorch is there, each time in a new process."""

    def over_torch(package: str) -> float:
        code = f"""import time, torch
start = time.perf_counter()
from {package} import AlignModel, AlignProcessor
print(time.perf_counter() - start)"""
        return float(subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout)

    return Work(lambda: over_torch("transformers"), lambda: over_torch("align_minimal"))


ROWS: dict[str, tuple[str, Callable[[Path], Work]]] = {
    "image-8": ("image tower, 8 images of 289 px, float32", lambda at: image(at, 8)),
    "image-1": ("image tower, 1 image", lambda at: image(at, 1, pairs=15)),
    "image-8-bf16": (
        "image tower, 8 images, bfloat16 against their float32",
        lambda at: image(at, 8, torch.bfloat16),
    ),
    "text": ("text tower, 32 captions of 3 to 16 words, padded to 64 tokens", text),
    "tokenizer": (
        "tokenizer, 20,000 captions to padded tensors, parallel",
        lambda at: tokenizer(at, captions(20_000)),
    ),
    "tokenizer-1": ("tokenizer, one caption a call", lambda at: tokenizer(at, captions(1000), True)),
    "tokenizer-first": (
        "tokenizer, the first call of its life, 20,000 captions",
        lambda at: tokenizer_first_call(at, captions(20_000)),
    ),
    "tokenizer-new": (
        "the same, only words never seen before",
        lambda at: tokenizer_first_call(at, unseen_words(20_000)),
    ),
    "pictures": ("image processor, 32 pictures of 480 × 640", pictures),
    "end-to-end": ("processor + model, 32 pictures × 32 captions", end_to_end),
    "training": ("a training step of the emoji preset, 128 pairs", lambda at: training_step(at, True)),
    "training-64": ("the same, both padded to 64 tokens", lambda at: training_step(at, False)),
    "loading": ("loading align-base from disk", loading),
    "import": ("import, over `import torch`", importing),
}

# ---- measuring


def measure(work: Work) -> dict:
    """Seconds and page faults of both sides in turns, theirs first; medians, and the last error."""
    times: dict[str, list[float]] = {"theirs": [], "ours": []}
    faults, results = {}, {}
    for _ in range(work.pairs + 1):  # the first warms up
        for side, call in (("theirs", work.theirs), ("ours", work.ours)):
            before, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
            results[side] = call()
            spent = time.perf_counter() - start
            faults[side] = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
            own_clock = isinstance(results[side], float)
            times[side].append(results[side] if own_clock else spent)
    ratios = [theirs / ours for theirs, ours in zip(times["theirs"][1:], times["ours"][1:], strict=True)]
    found = {side: statistics.median(values[1:]) for side, values in times.items()}
    found |= {
        "ratio": statistics.median(ratios),
        "limit": work.limit and work.limit(),
        "faults": None if own_clock else faults,
    }
    if isinstance(results["ours"], Tensor):
        found["error"] = relative_error(results["ours"], results["theirs"])
    if work.rounded is not None:
        found["their_rounding"] = relative_error(work.rounded(), results["theirs"])
    return found


def peak_of(call: Callable) -> float:
    """MB that a call takes, its result included, beyond what the process held before it. Linux alone."""

    def status(name: str) -> int:
        return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])

    ctypes.CDLL(None).malloc_trim(0)  # what was freed but kept in the heap would hide what a call takes
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = status("VmRSS")
    result = call()  # noqa: F841  (kept until the end)
    return (status("VmHWM") - before) / 1024


def in_a_process(row: str, folder: Path, side: str | None = None, tuned: bool = False):
    """What `measure` finds of a row, or the memory that one side takes, in a process of its own."""
    command = [sys.executable, "-m", "tests.lab.benchmark", row, "--folder", str(folder)]
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "true", "TRANSFORMERS_VERBOSITY": "error"}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1"} | (TUNED if tuned else {})
    command += ["--peak", side] if side else []
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def prepare(folder: Path) -> None:
    """Weights of align-base's size, a vocabulary learnt from the captions, and both processors' settings."""
    torch.manual_seed(0)
    model = AlignModel(AlignConfig.preset("b7_base"))
    healthy(model, sample=pixels_of(4)).save_pretrained(folder)
    learnt = list(BertTokenizer.train(captions(20_000), 30_522).ids_to_tokens.values())
    # As BERT's own vocabulary has: a token for each row of the embedding.
    unused = [f"[unused{i}]" for i in range(30_522 - len(learnt))]
    AlignProcessor(align_base_processor(), BertTokenizer(learnt + unused)).save_pretrained(folder)


# ---- the table

HEAD = (
    "| work (2 cores) | theirs | ours | ratio | error | limit | faults | peak MB | ratio, large blocks kept |"
)


def in_words(found: dict, tuned: dict, peaks: dict[str, float]) -> list[str]:
    """A row's cells, but for the first."""

    def duration(value: float | None) -> str:
        return "" if value is None else f"{value:.2f} s" if value >= 0.1 else f"{1e3 * value:.1f} ms"

    error = f"{found['error']:.0e}" if "error" in found else ""
    if found.get("their_rounding"):
        error += f" (theirs in bfloat16: {found['their_rounding']:.0e})"
    faults = [f"{found['faults'][side]:,}" for side in peaks] if found["faults"] else []
    memory = [f"{peaks[side]:.0f}" for side in peaks] if found["faults"] else []
    return [
        duration(found["theirs"]),
        duration(found["ours"]),
        f"**{found['ratio']:.2f}×**",
        error if error != "0e+00" else "0",
        duration(found["limit"]),
        " → ".join(faults),
        " → ".join(memory),
        f"{tuned['ratio']:.2f}×",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help="which rows (default: all)")
    parser.add_argument("--folder", type=Path, help="measure one row here, on a checkpoint (used by itself)")
    parser.add_argument("--peak", choices=("theirs", "ours"), help="measure memory, of this side alone")
    parser.add_argument("--runtimes", action="store_true", help="beside onnxruntime and OpenVINO instead")
    parser.add_argument("--busy", action="store_true", help="with --runtimes: beside a process that is busy")
    args = parser.parse_args()
    known = runtimes.ROWS if args.runtimes else ROWS
    if unknown := set(args.rows) - set(known):
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if args.busy and not args.runtimes:
        parser.error("--busy needs --runtimes")
    if args.runtimes and (missing := runtimes.missing()):
        parser.error(f"{', '.join(missing)}: not installed (pip install -e '.[bench]')")
    if args.folder:
        work = ROWS[args.rows[0]][1](args.folder)
        with torch.inference_mode(not args.rows[0].startswith("training")):
            print(json.dumps(peak_of(getattr(work, args.peak)) if args.peak else measure(work)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        if args.runtimes:
            runtimes.compare(args.rows or list(known), folder, exports=folder, busy=args.busy)
            return
        print(HEAD, "| " + " | ".join(["---"] * (HEAD.count("|") - 1)) + " |", sep="\n", flush=True)
        for row in args.rows or ROWS:
            found, tuned = (in_a_process(row, folder, tuned=tuned) for tuned in (False, True))
            peaks = {side: in_a_process(row, folder, side) for side in ("theirs", "ours")}
            print("|", " | ".join([ROWS[row][0], *in_words(found, tuned, peaks)]), "|", flush=True)


if __name__ == "__main__":
    main()
