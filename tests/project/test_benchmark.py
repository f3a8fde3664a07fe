"""The benchmark measures what it says: the ratio's direction, memory, words that are new, README's rows."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.lab import benchmark, runtimes
from tests.lab.benchmark import ROWS, Work, in_words, measure, peak_of, unseen_words
from tests.lab.growth import COLOURS, IMAGES, INK, PAIRS, SEARCHED, SIDES, TOKENS, Line, draw, slope, spread

README = Path(__file__).resolve().parents[1] / "lab" / "README.md"


def work(theirs: float, ours: float, **more) -> Work:
    """Both sides sleep that long; theirs returns 1, ours 1.5."""

    def sleep(duration: float, result: float):
        return lambda: time.sleep(duration) or torch.tensor([result])

    return Work(sleep(theirs, 1.0), sleep(ours, 1.5), pairs=3, **more)


def test_the_ratio_is_theirs_over_ours_and_the_error_is_relative_to_theirs():
    found = measure(work(0.03, 0.01, limit=lambda: 0.005, rounded=lambda: torch.tensor([1.1])))
    assert 1.5 < found["ratio"] < 4
    assert 0.01 <= found["ours"] < 0.03 <= found["theirs"]
    assert found["error"] == pytest.approx(0.5)
    assert found["their_rounding"] == pytest.approx(0.1)
    assert found["limit"] == 0.005


def test_a_side_with_its_own_clock_is_believed():
    found = measure(Work(lambda: 6.0, lambda: 2.0))
    assert (found["theirs"], found["ours"], found["ratio"], found["faults"]) == (6, 2, 3, None)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_what_one_call_takes():
    assert 60 < peak_of(lambda: torch.ones(2**24)) < 75  # 64 MB
    assert peak_of(lambda: None) < 8


def test_no_word_comes_twice():
    words = " ".join(unseen_words(200)).split()
    assert len(set(words)) == len(words) > 1000


def test_a_row_is_written_with_its_units():
    found = {"theirs": 2.5, "ours": 0.05, "ratio": 50, "error": 2e-6, "limit": None}
    found["faults"] = {"theirs": 1_200_000, "ours": 7}
    cells = in_words(found, {"ratio": 1.5}, {"theirs": 512.3, "ours": 99.9})
    assert cells == ["2.50 s", "50.0 ms", "**50.00×**", "2e-06", "", "1,200,000 → 7", "512 → 100", "1.50×"]


def test_readme_has_a_row_for_each_row():
    table = re.findall(r"^\| (.+?) \| .*×\*\* \|", README.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert table == [label for label, _ in ROWS.values()] + [row.label for row in runtimes.ROWS.values()]


def test_readme_has_a_slope_for_each_kind_of_growth():
    rows = re.findall(
        r"^\| (.+?) \| \S.* \| [\d.]+ \| [\d.]+ \|$", README.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert list(dict.fromkeys(rows)) == [IMAGES, SIDES, TOKENS, SEARCHED, PAIRS]


def test_a_slope_is_the_power_of_growth():
    assert slope([1, 2, 4, 8], [100, 100, 16, 64]) == pytest.approx(2)


def test_names_at_the_lines_ends_do_not_cover_one_another():
    assert spread([10, 0, 9], 4) == [10, 0, 6]
    assert spread([5, 5, 5], 2) == [5, 3, 1]


def test_growth_draws_two_plots_with_a_name_and_a_slope_at_each_line(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure")
    seen = []
    monkeypatch.setattr(figure.Figure, "savefig", lambda figure, path: seen.append(figure))
    names = {
        IMAGES: ("Hugging Face", "AlignModel", "for_inference()"),
        PAIRS: ("the whole batch", "--chunk 32"),
    }
    lines = {
        label: [Line(name, [1, 2, 4], lambda size: None, [1, 2, 4], [3, 3, 3]) for name in several]
        for label, several in names.items()
    }
    draw(lines, tmp_path / "growth.png")
    (left, right) = seen[0].axes
    told = [[text.get_text().split("\n") for text in axis.texts] for axis in (left, right)]
    assert told == [[[n, "slope 1.0"] for n in names[IMAGES]], [[n, "slope 0.0"] for n in names[PAIRS]]]
    assert all(axis.get_legend() is None for axis in (left, right)) and len({*COLOURS, INK}) == 4


# ---- beside the runtimes


def test_a_runtime_s_row_compares_with_the_faster_one_there_is():
    spent = {"Hugging Face": 0.4, "onnxruntime": 0.2, "OpenVINO": 0.3, "ours": 0.1}
    assert runtimes.line("a", spent, 3e-6) == "| a | 400 ms | 200 ms | 300 ms | 100 ms | **2.00×** | 3e-06 |"
    del spent["onnxruntime"], spent["Hugging Face"]
    assert runtimes.line("a", spent, 3e-6) == "| a |  |  | 300 ms | 100 ms | **3.00×** | 3e-06 |"


def test_runtimes_take_turns_and_the_first_call_only_warms_up(monkeypatch):
    monkeypatch.setattr(runtimes, "PAUSE", 0)
    calls = []

    def side(name):
        if name not in calls:
            time.sleep(0.2)
        calls.append(name)
        return name

    spent, found = runtimes.measure({name: lambda name=name: side(name) for name in "ab"}, runs=2)
    assert calls == ["a", "b"] * 3 and found == {"a": "a", "b": "b"}
    assert max(spent.values()) < 0.1


def test_a_core_is_busy_meanwhile_and_free_again_afterwards(monkeypatch):
    started = []
    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *args: started.append(start(*args)) or started[-1])
    with runtimes.a_busy_core(wanted=False):
        assert not started
    with pytest.raises(KeyboardInterrupt), runtimes.a_busy_core():
        assert started[0].poll() is None
        raise KeyboardInterrupt
    assert started[0].poll() is not None


def test_without_the_runtimes_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(runtimes, "missing", lambda: ["openvino"])
    monkeypatch.setattr("sys.argv", ["benchmark", "--runtimes"])
    with pytest.raises(SystemExit) as stop:
        benchmark.main()
    assert stop.value.code == 2
    assert "openvino: not installed (pip install -e '.[bench]')" in capsys.readouterr().err
