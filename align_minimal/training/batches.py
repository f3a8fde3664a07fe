"""From pairs to batches: shuffled, without two of one concept, prepared by this process and its workers.

    Pairs → lists of pairs → pixels and ids

What a step sees follows from the seed and the step's number alone, so a run that was cut short goes on where
it stopped, and the number of workers changes nothing. Every rank and every worker draws up the same list of
batches and prepares only its own share of it: reading a tar twice is cheap, decoding a picture is not.
"""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ..image_processor import EfficientNetImageProcessor
from ..support.image_files import open_image
from ..support.outputs import Batch
from ..support.rgb import to_rgb
from ..tokenizer import BertTokenizer
from .augment import AUGMENTATIONS, RESIZE
from .dataset import Pairs
from .pairs import Pair


def epoch_batches(pairs: Iterable[Pair], size: int) -> Iterator[list[Pair]]:
    """Lists of `size` pairs, no image and no concept twice in one.

    A pair goes into the first open batch that has room for it and holds neither its image nor its concept.
    Batches that are not full at the end are dropped; if not one batch was full, all are given as they are.

    >>> pairs = [Pair(name, b"", ("a letter",)) for name in "aabcd"]
    >>> [[pair.name for pair in batch] for batch in epoch_batches(pairs, 2)]  # d waits
    [['a', 'b'], ['a', 'c']]
    """
    open_batches: defaultdict[int, list[Pair]] = defaultdict(list)
    after: dict[tuple[str, str], int] = {}  # image or concept → the first batch that can take another
    first = 0
    for pair in pairs:
        keys = _keys(pair)
        place = max([first, *(after.get(key, 0) for key in keys)])
        while len(open_batches[place]) == size:
            place += 1
        open_batches[place].append(pair)
        after.update(dict.fromkeys(keys, place + 1))
        while len(open_batches[first]) == size:
            batch = open_batches.pop(first)
            first += 1
            for key in {key for done in batch for key in _keys(done)}:
                if after[key] <= first:
                    del after[key]  # or a stream's every name would stay in memory
            yield batch
    rest = [batch for batch in open_batches.values() if batch]
    full = [batch for batch in rest if len(batch) == size]
    yield from full if first or full else rest


def _keys(pair: Pair) -> list[tuple[str, str]]:
    keys = [("image", pair.name)]
    return keys if pair.concept is None else [*keys, ("concept", pair.concept)]


def batches(pairs: Pairs, size: int, seed: int) -> Iterator[list[Pair]]:
    """Epoch after epoch without end, each in an order of its own; ValueError if there is nothing at all.

    >>> pairs = Pairs([])
    >>> pairs.pairs = [Pair(name, b"", ("a letter",)) for name in "abcd"]
    >>> [len(batch) for batch in itertools.islice(batches(pairs, 2, seed=0), 5)]
    [2, 2, 2, 2, 2]
    """
    for epoch in itertools.count():
        some = False
        for some in epoch_batches(pairs.shuffled(random.Random(f"{seed} {epoch}")), size):
            yield some
        if not some:
            raise ValueError(f"{pairs.label}: no pairs in it")


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
        image = open_image(pair.image, pair.name)
        if self.mode == "RGB" or not image.has_transparency_data:
            image = to_rgb(image)  # deep grey, too, which Pillow's convert would clip
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


class BatchStream(IterableDataset):
    """Step after step from `start`, the share of this rank, prepared; for a DataLoader with batch_size None.

    Worker w of W prepares every W-th step, in the order in which the DataLoader asks for them.

    >>> prepare = Prepare(EfficientNetImageProcessor(size=32), BertTokenizer.train(["a cat"], 30))
    >>> pairs = Pairs([])
    >>> pairs.pairs = [Pair(c, Path("weights/samples/cat.jpg"), ("a cat",)) for c in "abcd"]
    >>> steps = itertools.islice(BatchStream(pairs, prepare, batch_size=2, seed=0), 3)
    >>> [tuple(batch.pixel_values.shape) for batch in steps]
    [(2, 3, 32, 32), (2, 3, 32, 32), (2, 3, 32, 32)]
    """

    def __init__(
        self,
        pairs: Pairs,
        prepare: Prepare,
        batch_size: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
    ):
        self.pairs, self.prepare, self.batch_size = pairs, prepare, batch_size
        self.seed, self.start, self.rank, self.world = seed, start, rank, world

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        steps = enumerate(batches(self.pairs, self.batch_size, self.seed))
        for step, batch in itertools.islice(steps, self.start + number, None, count):
            share = batch[self.rank :: self.world]
            yield self.prepare(share, f"{self.seed} {step} {self.rank}")
