"""Bring your own layer: what a reader's class or function is put in the place of, and how it is judged.

    pytest --layer SqueezeExcite=my_file.py:MySE tests

replaces the package's block before the tests are imported, and runs those that concern it. Each block has an
example: its results on the smallest input that shows something, values first, then gradients. Where a test
fails, it tells what was expected and what came, and which known mistake (mutations.py) gives just that.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import importlib.util
import inspect
import re
import sys
import textwrap
import traceback
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from .break_it import ROOT, mutate
from .layer_examples import EXAMPLES
from .mutations import MUTATIONS, Mutation

PACKAGE = ROOT / "align_minimal"
PART = "model/test_efficientnet.py::test_part_equals"
TOWER = ("model/test_vision_tower.py::test_tower_equals", "model/test_vision_tower.py::test_live emoji")
ATTENTION, LAYER = "model/test_attention.py::", "model/test_bert.py::test_a_layer"
TEXT = (
    "model/test_bert.py::test_every_option absolute-plain",
    "model/test_bert.py::test_live absolute-plain",
)
PIXELS = ("inputs/test_image_processor.py::test_pixels_equal",)
MODEL = ("model/test_model.py::test_every_output", "model/test_model.py::test_live")
TEXTS = ("inputs/test_tokenizer.py::test_tokens_ids", "inputs/test_tokenizer.py::test_live")

# Block → its file, and the tests that concern it: how their names begin, and words in their parameters.
BLOCKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "lower": ("wordpiece", ("inputs/test_tokenizer.py::test_lower", *TEXTS)),
    "clean": ("wordpiece", TEXTS),
    "split_words": ("wordpiece", TEXTS),
    "wordpiece": ("wordpiece", ("inputs/test_tokenizer.py::test_greedy", *TEXTS)),
    "merge": ("training.vocabulary", ("inputs/test_tokenizer.py::test_counts",)),
    "best_pair": (
        "training.vocabulary",
        ("inputs/test_tokenizer.py::test_the_training", "inputs/test_tokenizer.py::test_rare"),
    ),
    "learn_pieces": (
        "training.vocabulary",
        tuple(
            f"inputs/test_tokenizer.py::test_{t}"
            for t in ("the_training", "rare", "counts", "training", "a_word")
        ),
    ),
    "truncate": (
        "support.batching",
        ("inputs/test_tokenizer.py::test_of_two", "inputs/test_tokenizer.py::test_padding_and"),
    ),
    "BertTokenizer": ("tokenizer", ("inputs/test_tokenizer.py::",)),
    "to_rgb": ("support.rgb", ("inputs/test_image_processor.py::test_every_pillow", *PIXELS)),
    "grey_to_bytes": (
        "support.rgb",
        ("inputs/test_image_processor.py::test_deep", "inputs/test_image_processor.py::test_every I"),
    ),
    "to_rgb_array": (
        "support.rgb",
        (
            "inputs/test_image_processor.py::test_arrays",
            "inputs/test_image_processor.py::test_the_channel",
            *PIXELS,
        ),
    ),
    "resize": ("image_processor", ("inputs/test_image_processor.py::test_tensors", *PIXELS)),
    "center_crop": (
        "image_processor",
        (
            "inputs/test_image_processor.py::test_of_an_odd",
            "inputs/test_image_processor.py::test_a_centre",
            *PIXELS,
        ),
    ),
    "EfficientNetImageProcessor": ("image_processor", ("inputs/test_image_processor.py::",)),
    "AlignProcessor": ("processor", ("inputs/test_processor.py::",)),
    "round_filters": (
        "efficientnet",
        (
            "model/test_efficientnet.py::test_filters",
            "model/test_efficientnet.py::test_b7",
            "model/test_efficientnet.py::test_parameter",
        ),
    ),
    "block_specs": (
        "efficientnet",
        tuple(
            f"model/test_efficientnet.py::test_{t}"
            for t in ("b7", "a_stage", "drop_connect_rate", "parameter")
        )
        + TOWER,
    ),
    "BatchNorm": (
        "efficientnet",
        ("model/test_efficientnet.py::test_batch_norm", f"{PART} embeddings", *TOWER),
    ),
    "ConvNorm": (
        "efficientnet",
        (
            "model/test_efficientnet.py::test_a_small",
            "model/test_efficientnet.py::test_a_kernel",
            "model/test_efficientnet.py::test_sides",
            PART,
            *TOWER,
        ),
    ),
    "SqueezeExcite": (
        "efficientnet",
        ("model/test_efficientnet.py::test_squeeze", f"{PART} squeeze_excite", *TOWER),
    ),
    "DropConnect": ("efficientnet", ("model/test_efficientnet.py::test_drop", *TOWER)),
    "MBConv": (
        "efficientnet",
        (
            "model/test_efficientnet.py::test_drop_connect_takes",
            "model/test_efficientnet.py::test_squeeze_width",
            PART,
            *TOWER,
        ),
    ),
    "AlignVisionModel": (
        "efficientnet",
        ("model/test_efficientnet.py::test_p", "model/test_vision_tower.py::"),
    ),
    "BertEmbeddings": ("bert", ("model/test_bert_embeddings.py::", *TEXT)),
    "SelfAttention": ("bert", (ATTENTION, *TEXT)),
    "FeedForward": ("bert", (LAYER, "model/test_bert.py::test_every_activation", *TEXT)),
    "BertLayer": ("bert", (LAYER, "model/test_bert.py::test_every_option", "model/test_bert.py::test_live")),
    "additive_mask": ("bert", (ATTENTION, "model/test_bert.py::test_every_option mask")),
    "layer_head_masks": ("bert", (ATTENTION, "model/test_bert.py::test_every_option head_mask")),
    "AlignTextModel": ("bert", ("model/test_bert.py::", "model/test_bert_embeddings.py::")),
    "contrastive_loss": ("contrastive", ("model/test_contrastive.py::", *MODEL)),
    "AlignModel": ("model", ("model/test_model.py::",)),
    "trust_ratio": ("training.lamb", ("training/test_lamb.py::test_t",)),
    "Lamb": ("training.lamb", ("training/test_lamb.py::",)),
    "parameter_groups": (
        "training.lamb",
        (
            "training/test_lamb.py::test_every",
            "training/test_lamb.py::test_frozen",
            "training/test_lamb.py::test_the_groups",
        ),
    ),
}
# A reader's block need not check its arguments, be saved, or do inside what ours does: not its business are
NOT_NUMERIC = re.compile(
    "error|refused|named|cannot_take|names_the_nearest|needs|missing|warning|wrong_with|says_so|pickle|process_whole"
    "|saved|saves|files_|png|animation|exif|upright|resumed|sparse|many_words"
)


@dataclass
class Replacement:
    """A reader's implementation of a block: `source` is FILE:NAME, `why` what the example says of it."""

    block: str
    source: str
    thing: Any
    why: str = ""


