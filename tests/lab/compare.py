"""The layer debugger: this model beside Hugging Face's, layer by layer, forward and gradient.

    python -m tests.lab.compare emoji                        # or a folder, or a hub name
    python -m tests.lab.compare runs/mine --image cat.jpg --text "my cat"
    python -m tests.lab.compare emoji --table tests/lab/parity_table.md

Both models are loaded from the same files and get the same pixels and ids. A layer has a line with a verdict:

    OK         the output and its gradient are within the tolerance
    DIFF       one of them is not
    SHAPE      the shapes differ, so there is nothing to compare
    MISSING    only one side has such a layer

The gradient is that of a fixed random projection of both embeddings, with respect to the layer's output.
Layers stand in the order in which they are finished, the inner ones before the outer one. The first wrong
output is marked; if all outputs are right, the last wrong gradient, because gradients run backwards. What is
wrong after it is mostly its consequence. Exit status 1 unless all layers are OK.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
from torch import Tensor

from align_minimal import AlignModel, AlignProcessor
from align_minimal.checkpoint import hugging_face_key
from align_minimal.efficientnet import DropConnect
from align_minimal.support.hub import find_file, write_atomically
from align_minimal.support.image_files import load_image
from align_minimal.using.trace import first_tensor
from tests.reference.parity import GRADIENTS, VALUES, relative_error

APPLE = Path(__file__).resolve().parents[2] / "weights" / "samples" / "apple.png"


@dataclass(frozen=True)
class Line:
    """A layer's verdict; `forward` and `gradient` are (largest difference, relative error)."""

    name: str
    theirs: str
    shape: tuple[int, ...]
    verdict: str
    forward: tuple[float, float] | None = None
    gradient: tuple[float, float] | None = None


def their_name(name: str, layer: nn.Module) -> str | None:
    """What Hugging Face calls the layer, or None where their layers are cut elsewhere.

    Their projection adds the residual, and their attention is two modules: the layers inside are compared.
    """
    if name.endswith((".project", ".attention", ".feed_forward")) or isinstance(
        layer, (nn.Dropout, DropConnect)
    ):
        return None
    # What has parameters has a row in the key map; the rest goes by its beginning and its end.
    theirs = hugging_face_key(f"{name}.").removesuffix(".")
    ends = {
        ".expand": ".expansion",
        ".depthwise": ".depthwise_conv",
        "vision_model.stem": "vision_model.embeddings",
    }
    if list(layer.children()):
        for ours, other in ends.items():
            theirs = theirs.removesuffix(ours) + other if theirs.endswith(ours) else theirs
    return theirs


