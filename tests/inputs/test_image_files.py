"""Picture files: which formats are opened, and that no picture starts another program."""

import io
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from align_minimal import AlignModel, AlignProcessor
from align_minimal.commands.demo import make_classify
from align_minimal.support.image_files import FORMATS, known_formats, load_image, open_image, picture_suffixes
from align_minimal.support.rgb import to_rgb

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
POSTSCRIPT = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 9 9
%%EndComments
{ } loop
showpage
%%EOF
"""


def iptc(content: bytes) -> bytes:
    """An IPTC file whose "compressed" pixels are another file: Pillow opens that in its turn."""
    fields = {(3, 60): b"\x01\x00", (3, 20): b"\x09", (3, 30): b"\x09", (3, 120): b"\x05", (8, 10): content}
    return b"".join(
        bytes([0x1C, *tag]) + len(field).to_bytes(2, "big") + field for tag, field in fields.items()
    )


@pytest.fixture
def started(monkeypatch) -> list:
    """Whatever would have been started, instead of starting it: Ghostscript need not be installed."""
    calls: list = []

    def ghostscript(*arguments, **options):
        calls.append("Ghostscript")
        return Image.new("RGB", (9, 9)).im

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", ghostscript)
    for name in ("Popen", "run", "call", "check_call", "check_output"):
        monkeypatch.setattr(subprocess, name, lambda *a, **k: calls.append(a))
    monkeypatch.setattr(os, "system", calls.append)
    return calls


@pytest.mark.parametrize("content", [POSTSCRIPT, iptc(POSTSCRIPT)], ids=["itself", "inside IPTC"])
@pytest.mark.parametrize("name", ["a.eps", "a.png", "a.iim", "a"])
def test_a_picture_that_is_postscript_starts_no_program(started, tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    for source in (path, content):
        with pytest.raises(ValueError) as error:
            open_image(source, path)
        assert str(error.value) == f"{path}: not a picture in a known format"
    assert started == []


@pytest.mark.parametrize("content", [POSTSCRIPT, iptc(POSTSCRIPT)], ids=["itself", "inside IPTC"])
def test_an_upload_to_the_demo_that_is_postscript_starts_no_program(started, tmp_path, content):
    classify = make_classify(AlignModel.from_pretrained("emoji"), AlignProcessor.from_pretrained("emoji"))
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"^a\.png: not a picture in a known format$"):
        classify(str(tmp_path / "a.png"), "dog, cat")
    assert started == []


def test_pillow_itself_would_have_started_ghostscript(started):
    for content in (POSTSCRIPT, iptc(POSTSCRIPT)):  # or else the test above could not fail
        with Image.open(io.BytesIO(content)) as image:
            image.load()
    assert started == ["Ghostscript"] * 2


@pytest.mark.parametrize("kind", [name for name in FORMATS if name != "PSD"])  # never written
def test_every_format_of_the_list_is_read(tmp_path, kind):
    if kind not in known_formats():
        pytest.skip(f"this Pillow has no {kind}")
    path = tmp_path / "picture"
    try:
        PICTURE.save(path, format=kind)
    except (KeyError, OSError) as error:
        pytest.skip(f"this Pillow writes no {kind}: {error}")
    assert load_image(path).size == (16, 16)
    assert np.array_equal(np.asarray(open_image(path.read_bytes(), "a")), np.asarray(Image.open(path)))
    if kind not in ("JPEG", "WEBP", "GIF", "AVIF", "JPEG2000"):  # the others keep every pixel
        assert np.array_equal(np.asarray(to_rgb(open_image(path, path))), np.asarray(PICTURE))


def test_a_format_that_the_installed_pillow_lacks_is_left_out(monkeypatch):
    known_formats.cache_clear()
    monkeypatch.delitem(Image.OPEN, "QOI", raising=False)
    try:
        assert "QOI" not in known_formats()
        with pytest.raises(ValueError, match="not a picture in a known format"):
            open_image(b"no picture", "a")
    finally:
        known_formats.cache_clear()


def test_a_photograph_of_two_pictures_and_a_jpeg_are_one_format(tmp_path):
    PICTURE.save(tmp_path / "a.mpo", format="MPO", save_all=True, append_images=[PICTURE])
    assert load_image(tmp_path / "a.mpo").size == (16, 16)


def test_suffixes_are_those_of_the_formats_that_are_read():
    assert {".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".mpo"} <= picture_suffixes()
    assert not {".eps", ".ps", ".pdf", ".palm", ".wmf", ".h5", ".iim"} & picture_suffixes()


def test_the_package_opens_pictures_in_one_place_alone():
    package = Path(__file__).parents[2] / "align_minimal"
    opening = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if ("Image.open(" in line or "registered_extensions(" in line) and ">>>" not in line
    }
    assert opening == {"support/image_files.py"}
