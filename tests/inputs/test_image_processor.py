"""The image processor against transformers: 4.37.2 (golden), live where installed; and on its own ground."""

import gc
import itertools
import json
import os
import re
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from align_minimal.image_processor import EfficientNetImageProcessor, center_crop
from align_minimal.support.image_files import load_image
from align_minimal.support.rgb import grey_to_bytes, to_rgb, to_rgb_array

GOLDEN = np.load(Path(__file__).parents[1] / "reference" / "image_processor.npz")
CASES = sorted({name.split("/")[0] for name in GOLDEN.files})
PHOTO = GOLDEN["filter 2/input"]  # (37, 53, 3) uint8
PLAIN = dict(do_resize=False, do_rescale=False, do_normalize=False, include_top=False)


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(PHOTO)


def run(image, **options) -> np.ndarray:
    return EfficientNetImageProcessor(**options)(image, return_tensors="np").pixel_values


# ---- what the reference gives ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:pixels in")
@pytest.mark.parametrize("case", CASES)
def test_pixels_equal_the_reference_s_bit_for_bit(case):
    ours = run(GOLDEN[f"{case}/input"], **json.loads(str(GOLDEN[f"{case}/options"])))
    theirs = GOLDEN[f"{case}/output"]
    assert ours.dtype == np.float32 and np.array_equal(ours, theirs), np.abs(ours - theirs).max()


def test_pixels_equal_the_live_reference_s_for_generated_pictures_and_options():
    pytest.importorskip("transformers", reason="the live reference needs transformers")
    from tests.reference.pictures import OPTIONS, check_agrees, packages, pictures

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(pictures(), packages(), OPTIONS, st.booleans())
    def check(pixels, package, options, per_call):
        check_agrees(pixels, package, options, per_call)

    check()


@pytest.mark.parametrize(
    "package", ["pillow", "last", "first", "tensor", "batch", "tuple", "float", "bfloat16"]
)
def test_a_picture_gives_the_same_pixels_however_it_is_handed_over(package, picture):
    first = np.ascontiguousarray(PHOTO.transpose(2, 0, 1))
    packed = {
        "pillow": picture,
        "last": PHOTO,
        "first": first,
        "tensor": torch.from_numpy(first),
        "batch": first[None],
        "tuple": (picture,),
        "float": PHOTO.astype(np.float32),
        "bfloat16": torch.from_numpy(first).bfloat16(),
    }[package]
    assert np.array_equal(run(packed, size=20, resample=2), GOLDEN_SQUARE)


GOLDEN_SQUARE = run(Image.fromarray(PHOTO), size=20, resample=2)


NORMALIZE = ["do_rescale", "rescale_offset", "do_normalize", "include_top"]


@pytest.mark.filterwarnings("ignore:pixels in")
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("flags", list(itertools.product([True, False], repeat=4)))
def test_pixels_are_scale_s_bit_for_bit_in_every_layout(flags, dtype):
    options = dict(zip(NORMALIZE, flags, strict=True), image_mean=[0.1, 0.5, 0.7], image_std=[0.3, 0.6, 1.7])
    processor = EfficientNetImageProcessor(do_resize=False, **options)
    x = PHOTO.astype(dtype)
    expected = processor.scale(x.transpose(2, 0, 1)).astype(np.float32)
    for layout, order in [("channels_last", (1, 2, 0)), ("channels_first", (0, 1, 2))]:
        pixels = processor(x, return_tensors="pt", data_format=layout).pixel_values
        assert pixels.is_contiguous() and np.array_equal(pixels[0], expected.transpose(order))


def test_the_offset_is_1_whatever_the_mean():
    options = dict(rescale_factor=1 / 127.5, rescale_offset=True, image_mean=0.25, image_std=0.5)
    processor = EfficientNetImageProcessor(do_resize=False, do_normalize=True, include_top=False, **options)
    pixels = processor(np.array([[[0] * 3, [255] * 3]], np.uint8), return_tensors="np").pixel_values
    assert np.allclose(pixels[0, :, 0], [(-1 - 0.25) / 0.5, (1 - 0.25) / 0.5])  # 0 → −1, 255 → 1


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("tensors", [None, "np", "pt"])
def test_pictures_of_a_list_keep_their_order_and_their_errors_on_two_threads(two_threads, tensors):
    processor = EfficientNetImageProcessor(size=30, resample=2)
    pictures = [Image.fromarray(PHOTO[: 37 - i].repeat(8 - i, 0)) for i in range(8)]  # the first take longest
    together = processor(pictures, return_tensors=tensors).pixel_values
    for picture, pixels in zip(pictures, together, strict=True):
        assert np.array_equal(pixels, processor(picture).pixel_values[0])
    with pytest.raises(TypeError, match="not str"):
        processor([*pictures, "cat.png"], return_tensors=tensors)


