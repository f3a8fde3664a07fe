"""Image-text pairs: from files to batches (ALIGN, sections 3 and 5).

    folders or tar shards → Pair, Pair, … → filters → shuffled batches → pixels and ids

What a step sees follows from the seed and the step's number alone, so a run that was cut short goes on where
it stopped, and the number of workers changes nothing. Every rank and every worker draws up the same list of
batches and prepares only its own share of it: reading a tar twice is cheap, decoding a picture is not.
But: the paper's filters for pornography and for near-duplicates of the evaluation sets need models and
data of their own and are not here.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import itertools
import json
import os
import random
import tarfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ..image_processor import EfficientNetImageProcessor
from ..support.image_files import open_image
from ..support.outputs import Batch
from ..support.rgb import to_rgb
from ..tokenizer import BertTokenizer


@dataclass(frozen=True)
class Pair:
    """An image and its alt-texts. Two pairs of one `concept`, or one `name`, never meet in a batch.

    >>> Pair("cat.png", Path("cat.png"), ("a cat", "my cat"), concept="cat").mirror
    True
    """

    name: str  # the file, or shard and key: what messages call it
    image: Path | bytes
    texts: tuple[str, ...]
    concept: str | None = None
    mirror: bool = True  # may its mirror image bear the same texts?


# ---- reading -----------------------------------------------------------------------------------------------


def metadata_file(folder: Path) -> Path | None:
    """What makes a folder an imagefolder: its metadata.jsonl, or else its metadata.csv; None without.

    >>> metadata_file(Path("weights/samples")) is None
    True
    """
    return next((p for p in (folder / "metadata.jsonl", folder / "metadata.csv") if p.exists()), None)


def read_folder(folder: Path, columns: Sequence[str] = ("text",)) -> list[Pair]:
    """The pairs of an imagefolder: `metadata.jsonl` or `metadata.csv` with columns file_name and text.

    In metadata.jsonl text may be a list. Columns concept (a name) and mirror (true or false) may be there.
    `columns`: where the text stands, the first of them that a row has.
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
    if not path.is_file():
        raise ValueError(f"{path}: not a regular file")
    pairs = []
    for line, row in (_json_rows if path.suffix == ".jsonl" else _csv_rows)(path):
        try:
            image = folder / _file_name(row, columns)
            column = next(column for column in columns if column in row)
            pairs.append(_pair(str(image), image, row[column], row, column))
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}") from None
    if not pairs:
        raise ValueError(f"{path}, line 1: empty, no pairs in it")
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


def _file_name(row: dict, columns: Sequence[str]) -> str:
    """Where a row's image is within the folder; ValueError for none, one outside, or a row without text."""
    for wanted in (("file_name",), columns):
        if not any(column in row for column in wanted):
            found = ", ".join(map(str, row)) or "none"
            raise ValueError(f"no column {' or '.join(wanted)}; found: {found}")
    name = row["file_name"]
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"file_name must be a file's name, not {name!r:.80}")
    path = os.path.normpath(name)
    if os.path.isabs(path) or path.split(os.sep)[0] == os.pardir:
        raise ValueError(f"file_name {name!r:.80} leaves the folder")
    return path


def _pair(name: str, image: Path | bytes, text: str | list[str], more: dict, column: str = "text") -> Pair:
    """A Pair from what its metadata say; ValueError saying what is wrong with it."""
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise ValueError(f"{column} must be a string or a list of strings, not {text!r:.80}")
    if not all(t.strip() for t in texts):
        raise ValueError(f"{column} is empty")
    "".join([name, *texts]).encode()  # half a surrogate pair is a ValueError now, not in the last step
    concept, mirror = more.get("concept"), more.get("mirror", True)
    if not isinstance(concept, (str, int, type(None))):
        raise ValueError(f"concept must be a name, not {concept!r:.80}")
    if not isinstance(mirror, bool):
        raise ValueError(f"mirror must be true or false, not {mirror!r:.80}")
    return Pair(name, image, tuple(texts), None if concept in (None, "") else str(concept), mirror)


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
    return _pair(name, image, text, more)


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
        self.keep: Filters | None = None
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

    def filter(self) -> dict[str, int]:
        """Apply the paper's filters from now on. Returns how many images and texts each one drops."""
        keep = Filters(self)
        remaining = filter(None, map(keep, self))
        if self.pairs:
            self.pairs = list(remaining)
            kept = len(self.pairs)
        else:
            kept = sum(1 for _ in remaining)
            self.keep = keep
        if not kept:
            raise ValueError(f"{self.label}: the filters leave nothing ({keep.report()})")
        return {"kept": kept, **keep.dropped}

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


# ---- the paper's filters (section 3) -----------------------------------------------------------------------

