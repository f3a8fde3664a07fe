"""Pictures of any kind → the pixels that the image tower takes.

    picture → RGB → resize → centre crop → rescale → normalize → (÷ std again) → (3, H, W) float32

Follows EfficientNetImageProcessor of transformers 4.37.2, bit for bit on RGB input.
But: every Pillow mode and 1, 2 and 4 channels become RGB, transparency over white (the reference refuses
them); a centre crop that has to pad always gives the size asked for (the reference's is one short where the
deficit is odd); booleans are black and white, uint16 beyond 255 is 16 bits deep; unknown options are errors.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
import threading
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from .support.outputs import Batch
from .support.settings import Settings, check_keywords

Size = int | Sequence[int] | dict[str, int]
Picture = Image.Image | np.ndarray | torch.Tensor

# ---- any picture to RGB ------------------------------------------------------------------------------------


def to_rgb(image: Image.Image) -> Image.Image:
    """A Pillow picture of any mode as RGB, 8 bits a channel; what is transparent shows white.

    Deep grey (I;16, I, F) is brought to 8 bits by `grey_to_bytes`. An animation gives its current frame.

    >>> to_rgb(Image.new("LA", (1, 1), (0, 128))).getpixel((0, 0))
    (127, 127, 127)
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):
        grey = np.asarray(image)
        shown = grey_to_bytes(grey)
        if isinstance(image.info.get("transparency"), int):  # a PNG's one transparent shade
            shown = np.where(grey == image.info["transparency"], 255, shown).astype(np.uint8)
        return Image.fromarray(shown).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def grey_to_bytes(grey: np.ndarray) -> np.ndarray:
    """Grey of any depth → uint8, never clipped. Any shape → same.

    uint16 is 16 bits deep. Of other types the values tell: up to 1, black to white; up to 255, 8 bits; whole
    numbers up to 65535, 16 bits; else, stretched so that the least (or 0) is black and the greatest (or 0)
    white. NaN and infinities are black.

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
    """An array of 1 to 4 channels, first or last (`layout` says which), or of none → (H, W, 3).

    Grey is repeated, alpha composited over white. The type stays, but for bool and deep uint16 (→ uint8).
    Where both ends could be channels, 3 wins over 1, 1 over 4, 4 over 2, and the first axis over the last.

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


# ---- RGB to pixel_values -----------------------------------------------------------------------------------


