"""All pairs that were given as DATA, in order or shuffled, whether they lie in folders or in shards."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .pairs import Pair, metadata_file, read_folder
from .shards import find_shards, read_shards


class Pairs:
    """The pairs of folders, or of shards, in order; `shuffled` gives them in the order of an epoch.

    `paths`: imagefolders, tar files, or folders of tar files; folders of pairs are kept in memory (the texts,
    not the pictures), shards are streamed. Raises FileNotFoundError, or ValueError for what holds no pairs
    and for folders beside shards.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "metadata.csv").write_text("file_name,text\\n1.png,a cat\\n2.png,a dog\\n")
    ...     sorted(pair.texts for pair in Pairs([folder]).shuffled(random.Random(0)))
    [('a cat',), ('a dog',)]
    """

    BUFFER = 2048  # pairs of a stream that are mixed with each other

    def __init__(self, paths: Sequence[str | Path]):
        self.label = ", ".join(map(str, paths))
        self.pairs: list[Pair] = []
        self.shards: list[Path] = []
        self.keep: Callable[[Pair], Pair | None] | None = None
        for path in map(Path, paths):
            if metadata_file(path):
                self.pairs += read_folder(path)
            else:
                self.shards += find_shards(path)
        if self.pairs and self.shards:
            raise ValueError(f"{self.label}: folders and shards at once; give one or the other")

    def __iter__(self) -> Iterator[Pair]:
        raw = self.pairs or read_shards(self.shards)
        return iter(raw) if self.keep is None else filter(None, map(self.keep, raw))

    def shuffled(self, rng: random.Random) -> Iterator[Pair]:
        """One epoch: each pair once. Of shards, their order and the pairs within a buffer are shuffled."""
        if self.pairs:
            yield from rng.sample(self.pairs, len(self.pairs))
            return
        stream = read_shards(rng.sample(self.shards, len(self.shards)))
        if self.keep:
            stream = filter(None, map(self.keep, stream))
        buffer: list[Pair] = []
        for pair in stream:
            if len(buffer) < self.BUFFER:
                buffer.append(pair)
                continue
            i = rng.randrange(len(buffer))
            buffer[i], pair = pair, buffer[i]
            yield pair
        yield from rng.sample(buffer, len(buffer))
