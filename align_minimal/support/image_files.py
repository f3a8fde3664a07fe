"""Picture files: opened by decoders that Pillow has itself, upright, whole, or refused by name."""

from __future__ import annotations

import functools
import io
import os
import threading
import warnings

from PIL import Image, ImageOps, UnidentifiedImageError

from .rgb import to_rgb

# Formats that Pillow decodes by itself. EPS is not among them: Pillow hands PostScript to Ghostscript, which
# runs it as a program. Nor is IPTC, which may hold a PostScript file; nor are WMF, BUFR, GRIB and HDF5, which
# have no decoder until some program registers one.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "PSD", "QOI")
FORMATS += ("SGI", "TGA", "TIFF", "WEBP")


def load_image(path: str | os.PathLike) -> Image.Image:
    """Read a picture file (of an animation the first frame) as RGB, turned upright as its EXIF tag says.

    Raises FileNotFoundError where there is none, and ValueError, naming the file, for a folder, an empty or
    broken file, a format that is not in FORMATS, and more pixels than Pillow thinks safe
    (`Image.MAX_IMAGE_PIXELS`).

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
        if not in_memory and not os.path.exists(source):
            raise FileNotFoundError  # Pillow's error for the empty name has changed over its versions
        if not in_memory and not os.path.isfile(source):
            raise ValueError("not a regular file")  # to open a pipe could wait for ever
        with read_header(io.BytesIO(source) if in_memory else source) as image:
            if 0 in image.size:
                raise ValueError(f"{image.width} × {image.height} pixels, so none")
            if at_least:
                image.draft(None, (at_least, at_least))
            try:
                upright = ImageOps.exif_transpose(image)
            except MemoryError:
                raise
            except Exception:  # EXIF that cannot be read: as the picture lies
                upright = image
            upright.load()
            return upright
    except MemoryError:
        raise  # not the picture's fault
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: no such file") from None
    except Exception as error:  # a broken file can make Pillow raise nearly anything
        size = len(source) if in_memory else os.path.getsize(source)
        raise ValueError(f"{name}: {_reason(error, size)}") from None


_OPENING = threading.Lock()  # threads open pictures, and Python's warning filters are the whole process's


def read_header(source: str | os.PathLike | io.BytesIO) -> Image.Image:
    """The picture's mode and size, its pixels not yet read. Pillow's errors; one, too, where it is too large.

    >>> with read_header("weights/samples/apple.png") as image:
    ...     image.format, image.size
    ('PNG', (256, 256))
    """
    with _OPENING, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(source, formats=known_formats())


@functools.cache
def known_formats() -> tuple[str, ...]:
    """Those of FORMATS that the installed Pillow has.

    >>> "PNG" in known_formats(), "EPS" in known_formats()
    (True, False)
    """
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@functools.cache
def picture_suffixes() -> frozenset[str]:
    """What the names of files in these formats end in, in lower case.

    >>> ".jpg" in picture_suffixes(), ".eps" in picture_suffixes()
    (True, False)
    """
    known = {*known_formats(), "MPO"}  # two JPEGs in one file, which the decoder of JPEG opens
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in known)


def _reason(error: Exception, size: int) -> str:
    if isinstance(error, (Image.DecompressionBombWarning, Image.DecompressionBombError)):
        return f"over {Image.MAX_IMAGE_PIXELS:,} pixels, too large to open safely"
    if isinstance(error, UnidentifiedImageError):
        return "not a picture in a known format" if size else "an empty file"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    return " ".join(str(error).split()) or f"a broken picture ({type(error).__name__})"