def test_a_file_not_yet_read_may_come_twice_in_a_list_on_two_threads(two_threads, picture, tmp_path):
    picture.resize((900, 900)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image, Image.open(tmp_path / "a.png") as other:
        pixels = EfficientNetImageProcessor(size=20)([image] * 4 + [other], return_tensors="np").pixel_values
    assert (pixels == pixels[4]).all()


def test_options_of_a_call_hold_for_that_call_only(picture):
    processor = EfficientNetImageProcessor(size=20)
    assert processor(picture, size=(7, 9), return_tensors="np").pixel_values.shape == (1, 3, 7, 9)
    assert processor(picture, size=None, return_tensors="np").pixel_values.shape == (1, 3, 20, 20)


def test_tensors_arrays_and_lists_hold_the_same_pixels(picture):
    processor = EfficientNetImageProcessor(size=(4, 5))
    listed = processor([picture, PHOTO]).pixel_values
    assert isinstance(listed, list) and [x.shape for x in listed] == [(3, 4, 5)] * 2
    tensor = processor([picture, PHOTO], return_tensors="pt").pixel_values
    assert tensor.dtype == torch.float32 and np.array_equal(tensor, np.stack(listed))
    last = processor.preprocess(picture, return_tensors="np", data_format="channels_last").pixel_values
    assert np.array_equal(last[0], listed[0].transpose(1, 2, 0))


def test_pictures_of_unlike_size_come_as_a_list_and_as_one_tensor_are_an_error(picture):
    processor = EfficientNetImageProcessor(**PLAIN)
    assert [x.shape[1] for x in processor([picture, PHOTO[:9]]).pixel_values] == [37, 9]
    with pytest.raises(ValueError, match=r"image 1 comes out as \(3, 9, 53\), image 0 as \(3, 37, 53\)"):
        processor([picture, PHOTO[:9]], return_tensors="pt")


def test_of_an_odd_deficit_the_larger_half_lies_above_and_left():
    assert center_crop(np.ones((3, 2, 3)), (6, 3))[:, 1, 0].tolist() == [0, 0, 1, 1, 1, 0]
    assert center_crop(np.ones((3, 2, 3)), (6, 3))[3, :, 0].tolist() == [0, 1, 1]


@given(st.tuples(*[st.integers(1, 9)] * 4))
def test_a_centre_crop_always_has_the_size_asked_for_and_keeps_the_middle(sides):
    height, width, *size = sides
    x = np.ones((height, width, 3))
    cropped = center_crop(x, tuple(size))
    assert cropped.shape == (*size, 3)
    assert cropped.sum() == 3 * min(height, size[0]) * min(width, size[1])  # nothing lost but what sticks out
    for axis, length in enumerate(size):
        middle = np.flatnonzero(cropped.any(axis=(1 - axis, 2))).mean()
        assert abs(middle - (length - 1) / 2) <= 0.5


def test_fractions_that_will_be_rescaled_again_raise_a_warning():
    with pytest.warns(UserWarning, match="do_rescale=False"):
        run(PHOTO / 255.0, size=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(PHOTO / 255.0, size=4, do_rescale=False)
        run(PHOTO.astype(float), size=4)


# ---- every mode to RGB -------------------------------------------------------------------------------------

PALETTE = [10, 20, 30, 200, 100, 50]


def paletted(mode: str, **info) -> Image.Image:
    image = Image.new("P", (1, 1), 1)
    image.putpalette(PALETTE)
    image.info.update(info)
    return image if mode == "P" else image.convert(mode)


def from_array(x) -> Image.Image:
    return Image.fromarray(np.array([x]))


ONE_PIXEL = {
    "RGB": (Image.new("RGB", (1, 1), (10, 20, 30)), (10, 20, 30)),
    "RGB, its transparent colour": (Image.new("RGB", (1, 1), (10, 20, 30)), (255, 255, 255)),
    "RGBX": (Image.new("RGBX", (1, 1), (10, 20, 30, 0)), (10, 20, 30)),
    "RGBA, opaque": (Image.new("RGBA", (1, 1), (10, 20, 30, 255)), (10, 20, 30)),
    "RGBA, transparent": (Image.new("RGBA", (1, 1), (10, 20, 30, 0)), (255, 255, 255)),
    "RGBA, a fifth": (Image.new("RGBA", (1, 1), (255, 0, 0, 51)), (255, 204, 204)),
    "RGBa, a fifth": (Image.new("RGBa", (1, 1), (51, 0, 0, 51)), (255, 204, 204)),
    "L": (Image.new("L", (1, 1), 100), (100, 100, 100)),
    "L, its transparent shade": (Image.new("L", (1, 1), 100), (255, 255, 255)),
    "LA, a fifth": (Image.new("LA", (1, 1), (0, 51)), (204, 204, 204)),
    "La, a fifth": (Image.new("La", (1, 1), (0, 51)), (204, 204, 204)),
    "P": (paletted("P"), (200, 100, 50)),
    "P, its transparent entry": (paletted("P", transparency=1), (255, 255, 255)),
    "P, an alpha an entry": (paletted("P", transparency=b"\xff\x00"), (255, 255, 255)),
    "PA": (paletted("PA"), (200, 100, 50)),
    "1, white": (Image.new("1", (1, 1), 1), (255, 255, 255)),
    "1, black": (Image.new("1", (1, 1), 0), (0, 0, 0)),
    "CMYK": (Image.new("CMYK", (1, 1), (0, 255, 255, 0)), (255, 0, 0)),
    "YCbCr": (Image.new("YCbCr", (1, 1), (128, 128, 128)), (128, 128, 128)),
    "HSV": (Image.new("HSV", (1, 1), (0, 255, 255)), (255, 0, 0)),
    "LAB": (Image.new("LAB", (1, 1), (255, 128, 128)), (255, 255, 255)),
    "I;16": (Image.new("I;16", (1, 1), 0x8080), (128, 128, 128)),
    "I;16, dark": (Image.new("I;16", (1, 1), 200), (1, 1, 1)),
    "I;16L": (Image.new("I;16L", (1, 1), 0x8080), (128, 128, 128)),
    "I;16B": (Image.new("I;16B", (1, 1), 0x80FF), (128, 128, 128)),
    "I;16N": (Image.new("I;16N", (1, 1), 0x80FF), (128, 128, 128)),
    "I, 16 bits": (from_array(np.array([0x8080], np.int32)), (128, 128, 128)),
    "I, 8 bits": (from_array(np.array([200], np.int32)), (200, 200, 200)),
    "F, a fraction": (from_array(np.array([0.2], np.float32)), (51, 51, 51)),
    "F, 8 bits": (from_array(np.array([200.4], np.float32)), (200, 200, 200)),
    "F, not a number": (from_array(np.array([np.nan], np.float32)), (0, 0, 0)),
}
ONE_PIXEL["RGB, its transparent colour"][0].info["transparency"] = (10, 20, 30)
ONE_PIXEL["L, its transparent shade"][0].info["transparency"] = 100


@pytest.mark.parametrize("name", ONE_PIXEL)
def test_every_pillow_mode_becomes_the_rgb_that_it_shows(name):
    image, expected = ONE_PIXEL[name]
    converted = to_rgb(image)
    assert converted.mode == "RGB" and converted.size == (1, 1)
    off = np.abs(np.subtract(converted.getpixel((0, 0)), expected)).max()
    assert off <= (name == "LAB")  # colour management may round either way


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "LAB", "CMYK", "RGBA", "RGBX", "RGBa"])
def test_colour_modes_bring_a_photograph_back(mode, picture):
    image = Image.merge("RGB", [picture.getchannel(i) for i in range(3)])
    if mode == "LAB":
        image = to_rgb(load_lab(picture))
    else:
        image = to_rgb((picture.convert("RGBA") if mode == "RGBa" else picture).convert(mode))
    assert np.abs(np.asarray(image).astype(int) - PHOTO).mean() < 6


