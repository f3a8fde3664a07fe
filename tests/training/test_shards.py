"""Tar shards: pictures left where they are, places to go on from, and files that mean harm."""

import gzip
import io
import itertools
import json
import signal
import tarfile
import time
import tracemalloc
from pathlib import Path

import pytest

from align_minimal.training import dataset, shards
from align_minimal.training.batches import batches
from align_minimal.training.dataset import Pairs
from align_minimal.training.pairs import Span
from tests.training.test_data import encoded, heard, picture, write_tar  # noqa: F401

PNG = encoded(picture())


def header(name: str, size: int, kind: bytes = b"0") -> bytes:
    """A tar header that claims `size` bytes, whatever follows."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def pair(name: str) -> bytes:
    """A picture and its text, as a tar holds them."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for suffix, content in ((".png", PNG), (".txt", b"a text")):
            info = tarfile.TarInfo(name + suffix)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        end = tar.offset
    return file.getvalue()[:end]


def plain(count: int, prefix: str = "p") -> dict[str, bytes]:
    return {
        f"{prefix}{i}.{kind}": PNG if kind == "png" else b"x" for i in range(count) for kind in ("png", "txt")
    }


def test_a_picture_in_a_plain_tar_is_not_read_before_it_is_needed(tmp_path, monkeypatch):
    shard = write_tar(tmp_path / "a.tar", plain(3))
    spans = list(Pairs([shard]).unread())
    assert [type(p.image) for p in spans] == [Span] * 3
    assert [p.picture() for p in spans] == [PNG] * 3
    assert [p.image for p in Pairs([shard])] == [PNG] * 3
    with monkeypatch.context() as patch:
        patch.setattr(Span, "read", lambda self: pytest.fail("read"))
        list(itertools.islice(batches(Pairs([shard]), 2, 0), 9))


@pytest.mark.parametrize("name, mode", [("a.tar", "w"), ("a.tar.gz", "w:gz")])
def test_each_pair_s_place_leads_to_it_and_to_the_rest(tmp_path, name, mode):
    long = {
        f"{'long name/' * 30}{i}.{kind}": PNG if kind == "png" else b"y"
        for i in range(2)
        for kind in ("png", "txt")
    }
    shard = write_tar(tmp_path / name, {"first.md": b"?" * 3000, **plain(3), **long, "last.md": b"!"}, mode)
    found = list(shards.read_shard(shard, number=0))
    assert len(found) == 5
    for i, (pair, after) in enumerate(found):
        assert Pairs([shard]).at(pair.place) == pair
        assert [p for p, _ in shards.read_shard(shard, 0, after)] == [p for p, _ in found[i + 1 :]]
    for wrong in ((0, 2**60), (3, 0), (0, 7)):
        assert Pairs([shard]).at(wrong) is None


def write_shard(path: Path, mode: str, text: str, count: int = 9) -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in plain(count).items():
            content = text.encode() if name.endswith(".txt") else content
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_pairs_that_were_carried_are_found_in_one_pass_of_a_compressed_shard(tmp_path, monkeypatch):
    pairs, opened = Pairs([write_shard(tmp_path / "a.tar.gz", "w:gz", "a cat")]), []
    everything = [pair for block, _ in pairs.blocks("seed") for pair in block]
    places = [pair.place for pair in everything[:6]]
    real = dataset.read_shard
    monkeypatch.setattr(dataset, "read_shard", lambda *given: opened.append(given) or real(*given))
    assert pairs.find([*places, places[0]]) == [*everything[:6], everything[0]] and len(opened) == 1
    assert pairs.find([]) == [] and pairs.find([(7, 0)]) == []