MIN_SIDE = 200  # pixels; the shorter side must be longer
MAX_ASPECT = 3  # longer over shorter side must be less
MAX_TEXTS = 1000  # alt-texts of one image
MAX_IMAGES = 10  # that share an alt-text
TEXT_LENGTH = (3, 20)  # unigrams, both allowed
FREQUENT = 100_000_000  # unigrams and bigrams that are not rare


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
        self.rare = {gram for gram, _ in frequency.most_common()[FREQUENT:]}

    def check_text(self, text: str) -> str | None:
        """Why this text is dropped, or None."""
        low, high = TEXT_LENGTH
        if not low <= len(unigrams(text)) <= high:
            return f"texts of fewer than {low} or more than {high} words"
        if text in self.shared:
            return f"texts shared by more than {MAX_IMAGES} images"
        if not self.rare.isdisjoint(grams(text)):
            return f"texts with a word or two outside the {FREQUENT:,} most frequent"
        return None

    def check_image(self, pair: Pair) -> str | None:
        """Why this image is dropped, or None. One that cannot be read is left to be reported as such."""
        if pair.name in self.crowded:
            return f"images with more than {MAX_TEXTS} texts"
        try:
            source = io.BytesIO(pair.image) if isinstance(pair.image, bytes) else pair.image
            with Image.open(source) as image:  # reads no more than the header
                return check_size(*image.size)
        except Exception:  # a broken file can make Pillow raise nearly anything
            return None

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


# ---- batches -----------------------------------------------------------------------------------------------


def epoch_batches(pairs: Iterable[Pair], size: int) -> Iterator[list[Pair]]:
    """Lists of `size` pairs, no image and no concept twice in one. What does not fill a batch waits for the
    next epoch's shuffle, unless no batch at all would be full: then all are given as they are.

    A pair goes into the first open batch that has room and neither its image nor its concept.

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


# ---- pixels and ids ----------------------------------------------------------------------------------------

RESIZE = 346 / 289  # section 5: resized to 346 × 346, of which 289 × 289 are seen


def crop_and_flip(pixels: Tensor, size: int, flip: Tensor, draw: torch.Generator) -> Tensor:
    """The paper's augmentation: a random crop, mirrored where `flip`. (B, C, R, R) → (B, C, size, size)

    >>> flip = torch.tensor([True, False])
    >>> crop_and_flip(torch.zeros(2, 3, 10, 10), 8, flip, torch.Generator()).shape
    torch.Size([2, 3, 8, 8])
    """
    room = pixels.shape[-1] - size + 1
    tops, lefts = torch.randint(room, (2, len(pixels)), generator=draw).tolist()
    crops = [x[:, t : t + size, s : s + size] for x, t, s in zip(pixels, tops, lefts, strict=True)]
    crops = torch.stack(crops)
    return torch.where(flip[:, None, None, None], crops.flip(-1), crops)


def distort(pixels: Tensor, size: int, flip: Tensor, draw: torch.Generator) -> Tensor:
    """For small sets of drawings: turned, stretched, sheared, moved, tinted, blurred, on any background.

    (B, 4, R, R) red, green, blue times alpha, and alpha, in [0, 255] → (B, 3, size, size) in [0, 255].

    >>> flip = torch.tensor([True, False])
    >>> distort(torch.zeros(2, 4, 10, 10), 8, flip, torch.Generator()).shape
    torch.Size([2, 3, 8, 8])
    """
    count = len(pixels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(count, *shape).uniform_(low, high, generator=draw)

    angle = uniform(-0.35, 0.35)  # radians, about 20 degrees
    scale, stretch = uniform(0.8, 1.25), uniform(-0.12, 0.12).exp()
    cos, sin, shear = angle.cos() * scale, angle.sin() * scale, uniform(-0.15, 0.15)
    mirror = torch.where(flip, -1.0, 1.0)
    x_row = torch.stack([mirror * cos * stretch, shear - sin, uniform(-0.12, 0.12)], dim=1)
    y_row = torch.stack([mirror * sin, cos / stretch, uniform(-0.12, 0.12)], dim=1)
    grid = F.affine_grid(torch.stack([x_row, y_row], dim=1), [count, 4, size, size], align_corners=False)
    rgba = F.grid_sample(pixels.float() / 255, grid, align_corners=False)  # (B, 4, size, size), 0 outside

    one = (1, 1, 1)
    background = torch.where(uniform(0, 1, *one) < 0.5, 1.0, uniform(0, 1, 3, 1, 1))
    rgb = rgba[:, :3] + (1 - rgba[:, 3:]) * background  # (B, 3, size, size)
    grey = rgb.mean(dim=1, keepdim=True)
    saturation = torch.where(uniform(0, 1, *one) < 0.1, 0.0, uniform(0.5, 1.5, *one))
    rgb = grey + saturation * (rgb - grey)
    rgb = rgb * uniform(0.75, 1.2, 3, 1, 1) + uniform(-0.1, 0.1, *one)
    blurred = F.avg_pool2d(rgb, 3, stride=1, padding=1, count_include_pad=False)
    return torch.where(uniform(0, 1, *one) < 0.2, blurred, rgb).clamp(0, 1) * 255


AUGMENTATIONS = {"paper": ("RGB", crop_and_flip), "drawings": ("RGBa", distort)}  # mode to decode to, then


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
        # What is unreadable is drawn for like the rest and left out only now, so it changes nothing for them.
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
