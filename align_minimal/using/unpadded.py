"""The text tower without the padding: only real tokens are computed, in serving and in training.

Texts of a batch are padded to one length, and AlignTextModel computes the padding too. It can be left out: a
masked token changes nothing in the others, and all layers but attention work on each token alone. So here the
real tokens of all texts are the rows of one matrix. Only attention's queries, keys and values take their
places in (B, T) again. Of 32 captions of 3 to 16 words, half of the tokens are padding.

Leaves out: what hangs on a BertLayer's own call, such as forward hooks and gradient checkpointing. From one
seed, dropout draws other numbers than in the tower, for it draws none for padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..bert import AlignTextModel, SelfAttention, additive_mask, layer_head_masks
from ..support.checks import check_text


def real_lengths(attention_mask: Tensor) -> Tensor:
    """How many tokens of each text have to be computed: up to its last 1. (B, T) → (B,)

    A mask may have holes, or zeros on the left. With every token masked, the softmax is even over all.

    >>> real_lengths(torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]))
    tensor([2, 3, 4])
    """
    T = attention_mask.shape[1]
    lengths = ((attention_mask != 0) * torch.arange(1, T + 1, device=attention_mask.device)).amax(1)
    return lengths.masked_fill(lengths == 0, T)


def encode_unpadded(
    tower: AlignTextModel,
    attention_mask: Tensor,
    input_ids: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    head_mask: Tensor | None = None,
) -> Tensor:
    """The tower's last_hidden_state (B, T, H) for a mask (B, T); zeros where there is padding on the right.

    Gradients are those of the tower, too. The other arguments and all errors are AlignTextModel's.

    >>> tower = AlignTextModel.from_pretrained("emoji").eval()
    >>> ids = torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]])
    >>> found, expected = encode_unpadded(tower, ids > 0, ids), tower(ids, ids > 0).last_hidden_state
    >>> torch.allclose(found[ids > 0], expected[ids > 0], atol=1e-5), found[1, 3].norm().item()
    (True, 0.0)
    """
    given = token_type_ids, position_ids, inputs_embeds
    check_text(tower.config, input_ids, attention_mask, *given)
    B, T = attention_mask.shape
    real = torch.arange(T, device=attention_mask.device) < real_lengths(attention_mask)[:, None]  # (B, T)
    places = real.flatten().nonzero().squeeze(1)  # (R,): where the real tokens stand among B·T

    def unpad(x: Tensor) -> Tensor:  # (B, T, H) → (R, H)
        return x.flatten(0, 1).index_select(0, places)

    def pad(rows: Tensor) -> Tensor:  # (R, H) → (B, T, H)
        return rows.new_zeros(B * T, rows.shape[1]).index_add(0, places, rows).unflatten(0, (B, T))

    x = unpad(tower.embeddings(input_ids, *given))  # (R, H)
    mask = additive_mask(attention_mask, x.dtype)  # (B, 1, 1, T)
    for layer, kept_heads in zip(tower.layers, layer_head_masks(head_mask, tower.config), strict=True):
        mixed = attend(layer.attention, x, mask, kept_heads, pad)  # (B, T, H)
        attended = layer.attention.output(unpad(mixed))  # (R, H)
        x = layer.attention_norm(x + layer.dropout(attended))
        x = layer.feed_forward_norm(x + layer.dropout(layer.feed_forward(x)))
    return pad(x)


def attend(
    attention: SelfAttention, x: Tensor, mask: Tensor, head_mask: Tensor | None, pad: Callable
) -> Tensor:
    """SelfAttention, but for its output layer. Real tokens x (R, H) → (B, T, H).

    >>> config = AlignTextModel.from_pretrained("emoji").config
    >>> x, mask = torch.rand(6, config.hidden_size), torch.zeros(2, 1, 1, 3)
    >>> attend(SelfAttention(config), x, mask, None, lambda rows: rows.unflatten(0, (2, 3))).shape
    torch.Size([2, 3, 128])
    """
    projections = attention.query, attention.key, attention.value
    q, k, v = (
        pad(project(x)).unflatten(2, (attention.num_heads, -1)).transpose(1, 2) for project in projections
    )  # (B, N, T, H/N) each
    scores = q @ k.transpose(2, 3)  # (B, N, T, T)
    if attention.position_type != "absolute":
        scores = scores + attention.relative_scores(q, k)
    weights = attention.dropout((scores / math.sqrt(q.shape[3]) + mask).softmax(dim=-1))
    if head_mask is not None:
        weights = weights * head_mask
    return (weights @ v).transpose(1, 2).flatten(2)
