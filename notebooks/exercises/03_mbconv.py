"""The parts of EfficientNet's block (section 4.1).

Write the bodies; you need not use all the imports. Check them from the top of the repository, one by one:

    pytest --layer BatchNorm=notebooks/exercises/03_mbconv.py:BatchNorm tests
    pytest --layer ConvNorm=notebooks/exercises/03_mbconv.py:ConvNorm tests
    pytest --layer SqueezeExcite=notebooks/exercises/03_mbconv.py:SqueezeExcite tests
    pytest --layer DropConnect=notebooks/exercises/03_mbconv.py:DropConnect tests
    pytest --layer MBConv=notebooks/exercises/03_mbconv.py:MBConv tests

or all that this file has:

    pytest --layer notebooks/exercises/03_mbconv.py tests
"""

# ruff: noqa: F401
from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from align_minimal.config import AlignVisionConfig, get_activation
from align_minimal.efficientnet import BlockSpec


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm2d that takes `config.batch_norm_momentum` in Keras' sense.

    Keras: running ← momentum·running + (1 − momentum)·batch. PyTorch's momentum is the batch's share,
    hence 1 − momentum. Hugging Face hands 0.99 to PyTorch as it is, and so forgets 99% at every step.

    >>> round(BatchNorm(8, AlignVisionConfig()).momentum, 3)
    0.01
    """

    def __init__(self, channels: int, config: AlignVisionConfig):
        raise NotImplementedError


class ConvNorm(nn.Module):
    """Pad, convolve without a bias, normalize, and (where `activation` is given) activate.

    (B, C_in, H, W) → (B, C_out, H', W'), with H' = H at stride 1 and ⌊H/2⌋ at stride 2 (⌈H/2⌉ if `centered`).

    At stride 2 it pads as TensorFlow's SAME does on an even side: k//2 − 1 pixels on the left and top, k//2
    on the right and bottom, so that the last window ends at the border. `centered` pads k//2 on every side.

    >>> layer = ConvNorm(3, 8, 3, AlignVisionConfig(), stride=2)
    >>> layer(torch.zeros(1, 3, 9, 9)).shape
    torch.Size([1, 8, 4, 4])
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, config: AlignVisionConfig,
        *, stride: int = 1, groups: int = 1, centered: bool = False, activation: Callable | None = None,
    ):  # fmt: skip
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class SqueezeExcite(nn.Module):
    """Weigh each channel by a gate computed from the means of all (Hu et al. 2018). (B, C, H, W) → the same.

    `squeezed` is a quarter of the block's *input* channels, not of the expanded ones that are gated.

    >>> SqueezeExcite(96, 4, torch.nn.functional.silu)(torch.zeros(2, 96, 5, 5)).shape
    torch.Size([2, 96, 5, 5])
    """

    def __init__(self, channels: int, squeezed: int, activation: Callable):
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class DropConnect(nn.Module):
    """Zero a whole sample's branch with probability `rate`, in training; scale the others by 1/(1 − rate).

    EfficientNet's code calls this drop connect. It is stochastic depth (Huang et al. 2016), not the
    DropConnect (Wan et al. 2013) that drops weights.
    Differs from Hugging Face: there single elements are dropped (nn.Dropout).

    >>> DropConnect(0.5).eval()(torch.ones(2, 1, 1, 1)).flatten()
    tensor([1., 1.])
    """

    def __init__(self, rate: float):
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class MBConv(nn.Module):
    """Inverted bottleneck: expand 1×1, depthwise k×k, squeeze-excite, project 1×1, and the residual.

    (B, C_in, H, W) → (B, C_out, H', W'), H' as in ConvNorm. A block of ratio 1 does not expand.

    >>> config = AlignVisionConfig(width_coefficient=1.0)
    >>> MBConv(block_specs(config)[4], config)(torch.zeros(2, 16, 8, 8)).shape
    torch.Size([2, 24, 4, 4])
    """

    def __init__(self, spec: BlockSpec, config: AlignVisionConfig):
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError
