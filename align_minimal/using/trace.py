"""What a model does to one picture and one text, layer by layer: shapes, parameters, arithmetic, statistics.

    align-minimal trace weights/samples/apple.png "a red apple"

A layer's parameters and multiply-adds include those of the layers inside it. The products of convolutions,
linear layers and attention are counted. The rest (normalization, activations, pooling) is about one per cent.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import textwrap
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..bert import SelfAttention
from ..model import AlignModel
from ..processor import AlignProcessor
from ..support.image_files import load_image
from ..support.terminal import columns, fit, glyph, one_line, paint
from .retrieval import longest_text


@dataclass(frozen=True)
class Row:
    """One layer: its size, and the shape and statistics of its output.

    >>> Row("text_projection", "Linear", (1, 160), 20_640, 20_480, mean=0.0, deviation=1.0).shape
    (1, 160)
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    mean: float
    deviation: float


def multiply_adds(layer: nn.Module, output: Tensor) -> int:
    """The layer's own multiply-adds, without those of the layers inside it.

    >>> multiply_adds(nn.Conv2d(8, 16, 3), torch.empty(1, 16, 5, 5)) == 16 * 5 * 5 * 8 * 3 * 3
    True
    """
    if isinstance(layer, nn.Conv2d):
        return output.numel() * layer.weight[0].numel()  # in/groups · k · k products for each output
    if isinstance(layer, nn.Linear):
        return output.numel() * layer.in_features
    if isinstance(layer, SelfAttention):
        products = {"absolute": 2, "relative_key": 3, "relative_key_query": 4}[layer.position_type]
        return products * output.numel() * output.shape[1]  # q kᵀ, weights · v, …: B · T · T · H each
    return 0


def first_tensor(output) -> Tensor:
    """A layer's main output: the tensor itself, or the first of a tuple or of named outputs.

    >>> first_tensor((torch.zeros(1, 3, 8), None)).shape
    torch.Size([1, 3, 8])
    """
    return output if isinstance(output, Tensor) else first_tensor(output[0])


