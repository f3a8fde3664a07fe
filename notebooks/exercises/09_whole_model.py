"""The whole model, of your own parts alone.

Write the bodies; you need not use all the imports. Check them from the top of the repository, one by one:

    pytest --layer round_filters=notebooks/exercises/09_whole_model.py:round_filters tests
    pytest --layer block_specs=notebooks/exercises/09_whole_model.py:block_specs tests
    pytest --layer BatchNorm=notebooks/exercises/09_whole_model.py:BatchNorm tests
    pytest --layer ConvNorm=notebooks/exercises/09_whole_model.py:ConvNorm tests
    pytest --layer SqueezeExcite=notebooks/exercises/09_whole_model.py:SqueezeExcite tests
    pytest --layer DropConnect=notebooks/exercises/09_whole_model.py:DropConnect tests
    pytest --layer MBConv=notebooks/exercises/09_whole_model.py:MBConv tests
    pytest --layer AlignVisionModel=notebooks/exercises/09_whole_model.py:AlignVisionModel tests
    pytest --layer BertEmbeddings=notebooks/exercises/09_whole_model.py:BertEmbeddings tests
    pytest --layer SelfAttention=notebooks/exercises/09_whole_model.py:SelfAttention tests
    pytest --layer additive_mask=notebooks/exercises/09_whole_model.py:additive_mask tests
    pytest --layer FeedForward=notebooks/exercises/09_whole_model.py:FeedForward tests
    pytest --layer BertLayer=notebooks/exercises/09_whole_model.py:BertLayer tests
    pytest --layer layer_head_masks=notebooks/exercises/09_whole_model.py:layer_head_masks tests
    pytest --layer AlignTextModel=notebooks/exercises/09_whole_model.py:AlignTextModel tests
    pytest --layer contrastive_loss=notebooks/exercises/09_whole_model.py:contrastive_loss tests
    pytest --layer AlignModel=notebooks/exercises/09_whole_model.py:AlignModel tests

or all that this file has:

    pytest --layer notebooks/exercises/09_whole_model.py tests
"""

# ruff: noqa: F401
from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from align_minimal.checkpoint import PretrainedModel
from align_minimal.config import AlignConfig, AlignTextConfig, AlignVisionConfig, get_activation
from align_minimal.efficientnet import BlockSpec
from align_minimal.support.checks import (
    check_head_mask,
    check_pairs,
    check_pixel_values,
    check_text,
    check_width,
)
from align_minimal.support.outputs import AlignOutput, TextOutput, VisionOutput


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


