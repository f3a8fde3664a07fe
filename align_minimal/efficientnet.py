"""The image tower: EfficientNet (Tan & Le 2019, arXiv 1905.11946), pooled, with no 1×1 head (ALIGN, 4.1).

    pixels → stem → MBConv blocks → global pool → (B, C)

Shapes: B images, C channels, H×W pixels. An MBConv block (mobile inverted bottleneck) widens, filters each
channel by itself, weighs the channels, and narrows again. The stem and four of the seven stages halve the
sides: pictures of 289 pixels become maps of 144, 72, 36, 18 and 9.
It loads Hugging Face's weights and, in eval mode, gives its numbers.
Differs from Hugging Face in training: BatchNorm's momentum means what it means in Keras, and drop-connect
drops a whole sample's branch, both as in the original TensorFlow code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checkpoint import PretrainedModel  # an nn.Module that can be loaded and saved; read it last
from .config import AlignVisionConfig, get_activation
from .support.checks import check_pixel_values
from .support.outputs import VisionOutput


def round_filters(channels: int, config: AlignVisionConfig) -> int:
    """Channels × width coefficient, to the nearest multiple of `depth_divisor`; never down by more than 10%.

    >>> round_filters(320, AlignVisionConfig(width_coefficient=2.0))
    640
    """
    divisor = config.depth_divisor
    scaled = channels * config.width_coefficient
    rounded = max(divisor, int(scaled + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * scaled else rounded


@dataclass
class BlockSpec:
    """One MBConv block: the numbers that distinguish it from its neighbours.

    >>> spec = block_specs(AlignVisionConfig())[4]  # the first of B7's second stage
    >>> spec.in_channels, spec.out_channels, spec.stride, spec.residual
    (32, 48, 2, False)
    """

    kernel_size: int
    in_channels: int
    out_channels: int
    stride: int
    expand_ratio: int  # hidden channels = in_channels · this
    residual: bool
    centered_padding: bool  # how a depthwise convolution of stride 2 is padded: see ConvNorm
    drop_rate: float  # of DropConnect: 0 at the first block, almost drop_connect_rate at the last


def block_specs(config: AlignVisionConfig) -> list[BlockSpec]:
    """Every block of the network: the stage table with its channels and repeats scaled, row after row.

    >>> specs = block_specs(AlignVisionConfig())
    >>> len(specs), specs[0].in_channels, specs[-1].out_channels
    (55, 64, 640)
    """
    depth = config.depth_coefficient
    total = sum(math.ceil(depth * repeats) for repeats in config.num_block_repeats)
    specs: list[BlockSpec] = []
    for kernel, c_in, c_out, stride, repeats, expand in config.stages():
        for position in range(math.ceil(depth * repeats)):
            first, index = position == 0, len(specs)
            specs.append(
                BlockSpec(
                    kernel_size=kernel,
                    in_channels=round_filters(c_in if first else c_out, config),
                    out_channels=round_filters(c_out, config),
                    stride=stride if first else 1,
                    expand_ratio=expand,
                    # Keras adds a residual wherever stride is 1 and in == out; Hugging Face never does on a
                    # stage's first block. In B0 to B7 that is the same: a first block changes the width.
                    residual=not first,
                    centered_padding=index in config.depthwise_padding,
                    drop_rate=config.drop_connect_rate * index / total,
                )
            )
    return specs


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm2d that takes `config.batch_norm_momentum` in Keras' sense.

    Keras: running ← momentum·running + (1 − momentum)·batch. PyTorch's momentum is the batch's share,
    hence 1 − momentum. Hugging Face hands 0.99 to PyTorch as it is, and so forgets 99% at every step.

    >>> round(BatchNorm(8, AlignVisionConfig()).momentum, 3)
    0.01
    """

    def __init__(self, channels: int, config: AlignVisionConfig):
        super().__init__(channels, eps=config.batch_norm_eps, momentum=1 - config.batch_norm_momentum)


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
        super().__init__()
        padding = "same" if stride == 1 else kernel_size // 2 if centered else 0
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False
        )
        self.bn = BatchNorm(out_channels, config)
        self.activation = activation
        # On an odd side SAME would pad evenly; this does not, like coyo-align (KakaoBrain's TensorFlow code,
        # which trained align-base), whose network is built for an unknown size. Left, right, top, bottom:
        before, after = kernel_size // 2 - 1, kernel_size // 2
        self.pad_first = (before, after, before, after) if stride == 2 and not centered else None

    def forward(self, x: Tensor) -> Tensor:
        if self.pad_first:
            x = F.pad(x, self.pad_first)
        x = self.bn(self.conv(x))  # (B, C_out, H', W')
        return x if self.activation is None else self.activation(x)


class SqueezeExcite(nn.Module):
    """Weigh each channel by a gate computed from the means of all (Hu et al. 2018). (B, C, H, W) → the same.

    `squeezed` is a quarter of the block's *input* channels, not of the expanded ones that are gated.

    >>> SqueezeExcite(96, 4, torch.nn.functional.silu)(torch.zeros(2, 96, 5, 5)).shape
    torch.Size([2, 96, 5, 5])
    """

    def __init__(self, channels: int, squeezed: int, activation: Callable):
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        gate = x.mean((2, 3), keepdim=True)  # (B, C, 1, 1)
        gate = self.activation(self.reduce(gate))  # (B, squeezed, 1, 1)
        return x * torch.sigmoid(self.expand(gate))  # (B, C, H, W)


