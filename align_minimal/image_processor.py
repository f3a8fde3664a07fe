"""Pictures of any kind → the pixels that the image tower takes (section 5 of the paper).

    picture → RGB → resize → centre crop → rescale → normalize → (÷ std if include_top) → (3, H, W) float32

Follows EfficientNetImageProcessor of transformers 4.37.2, bit for bit on RGB input.
The defaults are that processor's, for classifiers of ImageNet. A checkpoint's own file replaces them:
align-base resizes bilinearly to 346, crops the central 289, takes x/127.5 − 1 (rescale_factor=1/127.5,
rescale_offset=True), and neither normalizes nor divides again (do_normalize=False, include_top=False).
Differs from Hugging Face: pictures of every Pillow mode and of 1, 2 and 4 channels become RGB, with
transparency over white (Hugging Face refuses them); a centre crop that has to pad always gives the size that
was asked for (Hugging Face's is one row short where the deficit is odd); booleans are black and white, and
uint16 beyond 255 is 16 bits deep; unknown options are errors.

How pictures become RGB is in support/rgb.py; how picture files are opened, in support/image_files.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from .support import image_options, rgb
from .support.outputs import Batch
from .support.rgb import Picture
from .support.settings import Settings

Size = int | Sequence[int] | dict[str, int]


def resize(x: Image.Image | np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
    """An RGB picture, Pillow's or (H, W, 3), to `size` (height, width), by Pillow, with 8 bits a channel.

    Whole numbers in 0–255 come back as uint8. Fractions in [0, 1] are cut down to 8 bits, resized, and come
    back as float32 in [0, 1]. ValueError for anything else.

    >>> resize(np.zeros((9, 9, 3), np.uint8), (4, 6), Image.Resampling.BILINEAR).shape
    (4, 6, 3)
    """
    picture, fractions = (x, False) if isinstance(x, Image.Image) else rgb.to_picture(x)
    height, width = size
    x = np.asarray(picture.resize((width, height), resample))  # (height, width, 3) uint8
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


@dataclasses.dataclass
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
        self.size = image_options.height_and_width("size", self.size, default=346)
        self.crop_size = image_options.height_and_width("crop_size", self.crop_size, default=289)
        self.image_mean = image_options.channel_values("image_mean", self.image_mean)
        self.image_std = image_options.channel_values("image_std", self.image_std)
        image_options.check_options(vars(self))
        self.resample = int(self.resample)

    def scale(self, x: np.ndarray) -> np.ndarray:
        """(x·factor − mean) / std, and / std once more with include_top; each as the options say.

        (…, 3, H, W) → same. The rounding is Hugging Face's: integers are scaled in float64, floats in their
        own precision; after that, all is float32 (but unscaled floats keep their precision).

        >>> EfficientNetImageProcessor(include_top=False).scale(np.full((3, 1, 1), 255)).ravel()
        array([1., 1., 1.], dtype=float32)
        """
        if self.do_rescale:
            x = (x * float(self.rescale_factor)).astype(np.float32)
            if self.rescale_offset:
                x = x - 1
        x = x if x.dtype.kind == "f" else x.astype(np.float32)
        mean, std = (np.array(c, x.dtype)[:, None, None] for c in (self.image_mean, self.image_std))
        if self.do_normalize:
            x = (x - mean) / std
        return x / std if self.include_top else x

    def pixels(self, image: Picture, layout: str | None = None) -> np.ndarray:
        """One picture → (3, H, W) float32. `layout`: where an array's channels are; None to infer it."""
        pillow = isinstance(image, Image.Image)
        x = rgb.to_rgb(image) if pillow else rgb.array_to_rgb(image, layout, warn=self.do_rescale)
        size = self.size["height"], self.size["width"]
        x = resize(x, size, self.resample) if self.do_resize else np.asarray(x)  # (H, W, 3)
        if self.do_center_crop:
            x = center_crop(x, (self.crop_size["height"], self.crop_size["width"]))
        x = np.ascontiguousarray(x.transpose(2, 0, 1))  # (3, H, W): numpy is faster along H and W
        return self.scale(x).astype(np.float32, copy=False)

    def __call__(
        self, images: Picture | Sequence[Picture], return_tensors: str | None = None,
        data_format: str | None = "channels_first", input_data_format: str | None = None, **options,
    ) -> Batch:  # fmt: skip
        """One picture, a list or tuple of B, or a 4-D array → pixel_values (B, 3, H, W) float32.

        Pictures are Pillow's, or arrays and tensors (C, H, W), (H, W, C) or (H, W): whole numbers in 0–255,
        or fractions in [0, 1] (for which you want do_rescale=False). `return_tensors`: "pt", "np", or None
        for a list of arrays, which alone may differ in size. `data_format` "channels_last": (H, W, 3).
        Options of the constructor given here hold for this call; None leaves one as it is.
        """
        if return_tensors not in (None, "np", "pt") or data_format not in (None, *image_options.LAYOUTS):
            raise image_options.wrong_call(return_tensors, data_format)
        steps = dataclasses.replace(self, **image_options.call_options(self, options)) if options else self
        order = (1, 2, 0) if data_format == "channels_last" else (0, 1, 2)
        images = [images] if isinstance(images, Image.Image) else rgb.list_of_images(images)
        for image in images:
            if isinstance(image, Image.Image):
                image.load()  # here, since no two threads may read one file
        threads = min(len(images), torch.get_num_threads())
        with ThreadPoolExecutor(threads) as pool:  # Pillow and numpy work outside Python's lock
            run = pool.map if threads > 1 else map
            results = run(lambda image: steps.pixels(image, input_data_format).transpose(order), images)
            if return_tensors is None:
                return Batch(pixel_values=[np.ascontiguousarray(x) for x in results])
            batch = None
            for i, x in enumerate(results):  # each is copied once, then freed
                batch = np.empty((len(images), *x.shape), np.float32) if batch is None else batch
                if x.shape != batch.shape[1:]:
                    raise image_options.unlike(i, x.shape, batch.shape[1:])
                batch[i] = x  # (B, 3, H, W)
        return Batch(pixel_values=torch.from_numpy(batch) if return_tensors == "pt" else batch)

    preprocess = __call__

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
        return image_options.read_options(path, cls.filenames[0])
