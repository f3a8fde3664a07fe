"""The image tower (section 4.1).

Write the bodies; you need not use all the imports. Check them from the top of the repository, one by one:

    pytest --layer round_filters=notebooks/exercises/04_efficientnet.py:round_filters tests
    pytest --layer block_specs=notebooks/exercises/04_efficientnet.py:block_specs tests
    pytest --layer AlignVisionModel=notebooks/exercises/04_efficientnet.py:AlignVisionModel tests

or all that this file has:

    pytest --layer notebooks/exercises/04_efficientnet.py tests
"""

# ruff: noqa: F401
from __future__ import annotations

import math

from torch import Tensor, nn

from align_minimal.checkpoint import PretrainedModel
from align_minimal.config import AlignVisionConfig, get_activation
from align_minimal.efficientnet import BlockSpec, ConvNorm, MBConv
from align_minimal.support.checks import check_pixel_values
from align_minimal.support.outputs import VisionOutput


def round_filters(channels: int, config: AlignVisionConfig) -> int:
    """Channels × width coefficient, to the nearest multiple of `depth_divisor`; never down by more than 10%.

    >>> round_filters(320, AlignVisionConfig(width_coefficient=2.0))
    640
    """
    raise NotImplementedError


def block_specs(config: AlignVisionConfig) -> list[BlockSpec]:
    """Every block of the network: the stage table with its channels and repeats scaled, row after row.

    >>> specs = block_specs(AlignVisionConfig())
    >>> len(specs), specs[0].in_channels, specs[-1].out_channels
    (55, 64, 640)
    """
    raise NotImplementedError


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
        raise NotImplementedError

    def init_weights(self, module: nn.Module) -> None:
        """Convolutions: normal, with standard deviation initializer_range; BatchNorm keeps 1 and 0."""
        raise NotImplementedError

    def forward(
        self, pixel_values: Tensor | None = None,
        output_hidden_states: bool | None = None, return_dict: bool | None = None,
    ) -> VisionOutput | tuple:  # fmt: skip
        """hidden_states, where asked for, are the stem's output and every block's."""
        raise NotImplementedError
