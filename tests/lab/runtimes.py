"""for_inference() beside the runtimes that a user would pick for a CPU: onnxruntime and OpenVINO.

    pip install -e '.[bench]'
    python -m tests.lab.benchmark --runtimes            # a quarter of an hour, most of it the export
    python -m tests.lab.benchmark --runtimes image-1    # one row
    python -m tests.lab.benchmark --runtimes --busy     # while another process keeps one core busy

All of them hold the same weights (`tests.lab.benchmark` makes them) and run in one process in turns, with as
many threads as PyTorch. Each gets the input that suits it best: texts are padded to the longest only. A pause
after each call lets its threads fall asleep, which would otherwise take time from the next side.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from align_minimal import AlignModel, AlignProcessor
from tests.reference.parity import relative_error

PAUSE = 0.05  # seconds
HEAD = (
    "| work (2 cores) | Hugging Face | onnxruntime | OpenVINO | ours | ratio to the faster runtime | error |"
)


class Pooled(nn.Module):
    """What is compared of a tower: pixels (B, 3, H, W) → (B, C); ids, mask (B, T) → [CLS] (B, H)."""

    def __init__(self, tower: nn.Module):
        super().__init__()
        self.tower = tower

    def forward(self, *inputs: Tensor) -> Tensor:
        output = self.tower(*inputs)
        return output.pooler_output if len(inputs) == 1 else output.last_hidden_state[:, 0]


def export(tower: nn.Module, inputs: tuple[Tensor, ...], path: Path) -> None:
    """Write the tower as an ONNX file, for inputs of these shapes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = [f"input{i}" for i in range(len(inputs))]
        torch.onnx.export(Pooled(tower), inputs, path, input_names=names, dynamo=True, verbose=False)


def in_onnxruntime(path: Path, inputs: tuple[Tensor, ...]) -> Callable[[], Tensor]:
    """A call of the exported tower. onnxruntime computes in float32 on CPUs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = {f"input{i}": x.numpy() for i, x in enumerate(inputs)}
    return lambda: torch.from_numpy(session.run(None, given)[0])


def in_openvino(path: Path, inputs: tuple[Tensor, ...], dtype: torch.dtype) -> Callable[[], Tensor]:
    """A call of the exported tower that computes in this precision."""
    import openvino

    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = openvino.Core().compile_model(str(path), "CPU", options)
    given = [x.numpy() for x in inputs]
    return lambda: torch.from_numpy(compiled(given)[0].copy())


@dataclass
class Row:
    """One line of the table: a tower, its input, and the precision."""

    label: str
    tower: str  # its name in AlignModel
    count: int
    dtype: torch.dtype = torch.float32
    runs: int = 7


ROWS = {
    "image-1": Row("image tower, 1 image, float32", "vision_model", 1, runs=15),
    "image-1-bf16": Row("image tower, 1 image, bfloat16", "vision_model", 1, torch.bfloat16, 15),
    "image-8": Row("image tower, 8 images, float32", "vision_model", 8, runs=5),
    "image-8-bf16": Row("image tower, 8 images, bfloat16", "vision_model", 8, torch.bfloat16, 5),
    "text": Row("text tower, 32 captions, float32", "text_model", 32),
    "text-bf16": Row("text tower, 32 captions, bfloat16", "text_model", 32, torch.bfloat16),
}


def sides(row: Row, model: AlignModel, theirs: nn.Module, inputs: tuple, path: Path) -> dict[str, Callable]:
    """A call for each column of the table; onnxruntime has none in bfloat16."""
    ours = Pooled(getattr(model.for_inference(row.dtype), row.tower))
    theirs = Pooled(theirs.to(row.dtype))
    cast = [x.to(row.dtype) if x.is_floating_point() else x for x in inputs]
    calls = {"Hugging Face": lambda: theirs(*cast)}
    if row.dtype == torch.float32:
        calls["onnxruntime"] = in_onnxruntime(path, inputs)
    return calls | {"OpenVINO": in_openvino(path, inputs, row.dtype), "ours": lambda: ours(*inputs)}


def measure(calls: dict[str, Callable[[], Tensor]], runs: int) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Median seconds of each side over runs in turns, the first of which warms up; and what each returned."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    results = {}
    for _ in range(runs + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            results[name] = call()
            spent[name].append(time.perf_counter() - start)
            time.sleep(PAUSE)
    return {name: statistics.median(times[1:]) for name, times in spent.items()}, results


def line(label: str, spent: dict[str, float], error: float) -> str:
    """A row of the table, in milliseconds.

    >>> line("a tower", {"onnxruntime": 0.2, "OpenVINO": 0.3, "ours": 0.1}, 3e-6)
    '| a tower |  | 200 ms | 300 ms | 100 ms | **2.00×** | 3e-06 |'
    """
    cells = [
        f"{1e3 * spent[name]:.0f} ms" if name in spent else ""
        for name in ("Hugging Face", "onnxruntime", "OpenVINO", "ours")
    ]
    faster = min(spent[name] for name in ("onnxruntime", "OpenVINO") if name in spent)
    return "| " + " | ".join([label, *cells, f"**{faster / spent['ours']:.2f}×**", f"{error:.0e}"]) + " |"


def inputs_of(tower: str, count: int, folder: Path) -> tuple[Tensor, ...]:
    """Pixels (count, 3, 289, 289), or ids and mask (count, the longest)."""
    from tests.lab.benchmark import captions, pixels_of  # which imports this file

    if tower == "vision_model":
        return (pixels_of(count),)
    texts = AlignProcessor.from_pretrained(folder)(text=captions(count), return_tensors="pt", padding=True)
    longest = int(texts.attention_mask.sum(1).max())
    return texts.input_ids[:, :longest].contiguous(), texts.attention_mask[:, :longest].contiguous()


def missing() -> list[str]:
    """What of the extra `bench` is not installed."""
    return [name for name in ("onnx", "onnxscript", "onnxruntime", "openvino") if not find_spec(name)]


@contextlib.contextmanager
def a_busy_core(wanted: bool = True) -> Iterator[None]:
    """Meanwhile another process keeps one core busy, if that is wanted."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if wanted else None
    try:
        yield
    finally:
        if process:
            process.kill()
            process.wait()


def compare(names: list[str], folder: Path, exports: Path, busy: bool = False) -> None:
    """Print the table. Weights and settings come from `folder`; a tower that `exports` lacks is exported."""
    import transformers

    print(HEAD, "| " + " | ".join(["---"] * (HEAD.count("|") - 1)) + " |", sep="\n", flush=True)
    for row in (ROWS[name] for name in names):
        model = AlignModel.from_pretrained(folder).eval().requires_grad_(False)
        theirs = transformers.AlignModel.from_pretrained(folder).eval()
        inputs, path = inputs_of(row.tower, row.count, folder), exports / f"{row.tower}-{row.count}.onnx"
        if not path.exists():
            export(getattr(model, row.tower), inputs, path)
        with torch.inference_mode(), a_busy_core(busy):
            expected = Pooled(getattr(model, row.tower))(*inputs)  # in float32
            spent, found = measure(sides(row, model, getattr(theirs, row.tower), inputs, path), row.runs)
        print(line(row.label, spent, relative_error(found["ours"], expected)), flush=True)
