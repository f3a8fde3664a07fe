"""Pictures to pixels (section 5).

Write the bodies; you need not use all the imports. Check them from the top of the repository, one by one:

    pytest --layer to_rgb=notebooks/exercises/02_pixels.py:to_rgb tests
    pytest --layer grey_to_bytes=notebooks/exercises/02_pixels.py:grey_to_bytes tests
    pytest --layer to_rgb_array=notebooks/exercises/02_pixels.py:to_rgb_array tests
    pytest --layer resize=notebooks/exercises/02_pixels.py:resize tests
    pytest --layer center_crop=notebooks/exercises/02_pixels.py:center_crop tests
    pytest --layer EfficientNetImageProcessor=notebooks/exercises/02_pixels.py:EfficientNetImageProcessor tests
    pytest --layer AlignProcessor=notebooks/exercises/02_pixels.py:AlignProcessor tests

or all that this file has:

    pytest --layer notebooks/exercises/02_pixels.py tests
"""

# ruff: noqa: E501, F401
from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from align_minimal.image_processor import Size
from align_minimal.support import image_options, rgb
from align_minimal.support.batching import warn_of_cuts
from align_minimal.support.outputs import Batch
from align_minimal.support.rgb import Picture
from align_minimal.support.settings import Settings, share_out
from align_minimal.support.vocab_files import KEYWORDS
from align_minimal.tokenizer import BertTokenizer


def to_rgb(image: Image.Image) -> Image.Image:
    """A Pillow picture of any mode as RGB, 8 bits a channel; what is transparent shows white.

    Deep grey (I;16, I, F) is brought to 8 bits by `grey_to_bytes`. An animation gives its current frame.

    >>> to_rgb(Image.new("LA", (1, 1), (0, 128))).getpixel((0, 0))
    (127, 127, 127)
    """
    raise NotImplementedError


def grey_to_bytes(grey: np.ndarray) -> np.ndarray:
    """Grey of any depth → uint8, never clipped. Any shape → same.

    uint16 is 16 bits deep. For other types the range is inferred from the values: up to 1, from black to
    white; up to 255, 8 bits; whole numbers up to 65535, 16 bits; all others are stretched so that the
    smallest value (or 0) is black and the greatest (or 0) is white. NaN and infinities are black.

    >>> grey_to_bytes(np.array([0, 257, 65535], np.uint16)), grey_to_bytes(np.array([-1.0, 0.0, 4.0]))
    (array([  0,   1, 255], dtype=uint8), array([  0,  51, 255], dtype=uint8))
    """
    raise NotImplementedError


def to_rgb_array(x: np.ndarray, layout: str | None = None) -> np.ndarray:
    """An array (H, W), (C, H, W) or (H, W, C) with 1 to 4 channels → (H, W, 3).

    `layout` says where the channels are. Without it an ambiguous channel axis is guessed: 3 channels, then 1,
    4, 2; the first axis before the last. Grey is repeated, alpha composited over white. The type stays,
    except that bool and 16-bit pictures become uint8.

    >>> to_rgb_array(np.zeros((5, 7))).shape, to_rgb_array(np.zeros((3, 5, 7))).shape
    ((5, 7, 3), (5, 7, 3))
    """
    raise NotImplementedError


def resize(x: Image.Image | np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
    """An RGB picture, Pillow's or (H, W, 3), to `size` (height, width), by Pillow, with 8 bits a channel.

    Whole numbers in 0–255 come back as uint8. Fractions in [0, 1] are cut down to 8 bits, resized, and come
    back as float32 in [0, 1]. ValueError for anything else.

    >>> resize(np.zeros((9, 9, 3), np.uint8), (4, 6), Image.Resampling.BILINEAR).shape
    (4, 6, 3)
    """
    raise NotImplementedError


def center_crop(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle of x (H, W, 3), within zeros where it is too small. → (*size, 3)

    >>> center_crop(np.ones((3, 3, 3)), (1, 6))[..., 0]
    array([[0., 0., 1., 1., 1., 0.]])
    """
    raise NotImplementedError


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
        raise NotImplementedError

    def scale(self, x: np.ndarray) -> np.ndarray:
        """(x·factor − mean) / std, and / std once more with include_top; each as the options say.

        (…, 3, H, W) → same. The rounding is Hugging Face's: integers are scaled in float64, floats in their
        own precision; after that, all is float32 (but unscaled floats keep their precision).

        >>> EfficientNetImageProcessor(include_top=False).scale(np.full((3, 1, 1), 255)).ravel()
        array([1., 1., 1.], dtype=float32)
        """
        raise NotImplementedError

    def pixels(self, image: Picture, layout: str | None = None) -> np.ndarray:
        """One picture → (3, H, W) float32. `layout`: where an array's channels are; None to infer it."""
        raise NotImplementedError

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
        raise NotImplementedError

    preprocess = __call__

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that `from_dict`, and transformers, read back."""
        raise NotImplementedError

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> EfficientNetImageProcessor:
        """Build from a dictionary. Other keys (bookkeeping) are ignored; null stands for the default."""
        raise NotImplementedError

    @classmethod
    def read(cls, path: Path) -> dict[str, Any]:
        """The settings in preprocessor_config.json, or in transformers 5's processor_config.json."""
        raise NotImplementedError


class AlignProcessor:
    """An image processor and a tokenizer side by side.

    >>> tokenizer = BertTokenizer.train(["a cat", "a dog"], 30)
    >>> processor = AlignProcessor(EfficientNetImageProcessor(size=32), tokenizer)
    >>> batch = processor(text=["a cat", "cat"], images=Image.new("L", (9, 9)), return_tensors="pt")
    >>> batch.input_ids.shape, batch.pixel_values.shape
    (torch.Size([2, 64]), torch.Size([1, 3, 32, 32]))
    """

    def __init__(self, image_processor: EfficientNetImageProcessor, tokenizer: BertTokenizer):
        raise NotImplementedError

    @property
    def model_input_names(self) -> list[str]:
        raise NotImplementedError

    def __call__(
        self, text: str | Sequence[str] | None = None, images: Picture | Sequence[Picture] | None = None,
        padding: bool | str = "max_length", max_length: int | None = 64, return_tensors: str | None = None,
        **options,
    ) -> Batch:  # fmt: skip
        """B_t texts → input_ids, token_type_ids, attention_mask (B_t, T); B_i pictures → pixel_values.

        pixel_values have the shape (B_i, 3, H, W).
        `options` are the tokenizer's and the image processor's; each goes to the one that knows it. Texts of
        more than max_length tokens are cut, with one UserWarning; truncation=True cuts without a word,
        truncation=False leaves them long.
        Raises ValueError if there is neither text nor picture, TypeError if they are swapped (text comes
        first, as in transformers 4; version 5 has pictures first) or for an option that nobody knows.
        """
        raise NotImplementedError

    def decode(self, *args, **kwargs) -> str:
        """Ids → text, as `BertTokenizer.decode`."""
        raise NotImplementedError

    def batch_decode(self, *args, **kwargs) -> list[str]:
        """Rows of ids → texts, as `BertTokenizer.batch_decode`."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **overrides) -> AlignProcessor:
        """Read both parts of a folder or hub name. Raises as their own from_pretrained do.

        `overrides` replace what stands in the files; each goes to the part that knows it.

        >>> AlignProcessor.from_pretrained("emoji", do_normalize=False).image_processor.do_normalize
        False
        """
        raise NotImplementedError

    def save_pretrained(self, directory: str | Path) -> None:
        """Write preprocessor_config.json, vocab.txt and tokenizer_config.json, as transformers reads them."""
        raise NotImplementedError
