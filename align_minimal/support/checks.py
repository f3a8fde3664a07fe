"""What the configurations, the towers and the loss refuse, each in one line that names the value.

An error of type is a TypeError, an error of value a ValueError. Nothing here changes what it is given.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

# ---- configurations


def check_numbers(
    config: Any, whole: tuple[str, ...] = (), rates: tuple[str, ...] = (), above_0: tuple[str, ...] = ()
) -> None:
    """ValueError unless fields are whole numbers from 1 up, rates in [0, 1), finite numbers above 0.

    >>> from align_minimal import AlignConfig
    >>> check_numbers(AlignConfig(), whole=("projection_dim",), rates=("temperature_init_value",))
    Traceback (most recent call last):
    ValueError: temperature_init_value must lie in [0, 1), not 1.0
    """
    for names, kinds, valid, wanted in (
        (whole, int, lambda x: x >= 1, "be a whole number of at least 1"),
        (rates, (int, float), lambda x: 0 <= x < 1, "lie in [0, 1)"),
        (above_0, (int, float), lambda x: 0 < x < math.inf, "be a number above 0"),
    ):
        for name in names:
            value = getattr(config, name)
            if not isinstance(value, kinds) or isinstance(value, bool) or not valid(value):
                raise ValueError(f"{name} must {wanted}, not {value!r}")


def check_text_config(config: Any) -> None:
    """ValueError naming the first field of an AlignTextConfig that no tower can have (but for hidden_act).

    >>> from align_minimal import AlignTextConfig
    >>> AlignTextConfig(hidden_size=10, num_attention_heads=3)
    Traceback (most recent call last):
    ValueError: hidden_size 10 is not a multiple of num_attention_heads 3
    """
    check_numbers(
        config,
        whole=("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        + ("intermediate_size", "max_position_embeddings", "type_vocab_size"),
        rates=("hidden_dropout_prob", "attention_probs_dropout_prob"),
        above_0=("initializer_range", "layer_norm_eps"),
    )
    if config.pad_token_id not in range(config.vocab_size):
        raise ValueError(f"pad_token_id must lie in [0, {config.vocab_size}), not {config.pad_token_id!r}")
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"hidden_size {config.hidden_size} is not a multiple of num_attention_heads "
            f"{config.num_attention_heads}"
        )
    known = ("absolute", "relative_key", "relative_key_query")
    if config.position_embedding_type not in known:
        raise ValueError(
            f"position_embedding_type {config.position_embedding_type!r} is not one of {', '.join(known)}"
        )


def check_vision_config(config: Any, stage_lists: tuple[str, ...]) -> None:
    """ValueError naming the first field of an AlignVisionConfig that no tower can have (but for hidden_act).

    `stage_lists` are the names of the lists with one entry for each stage.

    >>> from align_minimal import AlignVisionConfig
    >>> AlignVisionConfig(strides=[1, 2])
    Traceback (most recent call last):
    ValueError: strides has 2 stages where kernel_sizes has 7
    """
    check_numbers(
        config,
        whole=("num_channels", "image_size", "depth_divisor", "hidden_dim"),
        rates=("drop_connect_rate", "batch_norm_momentum"),
        above_0=("width_coefficient", "depth_coefficient", "squeeze_expansion_ratio")
        + ("initializer_range", "batch_norm_eps"),
    )
    padded = config.depthwise_padding
    if not isinstance(padded, (list, tuple)) or not all(isinstance(i, int) and i >= 0 for i in padded):
        raise ValueError(f"depthwise_padding must be a list of block indices from 0 up, not {padded!r}")
    for name in stage_lists:
        values = getattr(config, name)
        if not isinstance(values, (list, tuple)) or not all(isinstance(v, int) and v > 0 for v in values):
            raise ValueError(f"{name} must be a list of whole numbers above 0, not {values!r}")
        if len(values) != len(config.kernel_sizes) or not values:
            raise ValueError(
                f"{name} has {len(values)} stages where kernel_sizes has {len(config.kernel_sizes)}"
            )
    if set(config.strides) - {1, 2}:
        raise ValueError(f"strides must be 1 or 2, not {config.strides}")
    if config.pooling_type not in ("mean", "max"):
        raise ValueError(f"pooling_type {config.pooling_type!r} is not one of mean, max")


def check_kind(owner: str, config: Any, kind: type) -> None:
    """TypeError unless `config` is of the class that `owner` takes.

    >>> from align_minimal import AlignConfig
    >>> check_kind("AlignModel", {"projection_dim": 640}, AlignConfig)
    Traceback (most recent call last):
    TypeError: AlignModel takes AlignConfig, not dict
    """
    if not isinstance(config, kind):
        raise TypeError(f"{owner} takes {kind.__name__}, not {type(config).__name__}")


def check_width(projection_dim: int, width: int) -> None:
    """ValueError unless texts are projected to the image tower's `width`, as nothing projects images.

    >>> check_width(640, 384)
    Traceback (most recent call last):
    ValueError: projection_dim 640 must equal the image tower's width, 384: there is no image projection
    """
    if width != projection_dim:
        raise ValueError(
            f"projection_dim {projection_dim} must equal the image tower's width, {width}: "
            "there is no image projection"
        )


# ---- the towers' inputs


def check_pixel_values(pixel_values: Tensor | None, config: Any) -> None:
    """TypeError or ValueError unless `pixel_values` is a finite float tensor (B, config.num_channels, H, W).

    >>> from align_minimal import AlignVisionConfig
    >>> check_pixel_values(torch.zeros(3, 64, 64), AlignVisionConfig())
    Traceback (most recent call last):
    ValueError: pixel_values must be (batch, 3, height, width), not (3, 64, 64)
    """
    if pixel_values is None:
        raise ValueError("pixel_values is missing: the image tower needs a tensor (batch, 3, height, width)")
    if not isinstance(pixel_values, Tensor) or not pixel_values.is_floating_point():
        kind = pixel_values.dtype if isinstance(pixel_values, Tensor) else type(pixel_values).__name__
        raise TypeError(f"pixel_values must be a float tensor, not {kind}")
    if pixel_values.ndim != 4 or pixel_values.shape[1] != config.num_channels:
        raise ValueError(
            f"pixel_values must be (batch, {config.num_channels}, height, width), "
            f"not {tuple(pixel_values.shape)}"
        )
    if not pixel_values.isfinite().all():
        bad = pixel_values[~pixel_values.isfinite()][0].item()
        raise ValueError(f"pixel_values must be finite, but holds {bad}")


def check_ids(name: str, ids: Tensor | None, shape: tuple[int, ...], limit: int, what: str) -> None:
    """TypeError or ValueError unless `ids` are whole numbers in [0, limit), of `shape` or one row of it.

    >>> check_ids("input_ids", torch.tensor([[7, 99]]), (1, 2), 30, "the vocabulary")
    Traceback (most recent call last):
    ValueError: input_ids must lie in [0, 30), the vocabulary, but holds 99
    """
    if ids is None:
        return
    if not isinstance(ids, Tensor) or ids.dtype not in (torch.int64, torch.int32):
        kind = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
        raise TypeError(f"{name} must be a tensor of int64 or int32, not {kind}")
    if tuple(ids.shape) not in (shape, (1, *shape[1:])):
        raise ValueError(f"{name} must be {shape}, not {tuple(ids.shape)}")
    if ids.numel() and (ids.min() < 0 or ids.max() >= limit):
        bad = ids[(ids < 0) | (ids >= limit)][0].item()
        raise ValueError(f"{name} must lie in [0, {limit}), {what}, but holds {bad}")


def check_text(config: Any, ids, mask, types, positions, embeds) -> None:
    """TypeError or ValueError naming argument, value and limit, for inputs that the text tower cannot take.

    >>> from align_minimal import AlignTextConfig
    >>> check_text(AlignTextConfig(), torch.zeros(1, 600, dtype=torch.long), None, None, None, None)
    Traceback (most recent call last):
    ValueError: input_ids has 600 tokens a text; max_position_embeddings allows 512
    """
    if (ids is None) == (embeds is None):
        raise ValueError("give either input_ids or inputs_embeds" + (", not both" if ids is not None else ""))
    given, name, rank = (ids, "input_ids", 2) if embeds is None else (embeds, "inputs_embeds", 3)
    if not isinstance(given, Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(given).__name__}")
    if given.ndim != rank or (rank == 3 and given.shape[2] != config.hidden_size):
        wanted = "(batch, tokens)" if rank == 2 else f"(batch, tokens, {config.hidden_size})"
        raise ValueError(f"{name} must be {wanted}, not {tuple(given.shape)}")
    if rank == 3 and not given.isfinite().all():
        raise ValueError(f"inputs_embeds must be finite, but holds {given[~given.isfinite()][0].item()}")
    B, T = given.shape[:2]
    if config.max_position_embeddings < T:
        raise ValueError(
            f"{name} has {T} tokens a text; max_position_embeddings allows {config.max_position_embeddings}"
        )
    check_ids("input_ids", ids, (B, T), config.vocab_size, "the vocabulary")
    check_ids("token_type_ids", types, (B, T), config.type_vocab_size, "type_vocab_size")
    check_ids("position_ids", positions, (B, T), config.max_position_embeddings, "max_position_embeddings")
    if mask is not None and not isinstance(mask, Tensor):
        raise TypeError(f"attention_mask must be a tensor, not {type(mask).__name__}")
    if mask is not None and tuple(mask.shape) not in ((B, T), (B, T, T)):
        raise ValueError(f"attention_mask must be {(B, T)} or {(B, T, T)}, not {tuple(mask.shape)}")


def check_head_mask(head_mask: Tensor, layers: int, heads: int) -> None:
    """TypeError or ValueError unless `head_mask` is a tensor (heads,) or (layers, heads).

    >>> check_head_mask(torch.ones(3), layers=2, heads=4)
    Traceback (most recent call last):
    ValueError: head_mask must be (4,) or (2, 4), not (3,)
    """
    if not isinstance(head_mask, Tensor):
        raise TypeError(f"head_mask must be a tensor, not {type(head_mask).__name__}")
    if head_mask.shape not in ((heads,), (layers, heads)):
        raise ValueError(f"head_mask must be ({heads},) or ({layers}, {heads}), not {tuple(head_mask.shape)}")


# ---- the loss


def check_pairs(
    text_embeds: Tensor, image_embeds: Tensor, temperature: Tensor | float, label_smoothing: float
) -> None:
    """ValueError unless the embeddings are both (B, D), label_smoothing is in [0, 1] and temperature above 0.

    >>> check_pairs(torch.ones(2, 8), torch.ones(2, 8), temperature=0.0, label_smoothing=0.1)
    Traceback (most recent call last):
    ValueError: temperature must be above 0, not 0.0
    """
    if text_embeds.ndim != 2 or text_embeds.shape != image_embeds.shape:
        raise ValueError(
            "text_embeds and image_embeds must both be (batch, width), "
            f"not {tuple(text_embeds.shape)} and {tuple(image_embeds.shape)}"
        )
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must lie in [0, 1], not {label_smoothing}")
    sigma = temperature.item() if isinstance(temperature, Tensor) else temperature
    if not sigma > 0:
        raise ValueError(f"temperature must be above 0, not {sigma}")
