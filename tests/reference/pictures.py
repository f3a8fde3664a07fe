"""Generated pictures and options, and the comparison with Hugging Face live, for the tests of the pixels.

Importing this skips the test that asked for it where transformers is not installed.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image

from align_minimal.image_processor import EfficientNetImageProcessor

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
if transformers.__version__ < "5":
    from transformers import EfficientNetImageProcessor as Reference
else:
    from transformers.models.efficientnet.image_processing_pil_efficientnet import (
        EfficientNetImageProcessorPil as Reference,
    )

VERSION = int(transformers.__version__.split(".")[0])
SIDES = st.one_of(st.integers(1, 40), st.sampled_from([1, 2, 3, 4, 300]))
COLOURS = st.one_of(
    st.floats(0.1, 2).map(float),
    st.lists(st.floats(0.1, 2), min_size=3, max_size=3),
    st.just((0.4, 0.5, 0.6)),
)


@st.composite
def sizes(draw, most: int = 40):
    """A size in one of its three spellings."""
    height, width = draw(st.integers(1, most)), draw(st.integers(1, most))
    return draw(st.sampled_from([height, (height, width), {"height": height, "width": width}]))


OPTIONS = st.fixed_dictionaries(
    {
        "resample": st.sampled_from([int(r) for r in Image.Resampling])
    },  # the two versions differ in the default
    optional={
        "do_resize": st.booleans(),
        "size": sizes(),
        "do_center_crop": st.booleans(),
        "crop_size": sizes(50),
        "do_rescale": st.booleans(),
        "rescale_factor": st.sampled_from([1 / 255, 1 / 127.5, 0.5, 1.0, 0.0123]),
        "rescale_offset": st.booleans(),
        "do_normalize": st.booleans(),
        "image_mean": COLOURS,
        "image_std": COLOURS,
        "include_top": st.booleans(),
    },
)


@st.composite
def pictures(draw):
    """(H, W, 3) pixels: uint8, whole numbers of another type, or fractions."""
    height, width = draw(SIDES), draw(SIDES)
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(
        st.sampled_from(["u1"] * 4 + ["i4", "i8", "f4", "f8", "fraction f2", "fraction f4", "fraction f8"])
    )
    if kind.startswith("fraction"):
        return random.random((height, width, 3)).astype(kind[-2:])
    return random.integers(0, 256, (height, width, 3)).astype(kind)


@st.composite
def packages(draw):
    """How the pixels are handed over."""
    return draw(st.sampled_from(["pillow", "channels_last", "channels_first", "tensor"]))


def pack(pixels: np.ndarray, package: str):
    """(the picture in that form, its input_data_format)"""
    if package == "pillow" and pixels.dtype == np.uint8:
        return Image.fromarray(pixels), "channels_last"  # 4.37.2 takes one 3 pixels high for channels-first
    if package in ("channels_first", "tensor"):
        first = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        return (torch.from_numpy(first) if package == "tensor" else first), "channels_first"
    return pixels, "channels_last"


def avoid_the_odd_crop(options: dict, height: int, width: int) -> dict:
    """Where 4.37.2's padding crop comes out one short (an odd deficit), ask for one pixel more."""
    plain = EfficientNetImageProcessor(**options)
    if VERSION > 4 or not plain.do_center_crop:
        return options
    if plain.do_resize:
        height, width = plain.size["height"], plain.size["width"]
    crop = dict(plain.crop_size)
    if crop["height"] > height or crop["width"] > width:
        for name, side in (("height", height), ("width", width)):
            crop[name] += crop[name] > side and (crop[name] - side) % 2
    return options | {"crop_size": crop}


def check_agrees(pixels: np.ndarray, package: str, options: dict, per_call: bool) -> None:
    """Bit for bit the same, whether the options go to the constructor or to the call.

    Floats that are rescaled are compared bit for bit with 4.37.2 only, and float16 not at all with 5.x, which
    scales in float64: there the bound is a few float32 roundings of the scaled pixel, divided by std twice.
    """
    if VERSION > 4 and pixels.dtype == np.float16:
        pixels = pixels.astype(np.float32)
    options = avoid_the_odd_crop(options, *pixels.shape[:2])
    picture, layout = pack(pixels, package)
    made, called = ({"resample": options["resample"]}, options) if per_call else (options, {})
    theirs = Reference(**made)(picture, return_tensors="np", input_data_format=layout, **called).pixel_values
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "pixels in .0, 1. are rescaled again")
        ours = EfficientNetImageProcessor(**made)(
            picture, return_tensors="np", input_data_format=layout, **called
        ).pixel_values
    assert ours.dtype == np.float32 and ours.shape == theirs.shape
    if VERSION > 4 and pixels.dtype.kind == "f" and options.get("do_rescale", True):
        scaled = max(1, pixels.max() * options.get("rescale_factor", 1 / 255))
        std = np.min(options.get("image_std", 0.5))
        assert np.abs(ours - theirs).max() <= 4e-7 * scaled / min(1, std) ** 2
    else:
        assert np.array_equal(ours, theirs.astype(np.float32))
