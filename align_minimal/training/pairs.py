"""What a model learns from: an image and its alt-texts. Reads folders of pictures with their texts."""

from __future__ import annotations

import contextlib
import csv
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..using.pictures import find_in_folder


@dataclass(frozen=True)
class Span:
    """A picture inside a larger file: where it lies, so that only who needs it reads it.

    >>> Span("setup.cfg", 0, 10).read()
    b'[metadata]'
    """

    path: str
    start: int
    size: int  # bytes

    def read(self) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.start)
            return file.read(self.size)


@dataclass(frozen=True)
class Pair:
    """An image and its alt-texts. Two pairs of one `concept`, or one `name`, never meet in a batch.

    >>> Pair("cat.png", Path("cat.png"), ("a cat", "my cat"), concept="cat").mirror
    True
    """

    name: str  # the file, or shard and key: what messages call it
    image: Path | bytes | Span
    texts: tuple[str, ...]
    concept: str | None = None
    mirror: bool = True  # may its mirror image bear the same texts?
    place: tuple[int, int] | None = field(default=None, compare=False, repr=False)  # for Pairs.at

    def picture(self) -> Path | bytes:
        """The image as a file or a file's content."""
        return self.image.read() if isinstance(self.image, Span) else self.image


def metadata_file(folder: Path) -> Path | None:
    """What makes a folder an imagefolder: its metadata.jsonl, or else its metadata.csv; None without.

    >>> metadata_file(Path("weights/samples")) is None
    True
    """
    return next((p for p in (folder / "metadata.jsonl", folder / "metadata.csv") if p.exists()), None)


def read_folder(folder: Path, columns: Sequence[str] = ("text", "caption")) -> list[Pair]:
    """The pairs of an imagefolder: `metadata.jsonl` or `metadata.csv` with columns file_name and text.

    In metadata.jsonl text may be a list. Columns concept (a name) and mirror (true or false) may be there.
    `columns`: where the text stands, the first of them that a row has and that is not null.
    A file_name may lead through a symbolic link: whoever owns the folder made it, not the metadata.
    Raises ValueError naming file and line: nothing in it, malformed, a missing column, a path that leaves
    the folder, a text that is empty.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "metadata.csv").write_text("file_name,text\\ncat.png,a cat\\n")
    ...     [pair.texts for pair in read_folder(Path(folder))]
    [('a cat',)]
    """
    path = metadata_file(folder)
    if path is None:
        raise ValueError(f"{folder}: no metadata.jsonl and no metadata.csv in it")
    if not path.is_file():
        raise ValueError(f"{path}: not a regular file")
    pairs = []
    for line, row in (_json_rows if path.suffix == ".jsonl" else _csv_rows)(path):
        try:
            image = folder / _file_name(row, columns, folder)
            there = [column for column in columns if column in row]
            column = next((column for column in there if row[column] is not None), there[0])
            pairs.append(make_pair(str(image), image, row[column], row, column))
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}") from None
    if not pairs:
        raise ValueError(f"{path}, line 1: empty, no pairs in it")
    return pairs


def read_captions(folder: Path) -> list[Pair]:
    """The pairs of a folder, and of the folders in it, where KEY.txt beside KEY.jpg holds its text.

    Empty if there is no such .txt. ValueError naming a .txt that is empty or not UTF-8.

    >>> read_captions(Path("weights/samples"))
    []
    """
    pairs, pictures = [], []
    with contextlib.suppress(ValueError):  # no picture in it
        pictures = find_in_folder(folder)
    for image in pictures:
        text = image.with_suffix(".txt")
        if text.is_file():
            try:
                pairs.append(make_pair(str(image), image, text.read_text(encoding="utf-8-sig"), {}))
            except ValueError as error:
                raise ValueError(f"{text}: {error}") from None
    return pairs


def _lines(path: Path) -> Iterator[str]:
    with open(path, "rb") as file:  # as bytes, so that a line that is not UTF-8, too, has its number
        for number, line in enumerate(file, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None


def _json_rows(path: Path) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not valid JSON ({error})") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: expected an object, found {type(row).__name__}")
        yield number, row


def _csv_rows(path: Path) -> Iterator[tuple[int, dict]]:
    reader = csv.reader(_lines(path), strict=True)
    try:
        header = next(reader, [])
        for fields in filter(None, reader):
            if len(fields) != len(header):
                raise csv.Error(f"{len(fields)} fields under {len(header)} columns")
            row = dict(zip(header, fields, strict=True))
            if "mirror" in row:
                said = row["mirror"].strip().lower()
                row["mirror"] = {"": True, "true": True, "false": False}.get(said, said)
            yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from None


def _file_name(row: dict, columns: Sequence[str], folder: Path) -> str:
    """Where a row's image is within the folder; ValueError for none, one outside, or a row without text."""
    for wanted in (("file_name",), columns):
        if not any(column in row for column in wanted):
            found = ", ".join(map(str, row)) or "none"
            raise ValueError(f"no column {' or '.join(wanted)}; found: {found}")
    name = row["file_name"]
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"file_name must be a file's name, not {name!r:.80}")
    path = os.path.normpath(name)
    if os.path.isabs(path):
        path = os.path.relpath(path, os.path.abspath(folder))
    if path.split(os.sep)[0] == os.pardir:
        raise ValueError(f"file_name {name!r:.80} leaves the folder")
    return path


def make_pair(
    name: str,
    image: Path | bytes | Span,
    text: str | list[str],
    more: dict,
    column: str = "text",
    place: tuple[int, int] | None = None,
) -> Pair:
    """A Pair from what its metadata say; ValueError saying what is wrong with it.

    >>> make_pair("1.png", Path("1.png"), "two dogs", {"concept": 7}).texts
    ('two dogs',)
    """
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise ValueError(f"{column} must be a string or a list of strings, not {text!r:.80}")
    if not all(t.strip() for t in texts):
        raise ValueError(f"{column} is empty")
    "".join(texts).encode()  # half a surrogate pair is a ValueError now, not in the last step
    concept, mirror = more.get("concept"), more.get("mirror", True)
    if not isinstance(concept, (str, int, type(None))):
        raise ValueError(f"concept must be a name, not {concept!r:.80}")
    if not isinstance(mirror, bool):
        raise ValueError(f"mirror must be true or false, not {mirror!r:.80}")
    return Pair(name, image, tuple(texts), None if concept in (None, "") else str(concept), mirror, place)