class BertEmbeddings(nn.Module):
    """Word + token type (+ absolute position), normalized. ids (B, T), or vectors (B, T, H) → (B, T, H).

    A token's position is its index in the row, so padding on the left would shift it. Relative positions
    are not added here: they enter in SelfAttention.

    >>> config = AlignTextConfig(vocab_size=9, hidden_size=8, num_attention_heads=2)
    >>> BertEmbeddings(config)(torch.tensor([[2, 5, 3]])).shape
    torch.Size([1, 3, 8])
    """

    def __init__(self, config: AlignTextConfig):
        raise NotImplementedError

    def forward(
        self, input_ids: Tensor | None = None, token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        raise NotImplementedError


class SelfAttention(nn.Module):
    """Multi-head attention, and the projection of its result. (B, T, H) → (B, T, H), weights (B, N, T, T).

        softmax(q·kᵀ/√(H/N) + mask)·v

    Relative positions add q·E[l−r] to q·kᵀ (relative_key, Shaw et al. 2018), or q·E[l−r] + k·E[l−r]
    (relative_key_query, Huang et al. 2020), E a table of distances, l the query's place and r the key's.
    `mask` (B, 1, 1, T) or (B, 1, T, T) is added to the scores (additive_mask, below, makes it); `head_mask`
    multiplies the weights after dropout.

    >>> config = AlignTextConfig(hidden_size=8, num_attention_heads=2)
    >>> output, weights = SelfAttention(config)(torch.zeros(1, 3, 8))
    >>> output.shape, weights.shape
    (torch.Size([1, 3, 8]), torch.Size([1, 2, 3, 3]))
    """

    def __init__(self, config: AlignTextConfig):
        raise NotImplementedError

    def forward(
        self, x: Tensor, mask: Tensor | None = None, head_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def relative_scores(self, q: Tensor, k: Tensor) -> Tensor:
        """What the distance l − r from key r to query l adds to their score. → (B, N, T, T)"""
        raise NotImplementedError


def additive_mask(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a mask of 1 (attend) and 0 (do not) into a term that is added to the scores.

    (B, T) → (B, 1, 1, T), (B, T, T) → (B, 1, T, T): 0, or the most negative float. It is not −inf, because a
    row that is masked throughout would become NaN; with this number it attends to all tokens equally.

    >>> additive_mask(torch.tensor([[1, 0]]), torch.float32).shape
    torch.Size([1, 1, 1, 2])
    """
    raise NotImplementedError


class FeedForward(nn.Module):
    """Two linear layers with the activation between them, on each token alone. (B, T, H) → (B, T, H).

    >>> config = AlignTextConfig(hidden_size=8, num_attention_heads=2, intermediate_size=32)
    >>> FeedForward(config)(torch.zeros(1, 3, 8)).shape
    torch.Size([1, 3, 8])
    """

    def __init__(self, config: AlignTextConfig):
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class BertLayer(nn.Module):
    """Attention, then feed-forward, each added to its input *then* normalized (post-LN). (B, T, H) → same.

    >>> config = AlignTextConfig(hidden_size=8, num_attention_heads=2)
    >>> BertLayer(config)(torch.zeros(1, 3, 8))[0].shape
    torch.Size([1, 3, 8])
    """

    def __init__(self, config: AlignTextConfig):
        raise NotImplementedError

    def forward(
        self, x: Tensor, mask: Tensor | None = None, head_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


def layer_head_masks(head_mask: Tensor | None, config: AlignTextConfig) -> list[Tensor | None]:
    """One mask (1, N, 1, 1) for each layer, from (N,) for all layers alike or (L, N); 1 keeps a head.

    >>> layer_head_masks(torch.ones(12), AlignTextConfig())[0].shape
    torch.Size([1, 12, 1, 1])
    """
    raise NotImplementedError


class AlignTextModel(PretrainedModel[TextOutput]):
    """The text tower. ids (B, T) → last_hidden_state (B, T, H), pooler_output (B, H).

    The pooler is BERT's tanh layer on [CLS]. ALIGN does not use it: it takes last_hidden_state[:, 0] itself.

    >>> config = AlignTextConfig(vocab_size=9, hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
    >>> AlignTextModel(config)(torch.tensor([[2, 5, 3]])).last_hidden_state.shape
    torch.Size([1, 3, 8])
    """

    config_class = AlignTextConfig
    prefix = "text_model."
    input_embeddings = "embeddings.word"

    def __init__(self, config: AlignTextConfig, add_pooling_layer: bool = True):
        raise NotImplementedError

    def init_weights(self, module: nn.Module) -> None:
        """Matrices: normal, with standard deviation initializer_range; biases and the padding row: 0."""
        raise NotImplementedError

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None, position_ids: Tensor | None = None,
        head_mask: Tensor | None = None, inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None, output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> TextOutput | tuple:  # fmt: skip
        """attention_mask: (B, T) or (B, T, T), 1 = attend. head_mask: (N,) or (L, N), 1 = keep.

        hidden_states, where asked for, are the embeddings and every layer's output; attentions, every
        layer's (B, N, T, T).
        """
        raise NotImplementedError


def contrastive_loss(
    text_embeds: Tensor,
    image_embeds: Tensor,
    temperature: Tensor | float,
    label_smoothing: float = 0.1,
    tile: int | None = None,
    distributed: bool = False,
) -> Tensor:
    """The mean of image-to-text and text-to-image cross-entropy. (B, D), (B, D) → scalar.

    With x_i, y_i the embeddings of pair i's image and text, both L2-normalized, and σ the temperature:

        (1)  L_i2t = −1/B Σ_i log[ exp(x_i·y_i/σ) / Σ_j exp(x_i·y_j/σ) ]
        (2)  L_t2i = −1/B Σ_i log[ exp(y_i·x_i/σ) / Σ_j exp(y_i·x_j/σ) ]

    The paper sums the two. Hugging Face takes their mean, half of the paper's, and so does this function.
    σ divides, is the same in both directions, and is not clamped. Cosines lie in [−1, 1], so at σ = 1 the
    loss without smoothing cannot fall below log(1 + (B−1)/e²): σ must shrink, and is learnt (in the paper it
    ends near 1/64). Label smoothing ε gives each of the B candidates ε/B of the target, and the right one
    1 − ε more, so the loss cannot reach 0.

    tile: never more than a tile × B block of logits is in memory. distributed: the negatives come from every
    rank of the default process group; each rank gets the loss of all pairs, and averaging the ranks'
    gradients gives the gradient of the full batch. Both are in training/large_batch.py, with the same numbers
    as the lines below.

    Raises ValueError if shapes differ, label_smoothing is outside [0, 1], temperature is not above 0 or tile
    is below 1; RuntimeError if distributed and there is no process group.

    >>> pairs = torch.eye(4)
    >>> contrastive_loss(pairs, pairs, temperature=1.0, label_smoothing=0.0)
    tensor(0.7437)

    That is log(1 + 3/e): far from 0, because σ is 1.
    """
    raise NotImplementedError


class AlignModel(PretrainedModel[AlignOutput]):
    """Both towers, the text projection and the temperature; D = projection_dim is the image tower's width.

    Raises ValueError if projection_dim differs from that width.

    >>> _ = torch.manual_seed(0)
    >>> model = AlignModel(AlignConfig.preset("emoji"))
    >>> model(torch.tensor([[2, 7, 3]]), torch.rand(2, 3, 64, 64)).logits_per_image.shape
    torch.Size([2, 1])
    """

    config_class = AlignConfig
    input_embeddings = "text_model.embeddings.word"

    def __init__(self, config: AlignConfig):
        raise NotImplementedError

    def project_text(self, text: TextOutput) -> Tensor:
        """The text tower's output as embeddings, not normalized: [CLS] projected. (B, T, H) → (B, D)"""
        raise NotImplementedError

    def get_text_features(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None, position_ids: Tensor | None = None,
        head_mask: Tensor | None = None, inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None, output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Tensor:  # fmt: skip
        """The texts' embeddings, (B, D), not normalized. The arguments are AlignTextModel's.

        The last three change nothing here; they stand in Hugging Face's signature.
        """
        raise NotImplementedError

    def get_image_features(
        self, pixel_values: Tensor | None = None,
        output_hidden_states: bool | None = None, return_dict: bool | None = None,
    ) -> Tensor:  # fmt: skip
        """The images' embeddings, (B, D), not normalized. The last two arguments change nothing here."""
        raise NotImplementedError

    def forward(
        self, input_ids: Tensor | None = None, pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None, head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None, return_loss: bool | None = None,
        output_attentions: bool | None = None, output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> AlignOutput | tuple:  # fmt: skip
        """Compare every text (B_t, T) with every image (B_i, 3, H, W).

        → logits_per_image (B_i, B_t), logits_per_text, text_embeds (B_t, D) and image_embeds (B_i, D), both
        normalized, the towers' own outputs, and, with return_loss (which needs B_t = B_i), the loss.
        """
        raise NotImplementedError
