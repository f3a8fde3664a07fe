"""The text tower: BERT (Devlin et al. 2019, arXiv 1810.04805), post-LayerNorm.

    ids → embeddings → L × (attention, feed-forward) → (B, T, H)

Shapes: B texts, T tokens, H hidden size, L layers, N heads of H/N. The first token is [CLS], which the
tokenizer added. Post-LayerNorm: a layer adds, then normalizes. It loads Hugging Face's weights and gives its
numbers. Relative positions and head_mask are options that align-base does not use: skip them at first.
Leaves out: all that only a decoder needs (cache, cross-attention), and the feed-forward in chunks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .checkpoint import PretrainedModel  # an nn.Module that can be loaded and saved; read it last
from .config import AlignTextConfig, get_activation
from .support.checks import check_head_mask, check_text
from .support.outputs import TextOutput


class BertEmbeddings(nn.Module):
    """Word + token type (+ absolute position), normalized. ids (B, T), or vectors (B, T, H) → (B, T, H).

    A token's position is its index in the row, so padding on the left would shift it. Relative positions
    are not added here: they enter in SelfAttention.

    >>> config = AlignTextConfig(vocab_size=9, hidden_size=8, num_attention_heads=2)
    >>> BertEmbeddings(config)(torch.tensor([[2, 5, 3]])).shape
    torch.Size([1, 3, 8])
    """

    def __init__(self, config: AlignTextConfig):
        super().__init__()
        H = config.hidden_size
        self.word = nn.Embedding(config.vocab_size, H, padding_idx=config.pad_token_id)
        self.position = nn.Embedding(config.max_position_embeddings, H)
        self.token_type = nn.Embedding(config.type_vocab_size, H)
        self.norm = nn.LayerNorm(H, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.absolute = config.position_embedding_type == "absolute"

    def forward(
        self, input_ids: Tensor | None = None, token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        x = self.word(input_ids) if inputs_embeds is None else inputs_embeds  # (B, T, H)
        B, T, _ = x.shape
        if token_type_ids is None:
            token_type_ids = torch.zeros(B, T, dtype=torch.long, device=x.device)
        x = x + self.token_type(token_type_ids)
        if self.absolute:
            if position_ids is None:
                position_ids = torch.arange(T, device=x.device)[None]
            x = x + self.position(position_ids)  # (B, T, H); the term itself is (1 or B, T, H)
        return self.dropout(self.norm(x))


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
        super().__init__()
        H = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.query, self.key, self.value = nn.Linear(H, H), nn.Linear(H, H), nn.Linear(H, H)
        self.output = nn.Linear(H, H)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.position_type = config.position_embedding_type
        if self.position_type != "absolute":
            self.max_distance = config.max_position_embeddings - 1
            self.distance = nn.Embedding(2 * self.max_distance + 1, H // self.num_heads)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, head_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        B, T, H = x.shape
        shape = (B, T, self.num_heads, H // self.num_heads)
        q = self.query(x).view(shape).transpose(1, 2)  # (B, N, T, H/N)
        k = self.key(x).view(shape).transpose(1, 2)
        v = self.value(x).view(shape).transpose(1, 2)
        scores = q @ k.transpose(2, 3)  # (B, N, T, T)
        if self.position_type != "absolute":
            scores = scores + self.relative_scores(q, k)
        scores = scores / math.sqrt(H // self.num_heads)
        if mask is not None:
            scores = scores + mask
        weights = self.dropout(scores.softmax(dim=-1))
        if head_mask is not None:
            weights = weights * head_mask
        mixed = (weights @ v).transpose(1, 2).reshape(B, T, H)  # heads side by side again
        return self.output(mixed), weights

    def relative_scores(self, q: Tensor, k: Tensor) -> Tensor:
        """What the distance l − r from key r to query l adds to their score. → (B, N, T, T)"""
        place = torch.arange(q.shape[2], device=q.device)
        distance = place[:, None] - place[None, :]  # (T, T), from −(T−1) to T−1
        E = self.distance(distance + self.max_distance)  # (T, T, H/N)
        scores = torch.einsum("bnld,lrd->bnlr", q, E)
        if self.position_type == "relative_key_query":
            scores = scores + torch.einsum("bnrd,lrd->bnlr", k, E)
        return scores


def additive_mask(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a mask of 1 (attend) and 0 (do not) into a term that is added to the scores.

    (B, T) → (B, 1, 1, T), (B, T, T) → (B, 1, T, T): 0, or the most negative float. It is not −inf, because a
    row that is masked throughout would become NaN; with this number it attends to all tokens equally.

    >>> additive_mask(torch.tensor([[1, 0]]), torch.float32).shape
    torch.Size([1, 1, 1, 2])
    """
    mask = attention_mask[:, None, None, :] if attention_mask.ndim == 2 else attention_mask[:, None]
    return (1 - mask.to(dtype)) * torch.finfo(dtype).min


class FeedForward(nn.Module):
    """Two linear layers with the activation between them, on each token alone. (B, T, H) → (B, T, H).

    >>> config = AlignTextConfig(hidden_size=8, num_attention_heads=2, intermediate_size=32)
    >>> FeedForward(config)(torch.zeros(1, 3, 8)).shape
    torch.Size([1, 3, 8])
    """

    def __init__(self, config: AlignTextConfig):
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = get_activation(config.hidden_act)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))  # (B, T, 4H) in between, in the usual sizes


class BertLayer(nn.Module):
    """Attention, then feed-forward, each added to its input *then* normalized (post-LN). (B, T, H) → same.

    >>> config = AlignTextConfig(hidden_size=8, num_attention_heads=2)
    >>> BertLayer(config)(torch.zeros(1, 3, 8))[0].shape
    torch.Size([1, 3, 8])
    """

    def __init__(self, config: AlignTextConfig):
        super().__init__()
        self.attention = SelfAttention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, head_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        attended, weights = self.attention(x, mask, head_mask)
        x = self.attention_norm(x + self.dropout(attended))  # (B, T, H)
        x = self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))
        return x, weights


def layer_head_masks(head_mask: Tensor | None, config: AlignTextConfig) -> list[Tensor | None]:
    """One mask (1, N, 1, 1) for each layer, from (N,) for all layers alike or (L, N); 1 keeps a head.

    >>> layer_head_masks(torch.ones(12), AlignTextConfig())[0].shape
    torch.Size([1, 12, 1, 1])
    """
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    if head_mask is None:
        return [None] * layers
    check_head_mask(head_mask, layers, heads)
    return list(head_mask.expand(layers, heads)[:, None, :, None, None])  # L of (1, N, 1, 1)


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
        super().__init__(config)
        self.embeddings = BertEmbeddings(config)
        self.layers = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size) if add_pooling_layer else None
        self.apply(self.init_weights)

    def init_weights(self, module: nn.Module) -> None:
        """Matrices: normal, with standard deviation initializer_range; biases and the padding row: 0."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx])

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
        check_text(self.config, input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        x = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)  # (B, T, H)
        mask = None if attention_mask is None else additive_mask(attention_mask, x.dtype)
        hidden_states, attentions = [x], []
        for layer, kept_heads in zip(self.layers, layer_head_masks(head_mask, self.config), strict=True):
            x, weights = layer(x, mask, kept_heads)
            if output_hidden_states:
                hidden_states.append(x)
            if output_attentions:
                attentions.append(weights)
        output = TextOutput(
            last_hidden_state=x,
            pooler_output=None if self.pooler is None else torch.tanh(self.pooler(x[:, 0])),
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )
        return output if return_dict is not False else output.to_tuple()