def test_compressed_pairs_are_held_by_their_bytes_too(tmp_path, monkeypatch):
    pairs = Pairs([write_shard(tmp_path / "a.tar.gz", "w:gz", "a cat")])
    assert [len(block) for block, _ in pairs.blocks("seed")] == [9]
    monkeypatch.setattr(Pairs, "PACKED_BYTES", 2 * len(plain(1)["p0.png"]) + 1)
    blocks = list(pairs.blocks("seed"))
    assert [len(block) for block, _ in blocks] == [3, 3, 3]
    again = [block for start in range(1, 3) for block, _ in pairs.blocks("seed", start, blocks[start - 1][1])]
    assert again == [block for block, _ in blocks[1:]] + [blocks[2][0]]


def test_a_shard_of_the_same_size_with_other_texts_is_another(tmp_path):
    path = tmp_path / "a.tar"
    cats, dogs = (Pairs([write_shard(path, "w", text)]).seen.digest() for text in ("a cat", "a dog"))
    assert cats != dogs and cats == Pairs([write_shard(path, "w", "a cat")]).seen.digest()


@pytest.mark.parametrize("packed", [False, True], ids=["tar", "tar.gz"])
@pytest.mark.parametrize("kind", [b"V", b"S", b"Z", b"0", b"L", b"x", b"g"], ids=lambda kind: kind.decode())
def test_a_header_that_claims_more_than_there_is_ends_the_shard_and_no_more(tmp_path, heard, kind, packed):  # noqa: F811
    for size in (2**62, 2**40):
        content = pair("good") + pair("doubtful") + header("huge", size, kind) + pair("never")
        shard = tmp_path / f"{size}.tar{'.gz' * packed}"
        shard.write_bytes(gzip.compress(content) if packed else content)
        tracemalloc.start()
        began = time.monotonic()
        assert [p.texts for p in Pairs([shard])][:1] == [("a text",)]
        assert time.monotonic() - began < 20 and tracemalloc.get_traced_memory()[1] < 2**26
        tracemalloc.stop()
    assert len(heard()) >= 1 and all("broken here" in message for message in heard())


def test_a_negative_size_is_no_endless_loop(tmp_path, heard):  # noqa: F811
    bad = bytearray(header("back", 0))
    bad[124:136] = b"\xff" * 10 + b"\xfc\x00"  # −1024, in base 256
    bad[148:156] = b"        "
    bad[148:156] = b"%06o\0 " % sum(bad)
    (tmp_path / "a.tar").write_bytes(pair("good") + pair("doubtful") + bytes(bad) + pair("never"))
    assert [p.texts for p in Pairs([tmp_path / "a.tar"])] == [("a text",)]
    assert "claims -1,024 bytes" in heard()[0]


def test_a_negative_size_in_an_extended_header_is_no_endless_loop(tmp_path, heard):  # noqa: F811
    bad = tarfile.TarInfo("1.bin")
    bad.size, bad.pax_headers = 1, {"size": "-1536"}  # back to this very header
    content = pair("good") + pair("doubtful") + bad.tobuf(tarfile.PAX_FORMAT) + bytes(512)
    (tmp_path / "a.tar").write_bytes(content)
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("reads the header again and again"))
    signal.alarm(20)
    try:
        assert [p.texts for p in Pairs([tmp_path / "a.tar"])] == [("a text",)]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert "claims -1,536 bytes" in heard()[0]


