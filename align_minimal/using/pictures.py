"""Picture files on their way to the model: how they are found, and how they are read ahead of it.

While the model works on one batch, threads read, decode and resize the pictures of the next. Threads suffice
for this, because Pillow, numpy and PyTorch release Python's lock while they work.
"""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from ..support.image_files import picture_suffixes

Item, Result = TypeVar("Item"), TypeVar("Result")


def check_folder(folder: Path) -> None:
    """FileNotFoundError if there is no such folder, NotADirectoryError if it is a file; OSError if it cannot
    be read.

    >>> check_folder(Path("setup.cfg"))
    Traceback (most recent call last):
    NotADirectoryError: setup.cfg: not a folder
    """
    if not folder.is_dir():
        error = NotADirectoryError if folder.exists() else FileNotFoundError
        raise error(f"{folder}: {'not a' if folder.exists() else 'no such'} folder")
    os.scandir(folder).close()  # raises the error of a folder that cannot be read


def find_in_folder(folder: Path) -> list[Path]:
    """The pictures in a folder and in all folders below it, sorted. Suffixes tell what a picture is; hidden
    files and folders are left out.

    A folder inside it that cannot be read is left out with a warning. Raises the errors of `check_folder`,
    and ValueError if it has no picture in it.

    >>> find_in_folder(Path("weights/samples"))[0].name
    'apple.png'
    """
    check_folder(folder)
    inside, folders = [], [folder]
    while folders:  # no recursion: folders may be nested deeper than Python's stack
        for path, is_folder in list_folder(folders.pop()):
            if is_folder:
                folders.append(path)
            elif path.suffix.lower() in picture_suffixes() and is_reachable_file(path):
                inside.append(path)
    if not inside:
        raise ValueError(f"{folder}: no picture in this folder")
    return sorted(inside)


def is_reachable_file(path: Path) -> bool:
    """Whether it is a file; no, with a warning, if it lies where nobody may look, as behind a symbolic link.

    >>> is_reachable_file(Path("setup.cfg")), is_reachable_file(Path("weights"))
    (True, False)
    """
    try:
        return path.is_file()
    except OSError as error:
        warnings.warn(f"skipped: {path}: {error.strerror}", stacklevel=2)
        return False


def list_folder(folder: Path) -> list[tuple[Path, bool]]:
    """The entries of a folder that are not hidden, as (path, is a folder); none, with a warning, if it cannot
    be read. A symbolic link to a folder is not followed, for it may lead back.

    >>> ("samples", True) in [(path.name, is_folder) for path, is_folder in list_folder(Path("weights"))]
    True
    """
    try:
        with os.scandir(folder) as entries:
            shown = [entry for entry in entries if not entry.name.startswith(".")]
            for entry in shown:
                if entry.is_symlink() and os.path.isdir(entry):  # entry.is_dir() raises for a link to itself
                    warnings.warn(f"skipped: {folder / entry.name}: a link to a folder", stacklevel=2)
            return [(folder / entry.name, entry.is_dir(follow_symlinks=False)) for entry in shown]
    except OSError as error:
        warnings.warn(f"skipped: {folder}: {error.strerror}", stacklevel=2)
        return []


def check_file(path: Path) -> None:
    """FileNotFoundError if there is no file, ValueError for a device or a pipe: reading it might never end.

    >>> check_file(Path("/dev/zero"))
    Traceback (most recent call last):
    ValueError: /dev/zero: not a file, but a device or a pipe
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if not path.is_file() and not path.is_dir():
        raise ValueError(f"{path}: not a file, but a device or a pipe")


def find_pictures(arguments: Sequence[str]) -> list[tuple[Path, bool]]:
    """A list of (path, named), in the order of the arguments. A folder stands for all pictures in it, for
    which `named` is False; a file stands for itself.

    Raises the errors of `find_in_folder`, and FileNotFoundError for a file that does not exist.

    >>> [(path.name, named) for path, named in find_pictures(["weights/samples", "setup.cfg"])][-2:]
    [('snowman.png', False), ('setup.cfg', True)]
    """
    found: list[tuple[Path, bool]] = []
    for path in map(Path, arguments):
        if path.is_dir():
            found += [(inside, False) for inside in find_in_folder(path)]
        else:
            check_file(path)
            found.append((path, True))
    return found


def read_ahead(
    items: Iterable[Item], load: Callable[[Item], Result], ahead: int = 64, threads: int = 2
) -> Iterator[tuple[Item, Result | Exception]]:
    """Yield (item, load(item)) in order. Threads call `load`, and are at most `ahead` items in front.

    If `load` raises an OSError or a ValueError, the error takes the result's place; other errors are raised.

    >>> [(item, str(result)) for item, result in read_ahead(["8", "x"], int)]
    [('8', '8'), ('x', "invalid literal for int() with base 10: 'x'")]
    """
    pool = ThreadPoolExecutor(threads)
    waiting: deque[tuple[Item, Future]] = deque()

    def take() -> tuple[Item, Result | Exception]:
        item, future = waiting.popleft()
        try:
            return item, future.result()
        except (OSError, ValueError) as error:
            return item, error

    try:
        for item in items:
            waiting.append((item, pool.submit(load, item)))
            if len(waiting) > ahead:
                yield take()
        while waiting:
            yield take()
    finally:  # also if the caller stops early: what has not been started is cancelled
        pool.shutdown(cancel_futures=True)
