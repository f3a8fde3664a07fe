"""The text tower (section 4.1).

Write the bodies; you need not use all the imports. Check them from the top of the repository, one by one:

    pytest --layer BertEmbeddings=notebooks/exercises/05_bert.py:BertEmbeddings tests
    pytest --layer SelfAttention=notebooks/exercises/05_bert.py:SelfAttention tests
    pytest --layer additive_mask=notebooks/exercises/05_bert.py:additive_mask tests
    pytest --layer FeedForward=notebooks/exercises/05_bert.py:FeedForward tests
    pytest --layer BertLayer=notebooks/exercises/05_bert.py:BertLayer tests
    pytest --layer layer_head_masks=notebooks/exercises/05_bert.py:layer_head_masks tests
    pytest --layer AlignTextModel=notebooks/exercises/05_bert.py:AlignTextModel tests

or all that this file has:

    pytest --layer notebooks/exercises/05_bert.py tests
"""

# ruff: noqa: F401
from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from align_minimal.checkpoint import PretrainedModel
from align_minimal.config import AlignTextConfig, get_activation
from align_minimal.support.checks import check_head_mask, check_text
from align_minimal.support.outputs import TextOutput


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