# ---- what the reader gave


def one_line(error: BaseException, path: Path) -> str:
    """The error, and the last line of `path` that led to it."""
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
    ]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    message = " ".join(str(getattr(error, "msg", error)).split())
    return f"{path.name}{f', line {line}' if line else ''}: {type(error).__name__}: {message}"


@functools.cache
def load_file(path: Path) -> ModuleType:
    """The reader's file as a module. pytest.UsageError in one line if it is missing or fails."""
    if not path.is_file():
        raise pytest.UsageError(f"--layer: {path}: no such file")
    spec = importlib.util.spec_from_file_location(f"readers_{zlib.crc32(bytes(path)):x}", path)
    if spec is None:
        raise pytest.UsageError(f"--layer: {path}: not a Python file")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look it up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise pytest.UsageError(f"--layer: {one_line(error, path)}") from None
    return module


def is_unwritten(node: ast.stmt) -> bool:
    """Is a function that does nothing but raise NotImplementedError (docstring aside) in this definition?"""
    for function in (n for n in ast.walk(node) if isinstance(n, ast.FunctionDef)):
        body = function.body[1:] if ast.get_docstring(function) else function.body
        if len(body) == 1 and isinstance(body[0], ast.Raise) and "NotImplementedError" in ast.dump(body[0]):
            return True
    return False


@functools.cache
def unwritten(path: Path) -> tuple[str, ...]:
    """The blocks that the reader's file defines, but whose bodies are still to be written."""
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    defined = [n for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name in BLOCKS]
    return tuple(node.name for node in defined if is_unwritten(node))


def nearest(name: str, known: Iterable[str], label: str) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f"; did you mean {near[0]}?" if near else f"; {label}"


def original(block: str) -> Any:
    return getattr(importlib.import_module(f"align_minimal.{BLOCKS[block][0]}"), block)