def record(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each layer's output by its name, with its gradient in .grad."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(layer, inputs, output):
            tensor = first_tensor(output)
            if tensor.requires_grad:
                tensor.retain_grad()
            outputs.setdefault(name, tensor)

        return hook

    hooks = [layer.register_forward_hook(keep(name)) for name, layer in model.named_modules() if name]
    try:
        out = model.eval()(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    outputs |= {"text_embeds": out.text_embeds, "image_embeds": out.image_embeds}
    draw = torch.Generator().manual_seed(0)
    loss = 0
    for embeds in (out.text_embeds, out.image_embeds):
        embeds.retain_grad()
        loss = loss + (embeds * torch.randn(embeds.shape, generator=draw)).sum()
    loss.backward()
    return outputs


def errors(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    return (ours - theirs).abs().max().item(), relative_error(ours, theirs)


def judge(name: str, counterpart: str, ours: Tensor | None, theirs: Tensor | None) -> Line:
    if ours is None or theirs is None:
        return Line(name, counterpart, tuple((theirs if ours is None else ours).shape), "MISSING")
    names = name, counterpart, tuple(ours.shape)
    if ours.shape != theirs.shape:
        return Line(*names, f"SHAPE {tuple(theirs.shape)}")
    forward, gradient = errors(ours, theirs), None
    if ours.grad is not None and theirs.grad is not None:
        gradient = errors(ours.grad, theirs.grad)
    wrong = not forward[1] <= VALUES[torch.float32]  # so that NaN is wrong, too
    wrong = wrong or (gradient is not None and not gradient[1] <= GRADIENTS[torch.float32])
    wrong = wrong or (ours.grad is None) != (theirs.grad is None)
    return Line(*names, "DIFF" if wrong else "OK", forward, gradient)


def compare(ours: nn.Module, theirs: nn.Module, batch: dict[str, Tensor]) -> list[Line]:
    """A line for each of our layers that has a counterpart, then for those of theirs that nothing met."""
    mine, other = record(ours, batch), record(theirs, batch)
    layers = dict(ours.named_modules())
    counterparts = {name: their_name(name, layers[name]) for name in mine if name in layers}
    counterparts = {name: their for name, their in counterparts.items() if their}
    counterparts |= {name: name for name in ("text_embeds", "image_embeds")}
    lines = [judge(name, their, mine[name], other.get(their)) for name, their in counterparts.items()]
    met = set(counterparts.values())
    for name, layer in theirs.named_modules():
        if name in other and name not in met and any(True for _ in layer.parameters(recurse=False)):
            lines.append(judge("", name, None, other[name]))
    return lines


def culprit(lines: list[Line]) -> Line | None:
    """Where to look: the first layer whose output is wrong, or else the last whose gradient is."""
    wrong = [line for line in lines if line.verdict != "OK"]
    forward = [line for line in wrong if not line.forward or not line.forward[1] <= VALUES[torch.float32]]
    return forward[0] if forward else wrong[-1] if wrong else None


def load_theirs(checkpoint: str) -> nn.Module:
    """Hugging Face's model from the same folder. ValueError where transformers is not installed."""
    try:
        import transformers
    except ModuleNotFoundError:
        raise ValueError("this compares with transformers: pip install transformers") from None
    transformers.logging.set_verbosity_error()
    folder = find_file(checkpoint, "config.json").parent
    options = {} if transformers.__version__.startswith("4.") else {"attn_implementation": "eager"}
    return transformers.AlignModel.from_pretrained(folder, **options)


def cells(line: Line) -> list[str]:
    numbers = [f"{x:.1e}" for pair in (line.forward, line.gradient) for x in pair or ()]
    return [line.name or line.theirs, " × ".join(map(str, line.shape)), line.verdict, *numbers] + [""] * (
        4 - len(numbers)
    )


HEADER = ["layer", "output", "", "max", "relative", "gradient: max", "relative"]


def print_lines(lines: list[Line]) -> None:
    rows = [HEADER, *map(cells, lines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    first = culprit(lines)
    for row, line in zip(rows, [None, *lines], strict=True):
        mark = "  <-- look here" if line is first and line else ""
        print("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() + mark)
    wrong = sum(line.verdict != "OK" for line in lines)
    print(f"\n{len(lines)} layers, {f'{wrong} not OK' if wrong else 'all OK'}")


def write_table(lines: list[Line], path: Path, checkpoint: str) -> None:
    """The same in Markdown; of the errors only that they are within the tolerance: they differ by machine."""
    text = f"# Layer by layer against Hugging Face: `{checkpoint}`\n\n"
    text += f"    python -m tests.lab.compare {checkpoint} "
    text += f"--table tests/lab/{path.name}\n\n"
    text += (
        "OK: the output within 1e-5 of theirs and its gradient within 1e-3, in float32, by relative norm.\n\n"
    )
    text += "| layer | Hugging Face's name | output | |\n|---|---|---|---|\n"
    for line in lines:
        shape = " × ".join(map(str, line.shape))
        text += f"| {line.name} | {line.theirs} | {shape} | {line.verdict} |\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lab.compare", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="a folder or a name")
    parser.add_argument("--image", type=Path, default=APPLE, help="a picture (default: a sample)")
    parser.add_argument("--text", default="a red apple", help="a text (default: a red apple)")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the verdicts as Markdown, too")
    args = parser.parse_args(argv)
    try:
        processor = AlignProcessor.from_pretrained(args.checkpoint)
        batch = processor(text=args.text, images=load_image(args.image), return_tensors="pt")
        lines = compare(AlignModel.from_pretrained(args.checkpoint), load_theirs(args.checkpoint), batch)
    except (OSError, ValueError) as error:
        print(f"compare: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print_lines(lines)
    if args.table:
        write_table(lines, args.table, args.checkpoint)
    return int(any(line.verdict != "OK" for line in lines))


if __name__ == "__main__":
    sys.exit(main())
