"""Pairs in WebDataset tar shards. The files of a pair follow each other, named alike up to the last dot."""

from __future__ import annotations

import functools
import itertools
import json
import os
import tarfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from .pairs import Pair, make_pair


def find_shards(path: Path) -> list[Path]:
    """`path` itself if it is a tar file, or the tar files in it, sorted.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("1.tar", "0.tar", "notes.txt"):
    ...         Path(folder, name).touch()
    ...     [path.name for path in find_shards(Path(folder))]
    ['0.tar', '1.tar']
    """
    suffixes = (".tar", ".tar.gz", ".tgz")
    if path.is_file() and path.name.endswith(suffixes):
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder, and no tar file")
    shards = sorted(p for p in path.iterdir() if p.name.endswith(suffixes) and p.is_file())
    if not shards:
        raise ValueError(f"{path}: neither metadata.jsonl nor metadata.csv nor .tar files in it")
    return shards


def read_shards(shards: Sequence[Path]) -> Iterator[Pair]:
    """The pairs of WebDataset tar shards, one after the other: an image, and .txt or .json with the text.

    The files of a pair follow each other and differ in what comes after the last dot of their names. The text
    is KEY.txt, or `text` or `caption` in KEY.json, where `concept` and `mirror` may also stand. What has no
    image or no text, and the rest of a broken shard, is passed over with a warning.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "cat.txt").write_text("a cat")
    ...     with tarfile.open(f"{folder}/0.tar", "w") as tar:
    ...         tar.add("weights/samples/cat.jpg", "cat.jpg")
    ...         tar.add(f"{folder}/cat.txt", "cat.txt")
    ...     [pair.texts for pair in read_shards([Path(folder, "0.tar")])]
    [('a cat',)]
    """
    for shard in shards:
        try:
            for key, files in _samples(shard):
                try:
                    yield _shard_pair(f"{shard}/{key}", files)
                except (ValueError, RecursionError) as error:
                    _warn_once(f"{shard}/{key}: skipped, {error}")
        except Exception as error:  # tarfile's, zlib's and lzma's share no base
            _warn_once(f"{shard}: broken here, the rest of it is skipped ({error or type(error).__name__})")


@functools.cache  # or each epoch would say it again
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=3)


class _Header(tarfile.TarInfo):
    """A tar file's header. To tarfile, one that is cut short or garbled is as good as the end mark."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf and not buf.strip(b"\0"):
                raise
            raise tarfile.ReadError(str(error)) from None


def _samples(shard: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, {".jpg": …, ".txt": …}) for each run of files of one key."""
    with tarfile.open(shard, "r|*", tarinfo=_Header) as tar:
        files = (f for f in tar if f.isfile() and not os.path.basename(f.name).startswith("."))
        contents = ((*os.path.splitext(f.name), tar.extractfile(f).read()) for f in files)
        for key, run in itertools.groupby(contents, key=lambda content: content[0]):
            yield key, {suffix.lower(): data for _, suffix, data in run}


def _shard_pair(name: str, files: dict[str, bytes]) -> Pair:
    image = next((data for suffix, data in files.items() if suffix in Image.registered_extensions()), None)
    if image is None:
        raise ValueError("no image")
    more = json.loads(files.get(".json", "{}"))
    if not isinstance(more, dict):
        raise ValueError("its .json is not an object")
    text = files[".txt"].decode("utf-8-sig") if ".txt" in files else more.get("text") or more.get("caption")
    if text is None:
        raise ValueError("no text")
    return make_pair(name, image, text, more)
