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
    judged = judge(name)
    try:
        told = judged(answer)
    except Exception as error:  # the reader's code may raise anything
        told = f"your code raised {type(error).__name__}: {error}"
    print(f"{name}: ✗ {told}" if told else f"{name}: ✓ right")
    return not told


def unwritten(answer: Any) -> bool:
    """Is this the empty form that the notebook gave? None, `...`, or a function that does nothing else."""
    if isinstance(answer, (tuple, list)):
        return bool(answer) and all(part is None or part is ... for part in answer)
    if inspect.isfunction(answer):  # `def f(x): ...` does nothing, and knows no other constant
        code = answer.__code__
        does_nothing = code.co_code in ((lambda: ...).__code__.co_code, (lambda: None).__code__.co_code)
        return does_nothing and set(code.co_consts) <= {None, ...}
    return answer is None or answer is ...


def judge(name: str) -> Callable[[Any], str]:
    """What tells of an answer what is wrong with it, "" if nothing. KeyError names what can be checked."""
    from answers import JUDGES

    if name in JUDGES:
        return JUDGES[name]
    try:
        from tests.lab import layers
    except ImportError as error:
        raise KeyError(
            f"blocks are checked by the test suite, which needs {error.name}: pip install pytest"
        ) from None
    if name not in layers.BLOCKS:
        raise KeyError(f"no exercise and no block {name!r}; exercises: {', '.join(JUDGES)}")
    return lambda thing: by_the_suite(name, thing)


def by_the_suite(block: str, thing: Any) -> str:
    """What the test suite's smallest example says of the reader's block, "" if it agrees with the package."""
    from tests.lab import layers

    got = layers.outcome(block, thing)
    if isinstance(got, Exception) and not isinstance(got, NotImplementedError):
        cause = layers.likely_cause(block, got)
        return f"on the smallest input it raised {type(got).__name__}: {got}\n{cause}"
    return layers.explain(block, thing)


# ---- diagrams ----------------------------------------------------------------------------------------------


def shape(x: Any) -> str:
    """The shape of a tensor, or of the first one in a tuple or an output.

    >>> shape((torch.zeros(2, 3), None))
    '2 × 3'
    """
    while not isinstance(x, Tensor):
        x = x[0]
    return " × ".join(map(str, x.shape))


def parts_of(module: nn.Module, *inputs: Any) -> list[tuple[str, str, str]]:
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


Place = tuple[float, float]


def diagram(
    boxes: Sequence[tuple[str, str, str]],
    title: str,
    *,
    skips: Sequence[tuple[int, int, str]] = (),
    row: int = 6,
    places: Sequence[Place] | None = None,
    arrows: Sequence[tuple[int, int]] | None = None,
) -> None:
    """Boxes (name, class, shape) joined by arrows, `row` of them in a line;
    or at `places` (x, y), with `arrows` (from box, to box).

    `skips` are drawn above: (leaves after this box, comes back before that one, what it is called).
    """
    import matplotlib.pyplot as plt  # here, so that `check` works without it

    places = places or [(i % row, -(i // row)) for i in range(len(boxes))]
    arrows = arrows or [(i, i + 1) for i in range(len(boxes) - 1)]
    columns = max(x for x, _ in places) + 1
    low, high = min(y for _, y in places) - 0.5, 1.05 if skips else 0.5
    _, axis = plt.subplots(figsize=(2.1 * columns + 0.2, 1.3 * (high - low) + 0.2))
    axis.set(xlim=(-0.5, columns - 0.5), ylim=(low, high))
    axis.axis("off")
    axis.set_title(title, fontsize=11)
    for (x, y), (name, kind, size) in zip(places, boxes, strict=True):
        axis.add_patch(plt.Rectangle((x - 0.43, y - 0.34), 0.86, 0.68, fc="#e8f0fa", ec="#35609a"))
        size_of_name = 10 if len(name) < 15 else 9
        axis.text(x, y + 0.18, name, ha="center", va="center", fontsize=size_of_name, weight="bold")
        axis.text(x, y - 0.02, kind, ha="center", va="center", fontsize=9, color="#444444")
        axis.text(x, y - 0.21, size, ha="center", va="center", fontsize=9, color="#35609a")
    for one, other in arrows:
        axis.annotate("", *ends(places[one], places[other]), arrowprops={"arrowstyle": "->"})
    for begin, back, label in skips:
        (x, y), (u, v) = places[begin], places[back]
        bend = {"arrowstyle": "->", "color": "#b04030"}  # the further it goes, the flatter
        bend |= {"connectionstyle": f"arc3,rad={-0.7 / (u - x):.2f}"}
        axis.annotate("", (u - 0.46, v + 0.35), (x + 0.46, y + 0.35), arrowprops=bend)
        axis.text((x + u) / 2, y + 0.8, label, ha="center", fontsize=9, color="#b04030")
    plt.show()


def ends(one: Place, other: Place) -> tuple[Place, Place]:
    """Where an arrow between two boxes ends, and where it begins."""
    (x, y), (u, v) = one, other
    return ((u - 0.43, v), (x + 0.43, y)) if u > x else ((u, v + 0.34), (x, y - 0.34))


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
