"""From files to batches: what is read, what is refused, and what a seed decides."""

import dataclasses
import io
import itertools
import json
import random
import re
import tarfile
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from align_minimal import BertTokenizer, EfficientNetImageProcessor
from align_minimal.training.augment import AUGMENTATIONS, crop_and_flip, distort
from align_minimal.training.batches import BatchStream, Position, Prepare, PrepareStep, batches
from align_minimal.training.dataset import Pairs
from align_minimal.training.pairs import Pair
from tests.reference.parity import assert_close


def picture(seed: int = 0, size=(40, 30), mode: str = "RGB") -> Image.Image:
    """Blocks of colour, so that no two crops of it are alike."""
    colours = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write_folder(folder: Path, rows: list[dict]) -> Path:
    """An imagefolder with a picture for each file_name that has none yet."""
    folder.mkdir(exist_ok=True)
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    for i, name in enumerate(dict.fromkeys(row["file_name"] for row in rows)):
        picture(i).save(folder / name)
    return folder


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def heard():
    """All warnings, as texts."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lambda: [str(warning.message) for warning in caught]


def made(count: int, concepts: int | None = None) -> list[Pair]:
    return [Pair(f"{i}", Path(f"{i}"), (f"text {i}",), concepts and str(i % concepts)) for i in range(count)]


# ---- folders -----------------------------------------------------------------------------------------------


def test_metadata_jsonl_gives_alt_texts_concept_and_mirror(tmp_path):
    rows = [
        {"file_name": "a.png", "text": ["a cat", "kitty"], "concept": "cat", "mirror": False},
        {"file_name": "./b.png", "text": "ein Hündchen", "concept": 7, "more": [1]},
        {"file_name": "a.png", "text": "a cat", "concept": None},
    ]
    folder = write_folder(tmp_path / "d", rows)
    a, b = folder / "a.png", folder / "b.png"
    assert list(Pairs([folder])) == [
        Pair(str(a), a, ("a cat", "kitty"), "cat", False),
        Pair(str(b), b, ("ein Hündchen",), "7", True),
        Pair(str(a), a, ("a cat",), None, True),
    ]


def test_metadata_csv_gives_the_same_and_an_empty_cell_is_no_concept(tmp_path):
    rows = 'file_name,text,concept,mirror\r\na.png,"a, b\r\nc",cat,False\r\n\r\nb.png,dog,,\r\n'
    (tmp_path / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + rows.encode())
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    assert list(Pairs([tmp_path])) == [
        Pair(str(a), a, ("a, b\r\nc",), "cat", False),
        Pair(str(b), b, ("dog",), None, True),
    ]


def test_a_byte_order_mark_blank_lines_and_crlf_are_no_part_of_metadata_jsonl(tmp_path):
    lines = b'\xef\xbb\xbf{"file_name": "a.png", "text": "x"}\r\n\r\n{"file_name": "b.png", "text": "y"}'
    (tmp_path / "metadata.jsonl").write_bytes(lines)
    assert [p.texts for p in Pairs([tmp_path])] == [("x",), ("y",)]


GOOD = b'{"file_name": "a.png", "text": "x"}\n'
BAD_JSONL = {
    "bad JSON": (GOOD + b"{nonsense\n", "line 2: not valid JSON"),
    "JSON without a bottom": (b"[" * 100_000, "line 1: not valid JSON"),
    "not an object": (GOOD + b"[1]\n", "line 2: expected an object, found list"),
    "bad UTF-8": (GOOD * 500 + b'{"text": "\xff"}\n', "line 501: 'utf-8' codec can't decode"),
    "UTF-16": ("{}".encode("utf-16"), "line 1: 'utf-8' codec"),
    "no text": (
        b'{"file_name": "a", "label": "x"}',
        "line 1: no column text or caption; found: file_name, label",
    ),
    "no file_name": (GOOD + b"\n{}", "line 3: no column file_name; found: none"),
    "empty file": (b"", "line 1: empty, no pairs in it"),
    "blank lines": (b"\n\n", "line 1: empty, no pairs in it"),
    "empty text": (b'{"file_name": "a", "text": " "}', "line 1: text is empty"),
    "empty text in a list": (b'{"file_name": "a", "text": ["x", ""]}', "line 1: text is empty"),
    "empty list": (b'{"file_name": "a", "text": []}', r"line 1: text must be .* not \[\]"),
    "a long object as text": (
        b'{"file_name": "a", "text": {"%s": 1}}' % (b"x" * 9999),
        "line 1: text must be",
    ),
    "number as text": (b'{"file_name": "a", "text": [1]}', "line 1: text must be a string or a list"),
    "half a surrogate pair": (b'{"file_name": "a", "text": "\\ud83d"}', "line 1: 'utf-8' codec can't encode"),
    "absolute path": (b'{"file_name": "/etc/a.png", "text": "x"}', "line 1: file_name '/etc/a.png' leaves"),
    "path that leaves": (b'{"file_name": "b/../../a", "text": "x"}', "line 1: .* leaves the folder"),
    "parent": (b'{"file_name": "..", "text": "x"}', r"line 1: file_name '\.\.' leaves the folder"),
    "NUL": (b'{"file_name": "a\\u0000.png", "text": "x"}', "line 1: file_name must be a file's name"),
    "no name": (b'{"file_name": "", "text": "x"}', "line 1: file_name must be a file's name, not ''"),
    "number as name": (b'{"file_name": 3, "text": "x"}', "line 1: file_name must be a file's name, not 3"),
    "list as concept": (b'{"file_name": "a", "text": "x", "concept": []}', "line 1: concept must be"),
    "word as mirror": (b'{"file_name": "a", "text": "x", "mirror": "no"}', "line 1: mirror must be .*'no'"),
}
BAD_CSV = {
    "empty file": (b"", "line 1: empty, no pairs in it"),
    "header only": (b"file_name,text\n", "line 1: empty, no pairs in it"),
    "too few fields": (b"file_name,text\na,x\nb\n", "line 3: 1 fields under 2 columns"),
    "too many fields": (b"file_name,text\na,x,y\n", "line 2: 3 fields under 2 columns"),
    "no text": (
        b"file_name,label,mirror\na,x,\n",
        "line 2: no column text or caption; found: file_name, label, mirror",
    ),
    "open quote": (b'file_name,text\na,"x\n', "line 2: unexpected end of data"),
    "bad UTF-8": (b"file_name,text\n" + b"a,x\n" * 3000 + b"b,\xff\n", "line 3002: 'utf-8' codec"),
    "empty text": (b"file_name,text\na,\n", "line 2: text is empty"),
    "word as mirror": (b"file_name,text,mirror\na,x,no\n", "line 2: mirror must be true or false, not 'no'"),
}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param(f"metadata.{kind}", *cases[case], id=f"{kind}, {case}")
        for kind, cases in (("jsonl", BAD_JSONL), ("csv", BAD_CSV))
        for case in cases
    ],
)
def test_malformed_metadata_is_a_value_error_naming_file_and_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}, {message}") as caught:
        Pairs([tmp_path])
    assert len(str(caught.value)) < 500


def test_metadata_that_is_a_folder_is_refused(tmp_path):
    (tmp_path / "metadata.jsonl").mkdir()
    with pytest.raises(ValueError, match=r"metadata\.jsonl: not a regular file"):
        Pairs([tmp_path])


def test_a_link_within_the_folder_is_followed(tmp_path):
    picture().save(tmp_path / "elsewhere.png")
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "a.png").symlink_to(tmp_path / "elsewhere.png")
    (folder / "metadata.jsonl").write_bytes(GOOD)
    (pair,) = Pairs([folder])
    assert pair.image.exists()


def test_paths_given_wrongly_are_named(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    for path in (tmp_path / "absent", tmp_path / "notes.txt"):
        with pytest.raises(
            FileNotFoundError, match=f"{re.escape(str(path))}: no such folder, and no tar file"
        ):
            Pairs([path])
    with pytest.raises(ValueError, match=r"neither metadata\.jsonl nor metadata\.csv nor \.tar files in it"):
        Pairs([tmp_path])


def test_folders_beside_shards_are_refused(tmp_path):
    folder = write_folder(tmp_path / "d", [{"file_name": "a.png", "text": "x"}])
    shard = write_tar(tmp_path / "a.tar", {})
    with pytest.raises(ValueError, match="folders and shards at once"):
        Pairs([folder, shard])


# ---- shards ------------------------------------------------------------------------------------------------


def test_shards_give_what_img2dataset_and_others_write(tmp_path, heard):
    jpg, png = encoded(picture(), "JPEG"), encoded(picture())
    write_tar(tmp_path / "0.tar", {"000.jpg": jpg, "000.txt": b"a cat", "000.json": b'{"caption": "no"}'})
    write_tar(
        tmp_path / "1.tar.gz",
        {
            "./": b"",
            "v1.2/": b"",
            "./v1.2/photo.v1.PNG": png,
            "./v1.2/photo.v1.json": b'{"text": ["a", "b"], "concept": 3, "mirror": false}',
            "./v1.2/photo.v2.png": png,
            "./v1.2/photo.v2.json": b'{"text": null, "caption": "c"}',
            "./v1.2/.DS_Store": b"",
            "./v1.2/._photo.v2.png": b"",
        },
        "w:gz",
    )
    first, second, third = Pairs([tmp_path])
    assert [p.texts for p in Pairs([tmp_path]).unread()] == [first.texts, second.texts, third.texts]
    assert first == Pair(f"{tmp_path}/0.tar/000", jpg, ("a cat",))
    assert second == Pair(f"{tmp_path}/1.tar.gz/./v1.2/photo.v1", png, ("a", "b"), "3", False)
    assert (third.texts, third.concept) == (("c",), None)
    assert heard() == []


def test_webdataset_s_own_writer_is_read(tmp_path):
    webdataset = pytest.importorskip("webdataset", reason="no webdataset")
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for key in ("0.a", "0.b"):
            writer.write({"__key__": key, "png": encoded(picture()), "json": {"text": [key, "x"]}})
    assert [pair.texts for pair in Pairs([tmp_path / "a.tar"])] == [("0.a", "x"), ("0.b", "x")]


def test_what_a_shard_holds_without_image_or_text_is_passed_over_with_a_warning(tmp_path, heard):
    png = encoded(picture())
    bad = {
        "lonely image.png": png,
        "lonely text.txt": b"x",
        "blank.png": png,
        "blank.txt": b"\n",
        "latin.png": png,
        "latin.txt": b"\xe4",
        "list.png": png,
        "list.json": b"[]",
        "deep.png": png,
        "deep.json": b"[" * 100_000,
        "mirror.png": png,
        "mirror.json": b'{"text": "x", "mirror": 1}',
    }
    shard = write_tar(tmp_path / "a.tar", bad | {"good.png": png, "good.txt": b"x"})
    pairs = Pairs([shard])
    assert [pair.name for pair in pairs] == [pair.name for pair in pairs] == [f"{shard}/good"]
    reasons = ("no text", "no image", "text is empty", "'utf-8' codec", "its .json is not", "", "mirror must")
    assert len(heard()) == len(reasons)  # each once, in two passes
    names = dict.fromkeys(name.rpartition(".")[0] for name in bad)
    for name, reason, message in zip(names, reasons, heard(), strict=True):
        assert message.startswith(f"{shard}/{name}: skipped, {reason}")


@pytest.mark.parametrize(
    "damage", ["in a header", "in a picture", "between files", "garbled", "not a tar", "gz"]
)
def test_the_rest_of_a_broken_shard_is_skipped_with_one_warning(tmp_path, heard, damage):
    png = encoded(picture(size=(8, 6))).ljust(2048, b"\0")
    files = {f"{i}.{kind}": png if kind == "png" else b"x" for i in range(3) for kind in ("png", "txt")}
    broken = write_tar(tmp_path / "a.tar", files, "w:gz" if damage == "gz" else "w")
    whole = broken.read_bytes()  # 512 bytes a header and a text, 2048 a picture: 3584 a pair
    broken.write_bytes(
        {
            "in a header": whole[: 2 * 3584 + 100],
            "in a picture": whole[: 2 * 3584 + 1000],
            "between files": whole[: 2 * 3584],
            "garbled": whole[: 2 * 3584] + b"?" * 512 + whole[2 * 3584 + 512 :],
            "not a tar": b"?" * 4096,
            "gz": whole[: len(whole) // 3],
        }[damage]
    )
    write_tar(tmp_path / "b.tar", {"9.png": png, "9.txt": b"x"})
    names = [pair.name.removeprefix(f"{tmp_path}/") for pair in Pairs([tmp_path])]
    assert names[-1] == "b.tar/9" and set(names[:-1]) <= {"a.tar/0", "a.tar/1"}
    assert len(names) >= 2 or damage in ("not a tar", "gz")
    list(Pairs([tmp_path]))
    (message,) = heard()
    assert message.startswith(f"{broken}: broken here, the rest of it is skipped (")


def test_shards_without_a_pair_are_an_error_and_not_a_loop_without_end(tmp_path):
    pairs = Pairs([write_tar(tmp_path / "a.tar", {})])
    with pytest.raises(ValueError, match=r"a\.tar: no pairs in it"):
        next(batches(pairs, 2, 0))


# ---- batches -----------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    keys=st.lists(st.tuples(st.integers(0, 9), st.none() | st.integers(0, 4)), max_size=60),
    size=st.integers(1, 6),
)
@example(keys=[(image, image % 2) for image in range(6)], size=2)
def test_no_image_and_no_concept_is_twice_in_a_batch_and_no_pair_twice_in_an_epoch(keys, size):
    concepts = [None if c is None else f"c{c}" for _, c in keys]
    pairs = [Pair(f"{image}", Path(f"{i}"), ("x",), concepts[i]) for i, (image, _) in enumerate(keys)]
    found = one_epoch(pairs, size)
    for batch in found:
        concepts = [pair.concept for pair in batch if pair.concept is not None]
        assert len({pair.name for pair in batch}) == len(batch) and len(set(concepts)) == len(concepts)
    given_once = [pair.image for batch in found for pair in batch]
    assert len(set(given_once)) == len(given_once)
    sizes = {len(batch) for batch in found}
    assert sizes == {size} or (size not in sizes and len(given_once) == len(pairs))  # full, or all there is


def one_epoch(pairs: list[Pair], size: int) -> list[list[Pair]]:
    """The batches of the first epoch, whose order is that of the list."""
    source = Pairs([])
    source.pairs = pairs
    in_order = type("InOrder", (random.Random,), {"sample": lambda self, pairs, count: list(pairs)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("align_minimal.training.dataset.random.Random", in_order)
        of_epoch_0 = lambda found: found[1].epoch == 0  # noqa: E731
        return [b for b, _ in itertools.takewhile(of_epoch_0, batches(source, size, 0))] if pairs else []


def test_every_pair_is_met_once_an_epoch_where_sizes_divide():
    assert Counter(p.name for b in one_epoch(made(60), 12) for p in b) == Counter(map(str, range(60)))
    assert [len(b) for b in one_epoch(made(60, concepts=12), 12)] == [12] * 5


def test_pairs_of_a_single_concept_are_given_one_by_one():
    assert [[p.name for p in b] for b in one_epoch(made(3, concepts=1), 4)] == [["0"], ["1"], ["2"]]


def test_a_full_batch_behind_one_that_never_fills_is_given():
    pairs = (
        Pair("1", Path("0"), ("x",), "A"),
        Pair("1", Path("1"), ("x",), "B"),
        Pair("2", Path("2"), ("x",), "A"),
    )
    assert one_epoch(list(pairs), 2) == [[pairs[1], pairs[2]]]


def test_pairs_that_fill_no_batch_are_the_first_of_the_next_epoch(folder):
    """16 pairs in batches of 6: after 8 batches each has been seen 3 times, after 3 epochs."""
    drawn = list(itertools.islice(batches(Pairs([folder]), 6, 0), 8))
    assert [len(batch) for batch, _ in drawn] == [6] * 8
    assert set(Counter(p.name for batch, _ in drawn for p in batch).values()) == {3}
    assert all(len({p.name for p in batch}) == 6 for batch, _ in drawn)
    pairs = Pairs([])  # four of one concept and two others: two batches; of the two left over one stays
    pairs.pairs = [Pair(f"{i}", Path(f"{i}"), ("x",), "one" if i < 4 else None) for i in range(6)]
    assert {len(at.carry) for _, at in itertools.islice(batches(pairs, 2, 0), 12)} == {0, 1}


def test_a_concept_too_frequent_for_full_batches_does_not_pile_up(tmp_path):
    """3 of 4 pairs are of one concept, of which a batch can take one: the rest is not carried on for ever."""
    pairs = Pairs([])
    pairs.pairs = [Pair(f"{i}", Path(f"{i}"), ("x",), "often" if i % 4 else None) for i in range(40)]
    drawn = itertools.islice(batches(pairs, 2, 0), 500)
    assert max(len(position.carry) for _, position in drawn) < 2


def test_a_block_of_a_stream_holds_so_many_pairs_and_no_more(shards, monkeypatch):
    monkeypatch.setattr(Pairs, "BUFFER", 5)
    assert [len(block) for block, _ in Pairs([shards]).blocks("seed")] == [5, 5, 5, 1]


def test_a_last_block_without_a_full_batch_is_carried_on_where_another_had_one(shards, monkeypatch):
    """16 pairs in blocks of 5, 5, 5 and 1: that one begins the next epoch, and is no batch of its own."""
    monkeypatch.setattr(Pairs, "BUFFER", 5)
    assert [len(batch) for batch in order(Pairs([shards]), seed=0, steps=8, size=5)] == [5] * 8


def order(pairs, seed, steps=8, size=4):
    return [[pair.name for pair in batch] for batch, _ in itertools.islice(batches(pairs, size, seed), steps)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    rows = [{"file_name": f"{i:02}.png", "text": [f"a {i}", f"the {i}"]} for i in range(16)]
    return write_folder(tmp_path_factory.mktemp("data") / "d", rows)


def write_shards(folder: Path, to: Path, a_shard: int) -> Path:
    """A folder's pairs as tar shards."""
    for number, pair in enumerate(Pairs([folder])):
        with tarfile.open(to / f"{number // a_shard}.tar", "a") as tar:
            for name, content in (
                (pair.image.name, pair.image.read_bytes()),
                (f"{pair.image.stem}.json", json.dumps({"text": pair.texts}).encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return to


@pytest.fixture(scope="module")
def shards(folder, tmp_path_factory):
    return write_shards(folder, tmp_path_factory.mktemp("shards"), 6)


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_the_seed_decides_the_order_and_each_epoch_has_its_own(folder, shards, kind, monkeypatch):
    monkeypatch.setattr(Pairs, "BUFFER", 5)  # smaller than the stream, so that both its ends are seen
    pairs = Pairs([folder if kind == "folder" else shards])
    first = order(pairs, seed=1)
    assert first == order(pairs, seed=1) != order(pairs, seed=2)
    assert first[:4] != first[4:]
    for epoch in (first[:4], first[4:]):
        assert Counter(itertools.chain(*epoch)) == Counter(p.name for p in pairs)


# ---- pixels and ids ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    return BertTokenizer.train(["a the 0123456789"] * 2, 40)


def preparer(tokenizer, size=24, **options):
    processor = EfficientNetImageProcessor(
        size=29, do_center_crop=True, crop_size=size, resample=2, include_top=False
    )
    return Prepare(processor, tokenizer, **options)


def assert_same(ours, theirs):
    assert [b["names"] for b in ours] == [b["names"] for b in theirs]
    for a, b in zip(ours, theirs, strict=True):
        for key in ("pixel_values", "input_ids", "attention_mask"):
            assert torch.equal(a[key], b[key]), key


def stream(folder, tokenizer, start=0, rank=0, world=1, steps=6, workers=0, size=4, **options):
    """The batches of `steps` steps, after `start` by another stream of which only the position is left."""
    where = {}
    for each in (start, steps) if start else (steps,):
        prepare = preparer(tokenizer, flip=True, **options)
        found = BatchStream(Pairs([folder]), prepare, size, 3, rank, world, workers, **where)
        given = list(itertools.islice(found, each))
        content = json.loads(json.dumps(dataclasses.asdict(found.position)))
        where = {"position": Position.read(content), "drawn": found.drawn}
    return given


@pytest.mark.parametrize("size", [3, 4, 20])
def test_workers_and_a_resumed_start_change_nothing(folder, shards, tokenizer, monkeypatch, size):
    monkeypatch.setattr(Pairs, "BUFFER", 5)
    for source in (folder, shards):
        alone = stream(source, tokenizer, size=size, steps=14)
        for start in (1, 4, 5, 9):
            assert_same(stream(source, tokenizer, start=start, steps=14 - start, size=size), alone[start:])
    alone = alone[:6]
    for workers in (1, 2):
        assert_same(stream(shards, tokenizer, workers=workers, size=size), alone)


def test_every_rank_draws_anew_at_every_step():
    tasks = list(itertools.product("01", (0, 1), (0, 1)))
    seeds = {PrepareStep(lambda pairs, seed: seed, run, rank)[step, []] for run, rank, step in tasks}
    assert len(seeds) == len(tasks)


def test_the_ranks_shares_make_up_the_global_batch(folder, tokenizer):
    whole = stream(folder, tokenizer)
    shares = [stream(folder, tokenizer, rank=rank, world=3) for rank in range(3)]
    for step, batch in enumerate(whole):
        parts = [share[step]["names"] for share in shares]
        assert sorted(itertools.chain(*parts)) == sorted(batch["names"])
        assert [len(part) for part in parts] == [2, 1, 1]


def test_over_the_epochs_every_alt_text_of_an_image_is_drawn(folder, tokenizer):
    drawn = {}
    for batch in stream(folder, tokenizer, steps=80):
        for name, ids in zip(batch["names"], batch["input_ids"], strict=True):
            drawn.setdefault(name, set()).add(tokenizer.decode(ids, skip_special_tokens=True).split()[0])
    assert len(drawn) == 16
    assert all(words == {"a", "the"} for words in drawn.values()), drawn


def test_the_resized_image_is_346_for_289():
    processor = EfficientNetImageProcessor(size=346, do_center_crop=True, crop_size=289)
    prepare = Prepare(processor, None)
    pair = Pair("x", encoded(picture(size=(400, 200))), ("x",))
    assert prepare.size == 289 and prepare.pixels(pair).shape == (3, 346, 346)


def test_every_place_of_the_crop_is_drawn_the_last_too():
    """Of 8 × 8 pixels, numbered, the first one of each crop of 6 × 6 tells where it lies."""
    numbers = torch.arange(64.0).reshape(1, 1, 8, 8).expand(500, 1, 8, 8)
    crops = crop_and_flip(numbers, 6, torch.zeros(500, dtype=torch.bool), torch.Generator().manual_seed(0))
    assert set(crops[:, 0, 0, 0].tolist()) == {8.0 * top + left for top in range(3) for left in range(3)}


def test_pixels_are_a_crop_of_the_resized_image_mirrored_only_where_asked(tokenizer):
    pairs = [Pair(f"{i}", encoded(picture(i)), ("a",), mirror=i % 2 == 0) for i in range(12)]
    for flip in (False, True):
        prepare, seen = preparer(tokenizer, flip=flip), []
        scale = prepare.image_processor.scale
        prepare.image_processor.scale = lambda x, seen=seen, f=scale: (
            seen.append(x.transpose(1, 2, 0)) or f(x)
        )
        prepare(pairs, "seed")
        places, mirrored = set(), []
        for i, crop in enumerate(seen):
            resized = np.asarray(picture(i).resize((29, 29), Image.Resampling.BILINEAR))
            found = [
                (top, left, m)
                for top in range(6)
                for left in range(6)
                for m in (False, True)
                if np.array_equal(crop[:, :: -1 if m else 1], resized[top : top + 24, left : left + 24])
            ]
            assert len(found) == 1
            places.add(found[0][:2])
            mirrored.append(found[0][2])
        assert len(places) > 6
        assert any(mirrored[::2]) == flip and not any(mirrored[1::2])


@pytest.mark.parametrize("offset", [False, True])
def test_normalization_is_the_image_processor_s_to_the_bit(tokenizer, offset):
    prepare = preparer(tokenizer)
    prepare.image_processor.rescale_offset = offset
    flat = Image.new("RGB", (29, 29), (201, 7, 90))  # every crop of it is the same
    ours = prepare([Pair("x", encoded(flat), ("a",))], "seed")["pixel_values"]
    assert torch.equal(ours, prepare.image_processor(flat, return_tensors="pt").pixel_values)
    by_hand = torch.tensor([201, 7, 90]).view(3, 1, 1) / 255 - int(offset)  # then mean 0.5, deviation 0.5
    assert torch.allclose(ours[0], ((by_hand - 0.5) / 0.5).expand(3, 24, 24), rtol=0, atol=1e-6)


def test_pixel_values_are_float32_whatever_the_processor_leaves_out(tokenizer):
    plain = EfficientNetImageProcessor(size=24, do_rescale=False, do_normalize=False, include_top=False)
    batch = Prepare(plain, tokenizer)([Pair("x", encoded(picture()), ("a",))], "seed")
    assert batch["pixel_values"].dtype == torch.float32 and batch["pixel_values"].shape == (1, 3, 24, 24)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_the_cache_gives_the_same_bits(folder, tokenizer, augmentation):
    cached, plain = (
        stream(folder, tokenizer, augmentation=augmentation, cache_bytes=size) for size in (10_000, 0)
    )
    assert_same(cached, plain)
    prepare = preparer(tokenizer, cache_bytes=10_000)
    prepare(list(Pairs([folder])), "seed")
    assert sum(x.nbytes for x in prepare.cache.values()) <= 10_000 and len(prepare.cache) == 3


JPEG = encoded(picture(size=(400, 300)), "JPEG")
UNREADABLE = {
    "an absent file": (Path("absent.png"), "no such file"),
    "a folder": (Path(__file__).parent, "a folder, not a picture"),
    "an empty file": (b"", "an empty file"),
    "nonsense": (b"?" * 900, "not a picture in a known format"),
    "a JPEG cut short": (JPEG[: len(JPEG) // 2], "truncated"),
    "a JPEG without its last bytes": (JPEG[:-200], "truncated"),
}


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_unreadable_images_are_named_and_left_out_and_change_nothing_for_the_others(tokenizer, augmentation):
    prepare = preparer(tokenizer, augmentation=augmentation, flip=True)
    bad = [Pair(name, image, ("a", "the")) for name, (image, _) in UNREADABLE.items()]
    healed = [Pair(pair.name, encoded(picture()), ("a", "the")) for pair in bad]
    good = [Pair(f"{i}", encoded(picture(i)), ("a 1", "the 2")) for i in range(7)]
    some = prepare([p for two in itertools.zip_longest(good, bad) for p in two if p], "seed")
    whole = prepare([p for two in itertools.zip_longest(good, healed) for p in two if p], "seed")
    rows = [i for i, name in enumerate(whole["names"]) if name.isdecimal()]
    assert some["names"] == [p.name for p in good]
    assert torch.equal(some["pixel_values"], whole["pixel_values"][rows])
    assert torch.equal(some["input_ids"], whole["input_ids"][rows])
    assert len(some["unreadable"]) == len(bad)
    for message, (name, (_, reason)) in zip(some["unreadable"], UNREADABLE.items(), strict=True):
        assert message.startswith(f"{name}: ") and reason in message and "\n" not in message


def test_a_batch_in_which_nothing_is_readable_is_empty_and_says_why(tokenizer):
    batch = preparer(tokenizer)([Pair("x", b"", ("a",))], "seed")
    assert batch["names"] == [] and batch["unreadable"] == ["x: an empty file"]


def test_a_picture_of_too_many_pixels_is_unreadable(tokenizer, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    batch = preparer(tokenizer)([Pair("bomb", encoded(picture()), ("a",))], "seed")
    assert batch["unreadable"] == ["bomb: over 1,000 pixels, too large to open safely"]


def odd_pictures():
    frames = [picture(i, mode="P") for i in range(3)]
    yield "animation", encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    yield "one pixel", encoded(picture(size=(1, 1)))
    yield "thin", encoded(picture(size=(1, 500)))
    yield "palette with transparency", encoded(picture(mode="P"), transparency=0)
    yield "CMYK", encoded(picture(mode="CMYK"), "JPEG")
    for mode in ("1", "L", "LA", "RGBA", "I;16"):
        image = Image.new(mode, (9, 9), 40_000 if mode == "I;16" else None)
        yield mode, encoded(image)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_pictures_of_every_kind_are_read(tokenizer, augmentation):
    pairs = [Pair(name, image, ("a",)) for name, image in odd_pictures()]
    batch = preparer(tokenizer, augmentation=augmentation)(pairs, "seed")
    assert batch["unreadable"] == [] and batch["pixel_values"].isfinite().all()
    deep = preparer(tokenizer, augmentation=augmentation).pixels(pairs[-1])
    assert (deep[:3] == 156).all()  # 40,000 of 65,535, not clipped


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_deep_grey_with_a_transparent_shade_is_not_clipped(tokenizer, augmentation):
    image = encoded(Image.new("I;16", (9, 9), 40_000), transparency=7)
    pixels = preparer(tokenizer, augmentation=augmentation).pixels(Pair("deep", image, ("a",)))
    assert (pixels[:3] == 156).all()


def test_a_text_of_a_megabyte_is_cut_to_the_tokens_allowed(tokenizer):
    batch = preparer(tokenizer, max_tokens=8)([Pair("x", encoded(picture()), ("a " * 500_000,))], "seed")
    assert batch["input_ids"].shape == (1, 8)


def distorted(pixels, flip, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return distort(pixels, 24, torch.full((len(pixels),), flip), draw)


def test_drawings_keep_their_range_and_flipping_mirrors_them():
    rgba = [np.asarray(picture(i, (29, 29), "RGBA")) for i in range(6)]
    pixels = torch.from_numpy(np.stack(rgba)).permute(0, 3, 1, 2)
    plain, mirrored = distorted(pixels, False), distorted(pixels, True)
    assert plain.shape == (6, 3, 24, 24) and plain.dtype == torch.float32
    assert plain.min() >= 0 and plain.max() <= 255 and plain.std() > 20
    assert_close(mirrored, plain.flip(-1), 1e-5)


def test_what_is_transparent_shows_a_background_of_one_colour():
    nothing = distorted(torch.zeros(32, 4, 29, 29, dtype=torch.uint8), False)
    assert nothing.flatten(2).std(-1).max() < 1e-3
    corner = nothing[:, :, 0, 0]
    assert corner.max() > 250 and corner.min() < 100  # white, or any colour
    half = torch.zeros(32, 4, 29, 29, dtype=torch.uint8)
    half[:, 3, 8:21, 8:21] = 255  # a black square in the middle
    shown = distorted(half, False)
    assert (shown[:, :, 12, 12] <= 26).all()  # at most a tenth brighter
    assert_close(shown[:, :, 0, 0], nothing[:, :, 0, 0], 1e-6)


def test_the_random_state_of_the_program_is_left_alone(folder, tokenizer):
    torch.manual_seed(0)
    random.seed(0)
    before = torch.get_rng_state(), random.getstate()
    next(iter(BatchStream(Pairs([folder]), preparer(tokenizer, flip=True), 4, 0)))
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()


# ---- other folders


def test_a_caption_and_an_absolute_path_under_the_folder_are_read_too(tmp_path):
    folder = write_folder(tmp_path / "d", [{"file_name": "a.png", "text": "x"}])
    absolute = json.dumps({"file_name": str(folder / "sub" / "b.png"), "caption": ["y", "z"]})
    (folder / "metadata.jsonl").write_text(absolute + "\n")
    (pair,) = Pairs([folder])
    assert pair.image == folder / "sub" / "b.png" and pair.texts == ("y", "z")
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text(f"caption,file_name\nq,{folder / 'a.png'}\n")
    assert [(p.image, p.texts) for p in Pairs([folder])] == [(folder / "a.png", ("q",))]
    (folder / "metadata.csv").write_text(f"caption,file_name\nq,{tmp_path / 'a.png'}\n")
    with pytest.raises(ValueError, match="leaves the folder"):
        Pairs([folder])


def test_a_text_beside_each_picture_will_do(tmp_path):
    for name, text in (("a", "ein Hündchen\n"), ("sub/b", "two\nlines")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture().save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    picture().save(tmp_path / "without.png")
    (tmp_path / "readme.txt").write_text("of no picture")
    assert {p.image: p.texts for p in Pairs([tmp_path])} == {
        tmp_path / "a.png": ("ein Hündchen\n",),
        tmp_path / "sub" / "b.png": ("two\nlines",),
    }
    (tmp_path / "a.txt").write_text(" ")
    with pytest.raises(ValueError, match=r"a\.txt: text is empty"):
        Pairs([tmp_path])


# ---- JPEG at a fraction of its size


def test_a_large_jpeg_is_decoded_at_a_fraction_in_training_and_shows_the_same(
    tokenizer, tmp_path, monkeypatch
):
    picture(size=(2400, 1600)).save(tmp_path / "a.jpg", quality=95)
    sizes, resize = [], Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, *a, **k: sizes.append(self.size) or resize(self, *a, **k)
    )
    pixels = preparer(tokenizer).pixels(Pair("a", tmp_path / "a.jpg", ("a",)))
    assert sizes == [(300, 200)]  # an eighth, still twice the 29 pixels wanted
    with Image.open(tmp_path / "a.jpg") as whole:
        expected = np.asarray(resize(whole, (29, 29), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.abs(pixels.numpy().astype(float) - expected).mean() < 1.5


def test_a_small_jpeg_and_other_formats_keep_every_bit_in_training(tokenizer, tmp_path):
    for name, size in (("a.jpg", (110, 60)), ("b.png", (900, 700))):
        picture(size=size).save(tmp_path / name)
        with Image.open(tmp_path / name) as whole:
            expected = np.asarray(whole.resize((29, 29), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        assert np.array_equal(
            preparer(tokenizer).pixels(Pair("x", tmp_path / name, ("a",))).numpy(), expected
        )


def test_evaluation_never_decodes_at_a_fraction(tmp_path, monkeypatch):
    from PIL import JpegImagePlugin

    from align_minimal import AlignModel, AlignProcessor
    from align_minimal.using.retrieval import evaluate

    picture(size=(2400, 1600)).save(tmp_path / "a.jpg")
    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "draft", lambda *_: pytest.fail("a fraction"))
    pairs = [Pair("a", tmp_path / "a.jpg", ("a cat",))]
    evaluate(AlignModel.from_pretrained("emoji"), AlignProcessor.from_pretrained("emoji"), pairs)