def read_options(options: Iterable[str]) -> list[Replacement]:
    """BLOCK=FILE:NAME, or FILE alone for every block that FILE has written under its own name."""
    found = []
    for option in options:
        block, equals, source = option.partition("=")
        if not equals:
            path = Path(option).resolve()
            names = [
                n
                for n, v in vars(load_file(path)).items()
                if getattr(v, "__module__", "").startswith("readers_")
            ]
            blocks = [n for n in names if n in BLOCKS]
            if not blocks:
                raise pytest.UsageError(
                    f"--layer: {option}: defines no building block; see pytest --layers tests"
                )
            written = [n for n in blocks if n not in unwritten(path)]
            if not written:
                raise pytest.UsageError(f"--layer: {option}: none of its blocks is written yet")
            found += [read_one(n, f"{option}:{n}") for n in written]
            continue
        if block not in BLOCKS:
            raise pytest.UsageError(
                f"--layer: no block {block!r}{nearest(block, BLOCKS, 'see pytest --layers tests')}"
            )
        found.append(read_one(block, source))
    return found


def read_one(block: str, source: str) -> Replacement:
    file, colon, name = source.rpartition(":")
    if not colon:
        raise pytest.UsageError(f"--layer: {block}={source}: expected {block}=FILE:NAME")
    module = load_file(Path(file).resolve())
    if not hasattr(module, name):
        raise pytest.UsageError(
            f"--layer: {file} defines no {name}{nearest(name, vars(module), 'check the name')}"
        )
    thing = getattr(module, name)
    kinds = [("class" if inspect.isclass(t) else "function") for t in (original(block), thing)]
    if kinds[0] != kinds[1] or not callable(thing):
        raise pytest.UsageError(f"--layer: {block} is a {kinds[0]}; {source} is not")
    return Replacement(block, source, thing)


def replace(options: Iterable[str]) -> list[Replacement]:
    """Judge each block by its example, alone among the package's own; then put all in their places.

    What a reader's file has not written yet falls back to the package's own, also where the file uses it.
    """
    found = read_options(options)
    for path in {reader_s_file(replacement) for replacement in found}:
        for name in unwritten(path):
            setattr(load_file(path), name, original(name))
    for replacement in found:
        replacement.why = explain(replacement.block, replacement.thing)
    for replacement in found:
        ours = original(replacement.block)
        for module in [m for n, m in sys.modules.items() if n.split(".")[0] == "align_minimal"]:
            for name in [n for n, value in vars(module).items() if value is ours]:
                setattr(module, name, replacement.thing)
    return found


def reader_s_file(replacement: Replacement) -> Path:
    return Path(replacement.source.rpartition(":")[0]).resolve()


def fallen_back(replacements: Iterable[Replacement]) -> str:
    """Which blocks of the readers' files the package's own stood in for, in one line; "" if none."""
    replacements = list(replacements)
    asked = {replacement.block for replacement in replacements}
    files = dict.fromkeys(map(reader_s_file, replacements))
    names = [name for path in files for name in unwritten(path) if name not in asked]
    return f"not written yet, so the package's own stood in: {', '.join(names)}" if names else ""


# ---- which tests


def file_of(module: str) -> str:
    """The file of a module of the package: "training.lamb" → "training/lamb.py"."""
    return module.replace(".", "/") + ".py"


def files(block: str) -> set[str]:
    return {test.split("::")[0] for test in BLOCKS[block][1]}


def concerns(block: str, nodeid: str) -> bool:
    """Does the test called `nodeid` concern this block?"""
    name, _, parameters = nodeid.removeprefix("../").removeprefix("tests/").partition("[")
    if NOT_NUMERIC.search(name.split("::")[-1]):
        return False
    starts = (test.split(" ") for test in BLOCKS[block][1])
    return any(name.startswith(start) and all(w in parameters for w in words) for start, *words in starts)


def listing() -> str:
    """Every block with its signature, the first line of its docstring, and its tests."""
    lines = []
    for block, (module, tests) in BLOCKS.items():
        ours = original(block)
        summary = inspect.getdoc(ours).split("\n")[0]
        lines += [
            f"{block}{inspect.signature(ours)}",
            f"    {summary}",
            f"    align_minimal/{file_of(module)}",
        ]
        lines += [f"    tests/{test.replace(' ', '…')}…" for test in tests]
    return "\n".join(lines)


# ---- what is wrong with it


def numbers(x: Tensor | np.ndarray) -> np.ndarray:
    return np.asarray(x.detach() if isinstance(x, Tensor) else x, dtype=np.float64)


def same(ours: Any, theirs: Any) -> bool:
    """Equal; numbers to within rounding, NaN like NaN; errors of one kind and message."""
    if type(ours) is not type(theirs):
        return False
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, (Tensor, np.ndarray)):
        close = dict(rtol=1e-7, atol=1e-9, equal_nan=True)
        return ours.shape == theirs.shape and np.allclose(numbers(ours), numbers(theirs), **close)
    return str(ours) == str(theirs) if isinstance(ours, Exception) else ours == theirs


