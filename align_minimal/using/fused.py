"""The image tower's blocks in C (fused.c), where there is a C compiler: 1.5 to 3 times as fast.

`cc`, or what $CC names, compiles the file when `for_inference` is first called, in a second or two, and the
library stays where Python keeps its own compiled files. Without a compiler (CC=false does without one), and
for what the file does not know, `for_inference` takes PyTorch's operators.

This file puts the weights into the order in which fused.c reads them, and hands over where they are.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import shlex
import subprocess
import tempfile
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..efficientnet import AlignVisionModel, MBConv
from .search import cache_folder

SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ["-O3", "-shared", "-fPIC", "-pthread", "-Wno-psabi"]
# Of the processors that PyTorch tells apart; of others, the compiler takes what they all have.
PROCESSORS = {
    "AVX2": ["-mavx2", "-mfma"],
    "AVX512": ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma"],
}
NUMBERS = "c_in c squeezed c_out kernel stride before residual h w h_out w_out"
WEIGHTS = "expand project expand_bias depthwise depthwise_bias reduce reduce_bias gate gate_bias project_bias"


class Block(ctypes.Structure):
    """As in fused.c: the sizes of a block, and where its weights are.

    >>> Block(kernel=3, stride=2).kernel
    3
    """

    _fields_ = [
        *((name, ctypes.c_int) for name in NUMBERS.split()),
        *((name, ctypes.c_void_p) for name in WEIGHTS.split()),
    ]


@functools.cache
def library(dtype: torch.dtype = torch.float32) -> ctypes.CDLL | None:
    """fused.c, compiled for this processor, in float32 or bfloat16; None where that is not possible.

    >>> library() is None or library().slice_size() % 8
    0
    """
    if os.name == "nt":
        return None  # its stack is not aligned for long registers
    capability = torch.backends.cpu.get_cpu_capability()
    command = [*shlex.split(os.environ.get("CC") or "cc"), *FLAGS, *PROCESSORS.get(capability, [])]
    if dtype == torch.bfloat16:
        command.append("-DBFLOAT16")
        if capability == "AVX512" and getattr(torch.cpu, "_is_avx512_bf16_supported", bool)():
            command.append("-mavx512bf16")
    for folder in (lambda: Path(importlib.util.cache_from_source(str(SOURCE))).parent, cache_folder):
        try:
            digest = hashlib.sha256(repr(command).encode() + SOURCE.read_bytes()).hexdigest()
            path = folder() / f"fused-{digest[:16]}.so"
            if not path.exists():
                _compile_into(path, command)
            found = ctypes.CDLL(str(path))
        except OSError:  # a folder that cannot be written, no compiler, a file that is no library
            continue
        except subprocess.SubprocessError:  # not a C compiler, or one that does not know the flags
            return None
        found.scratch_size.restype = found.slice_size.restype = ctypes.c_long
        return found
    return None


def _compile_into(path: Path, command: list[str]) -> None:
    """Run the compiler. The file appears under its name when it is whole. OSError or SubprocessError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        whole = Path(folder, path.name)
        command = [*command, str(SOURCE), "-o", str(whole), "-lm"]
        subprocess.run(command, check=True, timeout=60, stdin=subprocess.DEVNULL, capture_output=True)
        os.replace(whole, path)


def can_be_fused(tower: AlignVisionModel, dtype: torch.dtype | None) -> bool:
    """Whether fused.c computes what this tower does: SiLU, in float32 or bfloat16, on a CPU.

    >>> from align_minimal import AlignVisionConfig
    >>> can_be_fused(AlignVisionModel(AlignVisionConfig(width_coefficient=0.1)), torch.float16)
    False
    """
    weight = tower.stem.conv.weight
    dtype = dtype or weight.dtype
    widths = [block.expand.conv.in_channels for block in tower.blocks if block.expand is not None]
    return (
        (dtype == torch.float32 or (dtype == torch.bfloat16 and not any(width % 2 for width in widths)))
        and weight.device.type == "cpu"
        and tower.stem.activation is F.silu
        and min(tower.config.kernel_sizes) > 1  # or it would be padded by −1 at stride 2
        and library(dtype) is not None
    )


def in_slices(weight: Tensor, size: int) -> Tensor:
    """(outputs, inputs) → (slices, inputs, size), with zeros where the outputs are no multiple of size.

    >>> in_slices(torch.ones(3, 2), 2)[1]
    tensor([[1., 0.],
            [1., 0.]])
    """
    weight = F.pad(weight, (0, 0, 0, -len(weight) % size))
    return weight.unflatten(0, (-1, size)).transpose(1, 2)


