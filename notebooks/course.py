"""What every notebook of the course uses: `check` an answer, and draw a `diagram` of a real module.

    check("03.1", 1234)              # one of the exercises: right, or what may be wrong; never the answer
    check("SqueezeExcite", MyClass)  # a block of the package: the test suite's numbers and diagnoses

The judges of the exercises are in answers.py, which you should not need to read.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `tests`, whose checks are used


# ---- check -------------------------------------------------------------------------------------------------


def check(name: str, answer: Any) -> bool:
    """Judge an answer: prints "right", or what may be wrong with it, and returns whether it is right.

    `name` is that of an exercise ("03.1") or of one of the package's blocks ("SqueezeExcite").
    An answer that is still None, or a function whose body is still `...`, is not judged.
    """
    if unwritten(answer):
        print(f"{name}: nothing to check yet. Write your answer into this cell and run it again.")
        return False
    try:
        told = judge(name)(answer)
    except Exception as error:  # the reader's code may raise anything
        told = f"your code raised {type(error).__name__}: {error}"
    print(f"{name}: ✗ {told}" if told else f"{name}: ✓ right")
    return not told


def unwritten(answer: Any) -> bool:
    """Is this the empty form that the notebook gave? None, `...`, or a function that does nothing else."""
    if isinstance(answer, (tuple, list)):
        return bool(answer) and all(part is None or part is ... for part in answer)
    if inspect.isfunction(answer):
        empty = (lambda: ...).__code__, (lambda: None).__code__
        return answer.__code__.co_code in [code.co_code for code in empty] and None in answer.__code__.co_consts
    return answer is None or answer is ...


def judge(name: str) -> Callable[[Any], str]:
    """What tells of an answer what is wrong with it, "" if nothing. KeyError names what can be checked."""
    from answers import JUDGES

    if name in JUDGES:
        return JUDGES[name]
    try:
        from tests.lab import layers
    except ImportError as error:
        raise KeyError(f"blocks are checked by the test suite, which needs {error.name}: pip install pytest")
    if name not in layers.BLOCKS:
        raise KeyError(f"no exercise and no block {name!r}; exercises: {', '.join(JUDGES)}")
    return lambda thing: layers.explain(name, thing)


# ---- diagrams ----------------------------------------------------------------------------------------------


def shape(x: Any) -> str:
    """The shape of a tensor, or of the first one in a tuple or an output.

    >>> shape((torch.zeros(2, 3), None))
    '2 × 3'
    """
    while not isinstance(x, Tensor):
        x = x[0]
    return " × ".join(map(str, x.shape))


def parts(module: nn.Module, *inputs: Any) -> list[tuple[str, str, str]]:
    """(name, class, shape of its output) of a module's children, in the order in which they ran.

    Children of a ModuleList count one by one.
    """
    seen: list[tuple[str, str, str]] = []
    children: dict[str, nn.Module] = {}
    for name, child in module.named_children():
        inside = child.named_children() if isinstance(child, nn.ModuleList) else [("", child)]
        children |= {f"{name} {i}".strip(): layer for i, layer in inside}

    def note(name: str, kind: str):
        return lambda _, __, output: seen.append((name, kind, shape(output)))

    hooks = [m.register_forward_hook(note(n, type(m).__name__)) for n, m in children.items()]
    try:
        with torch.no_grad():
            module(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def diagram(
    boxes: Sequence[tuple[str, str, str]],
    title: str,
    *,
    skips: Sequence[tuple[int, int, str]] = (),
    row: int = 6,
) -> None:
    """Boxes (name, class, shape) joined by arrows, `row` of them in a line; `skips` are drawn above:
    (after which box it leaves, before which box it comes back, what it is called)."""
    lines = -(-len(boxes) // row)
    figure, axis = plt.subplots(figsize=(1.75 * min(row, len(boxes)) + 0.3, 1.25 * lines + 0.8 * bool(skips) + 0.3))
    axis.set(xlim=(-0.6, min(row, len(boxes)) - 0.4), ylim=(-lines + 0.45, 1.05 if skips else 0.5))
    axis.axis("off")
    axis.set_title(title, fontsize=11)
    places = [(i % row, -(i // row)) for i in range(len(boxes))]
    for (x, y), (name, kind, size) in zip(places, boxes, strict=True):
        axis.add_patch(plt.Rectangle((x - 0.42, y - 0.32), 0.84, 0.64, fc="#e8f0fa", ec="#35609a"))
        axis.text(x, y + 0.16, name, ha="center", va="center", fontsize=10, weight="bold")
        axis.text(x, y - 0.02, kind, ha="center", va="center", fontsize=9, color="#444444")
        axis.text(x, y - 0.2, size, ha="center", va="center", fontsize=9, color="#35609a")
    for (x, y), (u, v) in zip(places, places[1:], strict=False):
        start, end = ((x + 0.42, y), (u - 0.42, v)) if y == v else ((x, y - 0.32), (u, v + 0.32))
        axis.annotate("", end, start, arrowprops={"arrowstyle": "->"})
    for begin, back, label in skips:
        (x, y), (u, v) = places[begin], places[back]
        bend = {"arrowstyle": "->", "connectionstyle": "arc3,rad=-0.35", "color": "#b04030"}
        axis.annotate("", (u - 0.46, v + 0.33), (x + 0.46, y + 0.33), arrowprops=bend)
        axis.text((x + u) / 2, y + 0.78, label, ha="center", fontsize=9, color="#b04030")
    plt.show()


# ---- sliders -----------------------------------------------------------------------------------------------


def slider(draw: Callable[..., None], **knobs: Any) -> None:
    """A knob to turn, where notebooks are alive: `draw` is called anew with each value (ipywidgets).

    Without ipywidgets, and for those who only read, the picture beside it stays.
    """
    try:
        from ipywidgets import interact
    except ImportError:
        print("pip install ipywidgets, and there is a slider here")
        return
    interact(draw, **knobs)
