"""Any picture to RGB: every mode of Pillow, and arrays and tensors of 1 to 4 channels."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

Picture = Image.Image | np.ndarray | torch.Tensor


def to_rgb(image: Image.Image) -> Image.Image:
    """A Pillow picture of any mode as RGB, 8 bits a channel; what is transparent shows white.

    Deep grey (I;16, I, F) is brought to 8 bits by `grey_to_bytes`. An animation gives its current frame.

    >>> to_rgb(Image.new("LA", (1, 1), (0, 128))).getpixel((0, 0))
    (127, 127, 127)
    """
    if 0 in image.size:
        raise ValueError(f"an image of {image.width} × {image.height} pixels has no pixels")
    if image.mode.startswith(("I", "F")):
        return _deep_to_rgb(image)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _deep_to_rgb(image: Image.Image) -> Image.Image:
    grey = np.asarray(image)
    shown = grey_to_bytes(grey)
    if isinstance(image.info.get("transparency"), int):  # a PNG's one transparent shade
        shown = np.where(grey == image.info["transparency"], 255, shown).astype(np.uint8)
    return Image.fromarray(shown).convert("RGB")


def grey_to_bytes(grey: np.ndarray) -> np.ndarray:
    """Grey of any depth → uint8, never clipped. Any shape → same.

    uint16 is 16 bits deep. For other types the range is inferred from the values: up to 1, from black to
    white; up to 255, 8 bits; whole numbers up to 65535, 16 bits; all others are stretched so that the
    smallest value (or 0) is black and the greatest (or 0) is white. NaN and infinities are black.

    >>> grey_to_bytes(np.array([0, 257, 65535], np.uint16)), grey_to_bytes(np.array([-1.0, 0.0, 4.0]))
    (array([  0,   1, 255], dtype=uint8), array([  0,  51, 255], dtype=uint8))
    """
    sixteen_bits = grey.dtype.kind == "u" and grey.dtype.itemsize == 2
    whole = grey.dtype.kind in "iu"
    x = np.nan_to_num(grey.astype(np.float64), nan=0, posinf=0, neginf=0)
    low, high = min(x.min(), 0), max(x.max(), 0)
    if sixteen_bits or (whole and low == 0 and 255 < high <= 65535):
        low, high = 0, 65535
    elif low == 0 and high <= 255:
        high = 1 if high <= 1 else 255
    return ((x - low) * (255 / (high - low))).round().astype(np.uint8)


def to_rgb_array(x: np.ndarray, layout: str | None = None) -> np.ndarray:
    """An array (H, W), (C, H, W) or (H, W, C) with 1 to 4 channels → (H, W, 3).

    `layout` says where the channels are. Without it an ambiguous channel axis is guessed: 3 channels, then 1,
    4, 2; the first axis before the last. Grey is repeated, alpha composited over white. The type stays,
    except that bool and 16-bit pictures become uint8.

    >>> to_rgb_array(np.zeros((5, 7))).shape, to_rgb_array(np.zeros((3, 5, 7))).shape
    ((5, 7, 3), (5, 7, 3))
    """
    if x.dtype.kind not in "buif":
        raise TypeError(f"an image's pixels must be numbers, not {x.dtype}")
    if x.dtype == bool or (x.dtype.itemsize == 2 and x.dtype.kind == "u" and x.size and x.max() > 255):
        x = grey_to_bytes(x)
    shape = x.shape
    if x.ndim == 2:
        x = x[..., None]
    elif _channels_first(shape, layout):
        x = x.transpose(1, 2, 0)  # (H, W, C)
    if 0 in x.shape:
        raise ValueError(f"an image of shape {shape} has no pixels")
    channels = x.shape[2]
    if channels in (2, 4) and x.dtype == np.uint8:  # as Pillow does it
        return np.asarray(to_rgb(Image.fromarray(np.ascontiguousarray(x), "LA" if channels == 2 else "RGBA")))
    if channels in (2, 4):
        white = 1 if x.max() <= 1 else 255
        alpha = x[..., -1:] / white
        x = (x[..., :-1] * alpha + white * (1 - alpha)).astype(x.dtype)
    return x if x.shape[2] == 3 else x.repeat(3, axis=2)


def _channels_first(shape: tuple[int, ...], layout: str | None) -> bool:
    if layout is not None:
        layouts = {"channels_first": 0, "channels_last": -1}
        if layout not in layouts:
            raise ValueError(f"input_data_format {layout!r} must be channels_first or channels_last")
        if len(shape) != 3 or shape[layouts[layout]] not in (1, 2, 3, 4):
            raise ValueError(
                f"input_data_format {layout}: an image of shape {shape} has no 1 to 4 channels there"
            )
        return layout == "channels_first"
    if len(shape) == 3:
        for channels in (3, 1, 4, 2):
            if channels in (shape[0], shape[2]):
                return shape[0] == channels
    raise ValueError(f"an image must be (H, W), (C, H, W) or (H, W, C) with C from 1 to 4, not {shape}")


def array_to_rgb(image: Any, layout: str | None = None, warn: bool = False) -> np.ndarray:
    """An array or tensor as an array (H, W, 3), with the numbers that it has. TypeError for anything else.

    `warn`: these pixels will be rescaled, so a UserWarning if they lie in [0, 1] already.

    >>> array_to_rgb(torch.zeros(1, 5, 7)).shape
    (5, 7, 3)
    """
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.dtype == torch.bfloat16 else image).numpy()  # numpy has no bfloat16
    if not isinstance(image, np.ndarray):
        hint = "; open files with load_image" if isinstance(image, (str, os.PathLike)) else ""
        raise TypeError(
            f"an image must be a Pillow image, an array or a tensor, not {type(image).__name__}{hint}"
        )
    x = to_rgb_array(image, layout)
    if warn and x.dtype.kind == "f" and x.min() >= 0 and 0 < x.max() <= 1:
        warnings.warn("pixels in [0, 1] are rescaled again; pass do_rescale=False", stacklevel=3)
    return x


def to_picture(x: np.ndarray) -> tuple[Image.Image, bool]:
    """(an RGB picture of 8 bits a channel, did it hold fractions) from (H, W, 3).

    Whole numbers in 0–255 stay; fractions in [0, 1] are cut down to 8 bits. ValueError for others.

    >>> picture, fractions = to_picture(np.full((5, 7, 3), 0.25))
    >>> picture.size, picture.getpixel((0, 0)), fractions
    ((7, 5), (63, 63, 63), True)
    """
    fractions = False
    if x.dtype != np.uint8:
        low, high = x.min(), x.max()
        in_range = low >= 0 and high <= 255  # False for NaN
        fractions = bool(in_range and not np.allclose(x, x.astype(int)))
        if not in_range or (fractions and high > 1):
            raise ValueError(
                f"pixels must be whole numbers in 0–255 or lie in [0, 1]; these: {low} to {high}"
            )
        x = ((x * 255).astype(np.float32) if fractions else x).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(x)), fractions


def list_of_images(images: Picture | Sequence[Picture]) -> list[Picture]:
    """One picture, a list or tuple of them or a 4-D array, as a list.

    >>> len(list_of_images(np.zeros((3, 5, 7)))), len(list_of_images(np.zeros((2, 3, 5, 7))))
    (1, 2)
    """
    several = isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4
    images = list(images) if several else [images]
    if not images:
        raise ValueError("images: none given")
    return images
