"""What flowed through the lines of the ten files when the shipped checkpoint looked at the apple.

The book (book.py) shows it beside the code. A function is noted the first time it runs; MBConv's `forward`
twice: in the first block, which does not expand, and in the first that does.
"""

from __future__ import annotations

import ast
import base64
import html
import io
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from align_minimal import AlignModel, AlignProcessor
from align_minimal.support.image_files import load_image

ROOT = Path(__file__).resolve().parent.parent
TEN = ["config", "wordpiece", "tokenizer", "image_processor", "processor"]
TEN += ["efficientnet", "bert", "contrastive", "model", "checkpoint"]
PATHS = {str(ROOT / "align_minimal" / f"{name}.py"): name for name in TEN}
SHOWN = ("forward", "contrastive_loss")  # the functions that are shown line by line

# (file, first line of a statement) → the module whose it was → what the statement gave, by name
Flow = dict[tuple[str, int], dict[str, dict[str, Tensor]]]


def statements(tree: ast.AST) -> Iterator[ast.stmt]:
    """The statements of every function that is shown line by line: `forward`, and the loss."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in SHOWN:
            yield from (n for n in ast.walk(node) if isinstance(n, ast.stmt) and n is not node)


def tensors(name: str, value: Any) -> list[tuple[str, Tensor]]:
    """The tensors in a value, by name: of a tuple or an output each one."""
    if isinstance(value, Tensor):
        return [(name, value)]
    if isinstance(value, (tuple, list)):
        return [pair for i, part in enumerate(value) for pair in tensors(f"{name}[{i}]", part)]
    named = value.items() if isinstance(value, Mapping) else ()
    return [pair for key, part in named for pair in tensors(f"{name}.{key}", part)]


class Tracer:
    """Notes, where a function runs for the first time, what each of its lines gave."""

    def __init__(self, model: torch.nn.Module):
        self.flow: Flow = {}
        self.modules = {id(module): name for name, module in model.named_modules()}
        self.seen: set[Any] = set()
        self.lines: dict[tuple[str, int], int] = {}  # each line of a statement → its first
        for path, name in PATHS.items():
            tree = ast.parse(Path(path).read_text(encoding="utf-8"))
            for statement in sorted(statements(tree), key=lambda s: s.lineno):  # the inner ones come later
                for line in range(statement.lineno, statement.end_lineno + 1):
                    self.lines[name, line] = statement.lineno

    def __call__(self, frame: FrameType, event: str, argument: Any):
        code, module = frame.f_code, frame.f_locals.get("self")
        name = PATHS.get(code.co_filename)
        run = code, getattr(module, "expand", None) is None  # a block that expands is another kind of block
        if name is None or code.co_name not in SHOWN or run in self.seen:
            return None
        self.seen.add(run)
        where = self.modules.get(id(module), "")
        before, at = dict(frame.f_locals), None

        def step(frame: FrameType, event: str, argument: Any):
            nonlocal before, at
            now = dict(frame.f_locals)
            if at is not None and (name, at) in self.lines:
                found = [p for k, v in now.items() if v is not before.get(k) for p in tensors(k, v)]
                if event == "return":
                    found += tensors("result", argument)
                known = self.flow.setdefault((name, self.lines[name, at]), {}).setdefault(where, {})
                known |= {k: v.clone() for k, v in found if k not in known}
            before, at = now, frame.f_lineno
            return step

        return step


@torch.inference_mode()
def traced() -> Flow:
    """What the lines gave when the shipped checkpoint looked at the apple and read "a red apple"."""
    model, processor = (c.from_pretrained(str(ROOT / "weights/emoji")) for c in (AlignModel, AlignProcessor))
    image = load_image(ROOT / "weights/samples/apple.png")
    batch = processor(text="a red apple", images=image, padding=True, return_tensors="pt")
    tracer, before = Tracer(model.eval()), sys.gettrace()
    sys.settrace(tracer)
    try:
        model(**batch, return_loss=True)
    finally:
        sys.settrace(before)
    return tracer.flow


# ---- as HTML


def thumbnail(x: Tensor) -> str:
    """The first eight maps of (1, C, H, W), or heads of (1, N, T, T), side by side, dark is low; else ""."""
    if x.ndim != 4 or x.shape[0] != 1 or min(x.shape[2:]) < 2 or not x.is_floating_point():
        return ""
    maps = x[0, :8].float()
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    grey = ((maps - low) / (high - low).clamp(min=1e-9) * 255).byte().numpy()
    tiles = np.concatenate([np.pad(tile, 1, constant_values=255) for tile in grey], axis=1)
    file = io.BytesIO()
    Image.fromarray(tiles).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="the first {len(grey)}, side by side" src="data:image/png;base64,{data}">'


def size(x: Tensor) -> str:
    return " × ".join(map(str, x.shape)) or "one number"


def described(name: str, x: Tensor) -> str:
    """Shape, mean, standard deviation and thumbnail of a tensor."""
    mean, deviation = x.double().mean().item(), x.double().std(correction=0).item()
    numbers = f"mean {mean:.4g}, standard deviation {deviation:.4g}"
    return f"<div class=flow><code>{html.escape(name)}</code>: {size(x)}, {numbers}{thumbnail(x)}</div>"


def shown(found: Mapping[str, Mapping[str, Tensor]]) -> str:
    """What flowed through a statement, folded: for each module in which it was noted, each tensor."""
    folded = []
    for where, values in found.items():
        if values:
            short = ", ".join(f"<code>{html.escape(k)}</code> {size(v)}" for k, v in list(values.items())[:2])
            place = f"in <code>{where}</code>" if where else ""
            head, inside = (f"{short}, {place}", "") if len(found) > 1 else (short, place)
            every = "".join(described(name, x) for name, x in values.items())
            inside = f"<div class=flow>{inside}</div>" if inside else ""
            folded.append(f"<details><summary>{head}</summary>{inside}{every}</details>")
    return "".join(folded)
