"""The paper's filters (section 3), at the last value that passes and the first that does not."""

import io
import os
import signal

import pytest
from PIL import Image

from align_minimal.training import filters
from align_minimal.training.dataset import Pairs
from align_minimal.training.filters import Filters, check_size, filter_pairs
from align_minimal.training.pairs import Pair, Span
from tests.training.test_data import write_folder, write_shards


def encoded(width: int = 201, height: int = 201) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


LARGE = encoded()


def kept(pairs: list[Pair]) -> tuple[list[tuple[str, tuple[str, ...]]], dict[str, int]]:
    """The names and texts that remain, and what was dropped."""
    keep = Filters(pairs)
    return [(pair.name, pair.texts) for pair in map(keep, pairs) if pair], dict(keep.dropped)


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((201, 201), None),
        ((200, 300), "images with a side of 200 pixels or less"),
        ((300, 200), "images with a side of 200 pixels or less"),
        ((902, 301), None),
        ((301, 902), None),
        ((903, 301), "images of aspect ratio 3 or more"),
        ((301, 903), "images of aspect ratio 3 or more"),
    ],
)
def test_the_shorter_side_is_over_200_pixels_and_the_ratio_under_3(size, reason):
    assert check_size(*size) == reason
    names, dropped = kept([Pair("x", encoded(*size), ("one two three",))])
    assert len(names) == (reason is None) and dropped == ({reason: 1} if reason else {})


def test_texts_have_3_to_20_words():
    texts = tuple(" ".join(f"w{i}" for i in range(n)) for n in (2, 3, 20, 21))
    assert kept([Pair("x", LARGE, texts)]) == (
        [("x", texts[1:3])],
        {"texts of fewer than 3 or more than 20 words": 2},
    )


def test_a_text_may_have_10_images_and_not_11_however_many_lines():
    def pairs(count):  # each image on two lines, which differ
        return [Pair(f"{i % count}", LARGE, ("one two three", f"a text {i}")) for i in range(2 * count)]

    assert kept(pairs(10)) == ([(p.name, p.texts) for p in pairs(10)], {})
    remaining, dropped = kept(pairs(11))
    assert dropped == {"texts shared by more than 10 images": 22} and len(remaining) == 22


def test_an_image_may_have_1000_texts_and_not_1001_over_all_its_lines():
    def pairs(count):
        texts = tuple(f"one two {i}" for i in range(count))
        return [Pair("x", LARGE, texts[:600]), Pair("x", LARGE, texts[500:])]

    assert len(kept(pairs(1000))[0]) == 2
    assert kept(pairs(1001)) == ([], {"images with more than 1000 texts": 2})


def test_texts_with_a_word_or_two_that_is_rare_are_dropped(monkeypatch):
    monkeypatch.setattr(filters, "FREQUENT", 5)  # a, red, apple, "a red", "red apple"
    common = [Pair(f"{i}", LARGE, ("A red apple",)) for i in range(3)]
    rare = [Pair("word", LARGE, ("a red pear",)), Pair("pair of words", LARGE, ("apple a red",))]
    names, dropped = kept(common + rare)
    assert [name for name, _ in names] == ["0", "1", "2"]
    assert dropped["texts with a word or two outside the 5 most frequent"] == 2


def test_an_unreadable_image_is_left_to_be_reported_as_such():
    assert len(kept([Pair("x", b"?", ("one two three",))])[0]) == 1


@pytest.fixture
def folder(tmp_path):
    rows = [
        {"file_name": "a.png", "text": ["one two three", "one"]},
        {"file_name": "b.png", "text": "one"},
        {"file_name": "c.png", "text": "a thing in twelve pictures"},
    ]
    rows += [{"file_name": f"d{i:02}.png", "text": "a thing in twelve pictures"} for i in range(11)]
    rows += [{"file_name": "e.png", "text": "one small picture"}]
    folder = write_folder(tmp_path / "d", rows)
    for row in rows[:-1]:
        (folder / row["file_name"]).write_bytes(LARGE)
    return folder


def test_filters_report_the_same_for_shards_as_for_a_folder(folder, tmp_path):
    (tmp_path / "shards").mkdir()
    pairs = Pairs([folder])
    streamed = Pairs([write_shards(folder, tmp_path / "shards", 4)])
    assert (
        filter_pairs(pairs)
        == filter_pairs(streamed)
        == {
            "kept": 1,
            "texts of fewer than 3 or more than 20 words": 2,
            "texts shared by more than 10 images": 12,
            "images left without a text": 13,
            "images with a side of 200 pixels or less": 1,
        }
    )
    assert [p.texts for p in pairs] == [p.texts for p in streamed] == [("one two three",)]


def test_once_all_images_of_the_shards_were_looked_at_none_is_opened_again(folder, tmp_path, monkeypatch):
    """Or the plan, which no worker shares, would read a part of every picture in each epoch."""
    (tmp_path / "shards").mkdir()
    pairs = Pairs([write_shards(folder, tmp_path / "shards", 4)])
    filter_pairs(pairs)
    monkeypatch.setattr(Span, "read", lambda self: pytest.fail("read"))
    assert [p.texts for p in pairs.unread()] == [("one two three",)]


@pytest.mark.parametrize("before", [0, 2**15], ids=["at the beginning", "far behind the beginning"])
def test_of_a_picture_in_a_tar_no_more_is_read_than_tells_its_size(tmp_path, before, monkeypatch):
    file = io.BytesIO()
    exif = b"Exif\0\0" + bytes(before)
    noise = Image.effect_noise((300, 201), 100)
    noise.save(file, "JPEG", quality=100, **({"exif": exif} if before else {}))
    (tmp_path / "a.tar").write_bytes(bytes(512) + file.getvalue() + bytes(99))
    read, sizes = Span.read, []
    monkeypatch.setattr(Span, "read", lambda self: sizes.append(self.size) or read(self))
    span = Span(str(tmp_path / "a.tar"), 512, len(file.getvalue()))
    assert filters.picture_size(Pair("x", span, ("one two three",))) == (300, 201)
    assert span.size > filters.BEGINNING
    assert sizes == [filters.BEGINNING] + [span.size] * bool(before)


def test_filters_that_leave_nothing_say_what_each_dropped(tmp_path):
    pairs = Pairs([write_folder(tmp_path / "d", [{"file_name": "a.png", "text": "one"}])])
    with pytest.raises(ValueError, match=r"the filters leave nothing \(1 images with a side of 200"):
        filter_pairs(pairs)


def test_of_grams_that_are_as_frequent_the_first_in_the_alphabet_stay_in_ties(monkeypatch):
    """A set's order is another in each process: the ranks would keep different texts."""
    monkeypatch.setattr(filters, "FREQUENT", 40)
    texts = [f"{chr(97 + i)}a {chr(97 + i)}b {chr(97 + i)}c" for i in range(20)]  # 5 grams each, all once
    grams = sorted(g for text in texts for g in filters.grams(text))
    assert Filters([Pair(f"{i}", LARGE, (text,)) for i, text in enumerate(texts)]).rare == set(grams[40:])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_has_no_size_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("waits for the pipe"))
    signal.alarm(20)
    try:
        assert filters.picture_size(Pair("pipe", tmp_path / "pipe.jpg", ("a text",))) is None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
