"""What the configurations, the towers and the loss refuse, each in one line that names the value.

An error of type is a TypeError, an error of value a ValueError. Nothing here changes what it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .values import Kind, above_0, check_values, list_of, rate, shown, switch, whole

# ---- configurations


def _sides(value: Any) -> str | None:
    """One side, a whole number above 0, or a list of two: height and width."""
    sides = value if isinstance(value, (list, tuple)) and len(value) == 2 else [value]
    wrong = next(filter(None, map(whole(), sides)), None)
    return wrong and f"{wrong}, or a list of two"


# What a field's value must be, by its name: the same for a keyword and for a key of config.json.
STAGE_LIST = list_of(whole(), "whole numbers above 0", most=1000)
TEXT_KINDS: dict[str, Kind] = {
    "vocab_size": whole(),
    "hidden_size": whole(),
    "num_hidden_layers": whole(),
    "num_attention_heads": whole(),
    "intermediate_size": whole(),
    "max_position_embeddings": whole(),
    "type_vocab_size": whole(),
    "hidden_dropout_prob": rate,
    "attention_probs_dropout_prob": rate,
    "initializer_range": above_0,
    "layer_norm_eps": above_0,
    "use_cache": switch,
}
VISION_KINDS: dict[str, Kind] = {
    "num_channels": whole(),
    "image_size": _sides,
    "depth_divisor": whole(),
    "hidden_dim": whole(),
    "drop_connect_rate": rate,
    "batch_norm_momentum": rate,
    "width_coefficient": above_0,
    "depth_coefficient": above_0,
    "squeeze_expansion_ratio": above_0,
    "initializer_range": above_0,
    "batch_norm_eps": above_0,
    "depthwise_padding": list_of(whole(0), "block indices from 0 up"),
}
ALIGN_KINDS: dict[str, Kind] = {
    "projection_dim": whole(),
    "temperature_init_value": above_0,
    "initializer_range": above_0,
}


def check_align_config(config: Any) -> None:
    """ValueError naming the first of an AlignConfig's own fields that cannot be.

    >>> from align_minimal import AlignConfig
    >>> AlignConfig(temperature_init_value=0.0)
    Traceback (most recent call last):
    ValueError: temperature_init_value must be a number above 0, not 0.0
    """
    check_values(vars(config), ALIGN_KINDS)


def check_text_config(config: Any) -> None:
    """ValueError naming the first field of an AlignTextConfig that no tower can have (but for hidden_act).

    >>> from align_minimal import AlignTextConfig
    >>> AlignTextConfig(hidden_size=10, num_attention_heads=3)
    Traceback (most recent call last):
    ValueError: hidden_size 10 is not a multiple of num_attention_heads 3
    """
    check_values(vars(config), TEXT_KINDS)
    pad = config.pad_token_id
    if pad is not None and (whole(0)(pad) or pad >= config.vocab_size):
        raise ValueError(f"pad_token_id must lie in [0, {config.vocab_size}), not {shown(pad)}")
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"hidden_size {config.hidden_size} is not a multiple of num_attention_heads "
            f"{config.num_attention_heads}"
        )
    known = ("absolute", "relative_key", "relative_key_query")
    if config.position_embedding_type not in known:
        given = shown(config.position_embedding_type)
        raise ValueError(f"position_embedding_type {given} is not one of {', '.join(known)}")


def check_vision_config(config: Any, stage_lists: tuple[str, ...]) -> None:
    """ValueError naming the first field of an AlignVisionConfig that no tower can have (but for hidden_act).

    `stage_lists` are the names of the lists with one entry for each stage.

    >>> from align_minimal import AlignVisionConfig
    >>> AlignVisionConfig(strides=[1, 2])
    Traceback (most recent call last):
    ValueError: strides has 2 stages where kernel_sizes has 7
    """
    check_values(vars(config), VISION_KINDS | dict.fromkeys(stage_lists, STAGE_LIST))
    for name in stage_lists:
        values = getattr(config, name)
        if len(values) != len(config.kernel_sizes) or not values:
            raise ValueError(
                f"{name} has {len(values)} stages where kernel_sizes has {len(config.kernel_sizes)}"
            )
    if set(config.strides) - {1, 2}:
        raise ValueError(f"strides must be 1 or 2, not {shown(config.strides)}")
    if config.pooling_type not in ("mean", "max"):
        raise ValueError(f"pooling_type {shown(config.pooling_type)} is not one of mean, max")


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


def is_true(test: Callable[[], Tensor]) -> bool:
    """Whether `test()`, a tensor of one bool, is True. False where tensors have no values to look at.

    They have none while a program is traced, compiled or exported, under torch.func.vmap, and on the meta
    device. There the checks of values step aside; those of types and shapes stay.

    >>> is_true(lambda: torch.ones(2).sum() > 1), is_true(lambda: torch.ones(2, device="meta").sum() > 1)
    (True, False)
    """
    try:
        return not (torch.compiler.is_compiling() or torch.jit.is_tracing()) and bool(test())
    except RuntimeError:  # what vmap, fake tensors and the meta device raise
        return False


def check_pixel_values(pixel_values: Tensor | None, config: Any) -> None:
    """TypeError or ValueError unless `pixel_values` is a finite float tensor (B, config.num_channels, H, W).

    >>> from align_minimal import AlignVisionConfig
    >>> check_pixel_values(torch.zeros(3, 64, 64), AlignVisionConfig())
    Traceback (most recent call last):
    ValueError: pixel_values must be (batch, 3, height, width), not (3, 64, 64)
    """
    if not isinstance(pixel_values, Tensor) or not pixel_values.is_floating_point():
        if pixel_values is None:
            raise ValueError(
                "pixel_values is missing: the image tower needs a tensor (batch, 3, height, width)"
            )
        kind = pixel_values.dtype if isinstance(pixel_values, Tensor) else type(pixel_values).__name__
        raise TypeError(f"pixel_values must be a float tensor, not {kind}")
    if pixel_values.ndim != 4 or pixel_values.shape[1] != config.num_channels:
        raise ValueError(
            f"pixel_values must be (batch, {config.num_channels}, height, width), "
            f"not {tuple(pixel_values.shape)}"
        )
    if is_true(lambda: ~pixel_values.isfinite().all()):
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
    if is_true(lambda: ((ids < 0) | (ids >= limit)).any()):
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
    given, width = (ids, ()) if embeds is None else (embeds, (config.hidden_size,))
    if not isinstance(given, Tensor) or given.ndim < 2 or given.shape[2:] != width:
        name = "inputs_embeds" if width else "input_ids"
        if not isinstance(given, Tensor):
            raise TypeError(f"{name} must be a tensor, not {type(given).__name__}")
        wanted = ", ".join(("batch", "tokens", *map(str, width)))
        raise ValueError(f"{name} must be ({wanted}), not {tuple(given.shape)}")
    if width and is_true(lambda: ~given.isfinite().all()):
        raise ValueError(f"inputs_embeds must be finite, but holds {given[~given.isfinite()][0].item()}")
    B, T = given.shape[:2]
    if config.max_position_embeddings < T:
        name = "inputs_embeds" if width else "input_ids"
        raise ValueError(
            f"{name} has {T} tokens a text; max_position_embeddings allows {config.max_position_embeddings}"
        )
    check_ids("input_ids", ids, (B, T), config.vocab_size, "the vocabulary")
    check_ids("token_type_ids", types, (B, T), config.type_vocab_size, "type_vocab_size")
    check_ids("position_ids", positions, (B, T), config.max_position_embeddings, "max_position_embeddings")
    if mask is not None and (not isinstance(mask, Tensor) or tuple(mask.shape) not in ((B, T), (B, T, T))):
        if not isinstance(mask, Tensor):
            raise TypeError(f"attention_mask must be a tensor, not {type(mask).__name__}")
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
    if is_true(lambda: ~torch.as_tensor(temperature > 0)):
        sigma = temperature.item() if isinstance(temperature, Tensor) else temperature
        raise ValueError(f"temperature must be above 0, not {sigma}")