def every_kind_of_member(path):
    """A tar whose headers are plain ones and all others that hold a file or stand among files."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("empty.txt"))
        for name in ("plain.png", "n" * 99, "n" * 100, f"{'prefix/' * 20}x", "é.txt", f"{'long' * 80}"):
            info = tarfile.TarInfo(name)
            info.size = 513
            tar.addfile(info, io.BytesIO(b"?" * 513))
        timed = tarfile.TarInfo("timed.txt")
        timed.mtime, timed.size = 1.5, 4
        tar.addfile(timed, io.BytesIO(b"time"))
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.AREGTYPE):
            other = tarfile.TarInfo("other")
            other.type, other.linkname = kind, "plain.png"
            tar.addfile(other)
        end = tar.offset
    content = path.read_bytes()[:end]
    old = bytearray(header("old.txt", 600))
    old[124:136], old[148:156] = b"      1130\0 ", b" " * 8  # sizes may have spaces, sums an end of their own
    old[148:156] = b"%06o \0" % sum(old)
    prefixed = tarfile.TarInfo(f"{'folder/' * 20}x").tobuf(tarfile.USTAR_FORMAT)
    more = [bytes(old), bytes(1024), header("x" * 300, 7), bytes(512), prefixed, pair("last")]
    path.write_bytes(content + b"".join(more))


def test_plain_headers_are_read_as_tarfile_reads_them(tmp_path):
    every_kind_of_member(tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar") as tar:
        expected = [(m.name, m.size, m.offset, m.offset_data, m.isfile()) for m in tar]
    for start in (0, expected[3][2]):
        with open(tmp_path / "a.tar", "rb") as file:
            file.seek(start)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                members = shards._members(tar, packed=False)
                found = [(m.name, m.size, m.offset, m.offset_data, m.isfile()) for m in members]
        assert found == [member for member in expected if member[2] >= start] and len(found) > 10


def test_a_plain_header_does_not_wait_for_tarfile(tmp_path, monkeypatch):
    """The plan, which no worker shares, took most of its time in tarfile."""
    shard, read = write_tar(tmp_path / "a.tar", plain(20)), []
    parse = shards._Header.frombuf.__func__
    monkeypatch.setattr(
        shards._Header, "frombuf", classmethod(lambda cls, *args: read.append(args) or parse(cls, *args))
    )
    assert len(list(Pairs([shard]).unread())) == 20
    assert len(read) == 2  # the first header, and the end mark


@pytest.mark.parametrize("cut", [1, 511, 512, 600, 1024, 1535])
def test_a_shard_cut_short_ends_where_tarfile_says(tmp_path, heard, cut):  # noqa: F811
    content = pair("good") + pair("doubtful")
    (tmp_path / "a.tar").write_bytes(content[: len(content) - cut])
    with tarfile.open(tmp_path / "a.tar", tarinfo=shards._Header) as tar:
        try:
            whole = len(list(tar))
        except tarfile.ReadError:
            whole = 3
    assert len(list(Pairs([tmp_path / "a.tar"]).unread())) == whole // 2 == 1
    (message,) = heard()
    assert cut > 512 or "unexpected end of data" in message


def test_a_header_with_a_wrong_check_sum_ends_the_shard(tmp_path, heard):  # noqa: F811
    content = bytearray(pair("good") + pair("doubtful") + pair("bad"))
    at = content.index(b"bad.png")
    content[at : at + 3] = b"BAD"
    (tmp_path / "a.tar").write_bytes(content)
    assert [p.name.rpartition("/")[2] for p in Pairs([tmp_path / "a.tar"])] == ["good"]
    assert "bad checksum" in heard()[0]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_what_is_no_part_of_a_pair_is_never_held(tmp_path, suffix):
    """300 MB of zeros, 0.3 MB in the file."""
    size = 300 * 2**20
    with (gzip.open if suffix == "tar.gz" else open)(tmp_path / f"a.{suffix}", "wb") as file:
        file.write(pair("one") + header("one.cls", shards.LONGEST_TEXT))
        file.write(bytes(shards.LONGEST_TEXT) + header("video.mp4", size))
        for _ in range(300):
            file.write(bytes(2**20))
        file.write(pair("two") + bytes(1024))
    tracemalloc.start()
    assert [p.name.rpartition("/")[2] for p in Pairs([tmp_path])] == ["one", "two"]
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


@pytest.mark.parametrize("kind", [b"L", b"x"], ids=["a long name", "pax"])
def test_a_header_of_a_hundred_megabytes_is_not_read(tmp_path, heard, kind):  # noqa: F811
    """tarfile reads what extends another header in one piece: here 0.1 MB become 100."""
    with gzip.open(tmp_path / "a.tar.gz", "wb") as file:
        file.write(pair("one") + pair("doubtful") + header("long", 100 * 2**20, kind))
        for _ in range(100):
            file.write(bytes(2**20))
        file.write(pair("two") + bytes(1024))
    tracemalloc.start()
    assert [p.name.rpartition("/")[2] for p in Pairs([tmp_path])] == ["one"]
    assert tracemalloc.get_traced_memory()[1] < 2**25 and "claims 104,857,600 bytes" in heard()[0]
    tracemalloc.stop()


def test_a_text_or_picture_beyond_the_limit_is_passed_over_by_name(tmp_path, heard, monkeypatch):  # noqa: F811
    monkeypatch.setattr(shards, "LONGEST_TEXT", 100)
    monkeypatch.setattr(shards, "LARGEST_PICTURE", len(PNG))
    files = {
        "a.png": PNG,
        "a.txt": b"x" * 101,
        "b.png": PNG + b"?",
        "b.txt": b"x",
        "c.png": PNG,
        "c.txt": b"x" * 100,
    }
    shard = write_tar(tmp_path / "a.tar", files)
    assert [p.name for p in Pairs([shard])] == [f"{shard}/c"]
    assert [m.removeprefix(f"{shard}/") for m in heard()] == [
        "a: skipped, .txt of 101 bytes",
        f"b: skipped, .png of {len(PNG) + 1:,} bytes",
    ]


@pytest.mark.parametrize("size", [2**40, 2048])
def test_a_sparse_member_is_no_picture_of_a_terabyte(tmp_path, heard, size):  # noqa: F811
    sparse = tarfile.TarInfo("s.png")
    sparse.type, sparse.size = tarfile.GNUTYPE_SPARSE, 512
    block = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
    block[386:398], block[398:410] = b"%011o\0" % 0, b"%011o\0" % 512  # one piece of data …
    block[483:495] = b"\x80" + size.to_bytes(11, "big")  # … of a file of a terabyte
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    text = header("s.txt", 1) + b"x".ljust(512, b"\0")
    (tmp_path / "a.tar").write_bytes(bytes(block) + bytes(512) + text + pair("good") + bytes(1024))
    assert [p.texts for p in Pairs([tmp_path])] == [("a text",)]
    assert f"s: skipped, .png of {size:,} bytes with holes" in heard()[0]


def test_after_many_batches_the_first_ones_shards_are_not_opened_again(tmp_path, monkeypatch):
    """Resuming reads the shards of its own block, not those before it."""
    monkeypatch.setattr(Pairs, "BUFFER", 8)
    for i in range(12):
        write_tar(tmp_path / f"{i:02}.tar", plain(8, f"{i}-"))
    drawn = list(itertools.islice(batches(Pairs([tmp_path]), 4, 0), 24))
    opened, read = [], shards.read_shard
    monkeypatch.setattr(
        "align_minimal.training.dataset.read_shard", lambda s, *more: opened.append(s) or read(s, *more)
    )
    again = batches(Pairs([tmp_path]), 4, 0, drawn[19][1])
    assert [next(again)[0] for _ in range(4)] == [batch for batch, _ in drawn[20:]]
    assert len(opened) <= 4  # of 12: two of the block, two of what is carried into it


def test_a_position_from_a_file_that_could_not_be_is_refused():
    from align_minimal.training.batches import Position

    good = {"epoch": 1, "block": 0, "start": [0, 5], "carry": [[0, 1]], "full": True, "taken": 2}
    assert Position.read(good).taken == 2
    for wrong in (
        {"taken": 2**63},
        {"taken": -1},
        {"epoch": True},
        {"start": [1]},
        {"carry": 7},
        {"carry": [[1]]},
    ):
        with pytest.raises(ValueError, match="not a position"):
            Position.read(good | wrong)
    for wrong in (None, [], json.loads("{}"), "x"):
        with pytest.raises(ValueError, match="not a position"):
            Position.read(wrong)