def load_lab(picture: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.applyTransform(picture, ImageCms.buildTransform(srgb, lab, "RGB", "LAB"))


@given(hnp.arrays(st.sampled_from([np.int32, np.float32, np.uint16]), (3, 3)))
def test_deep_grey_keeps_the_order_of_its_shades(grey):
    grey = np.nan_to_num(grey, nan=0, posinf=0, neginf=0)
    order = np.argsort(grey, axis=None)
    assert (np.diff(grey_to_bytes(grey).ravel()[order].astype(int)) >= 0).all()


@pytest.mark.parametrize(
    "values", [[300, 70000], [-5, 5], [0, 2**31 - 1], [-3e38, 3e38], [0.0, 1e-3], [0, 300]]
)
def test_deep_grey_is_not_clipped_to_white_nor_black(values):
    low, high = grey_to_bytes(np.array(values)).astype(int)
    assert low < high or max(values) < 1
    assert high == 255 or max(values) in (1e-3, 300)  # a fraction; 16 bits deep


def test_a_deep_png_shows_what_it_shows_at_8_bits(tmp_path):
    deep = PHOTO[..., 0].astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.array_equal(np.asarray(load_image(tmp_path / "deep.png"))[..., 0], PHOTO[..., 0])


def test_an_image_s_transparent_16_bit_shade_is_white(tmp_path):
    Image.fromarray(np.array([[1000, 40000]], np.uint16)).save(tmp_path / "t.png", transparency=1000)
    assert [p[0] for p in np.asarray(load_image(tmp_path / "t.png"))[0]] == [255, 156]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA"])
@pytest.mark.parametrize("first", [False, True])
def test_arrays_of_1_2_and_4_channels_give_what_such_a_picture_gives(mode, first, picture):
    image = picture.convert("RGBA")
    image.putalpha(picture.getchannel(1))
    image = image.convert(mode)
    x = np.asarray(image).reshape(37, 53, -1)
    array = x.transpose(2, 0, 1) if first else x
    expected = np.asarray(to_rgb(image))
    assert np.array_equal(to_rgb_array(array), expected)
    assert np.abs(to_rgb_array(array / 255.0) - expected / 255.0).max() < 2 / 255
    assert np.abs(to_rgb_array(array.astype(np.int64)) - expected).max() <= 1


def test_arrays_without_a_channel_axis_are_grey_and_booleans_black_and_white():
    mask = np.array([[True, False]])
    assert to_rgb_array(mask).tolist() == [[[255] * 3, [0] * 3]]
    assert to_rgb_array(mask * np.uint16(65535)).tolist() == [[[255] * 3, [0] * 3]]
    assert run(np.zeros((5, 6), np.uint8), size=4).shape == (1, 3, 4, 4)


@pytest.mark.parametrize(
    "shape, layout, expected",
    [
        ((3, 5, 3), None, (5, 3, 3)),  # both ends could be channels: first, as the reference
        ((3, 5, 3), "channels_last", (3, 5, 3)),
        ((1, 5, 3), None, (1, 5, 3)),  # one pixel high: 3 wins over 1
        ((4, 5, 3), None, (4, 5, 3)),
        ((3, 5, 4), None, (5, 4, 3)),
        ((1, 5, 6), None, (5, 6, 3)),
        ((5, 6, 1), None, (5, 6, 3)),
    ],
)
def test_the_channel_axis_is_found(shape, layout, expected):
    assert to_rgb_array(np.zeros(shape), layout).shape == expected


def test_pictures_one_and_three_pixels_high_are_taken_for_what_they_are(picture):
    for height in (1, 2, 3, 4):
        pixels = run(picture.crop((0, 0, 53, height)), **PLAIN)
        assert np.array_equal(pixels[0].transpose(1, 2, 0), PHOTO[:height])


def test_an_animation_shows_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert load_image(tmp_path / "a.gif").getpixel((0, 0)) == (255, 0, 0)


# ---- options and preprocessor_config.json ------------------------------------------------------------------


def test_the_defaults_are_the_documented_ones():
    assert EfficientNetImageProcessor().to_dict() == {
        "do_resize": True,
        "size": {"height": 346, "width": 346},
        "resample": 0,
        "do_center_crop": False,
        "crop_size": {"height": 289, "width": 289},
        "rescale_factor": 1 / 255,
        "rescale_offset": False,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "include_top": True,
        "image_processor_type": "EfficientNetImageProcessor",
    }


def test_a_saved_processor_is_read_back_the_same(tmp_path):
    processor = EfficientNetImageProcessor(size=(7, 9), resample=3, image_std=0.3, rescale_offset=True)
    processor.save_pretrained(tmp_path / "new")
    assert EfficientNetImageProcessor.from_pretrained(tmp_path / "new") == processor


@pytest.mark.parametrize(
    "filename, content, size",
    [
        ("preprocessor_config.json", {"feature_extractor_type": "X", "size": 12, "crop_size": 9}, (12, 12)),
        ("preprocessor_config.json", {"size": {"height": 3, "width": 4}, "crop_size": None}, (3, 4)),
        ("processor_config.json", {"image_processor": {"size": [5, 6]}, "processor_class": "A"}, (5, 6)),
    ],
)
def test_files_old_and_new_are_read(tmp_path, filename, content, size):
    (tmp_path / filename).write_text(json.dumps(content))
    read = EfficientNetImageProcessor.from_pretrained(tmp_path).size
    assert (read["height"], read["width"]) == size


def test_transformers_reads_what_is_saved_here_and_the_reverse(tmp_path):
    pytest.importorskip("transformers", reason="the live reference needs transformers")
    from tests.reference.pictures import Reference

    options = dict(size=dict(height=7, width=9), resample=3, image_mean=[0.1, 0.2, 0.3], include_top=False)
    ours = EfficientNetImageProcessor(**options)
    ours.save_pretrained(tmp_path / "ours")
    theirs = Reference.from_pretrained(tmp_path / "ours")
    assert EfficientNetImageProcessor.from_dict(theirs.to_dict()) == ours
    theirs.save_pretrained(tmp_path / "theirs")
    assert EfficientNetImageProcessor.from_pretrained(tmp_path / "theirs") == ours


@pytest.mark.parametrize(
    "options, message",
    [
        ({"size": -1}, "size must be .* not -1"),
        ({"size": (1, 2, 3)}, r"size must be .* not \(1, 2, 3\)"),
        ({"size": {"shortest_edge": 9}}, "size must be .* not {'shortest_edge': 9}"),
        ({"size": 2.5}, "size must be .* not 2.5"),
        ({"size": "big"}, "size must be .* not 'big'"),
        ({"crop_size": 0}, "crop_size must be .* not 0"),
        ({"resample": 99}, "resample 99 must be"),
        ({"resample": "nearest"}, "resample 'nearest' must be"),
        ({"image_mean": [0.5, 0.5]}, r"image_mean .* not \[0.5, 0.5\]"),
        ({"image_mean": "grey"}, "image_mean .* not 'grey'"),
        ({"image_std": float("nan")}, "image_std .* not nan"),
        ({"image_std": [1, 0, 1]}, "image_std .* 0"),
        ({"rescale_factor": float("inf")}, "rescale_factor .* not inf"),
    ],
)
def test_an_option_out_of_range_is_named_in_the_error(options, message, picture):
    with pytest.raises(ValueError, match=message) as error:
        EfficientNetImageProcessor(**options)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=message):
        EfficientNetImageProcessor()(picture, **options)


