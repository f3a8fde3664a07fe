"""Search: its answers against plain torch, what it embeds and when, what it leaves on the disk, errors."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from align_minimal import AlignModel, AlignProcessor, EfficientNetImageProcessor
from align_minimal.using import search
from align_minimal.using.search import ImageIndex
from tests.using import test_cli
from tests.using.test_cli import copy, refused, run

checkpoint_64 = test_cli.checkpoint
NAMES = ["a.png", "b.jpg", "c.webp", "deep/d.png", "deep/er/e.png"]


ROUNDING = 1e-5  # of the towers in float32, several times over


def draw(path: Path, seed: int) -> Path:
    """A picture of 4 × 4 coloured squares, for each seed another."""
    squares = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(squares).resize((40, 40), 0).save(path)
    return path


def resize(folder: Path, side: int) -> None:
    processor = AlignProcessor.from_pretrained(folder)
    pixels = EfficientNetImageProcessor(size={"height": side, "width": side}, resample=2)
    AlignProcessor(pixels, processor.tokenizer).save_pretrained(folder)


@pytest.fixture(scope="module")
def checkpoint(checkpoint_64, tmp_path_factory) -> Path:
    """With smaller pictures, as there are many here."""
    folder = copy(checkpoint_64, tmp_path_factory.mktemp("models") / "checkpoint")
    resize(folder, 32)
    return folder


@pytest.fixture
def pictures(tmp_path) -> Path:
    for seed, name in enumerate(NAMES):
        draw(tmp_path / "pictures" / name, seed)
    return tmp_path / "pictures"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Tower:
    """Counts the pictures that go through the image tower; `seen()` says how many since it was last asked."""

    def __init__(self, monkeypatch):
        self.pictures, real = 0, AlignModel.get_image_features

        def counted(model, pixel_values, **options):
            self.pictures += len(pixel_values)
            return real(model, pixel_values, **options)

        monkeypatch.setattr(AlignModel, "get_image_features", counted)

    def seen(self) -> int:
        pictures, self.pictures = self.pictures, 0
        return pictures


@pytest.fixture
def tower(monkeypatch) -> Tower:
    return Tower(monkeypatch)


def answers(capsys, *argv) -> list[dict]:
    status, out, err = run(capsys, "search", *argv, "--json")
    assert status == 0 and "warning" not in err, err
    return json.loads(out)["results"]


def everything_below(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in [folder, *folder.rglob("*")]}


# ---- answers -----------------------------------------------------------------------------------------------


class Reference:
    """The definition in plain torch, in double precision: a product, a sort."""

    def __init__(self, checkpoint: Path, paths: list[Path]):
        self.model = AlignModel.from_pretrained(checkpoint).double().eval()
        self.processor = AlignProcessor.from_pretrained(checkpoint)
        self.paths, self.embeds = paths, torch.stack([self.image(path) for path in paths])

    @torch.no_grad()
    def image(self, path: Path) -> torch.Tensor:
        pixels = self.processor(images=Image.open(path).convert("RGB"), return_tensors="pt")["pixel_values"]
        return F.normalize(AlignModel.get_image_features(self.model, pixels.double()), dim=-1)[0]

    @torch.no_grad()
    def text(self, text: str) -> torch.Tensor:
        tokens = self.processor(text=[text], return_tensors="pt")
        return F.normalize(self.model.get_text_features(**tokens), dim=-1)[0]

    def best(self, query: torch.Tensor) -> list[tuple[str, float]]:
        scores = (self.embeds @ (query / query.norm())).tolist()
        return sorted(zip(map(str, self.paths), scores, strict=True), key=lambda pair: -pair[1])


@pytest.fixture
def reference(checkpoint, pictures) -> Reference:
    return Reference(checkpoint, [pictures / name for name in NAMES])


def same(results: list[dict], expected: list[tuple[str, float]]) -> None:
    assert [result["image"] for result in results] == [image for image, _ in expected]
    assert [result["score"] for result in results] == pytest.approx(
        [score for _, score in expected], abs=ROUNDING
    )


def test_a_document_with_the_answers_of_each_query_in_order_the_best_first(
    capsys, checkpoint, pictures, reference
):
    queries = ["a dog", "an apple", "a dog on an apple"]
    argv = ["search", pictures, *queries, "--model", checkpoint, "--json"]
    status, out, _ = run(capsys, *argv)
    assert status == 0
    document = json.loads(out)
    assert set(document) == {"model", "results"} and document["model"] == str(checkpoint)
    results = document["results"]
    assert all(set(result) == {"query", "image", "score"} for result in results)
    assert [result["query"] for result in results] == [query for query in queries for _ in NAMES]
    for i, query in enumerate(queries):
        part = results[i * len(NAMES) : (i + 1) * len(NAMES)]
        same(part, reference.best(reference.text(query)))


def test_a_picture_alone_finds_what_is_like_it_and_the_query_is_null(
    capsys, checkpoint, pictures, reference, tmp_path
):
    like = draw(tmp_path / "like.png", seed=NAMES.index("c.webp"))
    results = answers(capsys, pictures, "--image", like, "--model", checkpoint)
    assert {result["query"] for result in results} == {None}
    same(results, reference.best(reference.image(like)))
    assert results[0]["image"] == str(pictures / "c.webp")


COMPOSED = {
    "image + 2 text": ([], lambda x, t, m: x + 2 * t),
    "image + 1 text": (["--text-weight", "1"], lambda x, t, m: x + t),
    "image + 0.5 text": (["--text-weight", "0.5"], lambda x, t, m: x + 0.5 * t),
    "image + 2 (text − minus)": (["--minus", "an apple"], lambda x, t, m: x + 2 * (t - m)),
    "image + 3 (text − minus)": (
        ["--minus", "an apple", "--text-weight", "3"],
        lambda x, t, m: x + 3 * (t - m),
    ),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_picture_and_texts_are_added_by_weight(capsys, checkpoint, pictures, reference, tmp_path, name):
    options, definition = COMPOSED[name]
    image, queries = draw(tmp_path / "other.png", seed=99), ["a dog", "a photo"]
    results = answers(capsys, pictures, *queries, "--image", image, *options, "--model", checkpoint)
    for i, query in enumerate(queries):
        part = results[i * len(NAMES) : (i + 1) * len(NAMES)]
        assert {result["query"] for result in part} == {query}
        vectors = reference.image(image), reference.text(query), reference.text("an apple")
        same(part, reference.best(definition(*vectors)))


def test_minus_goes_with_a_text_alone_and_with_a_picture_alone(capsys, checkpoint, pictures, reference):
    minus, image = reference.text("an apple"), pictures / "a.png"
    tail = ["--minus", "an apple", "--model", checkpoint]
    same(answers(capsys, pictures, "a dog", *tail), reference.best(reference.text("a dog") - minus))
    same(
        answers(capsys, pictures, "--image", image, *tail), reference.best(reference.image(image) - 2 * minus)
    )


def test_top_is_the_number_of_answers_to_each_query_ten_unless_told_otherwise(capsys, checkpoint, tmp_path):
    for seed in range(12):
        draw(tmp_path / "twelve" / f"{seed}.png", seed)
    argv = [tmp_path / "twelve", "a dog", "an apple", "--model", checkpoint]
    ten, two, all_of_them = (answers(capsys, *argv, *top) for top in ([], ["--top", 2], ["--top", 1000]))
    assert (len(ten), len(two), len(all_of_them)) == (20, 4, 24)
    assert two == ten[:2] + ten[10:12] and all_of_them[:10] == ten[:10]


def test_the_table_has_a_heading_a_query_and_a_line_an_answer(capsys, checkpoint, pictures):
    argv = ["a dog", "an apple", "--image", pictures / "a.png", "--minus", "a bicycle", "--top", 2]
    results = answers(capsys, pictures, *argv, "--model", checkpoint)
    status, out, err = run(capsys, "search", pictures, *argv, "--model", checkpoint)
    assert (status, err) == (0, "")
    lines = [f"  {result['score']:6.3f}  {result['image']}" for result in results]
    headings = [f"like {pictures / 'a.png'} + {query} − a bicycle" for query in ("a dog", "an apple")]
    assert out.splitlines() == [headings[0], *lines[:2], headings[1], *lines[2:]]


# ---- what is embedded --------------------------------------------------------------------------------------


def test_a_second_call_embeds_nothing_and_answers_the_same(capsys, checkpoint, pictures, tower, monkeypatch):
    first = answers(capsys, pictures, "a dog", "--model", checkpoint)
    assert tower.seen() == len(NAMES)
    assert answers(capsys, pictures, "a dog", "--model", checkpoint) == first
    monkeypatch.chdir(pictures.parent)  # the same folder by another name
    answers(capsys, "pictures", "an apple", "--model", checkpoint)
    assert tower.seen() == 0
    answers(capsys, pictures, "a dog", "--image", pictures / "a.png", "--model", checkpoint)
    assert tower.seen() == 1  # the picture asked with


def test_only_what_was_added_changed_or_renamed_is_embedded_and_what_is_gone_is_forgotten(
    capsys, checkpoint, pictures, tower
):
    def check(new: int) -> None:
        tower.seen()
        results = answers(capsys, pictures, "a dog", "--model", checkpoint)
        assert tower.seen() == new
        there = [path for path in sorted(pictures.rglob("*")) if path.is_file()]
        expected = Reference(checkpoint, there)
        same(results, expected.best(expected.text("a dog")))

    check(new=len(NAMES))
    draw(pictures / "deep" / "new.png", seed=50)
    check(new=1)
    draw(pictures / "a.png", seed=51)
    check(new=1)
    (pictures / "b.jpg").rename(pictures / "z.jpg")
    check(new=1)
    (pictures / "c.webp").unlink()
    check(new=0)
    (pictures / "z.jpg").rename(pictures / "b.jpg")
    (pictures / "a.png").unlink()
    draw(pictures / "0.png", seed=52)
    check(new=2)
    check(new=0)


def test_a_change_of_size_or_of_time_alone_is_seen(checkpoint, pictures, tower):
    model, processor = AlignModel.from_pretrained(checkpoint), AlignProcessor.from_pretrained(checkpoint)
    ImageIndex(pictures, model, processor)
    path, stat = pictures / "a.png", (pictures / "a.png").stat()
    tower.seen()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert ImageIndex(pictures, model, processor).embedded == tower.seen() == 1
    with path.open("ab") as file:
        file.write(b"more")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert ImageIndex(pictures, model, processor).embedded == tower.seen() == 1
    assert ImageIndex(pictures, model, processor).embedded == tower.seen() == 0


def retrain(folder: Path, tower: str) -> None:
    model = AlignModel.from_pretrained(folder)
    with torch.no_grad():
        next(getattr(model, tower).parameters()).mul_(1.5)
    model.save_pretrained(folder)


CHANGES = {
    "image tower": (lambda folder: retrain(folder, "vision_model"), True),
    "image processor": (lambda folder: resize(folder, 48), True),
    "text tower": (lambda folder: retrain(folder, "text_model"), False),
}


@pytest.mark.parametrize("changed", CHANGES)
@pytest.mark.parametrize("options", [[], ["--index", "index"]], ids=["cache", "index"])
def test_no_model_gets_the_rows_of_another_though_it_has_its_name(
    capsys, checkpoint, pictures, tower, tmp_path, monkeypatch, changed, options
):
    monkeypatch.chdir(tmp_path)
    change, images_differ = CHANGES[changed]
    folder = copy(checkpoint, tmp_path / "model")
    before = answers(capsys, pictures, "a dog", *options, "--model", folder)
    change(folder)
    expected = Reference(folder, [pictures / name for name in NAMES])
    tower.seen()
    after = answers(capsys, pictures, "a dog", *options, "--model", folder)
    assert tower.seen() == (len(NAMES) if images_differ else 0)
    same(after, expected.best(expected.text("a dog")))
    assert [r["score"] for r in after] != pytest.approx([r["score"] for r in before], abs=1e-4)


def test_two_folders_do_not_mix(capsys, checkpoint, pictures, tower, tmp_path):
    for name in NAMES:
        draw(tmp_path / "others" / name, seed=60 + NAMES.index(name))
    for options in ([], ["--index", tmp_path / "index"]):
        for folder in (pictures, tmp_path / "others"):
            expected = Reference(checkpoint, [folder / name for name in NAMES])
            results = answers(capsys, folder, "a dog", *options, "--model", checkpoint)
            same(results, expected.best(expected.text("a dog")))


def test_two_folders_keep_a_cache_each(capsys, checkpoint, pictures, tower, tmp_path):
    draw(tmp_path / "others" / "a.png", seed=60)
    for folder, new in ((pictures, 5), (tmp_path / "others", 1), (pictures, 0), (tmp_path / "others", 0)):
        answers(capsys, folder, "a dog", "--model", checkpoint)
        assert tower.seen() == new


# ---- interrupted -------------------------------------------------------------------------------------------

SLOW = """
import sys, time
from align_minimal.using import retrieval
from align_minimal.__main__ import main
real = retrieval.open_image
retrieval.open_image = lambda *a: (time.sleep(0.03), real(*a))[1]
sys.exit(main(sys.argv[1:]))
"""


def test_an_indexing_that_was_killed_or_interrupted_goes_on_where_it_was(checkpoint, tmp_path, tower):
    folder = tmp_path / "many"
    for seed in range(150):
        draw(folder / f"{seed}.png", seed)
    signals = {signal.SIGKILL: tmp_path / "killed", signal.SIGINT: tmp_path / "interrupted"}
    argv = [sys.executable, "-c", SLOW, "search", folder, "a dog", "--model", checkpoint, "--index"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    pipes["env"] = {**os.environ, "OMP_NUM_THREADS": "1"}
    started, said = {}, {}
    for number, index in signals.items():
        process = started[number] = subprocess.Popen([*argv, index], **pipes)
        while not (signals[number] / "embeddings.safetensors").exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        said[number] = process.communicate()
    assert started[signal.SIGKILL].returncode == -signal.SIGKILL
    assert started[signal.SIGINT].returncode == 130
    out, err = said[signal.SIGINT]
    assert out == b"" and err.count(b"\n") == 1 and err.endswith(b"align-minimal: interrupted\n")
    loaded = AlignModel.from_pretrained(checkpoint), AlignProcessor.from_pretrained(checkpoint)
    whole = []
    for index in signals.values():
        saved = len(load_file(index / "embeddings.safetensors")["keys"])
        assert 0 < saved < 150
        whole.append(ImageIndex(folder, *loaded, index))
        assert whole[-1].embedded == tower.seen() == 150 - saved
        assert whole[-1].paths == sorted(folder.iterdir())
    torch.testing.assert_close(whole[0].embeds, whole[1].embeds, rtol=0, atol=ROUNDING)


def test_what_was_embedded_since_the_last_save_is_saved_at_an_interruption(
    checkpoint, pictures, tower, tmp_path, monkeypatch
):
    real = search.embed_images

    def interrupted(*args):
        results = real(*args)
        yield next(results)
        yield next(results)
        raise KeyboardInterrupt

    loaded = AlignModel.from_pretrained(checkpoint), AlignProcessor.from_pretrained(checkpoint)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(search, "embed_images", interrupted)
        ImageIndex(pictures, *loaded, tmp_path / "index")
    assert ImageIndex(pictures, *loaded, tmp_path / "index").embedded == len(NAMES) - 2


def test_an_end_between_the_two_files_leaves_nothing_wrong_for_good(
    checkpoint, pictures, tmp_path, monkeypatch
):
    loaded = AlignModel.from_pretrained(checkpoint), AlignProcessor.from_pretrained(checkpoint)
    real, written = search.write_atomically, []

    def only_the_first(path, write):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        real(path, write)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(search, "write_atomically", only_the_first)
        ImageIndex(pictures, *loaded, tmp_path / "index")
    ImageIndex(pictures, *loaded, tmp_path / "index")
    assert len(load_file(tmp_path / "index" / "embeddings.safetensors")["embeddings"]) == len(NAMES)
    assert json.loads((tmp_path / "index" / "names.json").read_text()) == NAMES


# ---- on the disk -------------------------------------------------------------------------------------------


def test_the_cache_is_in_xdg_cache_home_and_nothing_is_written_beside_the_pictures(
    capsys, checkpoint, pictures, cache
):
    before = everything_below(pictures)
    answers(capsys, pictures, "a dog", "--model", checkpoint)
    assert everything_below(pictures) == before
    assert [path.name for path in cache.iterdir()] == ["align_minimal"]
    assert sorted(p.name for p in cache.rglob("*") if p.is_file()) == ["embeddings.safetensors", "names.json"]


def test_without_xdg_cache_home_it_is_in_the_home_s_cache(
    capsys, checkpoint, pictures, cache, tmp_path, monkeypatch
):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    answers(capsys, pictures, "a dog", "--model", checkpoint)
    assert len(list((tmp_path / "home" / ".cache" / "align_minimal").glob("*/embeddings.safetensors"))) == 1
    assert not cache.exists()


def test_index_chooses_the_place_which_holds_a_row_and_a_name_a_picture(
    capsys, checkpoint, pictures, cache, reference, tmp_path
):
    index = tmp_path / "not" / "yet" / "there"
    answers(capsys, pictures, "a dog", "--index", index, "--model", checkpoint)
    assert not cache.exists()
    assert sorted(path.name for path in index.iterdir()) == ["embeddings.safetensors", "names.json"]
    assert json.loads((index / "names.json").read_text(encoding="utf-8")) == NAMES
    embeds = load_file(index / "embeddings.safetensors")["embeddings"]
    assert embeds.dtype == torch.float32
    torch.testing.assert_close(embeds.double(), reference.embeds, rtol=0, atol=ROUNDING)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def save(tensors: dict, path: Path) -> None:
    """With the mark by which search knows an index that it wrote."""
    save_file(tensors, path, metadata=json.loads(b"{%s}" % search.MARK))


def swap(**tensors):
    return lambda path: save({**load_file(path), **tensors}, path)


ROWS = len(NAMES)
BROKEN = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_bytes(b"this is not an index, whatever it says: " + search.MARK),
    "cut": cut,
    "not its tensors": lambda path: save({"weight": torch.ones(3, 3)}, path),
    "another width": swap(embeddings=torch.ones(ROWS, 7)),
    "rows missing": swap(embeddings=torch.ones(ROWS - 1, 64)),
    "keys too short": swap(keys=torch.zeros(ROWS, 8, dtype=torch.uint8)),
    "double precision": lambda path: swap(embeddings=load_file(path)["embeddings"].double())(path),
    "half precision": lambda path: swap(embeddings=load_file(path)["embeddings"].half())(path),
    "keys that are no bytes": swap(keys=torch.zeros(ROWS, 16)),
    "keys in bfloat16": swap(keys=torch.zeros(ROWS, 16, dtype=torch.bfloat16)),
    "not a number": lambda path: swap(embeddings=load_file(path)["embeddings"] * torch.nan)(path),
    "infinite": lambda path: swap(embeddings=load_file(path)["embeddings"] * torch.inf)(path),
    "not of length 1": lambda path: swap(embeddings=load_file(path)["embeddings"] * 1.01)(path),
    "no rows": swap(keys=torch.tensor(0, dtype=torch.uint8), embeddings=torch.tensor(0.0)),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_an_index_that_is_broken_is_made_anew_with_a_warning(
    capsys, checkpoint, pictures, tower, tmp_path, broken
):
    file = tmp_path / "index" / "embeddings.safetensors"
    argv = ["search", pictures, "a dog", "--index", file.parent, "--model", checkpoint, "--json"]
    first = run(capsys, *argv)[1]
    BROKEN[broken](file)
    tower.seen()
    status, out, err = run(capsys, *argv)
    assert status == 0 and json.loads(out) == json.loads(first)
    assert err.count("warning") == 1 and str(file) in err and "made anew" in err and "Traceback" not in err
    assert tower.seen() == len(NAMES)
    assert run(capsys, *argv) == (0, first, "")
    assert tower.seen() == 0


FOREIGN = {
    "names.json": b'["Ada", "Grace"]',
    "embeddings.safetensors": b"of another program",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_an_index_replaces_no_file_of_another_program(capsys, checkpoint, pictures, tower, tmp_path, name):
    file = tmp_path / "index" / name
    file.parent.mkdir()
    file.write_bytes(FOREIGN[name])
    argv = ["search", pictures, "a dog", "--index", file.parent, "--model", checkpoint]
    refused(capsys, *argv, status=1, says=[f"{file}: not written by align-minimal"])
    assert file.read_bytes() == FOREIGN[name] and list(file.parent.iterdir()) == [file]
    assert tower.seen() == 0
    save_file({"weight": torch.ones(2)}, file)  # a model's, whatever its name
    refused(capsys, *argv, status=1, says=[f"{file}: not written by align-minimal"])


def test_an_index_behind_links_stays_behind_them(capsys, checkpoint, pictures, tmp_path):
    index, real = tmp_path / "index", tmp_path / "real"
    index.mkdir(), real.mkdir()
    for name in FOREIGN:
        (index / name).symlink_to(real / name)
    answers(capsys, pictures, "a dog", "--index", index, "--model", checkpoint)
    draw(pictures / "new.png", 50)
    answers(capsys, pictures, "a dog", "--index", index, "--model", checkpoint)
    assert all(path.is_symlink() for path in index.iterdir())
    assert len(json.loads((real / "names.json").read_text())) == len(NAMES) + 1


def test_names_that_went_are_written_again(capsys, checkpoint, pictures, tower, tmp_path):
    argv = [pictures, "a dog", "--index", tmp_path / "index", "--model", checkpoint]
    answers(capsys, *argv)
    (tmp_path / "index" / "names.json").unlink()
    tower.seen()
    answers(capsys, *argv)
    assert json.loads((tmp_path / "index" / "names.json").read_text()) == NAMES and tower.seen() == 0


# ---- a folder and a cache that change ----------------------------------------------------------------------


def test_a_picture_that_is_renamed_between_listing_and_looking_is_skipped(
    capsys, checkpoint, pictures, monkeypatch
):
    real = search.find_in_folder

    def renamed(folder):
        found = real(folder)
        (folder / "a.png").rename(folder / "new.png")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(search, "find_in_folder", renamed)
        status, out, err = run(capsys, "search", pictures, "a dog", "--model", checkpoint, "--json")
    assert status == 0 and len(json.loads(out)["results"]) == len(NAMES) - 1
    assert err.count("\n") == 1 and f"skipped: {pictures / 'a.png'}: " in err
    assert len(answers(capsys, pictures, "a dog", "--model", checkpoint)) == len(NAMES)


def test_a_folder_that_cannot_be_read_is_said_and_left_out(capsys, checkpoint, pictures, monkeypatch):
    real = os.scandir

    def forbidden(folder):
        if Path(folder).name == "deep":
            raise PermissionError(13, "Permission denied", str(folder))
        return real(folder)

    monkeypatch.setattr(os, "scandir", forbidden)
    for argv in (["search", pictures, "a dog"], ["classify", pictures, "--labels", "dog"]):
        status, out, err = run(capsys, *argv, "--model", checkpoint, "--json")
        assert status == 0 and len(json.loads(out)["results"]) == 3
        assert err.startswith(f"align-minimal: warning: skipped: {pictures / 'deep'}: Permission denied\n")
        assert err.count("skipped") == 1
    argv = ["search", pictures / "deep", "a dog", "--model", checkpoint]
    refused(capsys, *argv, status=1, says=[pictures / "deep", "Permission denied"])


def test_1_100_nested_folders_are_searched_to_the_bottom(capsys, checkpoint, tmp_path):
    folder = tmp_path / "nested"
    bottom = folder.joinpath(*["d"] * 1100)
    here = folder
    here.mkdir()
    for part in bottom.relative_to(folder).parts:
        here = here / part
        here.mkdir()
    draw(folder / "top.png", 1)
    draw(bottom / "bottom.png", 2)
    found = answers(capsys, folder, "a dog", "--model", checkpoint)
    (bottom / "bottom.png").unlink()
    while here != folder:  # pytest's own tidying would recurse into them, too deep for Python's stack
        here.rmdir()
        here = here.parent
    assert {Path(result["image"]).name for result in found} == {"top.png", "bottom.png"}


def test_a_cache_that_vanishes_is_made_anew(capsys, checkpoint, pictures, tmp_path, monkeypatch):
    index, real = tmp_path / "index", os.replace

    def vanished(temporary, path):
        if not vanished.done:
            vanished.done = True
            shutil.rmtree(index)
        real(temporary, path)

    vanished.done = False
    monkeypatch.setattr(os, "replace", vanished)
    argv = [pictures, "a dog", "--index", index, "--model", checkpoint]
    assert len(answers(capsys, *argv)) == len(NAMES) and vanished.done
    assert sorted(path.name for path in index.iterdir()) == ["embeddings.safetensors", "names.json"]


def test_one_that_vanishes_before_it_is_read_is_made_anew(
    capsys, checkpoint, pictures, tmp_path, monkeypatch
):
    argv = [pictures, "a dog", "--index", tmp_path / "index", "--model", checkpoint]
    first = answers(capsys, *argv)
    real = search.read_safetensors

    def vanished(path):
        shutil.rmtree(path.parent, ignore_errors=True)
        monkeypatch.setattr(search, "read_safetensors", real)
        return real(path)

    monkeypatch.setattr(search, "read_safetensors", vanished)
    assert answers(capsys, *argv) == first


def test_temporary_files_of_killed_runs_are_removed_and_those_of_running_ones_stay(
    capsys, checkpoint, pictures, tmp_path
):
    index = tmp_path / "index"
    argv = [pictures, "a dog", "--index", index, "--model", checkpoint]
    answers(capsys, *argv)
    old = [index / f".{name}.abcd123_.tmp" for name in ("names.json", "embeddings.safetensors")]
    young, foreign = index / ".names.json.abcd1234.tmp", index / ".other.abcd1234.tmp"
    for path in (*old, young, foreign):
        path.write_text("")
        if path != young:
            os.utime(path, (1, 1))
    draw(pictures / "new.png", 50)
    answers(capsys, *argv)
    assert young.exists() and foreign.exists() and not any(path.exists() for path in old)


def test_without_a_home_the_line_says_what_to_give(capsys, checkpoint, pictures, tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    argv = ["search", pictures, "a dog", "--model", checkpoint]
    refused(capsys, *argv, status=1, says=["no home folder", "--index", "XDG_CACHE_HOME"])
    assert run(capsys, *argv, "--index", tmp_path / "index")[0] == 0


# ---- bad input ---------------------------------------------------------------------------------------------


def test_a_picture_that_cannot_be_read_is_named_and_skipped_and_several_are_counted(
    capsys, checkpoint, pictures, tower
):
    argv = ["search", pictures, "a dog", "--model", checkpoint, "--json"]
    (pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n....")
    status, out, err = run(capsys, *argv)
    assert status == 0 and len(json.loads(out)["results"]) == len(NAMES)
    assert err.count("warning") == 1 and "skipped" in err and str(pictures / "broken.png") in err
    (pictures / "empty.jpg").write_bytes(b"")
    tower.seen()
    for _ in range(2):  # the next call says so again
        status, out, err = run(capsys, *argv)
        assert status == 0 and len(json.loads(out)["results"]) == len(NAMES)
        assert err.count("skipped") == 2 and str(pictures / "empty.jpg") in err
        assert err.count("warning") == 3 and "could not be read" in err
    assert tower.seen() == 0
    (pictures / "empty.jpg").unlink()
    draw(pictures / "broken.png", seed=70)  # mended
    assert len(answers(capsys, pictures, "a dog", "--model", checkpoint)) == len(NAMES) + 1
    assert tower.seen() == 1


def test_a_folder_in_which_nothing_can_be_read_is_an_error(capsys, checkpoint, tmp_path):
    for name in ("one.png", "two.png"):
        (tmp_path / name).write_bytes(b"no picture")
    status, out, err = run(capsys, "search", tmp_path, "a dog", "--model", checkpoint)
    assert (status, out) == (1, "") and "Traceback" not in err
    assert "one.png" in err and "two.png" in err
    assert err.splitlines()[-1] == f"align-minimal: {tmp_path}: no picture here could be read"


def test_a_folder_in_which_nothing_can_be_read_any_more_is_the_same_error(capsys, checkpoint, pictures):
    answers(capsys, pictures, "a dog", "--model", checkpoint)
    for name in NAMES:
        (pictures / name).write_bytes(b"no picture")
    status, out, err = run(capsys, "search", pictures, "a dog", "--model", checkpoint)
    assert (status, out) == (1, "") and err.endswith(f"{pictures}: no picture here could be read\n")


def test_bad_usage_is_status_2(capsys, checkpoint, pictures):
    tail = ["--model", checkpoint]
    refused(capsys, "search", status=2, says=["FOLDER"])
    says = ["QUERY", "--image", "see align-minimal search --help"]
    refused(capsys, "search", pictures, *tail, status=2, says=says)
    refused(capsys, "search", pictures, "--minus", "a dog", *tail, status=2, says=["QUERY", "--image"])
    for query in ("", "  ", "\n"):
        refused(capsys, "search", pictures, "a dog", query, *tail, status=2, says=["empty", repr(query)])
    refused(capsys, "search", pictures, "a dog", "--minus", " ", *tail, status=2, says=["empty"])
    for top in ("0", "-1", "x", "1.5"):
        refused(capsys, "search", pictures, "a dog", "--top", top, *tail, status=2, says=["--top", top])
    for weight in ("0", "-2", "nan", "inf", "x", "1e-4", "1e30"):
        argv = ["search", pictures, "a dog", "--text-weight", weight, *tail]
        refused(capsys, *argv, status=2, says=["--text-weight", weight])
    for device in ("toaster", "cuda:99", "meta"):
        refused(capsys, "search", pictures, "a dog", "--device", device, *tail, status=2, says=[device])


def test_queries_may_stand_after_a_flag(capsys, checkpoint, pictures):
    tail = ["--model", checkpoint]
    expected = answers(capsys, pictures, "a dog", "an apple", "--top", 1, *tail)
    assert answers(capsys, pictures, "--top", 1, "a dog", "an apple", *tail) == expected
    assert answers(capsys, pictures, "a dog", "--top", 1, "an apple", *tail) == expected
    refused(
        capsys, "search", pictures, "--top", 1, "a dog", "--nonsense", *tail, status=2, says=["--nonsense"]
    )


def test_a_folder_that_is_missing_or_a_file_or_without_pictures_is_named(
    capsys, checkpoint, pictures, tmp_path
):
    (tmp_path / "none").mkdir()
    for folder in (tmp_path / "nowhere", pictures / "a.png", tmp_path / "none"):
        argv = ["search", folder, "a dog", "--model", checkpoint]
        refused(capsys, *argv, status=1, says=[f"{folder}: "])


def test_an_image_to_ask_with_that_cannot_be_read_is_named_before_anything_is_embedded(
    capsys, checkpoint, pictures, tower, tmp_path
):
    (tmp_path / "broken.png").write_bytes((pictures / "a.png").read_bytes()[:60])
    (tmp_path / "text.png").write_text("no picture")
    for image in ("missing.png", "broken.png", "text.png", "pictures"):
        argv = ["search", pictures, "--image", tmp_path / image, "--model", checkpoint]
        refused(capsys, *argv, status=1, says=[tmp_path / image])
    refused(capsys, "search", pictures, "--image", "", "--model", checkpoint, status=1, says=["no such file"])
    assert tower.seen() == 0


def test_a_page_or_an_index_that_cannot_be_written_is_named(capsys, checkpoint, pictures, tower, tmp_path):
    tail = ["--model", checkpoint]
    refused(capsys, "search", pictures, "a dog", "--html", tmp_path, *tail, status=1, says=[tmp_path])
    for index in (pictures / "a.png", pictures / "a.png" / "below"):
        argv = ["search", pictures, "a dog", "--index", index, *tail]
        refused(capsys, *argv, status=1, says=[index])
    assert tower.seen() == 0


ODD = [
    "two\nlines.png",
    '"quo\'tes".png',
    "<script>alert(1)<",
    b"no \xff\xfe utf8.png",
    "\x1b[2Jclears.png",
    "Äpfel 🍎.png",
]


def test_file_names_are_data_and_break_neither_document_nor_table(capsys, checkpoint, tmp_path):
    folder = tmp_path / "odd"
    for seed, name in enumerate(ODD):
        name = os.fsdecode(name)
        draw(folder / name if name.endswith("png") else folder / name / "script>.png", seed)
    there = {str(path) for path in folder.rglob("*") if path.is_file()}
    assert len(there) == len(ODD)
    argv = ["search", folder, "a dog", "--index", tmp_path / "index", "--model", checkpoint]
    status, out, _ = run(capsys, *argv, "--json")
    assert status == 0 and {result["image"] for result in json.loads(out)["results"]} == there
    assert {
        str(folder / name) for name in json.loads((tmp_path / "index" / "names.json").read_text())
    } == there
    status, out, err = run(capsys, *argv)
    assert (status, err) == (0, "")
    assert out.count("\n") == 1 + len(ODD) and "\x1b" not in out
    for shown in ("two\\nlines.png", '"quo\'tes".png', "<script>alert(1)<", "\\udcff\\udcfe", "Äpfel 🍎.png"):
        assert shown in out
    (folder / "two\nlines.png").write_bytes(b"")
    status, _, err = run(capsys, *argv)
    assert status == 0 and err.count("\n") == 1 and "two lines.png" in err


def test_a_query_that_is_not_unicode_is_a_query(capsys, checkpoint, pictures):
    query = os.fsdecode(b"a \xff dog\n")
    assert answers(capsys, pictures, query, "--top", 1, "--model", checkpoint)[0]["query"] == query
    status, out, _ = run(capsys, "search", pictures, query, "--top", 1, "--model", checkpoint)
    assert status == 0 and out.splitlines()[0] == "a \\udcff dog\\n"


@pytest.mark.parametrize("content", ['["garbage"]', "", "[", None])
def test_names_json_is_what_the_rows_are_whatever_became_of_it(
    capsys, checkpoint, pictures, tmp_path, content, tower
):
    argv = [pictures, "a dog", "--index", tmp_path / "index", "--model", checkpoint]
    answers(capsys, *argv)
    path = tmp_path / "index" / "names.json"
    right, _ = path.read_text(), tower.seen()
    path.unlink()
    if content is not None:
        path.write_text(content)
    answers(capsys, *argv)
    assert path.read_text() == right and tower.seen() == 0


def test_a_name_left_from_a_call_that_was_killed_goes(capsys, checkpoint, pictures, tmp_path, monkeypatch):
    """Killed between the two files, after a picture was added that is then deleted."""
    argv = [pictures, "a dog", "--index", tmp_path / "index", "--model", checkpoint]
    answers(capsys, *argv)
    draw(pictures / "new.png", 50)
    with monkeypatch.context() as patch:
        patch.setattr(search, "save_file", lambda *given, **more: (_ for _ in ()).throw(OSError(28, "full")))
        assert run(capsys, "search", *argv)[0] == 1
    assert "new.png" in (tmp_path / "index" / "names.json").read_text()
    (pictures / "new.png").unlink()
    answers(capsys, *argv)
    assert sorted(json.loads((tmp_path / "index" / "names.json").read_text())) == sorted(NAMES)


def test_an_index_whose_name_is_not_utf_8_is_used_again(capsys, checkpoint, pictures, tmp_path, tower):
    argv = [pictures, "a dog", "--index", tmp_path / os.fsdecode(b"index\xff"), "--model", checkpoint]
    first = answers(capsys, *argv)
    assert tower.seen() == len(NAMES)
    assert answers(capsys, *argv) == first and tower.seen() == 0


def test_a_folder_behind_a_link_is_left_out_and_that_is_said(capsys, checkpoint, pictures, tmp_path):
    draw(tmp_path / "elsewhere" / "x.png", 60)
    (pictures / "link").symlink_to(tmp_path / "elsewhere")
    status, out, err = run(capsys, "search", pictures, "a dog", "--model", checkpoint)
    assert status == 0 and "x.png" not in out
    assert f"align-minimal: warning: skipped: {pictures / 'link'}: a link to a folder\n" in err


def test_a_query_of_which_nothing_is_left_is_no_answer(capsys, checkpoint, pictures):
    argv = ["search", pictures, "a dog", "--minus", "a dog", "--model", checkpoint]
    refused(capsys, *argv, status=1, says=["nothing is left of a query"])


def test_links_in_a_circle_are_no_mistake_of_ours(capsys, checkpoint, pictures, tmp_path):
    loop = tmp_path / "loop.html"
    loop.symlink_to(loop)
    refused(capsys, "search", loop, "a dog", "--model", checkpoint, status=1, says=["no such folder"])
    argv = ["search", pictures, "a dog", "--index", loop / "index", "--model", checkpoint]
    refused(capsys, *argv, status=1, says=["loop.html"])


# ---- in Python ---------------------------------------------------------------------------------------------


def test_in_python_the_same_answers(capsys, checkpoint, pictures, reference):
    index = ImageIndex(pictures, AlignModel.from_pretrained(checkpoint).train(), reference.processor)
    assert index.embedded == len(NAMES) and index.paths == reference.paths
    torch.testing.assert_close(index.embeds.double(), reference.embeds, rtol=0, atol=ROUNDING)
    image = pictures / "a.png"
    for words, found in (
        (["a dog"], index.search("a dog")),
        (["a dog", "--top", 2], index.search("a dog", top=2)),
        (["--image", image], index.search(image=image)),
        (["a dog", "--image", image, "--minus", "an apple", "--text-weight", 3],
         index.search("a dog", image=str(image), minus="an apple", text_weight=3.0)),
    ):  # fmt: skip
        results = answers(capsys, pictures, *words, "--model", checkpoint)
        same(results, [(str(path), score) for score, path in found])
    several = index.nearest(index.queries(["a dog", "an apple"]), top=3)
    assert [[path for _, path in found] for found in several] == [
        [path for _, path in index.search(text, top=3)] for text in ("a dog", "an apple")
    ]


def test_in_python_the_errors_are_exceptions(checkpoint, pictures, tmp_path):
    loaded = AlignModel.from_pretrained(checkpoint), AlignProcessor.from_pretrained(checkpoint)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ImageIndex(tmp_path / "nowhere", *loaded)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="none: no picture"):
        ImageIndex(tmp_path / "none", *loaded)
    with pytest.raises(OSError, match=r"a\.png"):
        ImageIndex(pictures, *loaded, index=pictures / "a.png" / "index")
    index = ImageIndex(pictures, *loaded)
    with pytest.raises(ValueError, match="a query needs a text or an image"):
        index.search()
    for weight in (0, -1, 1e30, float("nan")):
        with pytest.raises(ValueError, match="text_weight must be from"):
            index.search("a dog", text_weight=weight)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken\.png"):
        index.search("a dog", image=tmp_path / "broken.png")


@pytest.fixture
def overflowing(checkpoint, tmp_path):
    """A checkpoint of finite weights whose image features are not finite."""
    folder = copy(checkpoint, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    name = next(n for n in weights if n.endswith("project_bn.weight"))
    save_file(weights | {name: weights[name] * 1e38}, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_a_model_that_overflows_finds_nothing_and_says_so(overflowing, tmp_path, capsys, pictures):
    index = tmp_path / "index"
    argv = ["search", pictures, "a dog", "--model", overflowing, "--index", index]
    refused(capsys, *argv, status=1, says=["not finite", "broken"])
    assert not (index / "embeddings.safetensors").exists()
    argv = ["trace", pictures / NAMES[0], "a dog", "--model", overflowing]
    refused(capsys, *argv, status=1, says=["broken"])
