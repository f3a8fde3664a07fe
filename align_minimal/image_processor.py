"""Pictures of any kind → the pixels that the image tower takes.

    picture → RGB → resize → centre crop → rescale → normalize → (÷ std again) → (3, H, W) float32

Follows EfficientNetImageProcessor of transformers 4.37.2, bit for bit on RGB input.
But: every Pillow mode becomes RGB, transparency over white (the reference refuses grey and RGBA); a centre
crop that pads always has the size asked for (the reference's is one short where the deficit is odd).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from .hub import find_file, read_json, write_json
from .outputs import Batch

Size = int | Sequence[int] | dict[str, int]
Picture = Image.Image | np.ndarray | torch.Tensor


def to_rgb(image: Image.Image) -> Image.Image:
    """A Pillow picture of any mode as RGB, 8 bits a channel; transparency shows white.

    16-bit grey (I;16, also where Pillow reads it as I) is scaled by 255/65535; F, and I beyond 16 bits, are
    stretched from their own least value (0 if none is negative) to their greatest where they leave 0–255.

    >>> to_rgb(Image.new("LA", (1, 1), (0, 128))).getpixel((0, 0))
    (127, 127, 127)
    """
    if image.mode == "RGB":
        return image
    if image.mode[0] in "IF":
        return Image.fromarray(grey_to_bytes(np.asarray(image))).convert("RGB")
    if image.mode == "RGBX":  # the fourth channel is filling, not transparency
        return image.convert("RGB")
    if "a" in image.mode or image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert({"La": "LA"}.get(image.mode, "RGBA")).convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def grey_to_bytes(grey: np.ndarray) -> np.ndarray:
    """Grey of any depth → uint8, without clipping: what lies in 0–255 stays, 16 bits are scaled."""
    if grey.dtype != np.uint16:
        grey = np.nan_to_num(grey.astype(np.float64))
        low, high = min(grey.min(), 0.0), grey.max()
        if low == 0 and high <= 255 and grey.dtype != np.uint16:
            return (grey * (255 if high <= 1 and np.any(grey % 1) else 1)).round().astype(np.uint8)
        if low < 0 or high > 65535:
            return ((grey - low) * (255 / (high - low))).round().astype(np.uint8)
    return (grey * (255 / 65535)).round().astype(np.uint8)


class EfficientNetImageProcessor:
    """Pictures → pixel_values (B, 3, H, W) float32. Options as in the reference.

    >>> processor = EfficientNetImageProcessor(size=64)
    >>> processor(Image.new("RGB", (640, 480)), return_tensors="pt").pixel_values.shape
    torch.Size([1, 3, 64, 64])
    """

    model_input_names = ("pixel_values",)

    def __init__(
        self,
        do_resize: bool = True,
        size: Size | None = None,
        resample: int = Image.Resampling.NEAREST,
        do_center_crop: bool = False,
        crop_size: Size | None = None,
        rescale_factor: float = 1 / 255,
        rescale_offset: bool = False,
        do_rescale: bool = True,
        do_normalize: bool = True,
        image_mean: float | Sequence[float] | None = None,
        image_std: float | Sequence[float] | None = None,
        include_top: bool = True,
    ):
        half = [0.5, 0.5, 0.5]
        self.do_resize = do_resize
        self.size = size_dict("size", 346 if size is None else size)
        self.resample = int(resample)
        self.do_center_crop = do_center_crop
        self.crop_size = size_dict("crop_size", 289 if crop_size is None else crop_size)
        self.rescale_factor = rescale_factor
        self.rescale_offset = rescale_offset
        self.do_rescale = do_rescale
        self.do_normalize = do_normalize
        self.image_mean = half if image_mean is None else image_mean
        self.image_std = half if image_std is None else image_std
        self.include_top = include_top

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self), image_processor_type="EfficientNetImageProcessor")

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> EfficientNetImageProcessor:
        known = vars(cls())
        return cls(**{name: value for name, value in content.items() if name in known and value is not None})

    @classmethod
    def from_pretrained(cls, dir_or_name: str | Path) -> EfficientNetImageProcessor:
        return cls.from_dict(read_json(find_file(dir_or_name, "preprocessor_config.json")))

    def save_pretrained(self, directory: str | Path) -> None:
        write_json(Path(directory) / "preprocessor_config.json", self.to_dict())

    def __call__(self, images, return_tensors: str | None = None, **overrides) -> Batch:
        if overrides:
            return type(self)(**{**vars(self), **overrides})(images, return_tensors)
        images = images if isinstance(images, (list, tuple)) else [images]
        arrays = [self.pixels(image) for image in images]
        if return_tensors is None:
            return Batch(pixel_values=arrays)
        pixels = np.stack(arrays)
        return Batch(pixel_values=torch.from_numpy(pixels) if return_tensors == "pt" else pixels)

    def pixels(self, image: Image.Image) -> np.ndarray:
        """One picture → (3, H, W) float32."""
        image = to_rgb(image)
        if self.do_resize:
            image = image.resize((self.size["width"], self.size["height"]), self.resample)
        x = np.asarray(image)  # (H, W, 3)
        if self.do_center_crop:
            x = center_crop(x, **self.crop_size)
        return np.ascontiguousarray(self.scale(x).transpose(2, 0, 1), dtype=np.float32)

    def scale(self, x: np.ndarray) -> np.ndarray:
        """Rescale, normalize, ÷ std. The reference's order of operations and roundings. (H, W, 3) → same."""
        if self.do_rescale:
            x = (x * float(self.rescale_factor)).astype(np.float32)
            if self.rescale_offset:
                x = x - 1
        if not np.issubdtype(x.dtype, np.floating):
            x = x.astype(np.float32)
        mean, std = np.asarray(self.image_mean, x.dtype), np.asarray(self.image_std, x.dtype)
        if self.do_normalize:
            x = (x - mean) / std
        if self.include_top:
            x = x / std
        return x


def size_dict(name: str, size: Size) -> dict[str, int]:
    if isinstance(size, dict):
        return {"height": size["height"], "width": size["width"]}
    height, width = (size, size) if isinstance(size, int) else size
    return {"height": height, "width": width}


def center_crop(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of x (H, W, 3), with zeros around it where it is too small. → (height, width, 3)"""
    for axis, length in ((0, height), (1, width)):
        spare = x.shape[axis] - length
        if spare >= 0:
            x = x.take(range(spare // 2, spare // 2 + length), axis)
        else:
            before = (1 - spare) // 2
            widths = [(0, 0)] * 3
            widths[axis] = (before, -spare - before)
            x = np.pad(x, widths)
    return x


def load_image(path: str | os.PathLike) -> Image.Image:
    """Open the picture file `path`, upright (EXIF), as RGB.

    Raises FileNotFoundError where there is none, ValueError where it cannot be read, each naming the file.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if path.is_dir():
        raise ValueError(f"{path}: a folder, not a picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return to_rgb(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ValueError(f"{path}: over {Image.MAX_IMAGE_PIXELS} pixels; too large to open safely") from None
    except Exception as error:
        raise ValueError(f"{path}: not a readable picture ({' '.join(str(error).split())})") from None