def test_a_wrong_value_in_a_file_is_named_with_the_file(tmp_path):
    path = tmp_path / "preprocessor_config.json"
    path.write_text('{"size": -3}')
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: size .* -3"):
        EfficientNetImageProcessor.from_pretrained(tmp_path)
    path.unlink()
    (tmp_path / "processor_config.json").write_text("{}")
    with pytest.raises(ValueError, match="no image_processor"):
        EfficientNetImageProcessor.from_pretrained(tmp_path)


def test_an_unknown_option_names_the_nearest(picture):
    with pytest.raises(TypeError, match=r"'centre_crop'.*'do_center_crop'"):
        EfficientNetImageProcessor(centre_crop=True)
    with pytest.raises(TypeError, match=r"'return_tensor'.*'return_tensors'"):
        EfficientNetImageProcessor()(picture, return_tensor="pt")


@pytest.mark.parametrize(
    "images, options, error, message",
    [
        ("cat.png", {}, TypeError, "not str; open files with load_image"),
        ([], {}, ValueError, "none given"),
        ([[PHOTO]], {}, TypeError, "not list"),
        (np.zeros((2, 3, 4, 5, 3)), {}, ValueError, r"not \(2, 3, 4, 5, 3\)"),
        (np.zeros((9, 9, 9)), {}, ValueError, r"not \(9, 9, 9\)"),
        (np.zeros((0, 9, 3)), {}, ValueError, r"shape \(0, 9, 3\) has no pixels"),
        (Image.new("L", (0, 5)), {}, ValueError, "0 × 5"),
        (np.full((4, 4, 3), -1), {}, ValueError, "0–255.*: -1 to -1"),
        (np.full((4, 4, 3), 0.5) * 7, {}, ValueError, "0–255.*: 3.5 to 3.5"),
        (np.full((4, 4, 3), np.nan), {}, ValueError, "0–255.*: nan to nan"),
        (np.full((4, 4, 3), "x"), {}, TypeError, "numbers"),
        (PHOTO, {"return_tensors": "tf"}, ValueError, "'tf'"),
        (PHOTO, {"data_format": "first"}, ValueError, "'first'"),
        (PHOTO, {"input_data_format": "last"}, ValueError, "'last'"),
        (PHOTO, {"input_data_format": "channels_first"}, ValueError, r"\(37, 53, 3\)"),
    ],
)
def test_what_is_no_picture_is_named_in_the_error(images, options, error, message):
    with pytest.raises(error, match=message) as caught:
        EfficientNetImageProcessor()(images, **options)
    assert "\n" not in str(caught.value)