@torch.inference_mode()
def trace(model: AlignModel, batch: dict[str, Tensor]) -> list[Row]:
    """A row for each layer that was used, in the order of the model's definition; outer layers come first.

    >>> model, processor = AlignModel.from_pretrained("emoji"), AlignProcessor.from_pretrained("emoji")
    >>> image = load_image("weights/samples/apple.png")
    >>> rows = trace(model, processor(text="a red apple", images=image, return_tensors="pt"))
    >>> next((row.shape, row.parameters) for row in rows if row.name == "vision_model.stem")
    ((1, 16, 48, 48), 464)
    """
    outputs: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda _, __, out, name=name: outputs.update({name: first_tensor(out)}))
        for name, layer in model.named_modules()
        if name
    ]
    try:
        model.eval()(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    layers = {name: layer for name, layer in model.named_modules() if name in outputs}
    own = {name: multiply_adds(layer, outputs[name]) for name, layer in layers.items()}
    rows = []
    for name, layer in layers.items():
        out = outputs[name].float()
        inside = sum(n for other, n in own.items() if f"{other}.".startswith(f"{name}."))
        parameters = sum(p.numel() for p in layer.parameters())
        statistics = out.mean().item(), out.std(correction=0).item()
        rows.append(Row(name, type(layer).__name__, tuple(out.shape), parameters, inside, *statistics))
    return rows


def nested(names: list[str]) -> list[tuple[int, str]]:
    """For each layer: how many of the named layers contain it, and its name inside the innermost of these.

    >>> nested(["text_model", "text_model.layers.0", "text_model.layers.0.attention"])
    [(0, 'text_model'), (1, 'layers.0'), (2, 'attention')]
    """
    places = []
    for name in names:
        around = [other for other in names if name.startswith(f"{other}.")]
        places.append((len(around), name.removeprefix(f"{max(around, key=len)}.") if around else name))
    return places


def fold_stages(rows: list[Row]) -> list[Row]:
    """The two outer levels, and one row for each stage: for neighbours of one kind with one shape of output.

    >>> blocks = [Row(f"blocks.{i}", "MBConv", (1, 8), 10, 20, mean=0.0, deviation=1.0) for i in range(3)]
    >>> [row] = fold_stages(blocks)
    >>> row.kind, row.parameters
    ('3 × MBConv', 30)
    """
    places = nested([row.name for row in rows])
    outer = [row for row, (level, _) in zip(rows, places, strict=True) if level < 2]

    def stage(row: Row) -> tuple:
        siblings, _, number = row.name.rpartition(".")
        return (siblings, row.kind, row.shape) if number.isdigit() else (row.name,)

    groups = (list(group) for _, group in itertools.groupby(outer, stage))
    return [group[0] if len(group) == 1 else join(group) for group in groups]


def join(stage: list[Row]) -> Row:
    """The rows of a stage as one: parameters and multiply-adds of all, mean and deviation of the last.

    >>> join([Row("a.0", "Linear", (1,), 2, 1, 0.0, 1.0), Row("a.1", "Linear", (1,), 2, 1, 0.5, 1.0)]).mean
    0.5
    """
    first, last = stage[0], stage[-1]
    return dataclasses.replace(
        last,
        name=f"{first.name}{glyph('–')}{last.name.rpartition('.')[2]}",
        kind=f"{len(stage)} {glyph('×')} {first.kind}",
        parameters=sum(row.parameters for row in stage),
        multiply_adds=sum(row.multiply_adds for row in stage),
    )


COLUMNS = ("layer", "", "output", "parameters", "mult-adds", "mean", "deviation")
LEAST = ("deviation", "mean", "", "parameters", "mult-adds")  # the first to be left out on a narrow terminal


def print_trace(rows: list[Row], depth: int | None = None) -> None:
    """Print a line for each row, indented as the layers are nested, down to `depth` levels (default: all).

    >>> print_trace([Row("text_projection", "Linear", (1, 160), 20_640, 20_480, mean=0.0, deviation=1.0)])
    layer                    output   parameters  mult-adds    mean  deviation
    text_projection  Linear  1 × 160      20,640     20,480  0.0000     1.0000
    """
    lines, outer = [COLUMNS], [True]
    for row, (level, name) in zip(rows, nested([row.name for row in rows]), strict=True):
        if depth is None or level < depth:
            shape, statistics = f" {glyph('×')} ".join(map(str, row.shape)), (row.mean, row.deviation)
            counts = f"{row.parameters:,}", f"{row.multiply_adds:,}"
            lines.append(("  " * level + name, row.kind, shape, *counts, *(f"{x:.4f}" for x in statistics)))
            outer.append(level == 0)
    widths = {name: max(map(len, cells)) for name, *cells in zip(COLUMNS, *lines, strict=True)}
    for name in LEAST:
        if sum(widths.values()) + 2 * (len(widths) - 1) > columns():
            del widths[name]
    others = sum(width + 2 for name, width in widths.items() if name != "layer")
    widths["layer"] = min(widths["layer"], max(8, columns() - others))
    for line, is_outer in zip(lines, outer, strict=True):
        cells = dict(zip(COLUMNS, line, strict=True))
        left = [fit(cells[name], widths[name]) for name in COLUMNS[:3] if name in widths]
        right = [cells[name].rjust(widths[name]) for name in COLUMNS[3:] if name in widths]
        left[0] = paint(left[0], "bold", "green") if is_outer else left[0]
        print("  ".join([*left, *right]))


def trace_pair(
    model: AlignModel,
    processor: AlignProcessor,
    image: Path,
    text: str,
    depth: int | None = None,
    fold: bool = False,
) -> None:
    """Print the trace of a picture and a text, and at the end how similar they are. `fold`: by stages.

    >>> model, processor = AlignModel.from_pretrained("emoji"), AlignProcessor.from_pretrained("emoji")
    >>> apple = Path("weights/samples/apple.png")
    >>> trace_pair(model, processor, apple, "a red apple", depth=1)  # doctest: +ELLIPSIS
    layer                              output ...
    text_model       AlignTextModel    1 × 5 × 128 ...
    cosine ... / temperature ... = logit ...
    """
    options = {"truncation": True, "max_length": longest_text(model.config)}
    batch = processor(text=text, images=load_image(image), padding=True, return_tensors="pt", **options)
    batch = batch.to(model.temperature.device)
    rows = trace(model, batch)
    with torch.inference_mode():
        out = model(**batch)
    cosine = F.cosine_similarity(out.text_embeds, out.image_embeds).item()
    sigma = model.temperature.item()
    if not sigma > 0:
        raise ValueError(f"the model's temperature is {sigma}; it must be above 0")
    if not math.isfinite(cosine):
        raise ValueError(f"the cosine is {cosine}: the model's weights are broken")
    print_trace(fold_stages(rows) if fold else rows, depth)
    tokens = processor.tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist())
    parameters = sum(p.numel() for p in model.parameters())
    total = sum(row.multiply_adds for row in rows if "." not in row.name)
    about = f"{parameters:,} parameters, {total:,} multiply-adds; tokens: {one_line(' '.join(tokens))}"
    print("\n" + textwrap.fill(about, columns(), break_on_hyphens=False))
    for line in textwrap.wrap(
        f"cosine {cosine:.4f} / temperature {sigma:.4f} = logit {cosine / sigma:.4f}", columns()
    ):
        print(paint(line, "bold"))