def mutated_block(mutation: Mutation, block: str) -> Any:
    """The block as the package would have it with the mistake."""
    name = f"align_minimal.{BLOCKS[block][0]}"
    module = ModuleType(name)
    module.__package__ = name.rpartition(".")[0]
    exec(compile(mutate(mutation, PACKAGE)[1], mutation.file, "exec"), vars(module))
    return getattr(module, block)


def mistakes(block: str) -> list[Mutation]:
    """The known mistakes in the block's file, those in its own lines first."""
    source = inspect.getsource(original(block))
    in_file = [m for m in MUTATIONS if m.file == file_of(BLOCKS[block][0])]
    return sorted(in_file, key=lambda m: m.old not in source)


def outcome(block: str, thing: Any) -> dict | Exception:
    """The example's results, or the error that it ends in."""
    try:
        return EXAMPLES[block](thing)
    except Exception as error:
        return error


def likely_cause(block: str, got: dict | Exception) -> str:
    """The known mistake that ends as the reader's block does; or else the hints of the block's mistakes."""
    ours = outcome(block, original(block))
    for mutation in mistakes(block):
        theirs = outcome(block, mutated_block(mutation, block))
        if same(theirs, got) and not same(theirs, ours):
            return (
                f"likely cause: {mutation.hint}\n(the mistake {mutation.name!r} gives exactly what you have)"
            )
    return hints(block)


def hints(block: str) -> str:
    source = inspect.getsource(original(block))
    own = [f"  - {m.hint}" for m in mistakes(block) if m.old in source]
    return "\n".join(["what often goes wrong here:", *own]) if own else "see its docstring"


def show(value: Any) -> str:
    text = str(value) if isinstance(value, (Tensor, np.ndarray, str)) else repr(value)
    text = re.sub(r", (dtype=torch.float64|grad_fn=<\w+>|requires_grad=True)", "", text)
    return textwrap.fill(" ".join(text.split()), 100, subsequent_indent=" " * 11)


def difference(expected: Any, got: Any) -> str:
    """Max and relative difference of two tensors or arrays; their types and shapes if these differ."""
    if not isinstance(expected, (Tensor, np.ndarray)):
        return ""
    if type(expected) is not type(got) or expected.shape != got.shape:
        kinds = (f"{type(x).__name__} {tuple(getattr(x, 'shape', ()))}" for x in (expected, got))
        return "  expected {}, got {}\n".format(*kinds)
    a, b = numbers(expected), numbers(got)
    size = max(np.linalg.norm(a), 1e-300)
    return f"  max difference {np.abs(a - b).max():.2e}, relative {np.linalg.norm(a - b) / size:.2e}\n"


def explain(block: str, thing: Any) -> str:
    """What the example says of the reader's `thing`; "" if it agrees with the package."""
    expected, got = EXAMPLES[block](original(block)), outcome(block, thing)
    given = f"On the smallest input, {show(expected.pop('input'))}:\n"
    if isinstance(got, NotImplementedError):
        return given + f"  {block} is not written yet (NotImplementedError)\n" + hints(block)
    if isinstance(got, Exception):
        return f"{given}  {one_line(got, Path(inspect.getfile(thing)))}\n{likely_cause(block, got)}"
    name = next((n for n, value in expected.items() if not same(value, got.get(n))), None)
    if name is None:
        return ""
    value, mine = expected[name], got.get(name)
    told = f"  expected {show(value)}\n  got      {show(mine)}\n" + difference(value, mine)
    cause = likely_cause(block, got)
    if name == "parameters":
        why = "the recorded weights are loaded by the names and shapes of the parameters, which must be these"
        return f"{given}  {why}\n{told}" + (cause if cause.startswith("likely") else "")
    if "gradient" in name and not cause.startswith("likely"):
        cause = "the values agree: look for detach(), .data, no_grad() or a change in place"
    return f"{given}  {'backward' if 'gradient' in name else 'forward'}: {name}\n{told}{cause}"


def summary(replacement: Replacement, failed: bool) -> str:
    """For the end of a run: what the example says; where it has nothing to say and tests failed, so much."""
    if replacement.why:
        return f"{replacement.why.rstrip()}\n(--tb=short shows what each test says)"
    if not failed:
        return ""
    return (
        "On the smallest input it agrees with the package, in values and gradients; what failed above are\n"
        "other shapes or options.\n" + hints(replacement.block)
    )