# ---- files -------------------------------------------------------------------------------------------------


def png(width: int, height: int) -> bytes:
    """A PNG that says it has this size, and holds no pixels."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b"")]
    framed = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def test_a_picture_is_turned_upright(tmp_path, picture):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    picture.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(np.asarray(load_image(tmp_path / "turned.png")), np.rot90(PHOTO, -1))


def test_a_broken_exif_tag_does_not_spoil_a_picture(tmp_path, picture):
    picture.save(tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x00broken")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert load_image(str(tmp_path / "a.jpg")).size == (53, 37)


def bad_files(folder: Path, picture: Image.Image) -> dict[str, tuple[Path, str]]:
    picture.resize((300, 300)).save(folder / "whole.jpg")
    contents = {
        "empty": (b"", "an empty file"),
        "text": (b"no picture", "not a picture in a known format"),
        "truncated": ((folder / "whole.jpg").read_bytes()[:2000], "truncated"),
        "without pixels": (png(9, 9), "."),
        "bomb": (png(50_000, 50_000), "89,478,485 pixels, too large"),
        "large": (png(10_000, 10_000), "89,478,485 pixels, too large"),  # where Pillow only warns
        "zero": (png(0, 9), "."),
    }
    files = {}
    for name, (content, message) in contents.items():
        files[name] = folder / f"{name}.png", message
        files[name][0].write_bytes(content)
    return files | {"folder": (folder, "a folder")}


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_a_picture_whose_exif_cannot_be_read_lies_as_it_is(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    Image.new("RGB", (4, 2), "red").save(path, exif=b"Exif\0\0zzzz not an exif block")
    assert load_image(path).size == (4, 2)


def test_a_file_that_is_no_whole_picture_is_named_in_one_line_and_closed(tmp_path, picture):
    gc.collect()  # what other tests left open is not this one's
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for path, message in bad_files(tmp_path, picture).values():
            with pytest.raises(ValueError, match=message) as error:
                load_image(path)
            assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
        load_image(tmp_path / "whole.jpg")
        gc.collect()
    unwanted = (ResourceWarning, Image.DecompressionBombWarning)
    assert not [str(w.message) for w in caught if issubclass(w.category, unwanted)]


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"^none\.png: no such file$"):
        load_image("none.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_is_refused_rather_than_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match="not a regular file"):
        load_image(tmp_path / "pipe.png")
