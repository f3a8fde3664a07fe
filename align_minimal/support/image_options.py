"""The image processor's options: every spelling of a size and of three numbers, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .hub import read_json
from .settings import check_keywords
from .values import LARGEST, check_values, number, shown, switch

SWITCHES = ("do_resize", "do_center_crop", "rescale_offset", "do_rescale", "do_normalize", "include_top")
LARGEST_SIDE = 2**14  # pixels of what comes out
LAYOUTS = ("channels_first", "channels_last")  # (3, H, W) and (H, W, 3)


def height_and_width(name: str, value: Any, default: int) -> dict[str, int]:
    """{"height", "width"} from that, from (height, width), from one number, or (the default) from None.

    >>> height_and_width("size", (480, 640), default=346)
    {'height': 480, 'width': 640}
    """
    given = value = default if value is None else value
    if isinstance(value, dict):
        value = (value["height"], value["width"]) if value.keys() == {"height", "width"} else ()
    elif np.ndim(value) == 0:
        value = (value, value)
    whole = [isinstance(n, (int, np.integer)) and not isinstance(n, bool) and n > 0 for n in value]
    if whole != [True, True]:
        raise ValueError(
            f"{name} must be a number, (height, width) or a dict of the two, from 1 up, not {shown(given)}"
        )
    if max(value) > LARGEST_SIDE:
        raise ValueError(f"{name} must be at most {LARGEST_SIDE} pixels a side, not {shown(given)}")
    return {"height": int(value[0]), "width": int(value[1])}


def channel_values(name: str, value: float | Sequence[float] | None) -> list[float]:
    """One number for each channel, from one for all, from 3, or (0.5) from None.

    >>> channel_values("image_mean", 0.25)
    [0.25, 0.25, 0.25]
    """
    try:
        values = [float(v) for v in np.broadcast_to(0.5 if value is None else value, 3)]
    except (TypeError, ValueError, OverflowError):
        values = []
    if not values or not all(abs(v) <= LARGEST for v in values):
        raise ValueError(f"{name} must be a finite number or 3 of them, not {shown(value)}")
    return values


def check_options(options: Mapping[str, Any]) -> None:
    """ValueError naming the first of an image processor's options that is wrong.

    >>> check_options({"do_resize": "false"})
    Traceback (most recent call last):
    ValueError: do_resize must be true or false, not 'false'
    >>> check_options({"resample": 2, "rescale_factor": 1, "image_std": [1, 0, 1]})
    Traceback (most recent call last):
    ValueError: image_std [1, 0, 1] must not hold a 0: pixels are divided by it
    """
    check_values(options, dict.fromkeys(SWITCHES, switch))
    resample, rescale_factor, image_std = (options[k] for k in ("resample", "rescale_factor", "image_std"))
    if 0 in image_std:
        raise ValueError(f"image_std {image_std} must not hold a 0: pixels are divided by it")
    if isinstance(resample, bool) or resample not in list(Image.Resampling):
        raise ValueError(
            f"resample {shown(resample)} must be one of Pillow's filters, 0 to {max(Image.Resampling)}"
        )
    if isinstance(rescale_factor, bool) or number(-LARGEST, LARGEST)(rescale_factor):
        raise ValueError(f"rescale_factor must be a finite number, not {shown(rescale_factor)}")


def call_options(processor: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a call that are not None; TypeError naming the nearest for one that is not known.

    >>> from align_minimal import EfficientNetImageProcessor
    >>> call_options(EfficientNetImageProcessor(), {"size": 64, "resample": None})
    {'size': 64}
    """
    call = ["return_tensors", "data_format", "input_data_format"]
    check_keywords(f"{type(processor).__name__}.__call__", options, processor.keywords() + call)
    return {name: value for name, value in options.items() if value is not None}


def wrong_call(return_tensors: str | None, data_format: str | None) -> ValueError:
    """Which argument of a call is none of the known ones.

    >>> wrong_call("tf", None)
    ValueError("return_tensors 'tf' must be 'pt', 'np' or None")
    """
    if return_tensors not in (None, "np", "pt"):
        return ValueError(f"return_tensors {return_tensors!r} must be 'pt', 'np' or None")
    return ValueError(f"data_format {data_format!r} must be {' or '.join(LAYOUTS)}")


def read_options(path: Path, usual: str) -> dict[str, Any]:
    """The options in preprocessor_config.json (`usual`), or in transformers 5's processor_config.json.

    >>> read_options(Path("weights/emoji/preprocessor_config.json"), "preprocessor_config.json")["size"]
    {'height': 96, 'width': 96}
    """
    content = read_json(path)
    if path.name == usual:
        return content
    if not isinstance(content.get("image_processor"), dict):
        raise ValueError(f"{path}: no image_processor in it, and no {usual} beside it")
    return content["image_processor"]


def unlike(i: int, shape: tuple[int, ...], first: tuple[int, ...]) -> ValueError:
    """Picture `i` comes out in another shape than the first of its batch.

    >>> str(unlike(1, (3, 9, 9), (3, 8, 8)))[:61]
    'image 1 comes out as (3, 9, 9), image 0 as (3, 8, 8): one ten'
    """
    return ValueError(
        f"image {i} comes out as {shape}, image 0 as {first}: one tensor needs one size "
        "(resize or crop them, or pass return_tensors=None)"
    )
