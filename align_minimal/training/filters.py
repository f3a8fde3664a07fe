"""The paper's filters for noisy pairs (ALIGN, section 3).

Leaves out: the filters for pornography and for near-duplicates of the evaluation sets, which need models and
data of their own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Iterable

from ..support.image_files import read_header
from .dataset import Pairs
from .pairs import Pair, Span

MIN_SIDE = 200  # pixels; the shorter side must be longer
MAX_ASPECT = 3  # longer over shorter side must be less
MAX_TEXTS = 1000  # alt-texts of one image
MAX_IMAGES = 10  # that share an alt-text
TEXT_LENGTH = (3, 20)  # unigrams, both allowed
FREQUENT = 100_000_000  # unigrams and bigrams that are not rare
BEGINNING = 2**14  # bytes of a picture in a tar; its size nearly always stands there


def check_size(width: int, height: int) -> str | None:
    """Why an image of this size is dropped, or None.

    >>> check_size(640, 480), check_size(640, 200), check_size(900, 300)
    (None, 'images with a side of 200 pixels or less', 'images of aspect ratio 3 or more')
    """
    if min(width, height) <= MIN_SIDE:
        return f"images with a side of {MIN_SIDE} pixels or less"
    if max(width, height) >= MAX_ASPECT * min(width, height):
        return f"images of aspect ratio {MAX_ASPECT} or more"
    return None


def picture_size(pair: Pair) -> tuple[int, int] | None:
    """Width and height, from the picture's header alone; None if it cannot be read.

    >>> picture_size(Pair("cat", Span("weights/samples/cat.jpg", 0, 15172), ("a cat",)))
    (320, 213)
    """
    sources = [pair.picture]
    if isinstance(pair.image, Span):
        sources.insert(0, dataclasses.replace(pair.image, size=min(pair.image.size, BEGINNING)).read)
    for source in sources:
        with contextlib.suppress(Exception):  # a broken file can make Pillow raise nearly anything
            picture = source()
            if not isinstance(picture, bytes) and not os.path.isfile(picture):
                return None  # to open a pipe could wait for ever
            with read_header(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as image:
                return image.size
    return None


def unigrams(text: str) -> list[str]:
    """
    >>> unigrams("A red  Apple")
    ['a', 'red', 'apple']
    """
    return text.lower().split()


def grams(text: str) -> list[str]:
    """The unigrams and bigrams of a text.

    >>> grams("A red Apple")
    ['a', 'red', 'apple', 'a red', 'red apple']
    """
    words = unigrams(text)
    return words + [" ".join(two) for two in itertools.pairwise(words)]


class Filters:
    """The filters of section 3 for a set of pairs, on which it counts first. A call gives the pair that
    remains, or None; `dropped` counts the reasons.

    >>> pair = Pair("dog.jpg", b"", ("my dog", "a dog in the snow"))
    >>> keep = Filters([pair])
    >>> keep(pair).texts, dict(keep.dropped)
    (('a dog in the snow',), {'texts of fewer than 3 or more than 20 words': 1})
    """

    def __init__(self, pairs: Iterable[Pair]):
        self.dropped: Counter[str] = Counter()
        self.misshapen: dict[str, str] = {}  # images of a size that is dropped, and why
        self.all_seen = False  # are these all? Then no image needs to be opened again
        images_of: defaultdict[str, set[str]] = defaultdict(set)
        texts_of: defaultdict[str, set[str]] = defaultdict(set)
        frequency: Counter[str] = Counter()
        for pair in pairs:
            for text in set(pair.texts):
                images_of[text].add(pair.name)
                texts_of[pair.name].add(text)
                frequency.update(grams(text))
        self.shared = {text for text, images in images_of.items() if len(images) > MAX_IMAGES}
        self.crowded = {image for image, texts in texts_of.items() if len(texts) > MAX_TEXTS}
        self.rare: set[str] = set()
        if len(frequency) > FREQUENT:  # of those as frequent as each other, the first in the alphabet stay
            self.rare = set(sorted(frequency, key=lambda gram: (-frequency[gram], gram))[FREQUENT:])

    def check_text(self, text: str) -> str | None:
        """Why this text is dropped, or None."""
        low, high = TEXT_LENGTH
        if not low <= len(unigrams(text)) <= high:
            return f"texts of fewer than {low} or more than {high} words"
        if text in self.shared:
            return f"texts shared by more than {MAX_IMAGES} images"
        if self.rare and not self.rare.isdisjoint(grams(text)):
            return f"texts with a word or two outside the {FREQUENT:,} most frequent"
        return None

    def check_image(self, pair: Pair) -> str | None:
        """Why this image is dropped, or None. One that cannot be read is left to be reported as such."""
        if pair.name in self.crowded:
            return f"images with more than {MAX_TEXTS} texts"
        if not self.all_seen and (size := picture_size(pair)) and (reason := check_size(*size)):
            self.misshapen[pair.name] = reason
        return self.misshapen.get(pair.name)

    def __call__(self, pair: Pair) -> Pair | None:
        reason = self.check_image(pair)
        if reason:
            self.dropped[reason] += 1
            return None
        reasons = [self.check_text(text) for text in pair.texts]
        self.dropped.update(r for r in reasons if r)
        texts = tuple(t for t, reason in zip(pair.texts, reasons, strict=True) if not reason)
        if not texts:
            self.dropped["images left without a text"] += 1
            return None
        return dataclasses.replace(pair, texts=texts)

    def report(self) -> str:
        return "; ".join(f"{count:,} {reason}" for reason, count in self.dropped.items()) or "nothing dropped"


def filter_pairs(pairs: Pairs) -> dict[str, int]:
    """Apply the paper's filters to `pairs` from now on. Returns how many images and texts each one drops.

    Raises ValueError if nothing is left.

    >>> pairs = Pairs([])
    >>> pairs.pairs = [Pair("dog.jpg", b"", ("my dog", "a dog in the snow"))]
    >>> filter_pairs(pairs)
    {'kept': 1, 'texts of fewer than 3 or more than 20 words': 1}
    """
    keep = Filters(pairs.unread())
    remaining = filter(None, map(keep, pairs.unread()))
    if pairs.pairs:
        pairs.pairs = list(remaining)
        kept = len(pairs.pairs)
    else:
        kept = sum(1 for _ in remaining)
        pairs.keep, keep.all_seen = keep, True
    if not kept:
        raise ValueError(f"{pairs.label}: the filters leave nothing ({keep.report()})")
    report = {"kept": kept, **keep.dropped}
    pairs.seen.update(repr(([pair.name for pair in pairs.pairs], report)).encode())
    return report
