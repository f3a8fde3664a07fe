"""Where a checkpoint's files come from, and how files are written.

A checkpoint is a folder, or a name that is looked up under `weights/`, then in huggingface_hub's cache, then
on the hub. Files are written beside their destination and renamed onto it, so a reader, or a crash, finds the
old file or the new one, never half of one.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

HUB_NAME = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")  # "align-base" or "kakaobrain/align-base"
CHECKPOINT_FILES = "config.json, model.safetensors, vocab.txt, preprocessor_config.json"
DEEPEST = 50  # lists and objects inside one another, in a JSON file


class Unreachable(FileNotFoundError):
    """The hub could not say whether it has a file.

    >>> isinstance(Unreachable(), FileNotFoundError)
    True
    """


def weights_folder() -> Path:
    """`weights/` of a wheel (inside the package) or of a checkout (beside it).

    >>> weights_folder().name
    'weights'
    """
    package = Path(__file__).resolve().parent.parent
    installed = package / "weights"
    return installed if installed.is_dir() else package.parent / "weights"


def find_file(name: str | Path, *filenames: str) -> Path:
    """The first of `filenames` that the checkpoint `name` (a folder or a hub name) has.

    Raises FileNotFoundError naming the folder and the files, or, for a hub name that cannot be fetched,
    what to download and where to put it.

    >>> find_file("emoji", "config.json").parts[-3:]
    ('weights', 'emoji', 'config.json')
    """
    shipped = weights_folder() / name
    if Path(name).is_dir() and (shipped / "config.json").is_file() and not shipped.samefile(Path(name)):
        warnings.warn(f"{name}: the folder here, not the model of that name that ships", stacklevel=2)
    for folder in (Path(name), shipped):
        if folder.is_dir():
            for filename in filenames:
                if (folder / filename).is_file():
                    return folder / filename
            raise FileNotFoundError(f"{folder}: no {' or '.join(filenames)} in this folder")
    if Path(name).exists():
        raise FileNotFoundError(f"{name}: not a folder; a checkpoint is a folder with {CHECKPOINT_FILES}")
    if not HUB_NAME.fullmatch(str(name)):
        raise FileNotFoundError(f"{name}: no such folder")
    return _fetch(str(name), filenames)


def _fetch(name: str, filenames: tuple[str, ...]) -> Path:
    """A file from the hub's cache or, with a progress bar, from the hub."""
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

    try:
        for filename in filenames:
            cached = try_to_load_from_cache(name, filename)
            if isinstance(cached, str):
                return Path(cached)
        # Ask once what there is: with no network this fails at once, where a download retries for 23 s.
        there = [file.rfilename for file in HfApi().model_info(name, timeout=10).siblings]
        for filename in filenames:
            if filename in there:
                return Path(hf_hub_download(name, filename))
    except Exception as error:  # the hub's, the HTTP client's and the disk's errors share no other base
        raise Unreachable(
            f"{name}: no such folder, and not to be had from the hub ({type(error).__name__}); download "
            f"{CHECKPOINT_FILES} from huggingface.co/{name} and put them into {weights_folder() / name}"
        ) from None
    raise FileNotFoundError(f"{name}: the hub's repository has no {' or '.join(filenames)}")


def check_regular(path: Path) -> None:
    """ValueError if there is something at `path` that is no file: to open a pipe could wait for ever.

    >>> check_regular(Path("/dev/zero"))
    Traceback (most recent call last):
    ValueError: /dev/zero: not a regular file
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: not a regular file")


def read_json(path: Path) -> dict:
    """The JSON object in `path`; ValueError naming the file if it holds anything else.

    Numbers that are not finite (NaN, Infinity, 1e999) are refused, and so is nesting over DEEPEST deep.
    What its values may be is the affair of `values.check_values`.

    >>> read_json(find_file("emoji", "config.json"))["model_type"]
    'align'
    """
    check_regular(Path(path))
    try:
        content = json.loads(
            Path(path).read_text(encoding="utf-8"), parse_float=_finite, parse_constant=_finite
        )
        nested = _inside([[content]])
        for _ in range(DEEPEST):
            nested = _inside(nested)
    except RecursionError:  # nested thousands deep
        nested = [path]
    except ValueError as error:  # broken JSON, a number of over 4,300 digits, or bytes that are not UTF-8
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if nested:
        raise ValueError(f"{path}: nested more than {DEEPEST} deep")
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def _finite(number: str) -> float:
    """A number of a JSON file with a point, an exponent, or a name, as Python's float."""
    if not math.isfinite(float(number)):
        raise ValueError(f"{number} is not a finite number")
    return float(number)


def _inside(parts: list) -> list:
    """The lists and dictionaries that are entries of those in `parts`."""
    entries = (x for part in parts for x in (part.values() if isinstance(part, dict) else part))
    return [x for x in entries if isinstance(x, (list, dict))]


def write_json(path: Path, content: dict) -> None:
    """Write `content` to `path` atomically, keys sorted, as Hugging Face does.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_json(Path(folder, "a.json"), {"b": 1, "a": 2})
    ...     read_json(Path(folder, "a.json"))
    {'a': 2, 'b': 1}
    """
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def check_own(path: Path, mark: bytes) -> None:
    """FileExistsError that names `path`, unless what is there may be replaced: nothing, an empty file, or a
    file with `mark` in its first kilobyte, which this program puts into what it writes.

    >>> check_own(Path("new.html"), mark=b"align-minimal")
    >>> check_own(Path("weights/samples/dog.png"), mark=b"align-minimal")
    Traceback (most recent call last):
    FileExistsError: weights/samples/dog.png: not written by align-minimal, so it is not replaced
    """
    if path.is_file():
        with open(path, "rb") as file:
            start = file.read(1024)
        own = not start or mark in start
    else:
        own = not path.exists()
    if not own:
        raise FileExistsError(f"{path}: not written by align-minimal, so it is not replaced")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary)` on a file beside `path`, then rename it onto `path`. Makes missing folders.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_atomically(Path(folder, "new", "a.txt"), lambda temporary: temporary.write_text("whole"))
    ...     Path(folder, "new", "a.txt").read_text()
    'whole'
    """
    path = Path(path)
    if path.parent.exists() and not path.parent.is_dir():
        raise NotADirectoryError(f"{path.parent}: not a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # No longer than a name may be, and of an ending by which what a killed process left is known.
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        mode = os.umask(0)  # mkstemp made the file private; give it the user's usual permissions
        os.umask(mode)
        temporary.chmod(0o666 & ~mode)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:  # of a full disk, they name no file, or the temporary one
        number = getattr(error, "errno", None)
        raise OSError(number, error.strerror, str(path)) if number else OSError(f"{path}: {error}") from None
    finally:
        temporary.unlink(missing_ok=True)
