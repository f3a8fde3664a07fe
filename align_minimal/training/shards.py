"""Pairs in WebDataset tar shards. The files of a pair follow each other, named alike up to the last dot.

Of a plain tar only headers and texts are read; a picture stays where it is, as a Span. What is no part of a
pair is never read, nor is a text or a picture beyond a limit, whatever size a header claims.
"""

from __future__ import annotations

import functools
import json
import os
import re
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from ..support.image_files import picture_suffixes
from .pairs import Pair, Span, make_pair

LONGEST_TEXT, LARGEST_PICTURE, LONGEST_HEADER = 2**24, 2**28, 2**20  # bytes
BLOCK = tarfile.BLOCKSIZE
# The header of a file as nearly all are: a short name, the size and the sum of all bytes in octal digits.
PLAIN_HEADER = re.compile(
    rb"""(?=(?P<name>[^\0]{1,99})\0) .{124} (?P<size>[0-7]{11})[\0\ ] .{12} (?P<sum>[0-7]{6}\0\ )
    0 .{100} ustar .{83} \0""",
    re.DOTALL | re.VERBOSE,
)


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
    return sorted(p for p in path.iterdir() if p.name.endswith(suffixes) and p.is_file())


def read_shard(shard: Path, number: int = 0, start: int = 0) -> Iterator[tuple[Pair, int]]:
    """The pairs of a shard from `start` on, and where the next one starts: a byte of a plain tar, or how many
    came before it in a compressed one. `number` is the shard's among others: pair.place is (number, start).

    The text is KEY.txt, or `text` or `caption` in KEY.json, where `concept` and `mirror` may also stand. What
    has no image or no text, and the rest of a broken shard, is passed over with a warning.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "cat.txt").write_text("a cat")
    ...     with tarfile.open(f"{folder}/0.tar", "w") as tar:
    ...         tar.add("weights/samples/cat.jpg", "cat.jpg")
    ...         tar.add(f"{folder}/cat.txt", "cat.txt")
    ...     [(pair.texts, pair.image.size) for pair, _ in read_shard(Path(folder, "0.tar"))]
    [(('a cat',), 15172)]
    """
    try:
        for key, files, place, after in _samples(shard, start):
            try:
                yield _shard_pair(f"{shard}/{key}", files, (number, place)), after
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
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf and not buf.strip(b"\0"):
                raise
            raise tarfile.ReadError(str(error)) from None
        extends_another = header.type in b"LKxgX"  # a long name or the like, which tarfile reads at once
        if extends_another and header.size > LONGEST_HEADER:
            raise tarfile.ReadError(f"a header that claims {header.size:,} bytes")
        return header

    def _block(self, count: int) -> int:
        """The bytes from a header to the next one. Back, if there are less than 0: to this one, for ever."""
        if count < 0:
            raise tarfile.ReadError(f"a header that claims {count:,} bytes")
        return super()._block(count)


def _samples(shard: Path, start: int) -> Iterator[tuple[str, dict, int, int]]:
    """For each key its files ({".jpg": Span or bytes, ".txt": bytes, …}), its start and the next one's."""
    packed = not is_plain(shard)
    with open(shard, "rb", buffering=4096) as file:  # a text and two headers, but not much of a picture
        if not packed:
            file.seek(start)
        with tarfile.open(fileobj=file, mode="r:*" if packed else "r:", tarinfo=_Header) as tar:
            key, files, place, count = None, {}, start, 0
            for member in _members(tar, packed):
                name, suffix = os.path.splitext(member.name)
                if not member.isfile() or os.path.basename(name).startswith("."):
                    continue
                if name != key:
                    if files and (not packed or count > start):
                        yield key, files, place, count if packed else member.offset
                    key, files, place = name, {}, count if packed else member.offset
                    count += 1
                wanted = not packed or count > start
                files[suffix.lower()] = (
                    _content(tar, member, suffix.lower(), shard, packed) if wanted else None
                )
            if files and (not packed or count > start):
                yield key, files, place, count if packed else tar.offset


def _members(tar: tarfile.TarFile, packed: bool) -> Iterator[tarfile.TarInfo]:
    """What tarfile gives. In a plain tar, plain headers are read here: it takes ten times as long for one."""
    member = tar.next()
    while member:
        yield member
        tar.members = []  # which would grow with the shard
        member = (not packed and _plain_member(tar)) or tar.next()


def _plain_member(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The next member, or None if its header is another kind's, or broken: that is for tarfile to say."""
    tar.fileobj.seek(tar.offset - 1)  # the last byte before it, so that tarfile sees where that is missing
    block = tar.fileobj.read(1 + BLOCK)[1:]
    header = PLAIN_HEADER.match(block)
    if not header or sum(block) - sum(header["sum"]) + 8 * ord(" ") != int(header["sum"][:6], 8):
        return None
    member = tarfile.TarInfo(str(header["name"], tar.encoding, tar.errors))
    member.size, member.offset, member.offset_data = int(header["size"], 8), tar.offset, tar.offset + BLOCK
    tar.offset = member.offset_data + -(-member.size // BLOCK) * BLOCK
    return member


def is_plain(shard: Path) -> bool:
    """Whether a tar is not compressed, so that one can go to any place in it.

    >>> is_plain(Path("setup.cfg"))
    True
    """
    with open(shard, "rb") as file:
        return not file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0"))


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, suffix: str, shard: Path, packed: bool):
    """What a pair needs of a file: its bytes or Span; None for what is no part of a pair."""
    picture = suffix in picture_suffixes()
    if not picture and suffix not in (".txt", ".json"):
        return None
    limit = LARGEST_PICTURE if picture else LONGEST_TEXT
    if member.size > limit or member.issparse():
        return ValueError(f"{suffix} of {member.size:,} bytes" + " with holes" * member.issparse())
    if picture and not packed:
        return Span(str(shard), member.offset_data, member.size)
    tar.fileobj.seek(member.offset_data)
    return tar.fileobj.read(member.size)


def _shard_pair(name: str, files: dict, place: tuple[int, int]) -> Pair:
    pictures = [content for suffix, content in files.items() if suffix in picture_suffixes()]
    for content in [*pictures[:1], files.get(".txt"), files.get(".json")]:
        if isinstance(content, ValueError):
            raise content
    if not pictures:
        raise ValueError("no image")
    more = json.loads(files[".json"]) if ".json" in files else {}
    if not isinstance(more, dict):
        raise ValueError("its .json is not an object")
    text = files[".txt"].decode("utf-8-sig") if ".txt" in files else more.get("text") or more.get("caption")
    if text is None:
        raise ValueError("no text")
    return make_pair(name, pictures[0], text, more, place=place)