def resize(x: np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
    """(H, W, 3) to `size` (height, width), with Pillow, whose pictures are 8 bits deep.

    Whole numbers in 0–255 come back as uint8. Fractions in [0, 1] are cut down to 8 bits, resized, and come
    back as float32 in [0, 1]. ValueError for anything else.

    >>> resize(np.zeros((9, 9, 3), np.uint8), (4, 6), Image.Resampling.BILINEAR).shape
    (4, 6, 3)
    """
    fractions = False
    if x.dtype != np.uint8:
        low, high = x.min(), x.max()
        in_range = low >= 0 and high <= 255  # False for NaN
        fractions = in_range and not np.allclose(x, x.astype(int))
        if not in_range or (fractions and high > 1):
            raise ValueError(
                f"pixels must be whole numbers in 0–255 or lie in [0, 1]; these: {low} to {high}"
            )
        x = ((x * 255).astype(np.float32) if fractions else x).astype(np.uint8)
    height, width = size
    x = np.asarray(Image.fromarray(np.ascontiguousarray(x)).resize((width, height), resample))
    return (x * (1 / 255)).astype(np.float32) if fractions else x


def center_crop(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle of x (H, W, 3), within zeros where it is too small. → (*size, 3)

    >>> center_crop(np.ones((3, 3, 3)), (1, 6))[..., 0]
    array([[0., 0., 1., 1., 1., 0.]])
    """
    spare = [x.shape[axis] - size[axis] for axis in (0, 1)]
    if min(spare) < 0:
        before = [(max(-s, 0) + 1) // 2 for s in spare]  # an odd deficit: the larger half goes above and left
        x = np.pad(x, [(b, max(-s, 0) - b) for b, s in zip(before, spare, strict=True)] + [(0, 0)])
    top, left = (max(s, 0) // 2 for s in spare)
    return x[top : top + size[0], left : left + size[1]]


@dataclass
class EfficientNetImageProcessor(Settings):
    """Pictures → pixel_values (B, 3, H, W) float32. The options are fields, and keywords of a call.

    `size` and `crop_size` are {"height", "width"}, (height, width) or one number; resizing ignores the aspect
    ratio. `resample` is a `PIL.Image.Resampling` or its number. Rescaled pixels are x·rescale_factor, less 1
    with rescale_offset. `include_top` divides by image_std (again), as the ImageNet classifiers expect.
    Raises ValueError for an option out of range, TypeError naming the nearest option for one unknown.

    >>> processor = EfficientNetImageProcessor(size=64)
    >>> processor(Image.new("RGB", (640, 480)), return_tensors="pt").pixel_values.shape
    torch.Size([1, 3, 64, 64])
    """

    do_resize: bool = True
    size: Size | None = None  # 346 × 346
    resample: int = Image.Resampling.NEAREST
    do_center_crop: bool = False
    crop_size: Size | None = None  # 289 × 289
    rescale_factor: float = 1 / 255
    rescale_offset: bool = False
    do_rescale: bool = True
    do_normalize: bool = True
    image_mean: float | Sequence[float] | None = None  # 0.5 in each channel
    image_std: float | Sequence[float] | None = None  # 0.5
    include_top: bool = True

    model_input_names: ClassVar[tuple[str, ...]] = ("pixel_values",)
    filenames: ClassVar[tuple[str, ...]] = ("preprocessor_config.json", "processor_config.json")

    def __post_init__(self):
        self.size = _size("size", self.size, 346)
        self.crop_size = _size("crop_size", self.crop_size, 289)
        self.image_mean = _channel_values("image_mean", self.image_mean)
        self.image_std = _channel_values("image_std", self.image_std)
        if 0 in self.image_std:
            raise ValueError(f"image_std {self.image_std} must not hold a 0: pixels are divided by it")
        if self.resample not in list(Image.Resampling):
            raise ValueError(
                f"resample {self.resample!r} must be one of Pillow's filters, 0 to {max(Image.Resampling)}"
            )
        self.resample = int(self.resample)
        if not isinstance(self.rescale_factor, (int, float)) or not math.isfinite(self.rescale_factor):
            raise ValueError(f"rescale_factor must be a finite number, not {self.rescale_factor!r}")

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that `from_dict`, and transformers, read back."""
        return super().to_dict() | {"image_processor_type": "EfficientNetImageProcessor"}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> EfficientNetImageProcessor:
        """Build from a dictionary. Other keys (bookkeeping) are ignored; null stands for the default."""
        return super().from_dict({key: value for key, value in content.items() if value is not None})

    @classmethod
    def read(cls, path: Path) -> dict[str, Any]:
        """The settings in preprocessor_config.json, or in transformers 5's processor_config.json."""
        content = super().read(path)
        if path.name == cls.filenames[0]:
            return content
        if not isinstance(content.get("image_processor"), dict):
            raise ValueError(f"{path}: no image_processor in it, and no {cls.filenames[0]} beside it")
        return content["image_processor"]

    def __call__(
        self,
        images: Picture | Sequence[Picture],
        return_tensors: str | None = None,
        data_format: str | None = "channels_first",
        input_data_format: str | None = None,
        **options,
    ) -> Batch:
        """One picture, a list or tuple of B, or a 4-D array → pixel_values (B, 3, H, W) float32.

        Pictures are Pillow's, or arrays and tensors (C, H, W), (H, W, C) or (H, W): whole numbers in 0–255,
        or fractions in [0, 1] (for which you want do_rescale=False). `return_tensors`: "pt", "np", or None
        for a list of arrays, which alone may differ in size. `data_format` "channels_last": (H, W, 3).
        Options of the constructor given here hold for this call; None leaves one as it is.
        """
        call = ["return_tensors", "data_format", "input_data_format"]
        check_keywords(f"{type(self).__name__}.__call__", options, self.keywords() + call)
        options = {name: value for name, value in options.items() if value is not None}
        steps = dataclasses.replace(self, **options) if options else self
        if return_tensors not in (None, "np", "pt"):
            raise ValueError(f"return_tensors {return_tensors!r} must be 'pt', 'np' or None")
        if data_format not in (None, "channels_first", "channels_last"):
            raise ValueError(f"data_format {data_format!r} must be channels_first or channels_last")
        order = (0, 1, 2) if data_format == "channels_last" else (2, 0, 1)
        images = _list_of_images(images)
        threads = min(len(images), torch.get_num_threads())
        with ThreadPoolExecutor(threads) as pool:  # Pillow and numpy work outside Python's lock
            run = pool.map if threads > 1 else map
            results = run(lambda image: steps.pixels(image, input_data_format).transpose(order), images)
            if return_tensors is None:
                return Batch(pixel_values=[np.ascontiguousarray(x) for x in results])
            pixels = _stack(results, len(images))
        return Batch(pixel_values=torch.from_numpy(pixels) if return_tensors == "pt" else pixels)

    preprocess = __call__

    def pixels(self, image: Picture, layout: str | None = None) -> np.ndarray:
        """One picture → (H, W, 3) float32. `layout`: where an array's channels are; None to infer it."""
        size = self.size["height"], self.size["width"]
        if isinstance(image, Image.Image):
            if 0 in image.size:
                raise ValueError(f"an image of {image.width} × {image.height} pixels has no pixels")
            image = to_rgb(image)
            x = np.asarray(image.resize(size[::-1], self.resample) if self.do_resize else image)
        else:
            x = to_rgb_array(_to_numpy(image), layout)
            if self.do_rescale and x.dtype.kind == "f" and x.min() >= 0 and 0 < x.max() <= 1:
                warnings.warn("pixels in [0, 1] are rescaled again; pass do_rescale=False", stacklevel=2)
            x = resize(x, size, self.resample) if self.do_resize else x
        if self.do_center_crop:
            x = center_crop(x, (self.crop_size["height"], self.crop_size["width"]))
        planes = np.ascontiguousarray(x.transpose(2, 0, 1))  # numpy loops over H·W values 3 times, not over 3
        return self.normalize(planes.transpose(1, 2, 0)).astype(np.float32, copy=False)

    def normalize(self, x: np.ndarray) -> np.ndarray:
        """(x·factor − mean) / std, and / std once more with include_top. (…, 3) → same.

        The rounding is the reference's: integers are scaled in float64, floats in their own precision; after
        that, all is float32 (but unscaled floats keep their precision).
        """
        if self.do_rescale:
            x = (x * float(self.rescale_factor)).astype(np.float32)
            if self.rescale_offset:
                x = x - 1
        if x.dtype.kind != "f":
            x = x.astype(np.float32)
        mean, std = np.array(self.image_mean, x.dtype), np.array(self.image_std, x.dtype)
        if self.do_normalize:
            x = (x - mean) / std
        return x / std if self.include_top else x


def _size(name: str, value: Any, default: int) -> dict[str, int]:
    """{"height", "width"} from that, from (height, width), from one number, or from None."""
    given = value = default if value is None else value
    if isinstance(value, dict):
        value = (value["height"], value["width"]) if value.keys() == {"height", "width"} else ()
    elif np.ndim(value) == 0:
        value = (value, value)
    whole = [isinstance(n, (int, np.integer)) and not isinstance(n, bool) and n > 0 for n in value]
    if whole != [True, True]:
        raise ValueError(
            f"{name} must be a number, (height, width) or a dict of the two, from 1 up, not {given!r}"
        )
    return {"height": int(value[0]), "width": int(value[1])}


def _channel_values(name: str, value: float | Sequence[float] | None) -> list[float]:
    """A number a channel."""
    try:
        values = [float(v) for v in np.broadcast_to(0.5 if value is None else value, 3)]
    except (TypeError, ValueError):
        values = []
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"{name} must be a finite number or 3 of them, not {value!r}")
    return values


def _to_numpy(image: Any) -> np.ndarray:
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        return (image.float() if image.dtype == torch.bfloat16 else image).numpy()  # numpy has no bfloat16
    if isinstance(image, np.ndarray):
        return image
    hint = "; open files with load_image" if isinstance(image, (str, os.PathLike)) else ""
    raise TypeError(
        f"an image must be a Pillow image, an array or a tensor, not {type(image).__name__}{hint}"
    )


def _list_of_images(images: Picture | Sequence[Picture]) -> list[Picture]:
    if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
        images = list(images)
    images = list(images) if isinstance(images, (list, tuple)) else [images]
    if not images:
        raise ValueError("images: none given")
    for image in images:
        if isinstance(image, Image.Image):
            image.load()  # here, since no two threads may read one file
    return images


def _stack(arrays: Iterable[np.ndarray], count: int) -> np.ndarray:
    """Arrays of one shape → one more axis in front. Each is copied once, then freed."""
    batch = None
    for i, x in enumerate(arrays):
        if batch is None:
            batch = np.empty((count, *x.shape), np.float32)
        if x.shape != batch.shape[1:]:
            raise ValueError(
                f"image {i} comes out as {x.shape}, image 0 as {batch.shape[1:]}: one tensor needs one size "
                "(resize or crop them, or pass return_tensors=None)"
            )
        batch[i] = x
    return batch


# ---- files -------------------------------------------------------------------------------------------------


def load_image(path: str | os.PathLike) -> Image.Image:
    """Read a picture file (of an animation the first frame) as RGB, turned upright as its EXIF tag says.

    Raises FileNotFoundError where there is none, and ValueError, naming the file, for a folder, an empty,
    broken or unknown file, and one of more pixels than Pillow thinks safe (`Image.MAX_IMAGE_PIXELS`).

    >>> load_image("weights/samples/apple.png").mode
    'RGB'
    """
    return to_rgb(open_image(path, path))


def open_image(
    source: str | os.PathLike | bytes, name: str | os.PathLike, at_least: int | None = None
) -> Image.Image:
    """A picture in its own mode, upright and whole in memory, from a file or from a file's bytes.

    Raises as load_image does; `name` is what the message calls it. `at_least`: decode a JPEG at a half, a
    quarter or an eighth of its size while no side falls below so many pixels: faster, and other pixels.

    >>> open_image("weights/samples/apple.png", "apple").mode
    'P'
    """
    try:
        in_memory = isinstance(source, bytes)
        if not in_memory and os.path.isdir(source):
            raise ValueError("a folder, not a picture")
        if not in_memory and os.path.exists(source) and not os.path.isfile(source):
            raise ValueError("not a regular file")  # to open a pipe could wait for ever
        with _open_safely(io.BytesIO(source) if in_memory else source) as image:
            if 0 in image.size:
                raise ValueError(f"{image.width} × {image.height} pixels, so none")
            if at_least:
                image.draft(None, (at_least, at_least))
            upright = ImageOps.exif_transpose(image)
            upright.load()
            return upright
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: no such file") from None
    except Exception as error:  # a broken file can make Pillow raise nearly anything
        size = len(source) if in_memory else os.path.getsize(source)
        raise ValueError(f"{name}: {_reason(error, size)}") from None


_OPENING = threading.Lock()  # threads open pictures, and Python's warning filters are the whole process's


def _open_safely(source) -> Image.Image:
    """Read a picture's header; an error, where Pillow would only warn, if it is too large."""
    with _OPENING, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(source)


def _reason(error: Exception, size: int) -> str:
    if isinstance(error, (Image.DecompressionBombWarning, Image.DecompressionBombError)):
        return f"over {Image.MAX_IMAGE_PIXELS:,} pixels, too large to open safely"
    if isinstance(error, UnidentifiedImageError):
        return "not a picture in a known format" if size else "an empty file"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    return " ".join(str(error).split()) or f"a broken picture ({type(error).__name__})"
