"""From pairs to batches: shuffled, without two of one concept, prepared by this process and its workers.

    Pairs → lists of pairs → pixels and ids

Which pairs meet in which batch is planned by every rank's main process, from names and texts alone. The plan
follows from the seed, and a Position says where it goes on: a run that was cut short reads nothing again of
what it has seen. Each rank, and each of its workers, reads and decodes only the pictures of its own share.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import random
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..image_processor import EfficientNetImageProcessor
from ..support.image_files import open_image
from ..support.outputs import Batch
from ..support.rgb import to_rgb
from ..tokenizer import BertTokenizer
from .augment import AUGMENTATIONS, RESIZE
from .dataset import Pairs, Place
from .pairs import Pair
from .processes import start_worker


def fill_batches(pairs: Iterable[Pair], size: int) -> tuple[list[list[Pair]], list[list[Pair]]]:
    """Put pairs into batches of `size`, no image and no concept twice in one. → the full ones, the others.

    A pair goes into the first batch with room for it after those that took its image or its concept.

    >>> full, rest = fill_batches([Pair(name, b"", ("a letter",)) for name in "aabcd"], 2)
    >>> [[pair.name for pair in batch] for batch in full + rest]
    [['a', 'b'], ['a', 'c'], ['d']]
    """
    batches: defaultdict[int, list[Pair]] = defaultdict(list)
    after: dict[tuple[str, str], int] = {}  # image or concept → the first batch that can take another
    first = 0
    for pair in pairs:
        keys = _keys(pair)
        place = max([first, *(after.get(key, 0) for key in keys)])
        while len(batches[place]) == size:
            place += 1
        batches[place].append(pair)
        after.update(dict.fromkeys(keys, place + 1))
        while len(batches[first]) == size:
            first += 1
    found = [batch for batch in batches.values() if batch]
    return [b for b in found if len(b) == size], [b for b in found if len(b) < size]


def _keys(pair: Pair) -> list[tuple[str, str]]:
    keys = [("image", pair.name)]
    return keys if pair.concept is None else [*keys, ("concept", pair.concept)]


@dataclass(frozen=True)
class Position:
    """Where the sequence of batches goes on: in this block of this epoch, after `taken` batches of it.

    >>> content = {"epoch": 2, "block": 0, "start": [0, 0], "carry": [[0, 7]], "full": False, "taken": 3}
    >>> Position.read(content)
    Position(epoch=2, block=0, start=(0, 0), carry=((0, 7),), full=False, taken=3)
    """

    epoch: int = 0
    block: int = 0
    start: Place = (0, 0)  # of the block: which shard in the epoch's order, and where in it
    carry: tuple[Place, ...] = ()  # pairs before the block that are in no full batch yet
    full: bool = False  # has this epoch given a full batch before the block?
    taken: int = 0

    @classmethod
    def read(cls, content: object) -> Position:
        """What `dataclasses.asdict` and JSON made of one; ValueError for anything else."""
        with contextlib.suppress(TypeError, KeyError, ValueError):
            numbers = [content[name] for name in ("epoch", "block", "taken")]
            places = [tuple(place) for place in (content["start"], *content["carry"])]
            whole = [*numbers, *itertools.chain(*places)]
            if all(type(n) is int and 0 <= n < 2**63 for n in whole) and {len(p) for p in places} == {2}:
                epoch, block, taken = numbers
                return cls(epoch, block, places[0], tuple(places[1:]), content["full"] is True, taken)
        raise ValueError(f"not a position among batches: {content!r:.80}")


def batches(
    pairs: Pairs, size: int, seed: int, at: Position = Position()
) -> Iterator[tuple[list[Pair], Position]]:
    """Epoch after epoch without end, each in an order of its own: (batch, the position after it).

    Pairs that fill no batch at an epoch's end are the first of the next epoch, so that each pair is seen once
    an epoch; but of pairs that share a concept only those that one batch can take: the others miss a turn.
    If not one batch was full, all are given as they are. ValueError if there is nothing at all.

    >>> pairs = Pairs([])
    >>> pairs.pairs = [Pair(name, b"", ("a letter",)) for name in "abc"]
    >>> some = list(itertools.islice(batches(pairs, 2, seed=0), 5))
    >>> [len(batch) for batch, _ in some], [position.epoch for _, position in some]
    ([2, 2, 2, 2, 2], [0, 1, 1, 2, 3])
    """

    def count(found: list[list[Pair]]) -> Iterator[tuple[list[Pair], Position]]:
        for number in range(at.taken, len(found)):
            yield found[number], dataclasses.replace(at, taken=number + 1)

    rest = [[pair] for pair in pairs.find(at.carry)]
    while True:
        for block, start in pairs.blocks(f"{seed} {at.epoch}", at.block, at.start):
            full, rest = fill_batches([*itertools.chain(*rest), *block], size)
            yield from count(full)
            at = Position(at.epoch, at.block + 1, start, _places(rest), at.full or bool(full))
        full, rest = fill_batches(itertools.chain(*rest), size)
        if not (full or at.full):
            full, rest = rest, []
        if not (full or at.full):
            raise ValueError(f"{pairs.label}: no pairs in it")
        yield from count(full)
        rest = rest[:1]  # beyond one batch they are of concepts that are too frequent to be carried on
        at = Position(at.epoch + 1, carry=_places(rest))


def _places(batches: list[list[Pair]]) -> tuple[Place, ...]:
    return tuple(pair.place for pair in itertools.chain(*batches))


def batches_in(pairs: Pairs, size: int, seed: int, epochs: int) -> int:
    """How many batches so many epochs give, reckoned from the first one.

    >>> pairs = Pairs([])
    >>> pairs.pairs = [Pair(name, b"", ("a letter",)) for name in "abc"]
    >>> batches_in(pairs, 2, seed=0, epochs=4)
    6
    """
    found = 0
    for _, position in batches(pairs, size, seed):
        if position.epoch:
            break
        found += 1
    carried = len(position.carry) if position.block == 0 else 0  # into the second epoch
    return epochs * found + epochs * carried // size


@dataclass
class Prepare:
    """Pairs → what a step of training takes. A call gives a Batch: pixel_values (B, 3, size, size) float32,
    input_ids and attention_mask (B, T), names, and unreadable, a list of messages about images left out.

    >>> prepare = Prepare(EfficientNetImageProcessor(size=32), BertTokenizer.train(["a cat"], 30))
    >>> batch = prepare([Pair("cat", Path("weights/samples/cat.jpg"), ("a cat",))], seed="0")
    >>> batch.pixel_values.shape, batch.input_ids.shape  # [CLS] a c ##a ##t [SEP]
    (torch.Size([1, 3, 32, 32]), torch.Size([1, 6]))
    """

    image_processor: EfficientNetImageProcessor
    tokenizer: BertTokenizer
    max_tokens: int = 64
    augmentation: str = "paper"
    flip: bool = False
    cache_bytes: int = 2**30  # small sets of pictures are decoded once

    def __post_init__(self):
        self.mode, self.augment = AUGMENTATIONS[self.augmentation]
        processor = self.image_processor
        self.size = (processor.crop_size if processor.do_center_crop else processor.size)["height"]
        self.side = round(self.size * RESIZE)
        self.cache: dict[str, Tensor] = {}
        self.room = self.cache_bytes

    def pixels(self, pair: Pair) -> Tensor:
        """A decoded image, resized. → (3 or 4, side, side) uint8. ValueError naming one that is broken."""
        if pair.name in self.cache:
            return self.cache[pair.name]
        image = open_image(pair.picture(), pair.name, at_least=2 * self.side)
        deep = image.mode.startswith(("I", "F"))  # which Pillow's convert would clip
        if self.mode == "RGB" or deep or not image.has_transparency_data:
            image = to_rgb(image)
        if image.mode != self.mode:
            image = image.convert("RGBA").convert("RGBa")
        image = image.resize((self.side, self.side), self.image_processor.resample)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        if isinstance(pair.image, Path) and pixels.nbytes <= self.room:
            self.cache[pair.name] = pixels
            self.room -= pixels.nbytes
        return pixels

    def __call__(self, pairs: list[Pair], seed: str) -> Batch:
        rng = random.Random(seed)
        drawn = [(rng.choice(pair.texts), rng.random() < 0.5 and self.flip and pair.mirror) for pair in pairs]
        images, readable, unreadable = [], [], []
        for i, pair in enumerate(pairs):
            try:
                images.append(self.pixels(pair))
                readable.append(i)
            except (OSError, ValueError) as error:
                images.append(torch.zeros(len(self.mode), self.side, self.side, dtype=torch.uint8))
                unreadable.append(" ".join(str(error).split()))
        names = [pairs[i].name for i in readable]
        if not names:
            return Batch(pixel_values=torch.empty(0), names=names, unreadable=unreadable)
        draw = torch.Generator().manual_seed(rng.getrandbits(63))
        flips = torch.tensor([flip for _, flip in drawn])
        # Randomness was drawn for unreadable images too, so that the readable ones do not change.
        augmented = self.augment(torch.stack(images), self.size, flips, draw)[readable]
        pixels = [self.image_processor.scale(x) for x in augmented.numpy()]
        texts = [drawn[i][0] for i in readable]
        ids = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        return Batch(
            pixel_values=torch.from_numpy(np.stack(pixels)),
            input_ids=ids["input_ids"],
            attention_mask=ids["attention_mask"],
            names=names,
            unreadable=unreadable,
        )


class Steps:
    """For a DataLoader: (step, this rank's share of its pairs), and in `positions` what comes after each.

    >>> plan = [([Pair("a", b"", ("x",)), Pair("b", b"", ("y",))], Position(taken=1))]
    >>> steps = Steps(iter(plan), first=5, rank=1, world=2)
    >>> [(step, [pair.name for pair in pairs]) for step, pairs in steps], steps.positions[0].taken
    ([(5, ['b'])], 1)
    """

    def __init__(self, plan: Iterator[tuple[list[Pair], Position]], first: int, rank: int, world: int):
        self.plan, self.first, self.rank, self.world = plan, first, rank, world
        self.positions: deque[Position] = deque()

    def __iter__(self) -> Iterator[tuple[int, list[Pair]]]:
        for step, (batch, position) in enumerate(self.plan, self.first):
            self.positions.append(position)
            yield step, batch[self.rank :: self.world]


class BatchStream:
    """Step after step, the share of this rank, prepared by `workers` processes (0: this one).

    `position` and `drawn`, the number of steps before it, say where to begin, and stand after the last batch
    that was given. The number of workers changes nothing.

    >>> prepare = Prepare(EfficientNetImageProcessor(size=32), BertTokenizer.train(["a cat"], 30))
    >>> pairs = Pairs([])
    >>> pairs.pairs = [Pair(c, Path("weights/samples/cat.jpg"), ("a cat",)) for c in "abcd"]
    >>> stream = BatchStream(pairs, prepare, batch_size=2, seed=0)
    >>> [tuple(batch.pixel_values.shape) for batch in itertools.islice(stream, 3)]
    [(2, 3, 32, 32), (2, 3, 32, 32), (2, 3, 32, 32)]
    >>> stream.drawn, stream.position.epoch
    (3, 1)
    """

    def __init__(
        self,
        pairs: Pairs,
        prepare: Prepare,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        position: Position = Position(),
        drawn: int = 0,
    ):
        self.pairs, self.prepare, self.batch_size, self.seed = pairs, prepare, batch_size, seed
        self.rank, self.world, self.workers = rank, world, workers
        self.position, self.drawn = position, drawn

    def __iter__(self) -> Iterator[Batch]:
        plan = batches(self.pairs, self.batch_size, self.seed, self.position)
        steps = Steps(plan, self.drawn, self.rank, self.world)
        task = PrepareStep(self.prepare, f"{self.seed}", self.rank)
        options = dict(num_workers=self.workers, worker_init_fn=start_worker, generator=torch.Generator())
        loader = iter(DataLoader(task, sampler=steps, batch_size=None, **options))
        try:
            for batch in loader:
                self.position, self.drawn = steps.positions.popleft(), self.drawn + 1
                yield batch
        finally:  # workers ignore the SIGTERM with which Python, at exit, would end them and then wait
            if self.workers:
                loader._shutdown_workers()


@dataclass
class PrepareStep(Dataset):
    """What a worker does: (step, pairs) → a Batch, the randomness of which the step and the rank decide.

    >>> prepare = Prepare(EfficientNetImageProcessor(size=32), BertTokenizer.train(["a cat"], 30))
    >>> PrepareStep(prepare, seed="0", rank=0)[7, [Pair("cat", b"", ("a cat",))]].unreadable
    ['cat: an empty file']
    """

    prepare: Prepare
    seed: str
    rank: int

    def __getitem__(self, task: tuple[int, list[Pair]]) -> Batch:
        step, pairs = task
        return self.prepare(pairs, f"{self.seed} {step} {self.rank}")
