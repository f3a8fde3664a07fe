"""The pieces of one step of training: the learning rate, both towers as one module, the loss's floor."""

from __future__ import annotations

import math
import re

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..model import AlignModel
from ..support.outputs import Batch
from ..using.unpadded import encode_unpadded


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Of step 1, 2, …, `steps`: linear from 0 to `peak` over `warmup` steps, then linear to 0 after the last.

    >>> [learning_rate(step, steps=6, warmup=2, peak=1.0) for step in range(1, 7)]
    [0.5, 1.0, 0.8, 0.6, 0.4, 0.2]
    """
    if step <= warmup:
        return peak * step / warmup
    return peak * (steps - step + 1) / (steps - warmup + (warmup > 0))


def cannot_reach(options, steps: int, warmup: int, world: int) -> list[str]:
    """What a run of so many steps cannot reach, said before it starts. `options`: a resolved TrainOptions.

    >>> from align_minimal.training.options import TrainOptions, resolve
    >>> options = resolve(TrainOptions([], "run", recipe="paper"), steps=31)
    >>> cannot_reach(options, steps=31, warmup=3, world=1)[0].split(":")[0]
    '31 steps of LAMB at 0.001 move each weight by at most 0.016 of its norm'
    """
    found, lamb = [], options.optimizer == "lamb"
    rise = min(steps, warmup)
    way = options.lr * rise * (rise + 1) / (2 * max(1, warmup))  # the sum of all learning rates
    way += learning_rate(rise + 1, steps, warmup, options.lr) * (steps - rise + 1) / 2 * (steps > rise)
    if not options.init and 0 < way < (0.5 if lamb else 0.02):
        name, length = ("LAMB", f"{way:.2g} of its norm") if lamb else ("AdamW", f"{way:.2g}")
        remedy = ", a higher --lr, or leave out --recipe and --optimizer" if lamb else " or a higher --lr"
        found.append(
            f"{steps:,} steps of {name} at {options.lr:g} move each weight by at most {length}: "
            f"too little to learn from scratch; give more --epochs{remedy}"
        )
    share = options.batch_size // world
    alone = share // math.ceil(share / (options.chunk or share)) == 1 < options.batch_size
    if alone and options.freeze != "image":
        found.append("BatchNorm sees one picture at a time: give larger batches or chunks")
    return found


def loss_floor(pairs: int, smoothing: float) -> float:
    """The least that the smoothed loss of a batch can be: the entropy of its own target, in nats.

    >>> round(loss_floor(16384, 0.1), 3), round(loss_floor(256, 0.1), 3)
    (1.295, 0.876)
    """
    wrong = smoothing / pairs
    right = 1 - smoothing + wrong
    return sum(-n * p * math.log(p) for n, p in ((1, right), (pairs - 1, wrong)) if n * p > 0)


class PairEncoder(nn.Module):
    """Both towers as one module, so that one call (and DistributedDataParallel) sees all parameters.

    pixel_values (B, 3, H, W), input_ids and attention_mask (B, T) → texts (B, D), images (B, D), both
    L2-normalized and in float32 whatever the towers' precision, and the temperature.

    >>> encoder = PairEncoder(AlignModel.from_pretrained("emoji"), precision="float32")
    >>> ids = torch.ones(2, 5, dtype=torch.long)
    >>> batch = Batch(pixel_values=torch.zeros(2, 3, 64, 64), input_ids=ids, attention_mask=ids)
    >>> [tuple(output.shape) for output in encoder(batch)]
    [(2, 160), (2, 160), ()]
    """

    def __init__(self, model: AlignModel, precision: str):
        super().__init__()
        self.model, self.precision = model, precision

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        device = self.model.temperature.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.precision == "bf16"):
            image = self.model.get_image_features(self.in_layout(batch["pixel_values"]))
            tokens = encode_unpadded(self.model.text_model, batch["attention_mask"], batch["input_ids"])
            text = self.model.text_projection(tokens[:, 0])  # [CLS]: get_text_features, but faster
        return F.normalize(text.float(), dim=-1), F.normalize(image.float(), dim=-1), self.model.temperature

    def in_layout(self, pixels: Tensor) -> Tensor:
        """The same (B, 3, H, W), with channels last in memory where that makes a step on a CPU faster.

        All activations then follow. Measured: 1.1 to 1.6 times as fast in float32 with 3×3 kernels, but half
        as fast with 5×5 ones, which all of the paper's towers have.
        """
        kernels = self.model.config.vision_config.kernel_sizes
        faster = pixels.device.type == "cpu" and self.precision == "float32" and max(kernels) == 3
        return pixels.contiguous(memory_format=torch.channels_last) if faster else pixels


def split(batch: Batch, chunk: int | None) -> list[Batch]:
    """A batch's tensors as equal parts of at most `chunk` pairs.

    Equal, because BatchNorm's batch is the part: of a single picture left over its statistics would be wild.

    >>> batch = Batch(input_ids=torch.zeros(7, 5), names=list("abcdefg"))
    >>> [tuple(part.input_ids.shape) for part in split(batch, 3)]
    [(3, 5), (2, 5), (2, 5)]
    """
    tensors = {k: v for k, v in batch.items() if isinstance(v, Tensor)}
    count = math.ceil(len(batch["names"]) / (chunk or len(batch["names"])))
    parts = [t.tensor_split(count) for t in tensors.values()]
    return [Batch(**dict(zip(tensors, part, strict=True))) for part in zip(*parts, strict=True)]


def reason(error: Exception) -> str:
    """The error as one line; of the traceback that a DataLoader's worker sends along, the last line.

    >>> reason(RuntimeError("out of memory\\nat file.cpp, line 7"))
    'out of memory'
    """
    killed = re.match(r"DataLoader worker \(pid\D*(\d+).*(is killed|exited unexpectedly)", str(error))
    if killed:
        return f"a worker (process {killed[1]}) was killed from outside, as systems do when memory runs out"
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1] if "Original Traceback" in str(error) else lines[0]


def gradient_norm(model: nn.Module) -> Tensor:
    """The length of all gradients as one vector.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> layer(torch.tensor([3.0, 4.0])).backward()
    >>> gradient_norm(layer)
    tensor(5.)
    """
    return torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