class FusedBlock(nn.Module):
    """An MBConv, folded, in C. (B, C_in, H, W) → (B, C_out, H', W'), both with channels last in memory.

    >>> from align_minimal import AlignVisionConfig
    >>> from align_minimal.using.inference import ServedVisionModel
    >>> tower = AlignVisionModel(AlignVisionConfig(width_coefficient=0.1)).eval()
    >>> block = ServedVisionModel(tower, None).tower.blocks[-1]
    >>> block(torch.rand(2, 32, 6, 6)).shape
    torch.Size([2, 32, 6, 6])
    """

    def __init__(self, block: MBConv):
        super().__init__()
        expand, depthwise = block.expand and block.expand.conv, block.depthwise.conv
        excite, project = block.squeeze_excite, block.project.conv
        self.dtype = depthwise.weight.dtype
        size = library(self.dtype).slice_size()  # S
        missing = -depthwise.out_channels % size  # channels, to the next multiple of S
        large = {"project": in_slices(F.pad(project.weight.flatten(1), (0, missing)), size)}
        small = {
            "depthwise": in_slices(depthwise.weight.flatten(1), size),
            "depthwise_bias": F.pad(depthwise.bias, (0, missing)),
            "reduce": F.pad(excite.reduce.weight.flatten(1), (0, missing)),
            "reduce_bias": excite.reduce.bias,
            "gate": in_slices(excite.expand.weight.flatten(1), size),
            "gate_bias": F.pad(excite.expand.bias, (0, missing)),
            "project_bias": in_slices(project.bias[:, None], size),
        }
        if expand is not None:
            large["expand"] = in_slices(expand.weight.flatten(1), size)
            small["expand_bias"] = F.pad(expand.bias, (0, missing))
        if self.dtype == torch.bfloat16:  # (slices, inputs, S) → (slices, inputs/2, S, 2)
            large = {name: x.unflatten(1, (-1, 2)).transpose(2, 3) for name, x in large.items()}
        weights = large | {name: x.float() for name, x in small.items()}
        whole = torch.contiguous_format
        self.weights = {name: x.detach().clone(memory_format=whole) for name, x in weights.items()}
        self.out_channels = depthwise.out_channels  # of the widest activation
        kernel = depthwise.kernel_size[0]
        if block.depthwise.pad_first:  # TensorFlow's padding: see ConvNorm
            before, after, *_ = block.depthwise.pad_first
        elif depthwise.padding == "same":
            before, after = (kernel - 1) // 2, kernel // 2
        else:
            before, after = depthwise.padding
        self.padding = before + after
        self.block = Block(
            c_in=(expand or depthwise).in_channels, c=depthwise.out_channels, c_out=project.out_channels,
            squeezed=len(excite.reduce.bias), kernel=kernel, stride=depthwise.stride[0], before=before,
            residual=block.residual, **{name: x.data_ptr() for name, x in self.weights.items()},
        )  # fmt: skip

    def __deepcopy__(self, memo: dict) -> FusedBlock:
        return self  # nothing here changes after it is made

    def forward(self, x: Tensor) -> Tensor:
        return _run([self], x)


class FusedBlocks(nn.Sequential):
    """One FusedBlock after the other, in one call.

    >>> from align_minimal import AlignVisionConfig
    >>> from align_minimal.using.inference import ServedVisionModel
    >>> tower = AlignVisionModel(AlignVisionConfig(width_coefficient=0.1)).eval()
    >>> blocks = ServedVisionModel(tower, None).stages[-1]
    >>> blocks(torch.rand(2, 24, 6, 6)).shape
    torch.Size([2, 32, 6, 6])
    """

    def forward(self, x: Tensor) -> Tensor:
        return _run(list(self), x) if len(self) else x


def _run(blocks: list[FusedBlock], x: Tensor) -> Tensor:
    """x (B, C_in, H, W) through the blocks → (B, C_out, H', W'), with as many threads as PyTorch has.

    RuntimeError for an input that is smaller than a kernel, or not on the CPU.
    """
    if x.device.type != "cpu":
        raise RuntimeError(f"compiled for the CPU, and the input is on {x.device}")
    compiled = library(blocks[0].dtype)
    rows = x.permute(0, 2, 3, 1).to(blocks[0].dtype).contiguous()  # (B, H, W, C_in)
    images, h, w, _ = rows.shape
    sizes = (Block * len(blocks))(*(block.block for block in blocks))  # copies, for these sizes
    for block, size in zip(blocks, sizes, strict=True):
        if min(h, w) + block.padding < size.kernel:
            raise RuntimeError(f"a kernel of {size.kernel} is larger than its padded input of {h} × {w}")
        size.h, size.w = h, w
        h, w = ((side + block.padding - size.kernel) // size.stride + 1 for side in (h, w))
        size.h_out, size.w_out = h, w
    y = rows.new_empty(images, h, w, size.c_out)  # (B, H', W', C_out)
    call = sizes, len(sizes), images, torch.get_num_threads()
    scratch = rows.new_empty(compiled.scratch_size(*call), dtype=torch.float32)
    compiled.run_blocks(*call, *(ctypes.c_void_p(tensor.data_ptr()) for tensor in (rows, y, scratch)))
    return y.permute(0, 3, 1, 2)
