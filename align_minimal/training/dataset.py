"""All pairs that were given as DATA, in order or shuffled, whether they lie in folders or in shards."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .pairs import Pair, metadata_file, read_captions, read_folder
from .shards import find_shards, is_plain, read_shard

BEGINNING = 2**16  # bytes of a shard by which it is known again

Place = tuple[
    int, int
]  # the number of a shard, and where in it; of pairs in folders, 0 and the pair's number


class Pairs:
    r"""The pairs of folders, or of shards, in order; `blocks` gives them shuffled, an epoch at a time.

    `paths`: folders of pictures with metadata or a .txt beside each, tar files, or folders of tar files.
    Pairs in folders are kept in memory (the texts, not the pictures), shards are streamed. Raises
    FileNotFoundError, or ValueError for what holds no pairs and for folders beside shards.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "metadata.csv").write_text("file_name,text\n1.png,a cat\n2.png,a dog\n")
    ...     [(block, _)] = Pairs([folder]).blocks("seed")
    >>> sorted(pair.texts for pair in block)
    [('a cat',), ('a dog',)]
    """

    BUFFER = 8192  # pairs of a stream that are shuffled together; fewer where their pictures are held, too
    PACKED_BUFFER, PACKED_BYTES = 2048, 2**30

    def __init__(self, paths: Sequence[str | Path]):
        self.label = ", ".join(map(str, paths))
        self.pairs: list[Pair] = []
        self.shards: list[Path] = []
        self.keep: Callable[[Pair], Pair | None] | None = None
        self.count: int | None = None  # of the pairs, as soon as it is known
        self.seen = hashlib.sha256()  # of all that decides which pairs there are
        for path in map(Path, paths):
            if metadata := metadata_file(path):
                self.pairs += read_folder(path)
                self.seen.update(metadata.read_bytes())
            elif shards := find_shards(path):
                self.shards += shards
                for shard in shards:
                    with open(shard, "rb") as file:  # its first headers say when files were changed
                        self.seen.update(b"%s %d" % (os.fsencode(shard.name), shard.stat().st_size))
                        self.seen.update(file.read(BEGINNING))
            else:
                self.pairs += (captioned := read_captions(path))
                self.seen.update(repr([(p.name, p.texts) for p in captioned]).encode())
                if not captioned:
                    raise ValueError(
                        f"{path}: neither metadata.jsonl nor metadata.csv nor .tar files in it, "
                        "and no picture with a .txt beside it"
                    )
        if self.pairs and self.shards:
            raise ValueError(f"{self.label}: folders and shards at once; give one or the other")

    def __iter__(self) -> Iterator[Pair]:
        """Every pair, its image a file or a file's content."""
        seen = 0
        for pair in self.unread():
            yield dataclasses.replace(pair, image=pair.picture())
            seen += 1
        self.count = seen

    def __length_hint__(self) -> int:
        """How many pairs there are, for a progress bar. Of plain tars the headers tell. A compressed one
        would have to be read to its end: the number is not known before all its pairs were seen once.

        >>> import operator, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "metadata.csv").write_text("file_name,text\\n1.png,a cat\\n2.png,a dog\\n")
        ...     operator.length_hint(Pairs([folder]))
        2
        """
        if self.count is None:
            seen = 0
            for pair in self.unread():
                if isinstance(pair.image, bytes):
                    return NotImplemented
                seen += 1
            self.count = seen
        return self.count

    def unread(self) -> Iterator[Pair]:
        """Every pair; pictures in plain tars are left there, as Spans."""
        return self.kept(self.pairs or (pair for pair, _ in self.stream(range(len(self.shards)))))

    def kept(self, pairs) -> Iterator[Pair]:
        return iter(pairs) if self.keep is None else filter(None, map(self.keep, pairs))

    def stream(self, order: Sequence[int], first: int = 0, start: int = 0) -> Iterator[tuple[Pair, Place]]:
        """The pairs of the shards in that order, from `start` in the `first` of them; and where to go on."""
        for i in range(first, len(order)):
            number = order[i]
            for pair, after in read_shard(self.shards[number], number, start if i == first else 0):
                yield pair, (i, after)

    def blocks(self, seed: str, first: int = 0, start: Place = (0, 0)) -> Iterator[tuple[list[Pair], Place]]:
        """One epoch, each pair once, from its block `first` on, which starts at `start`: (block, next start).

        Folders are one block. Shards come in an order of their own, and BUFFER pairs of them are shuffled.
        """
        if self.pairs:
            if first == 0:
                placed = [dataclasses.replace(pair, place=(0, i)) for i, pair in enumerate(self.pairs)]
                yield random.Random(seed).sample(placed, len(placed)), (0, len(placed))
            return
        order = random.Random(seed).sample(range(len(self.shards)), len(self.shards))
        stream = self.stream(order, *start)
        for number in itertools.count(first):
            some = self.take(stream)
            if not some:
                return
            block = list(self.kept(pair for pair, _ in some))
            yield random.Random(f"{seed} {number}").sample(block, len(block)), some[-1][1]

    def take(self, stream: Iterator[tuple[Pair, Place]]) -> list[tuple[Pair, Place]]:
        """A block of the stream: fewer pairs, and no more than PACKED_BYTES, where pictures are in memory."""
        some, held, most = [], 0, self.BUFFER
        for pair, after in stream:
            some.append((pair, after))
            if isinstance(pair.image, bytes):
                held, most = held + len(pair.image), self.PACKED_BUFFER
            if len(some) >= most or held >= self.PACKED_BYTES:
                break
        return some

    def find(self, places: Sequence[Place]) -> list[Pair]:
        """The pairs that had these places, if they still exist. A compressed shard is read only once."""
        found: dict[Place, Pair] = {}
        for number in {number for number, _ in places if 0 <= number < len(self.shards)}:
            if not is_plain(self.shards[number]):
                wanted = {place for place in places if place[0] == number}
                rest = read_shard(self.shards[number], number, min(start for _, start in wanted))
                for pair in self.kept(pair for pair, _ in rest):
                    if pair.place in wanted:
                        found[pair.place] = pair
                    if len(found.keys() & wanted) == len(wanted):
                        break
        return [pair for place in places if (pair := found.get(place) or self.at(place))]

    def at(self, place: Place) -> Pair | None:
        """The pair that had this `place`, or None if there is no such pair any more."""
        number, start = place
        if self.pairs:
            found = self.pairs[start] if 0 <= start < len(self.pairs) else None
            return found and dataclasses.replace(found, place=place)
        if not 0 <= number < len(self.shards):
            return None
        found = next((pair for pair, _ in read_shard(self.shards[number], number, start)), None)
        return next(self.kept([found] if found else []), None)
