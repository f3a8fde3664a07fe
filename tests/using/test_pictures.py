"""Finding picture files, and reading them ahead of the model."""

import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from align_minimal.support.image_files import load_image
from align_minimal.using.pictures import find_in_folder, find_pictures, read_ahead


def eventually(true) -> bool:
    """Wait for other threads, but not for ever."""
    deadline = time.monotonic() + 5
    while not true() and time.monotonic() < deadline:
        time.sleep(0.001)
    return true()


# ---- reading ahead -----------------------------------------------------------------------------------------


def test_results_come_in_order_though_the_second_is_loaded_before_the_first():
    second = threading.Event()

    def load(item):
        if item == 0:
            assert second.wait(5)  # so two threads are at work
        second.set()
        return item * item

    assert list(read_ahead(range(40), load, ahead=4)) == [(i, i * i) for i in range(40)]


def test_the_next_are_loaded_by_other_threads_while_the_reader_is_busy_and_no_more_than_allowed():
    begun, threads = [], set()

    def load(item):
        begun.append(item)
        threads.add(threading.current_thread())
        return item

    results = read_ahead(range(100), load, ahead=5)
    for given in range(1, 20):
        next(results)
        assert eventually(lambda given=given: len(begun) == given + 5)  # read ahead, though nobody asks
        time.sleep(0.002)
        assert len(begun) == given + 5
    results.close()
    assert threading.current_thread() not in threads


def test_it_takes_no_more_of_an_endless_source_than_it_loads():
    taken = []

    def endless():
        while True:
            taken.append(len(taken))
            yield taken[-1]

    results = read_ahead(endless(), str, ahead=3)
    assert [next(results) for _ in range(4)] == [(0, "0"), (1, "1"), (2, "2"), (3, "3")]
    assert len(taken) == 7
    results.close()


def test_what_cannot_be_loaded_is_given_in_its_place():
    def load(item):
        if item in (0, 3, 9):
            raise (OSError if item == 3 else ValueError)(f"no {item}")
        return item

    results = list(read_ahead(range(10), load, ahead=2))
    assert [item for item, _ in results] == list(range(10))
    assert {i: (type(x), str(x)) for i, x in results if isinstance(x, Exception)} == {
        0: (ValueError, "no 0"),
        3: (OSError, "no 3"),
        9: (ValueError, "no 9"),
    }


@pytest.mark.parametrize("error", [KeyError, RuntimeError, MemoryError])
def test_any_other_error_is_raised_when_its_turn_comes(error):
    def load(item):
        if item == 2:
            raise error("of the program")
        return item

    results = read_ahead(range(9), load)
    assert [next(results), next(results)] == [(0, 0), (1, 1)]
    with pytest.raises(error, match="of the program"):
        next(results)


def test_an_error_of_the_source_is_raised_and_the_threads_end():
    before = threading.active_count()

    def source():
        yield 1
        raise LookupError("the source")

    with pytest.raises(LookupError, match="the source"):
        list(read_ahead(source(), str))
    assert threading.active_count() == before


def test_when_the_reader_goes_away_loading_stops_and_the_threads_end():
    before, begun = threading.active_count(), []

    def load(item):
        begun.append(item)
        time.sleep(0.005)
        return item

    for _, _ in read_ahead(range(1000), load, ahead=500):
        break
    assert eventually(lambda: threading.active_count() == before)
    count = len(begun)
    assert count < 100
    time.sleep(0.02)
    assert len(begun) == count


def test_of_nothing_it_makes_nothing():
    assert list(read_ahead([], str)) == []


def test_pictures_opened_in_threads_leave_python_s_warnings_as_they_were(tmp_path, monkeypatch):
    # To make Pillow's warning about too large a picture an error, the filters of the whole process change.
    path = tmp_path / "a.png"
    Image.new("RGB", (2, 2)).save(path)
    image_open = Image.open

    def slowly(source, **options):
        time.sleep(0.002)  # in which the next thread comes in
        return image_open(source, **options)

    monkeypatch.setattr(Image, "open", slowly)
    before, filters = list(warnings.filters), warnings.filters
    try:
        with ThreadPoolExecutor(8) as pool:
            assert all(image.size == (2, 2) for image in pool.map(load_image, [path] * 40))
        assert warnings.filters is filters and warnings.filters == before
    finally:
        warnings.filters[:] = before


# ---- finding -----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    names = "b.png a.JPG deep/er/c.webp .hidden.png .git/d.png deep/.cache/e.png notes.txt paper.pdf README"
    for name in [*names.split(), "with space.gif", "new\nline.bmp"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "folder.png").mkdir()
    return folder


FOUND = ["a.JPG", "b.png", "deep/er/c.webp", "new\nline.bmp", "with space.gif"]


def test_a_folder_is_searched_to_the_bottom_for_pictures_that_are_not_hidden(folder):
    assert [str(path.relative_to(folder)) for path in find_in_folder(folder)] == FOUND


def test_a_folder_below_a_hidden_one_is_searched_when_it_is_asked_for(folder):
    assert [path.name for path in find_in_folder(folder / ".git")] == ["d.png"]


def test_arguments_keep_their_order_and_know_whether_they_were_named(folder):
    found = find_pictures([str(folder / "notes.txt"), str(folder), str(folder / "b.png")])
    assert found == [
        (folder / "notes.txt", True),  # its owner says that it is a picture
        *((folder / name, False) for name in FOUND),
        (folder / "b.png", True),
    ]


def test_what_is_not_there_is_named(folder):
    (folder / "broken link.png").symlink_to(folder / "gone.png")
    for name in ("none", "broken link.png"):
        with pytest.raises(FileNotFoundError, match=f"{name}: no such file"):
            find_pictures([str(folder), str(folder / name)])
    with pytest.raises(FileNotFoundError, match="none: no such folder"):
        find_in_folder(folder / "none")
    with pytest.raises(NotADirectoryError, match=r"notes\.txt: not a folder"):
        find_in_folder(folder / "notes.txt")
    with pytest.raises(ValueError, match=r"folder\.png: no picture in this folder"):
        find_in_folder(folder / "folder.png")
    assert "broken link.png" not in [path.name for path in find_in_folder(folder)]


def test_a_link_that_leads_nowhere_hides_no_picture_beside_it(folder):
    (folder / "round").symlink_to("round")
    assert [str(path.relative_to(folder)) for path in find_in_folder(folder)] == FOUND


def test_a_picture_that_nobody_may_look_at_is_passed_over_with_a_warning(tmp_path, monkeypatch):
    """As a symbolic link into a folder of somebody else's."""
    for name in ("a.png", "private.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    is_file = Path.is_file

    def denied(path):
        if path.name == "private.png":
            raise PermissionError(13, "Permission denied")
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", denied)
    with pytest.warns(UserWarning, match=r"skipped: .*private.png: Permission denied"):
        assert [path.name for path in find_in_folder(tmp_path)] == ["a.png"]