class DropConnect(nn.Module):
    """Zero a whole sample's branch with probability `rate`, in training; scale the others by 1/(1 − rate).

    EfficientNet's code calls this drop connect. It is stochastic depth (Huang et al. 2016), not the
    DropConnect (Wan et al. 2013) that drops weights.
    Differs from Hugging Face: there single elements are dropped (nn.Dropout).

    >>> DropConnect(0.5).eval()(torch.ones(2, 1, 1, 1)).flatten()
    tensor([1., 1.])
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        kept = torch.empty(x.shape[0], 1, 1, 1, dtype=x.dtype, device=x.device).bernoulli_(keep)
        return x * (kept / keep)


class MBConv(nn.Module):
    """Inverted bottleneck: expand 1×1, depthwise k×k, squeeze-excite, project 1×1, and the residual.

    (B, C_in, H, W) → (B, C_out, H', W'), H' as in ConvNorm. A block of ratio 1 does not expand.

    >>> config = AlignVisionConfig(width_coefficient=1.0)
    >>> MBConv(block_specs(config)[4], config)(torch.zeros(2, 16, 8, 8)).shape
    torch.Size([2, 24, 4, 4])
    """

    def __init__(self, spec: BlockSpec, config: AlignVisionConfig):
        super().__init__()
        act = get_activation(config.hidden_act)
        hidden = spec.in_channels * spec.expand_ratio
        squeezed = max(1, int(spec.in_channels * config.squeeze_expansion_ratio))
        self.expand = None
        if spec.expand_ratio != 1:
            self.expand = ConvNorm(spec.in_channels, hidden, 1, config, activation=act)
        self.depthwise = ConvNorm(
            hidden, hidden, spec.kernel_size, config, stride=spec.stride, centered=spec.centered_padding,
            groups=hidden, activation=act,  # as many groups as channels: one filter a channel
        )  # fmt: skip
        self.squeeze_excite = SqueezeExcite(hidden, squeezed, act)
        self.project = ConvNorm(hidden, spec.out_channels, 1, config)
        self.drop_connect = DropConnect(spec.drop_rate)
        self.residual = spec.residual

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.expand is None else self.expand(x)  # (B, C_in·ratio, H, W)
        h = self.depthwise(h)  # (B, C_in·ratio, H', W')
        h = self.squeeze_excite(h)
        h = self.project(h)  # (B, C_out, H', W'); no activation: a linear bottleneck
        return x + self.drop_connect(h) if self.residual else h


class AlignVisionModel(PretrainedModel[VisionOutput]):
    """The image tower. (B, 3, H, W) → last_hidden_state (B, C, h, w), pooler_output (B, C).

    h is about H/32 (B0 to L2). C is round_filters(out_channels[-1]), the width of ALIGN's embedding. Weights
    start normal, with standard deviation initializer_range. In eval mode an untrained network gives almost
    zero (B7: 1e-23): BatchNorm then divides by 1, and the convolutions shrink their inputs. Train it, or call
    .train(), before you look at numbers.

    >>> config = AlignVisionConfig(width_coefficient=0.5, depth_coefficient=0.5)
    >>> AlignVisionModel(config)(torch.zeros(2, 3, 64, 64)).pooler_output.shape
    torch.Size([2, 160])
    """

    config_class = AlignVisionConfig
    prefix = "vision_model."  # of its keys in a full ALIGN (checkpoint.py)
    input_embeddings = "stem.conv"  # what get_input_embeddings() returns

    def __init__(self, config: AlignVisionConfig):
        super().__init__(config)
        act = get_activation(config.hidden_act)
        width = round_filters(32, config)  # 32 scaled, even if in_channels[0] is not 32, as in Hugging Face
        self.stem = ConvNorm(config.num_channels, width, 3, config, stride=2, activation=act)
        self.blocks = nn.ModuleList(MBConv(spec, config) for spec in block_specs(config))
        self.apply(self.init_weights)

    def init_weights(self, module: nn.Module) -> None:
        """Convolutions: normal, with standard deviation initializer_range; BatchNorm keeps 1 and 0."""
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(
        self, pixel_values: Tensor | None = None,
        output_hidden_states: bool | None = None, return_dict: bool | None = None,
    ) -> VisionOutput | tuple:  # fmt: skip
        """hidden_states, where asked for, are the stem's output and every block's."""
        check_pixel_values(pixel_values, self.config)
        x = self.stem(pixel_values)  # (B, C_stem, ⌊H/2⌋, ⌊W/2⌋)
        hidden_states = [x] if output_hidden_states else []
        for block in self.blocks:
            x = block(x)
            if output_hidden_states:
                hidden_states.append(x)
        pooled = x.mean((2, 3)) if self.config.pooling_type == "mean" else x.amax((2, 3))  # (B, C)
        output = VisionOutput(
            last_hidden_state=x,
            pooler_output=pooled,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
        )
        return output if return_dict is not False else output.to_tuple()
