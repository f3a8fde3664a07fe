"""The plot of a run: its colours, its dashes, and a name and a value at each line's right end."""

import json
import math

import pytest

from align_minimal.training.command import draw_curves
from align_minimal.training.run_folder import Run

figure = pytest.importorskip("matplotlib.figure")
ROW = {"log_n": math.log(64), "floor": 0.729, "temperature": 0.0195, "lr": 0.0}
NAMES = [["log N: chance 4.16", "loss 0.75", "label smoothing's floor 0.729"], ["temperature 0.0195"]]
NAMES += [["learning rate 0"]]


def drawn(folder, monkeypatch, last: float):
    """The figure of a run of three steps whose last loss is that."""
    rows = [ROW | {"step": step, "loss": loss} for step, loss in ((1, 4.0), (2, 2.0), (3, last))]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    seen = []
    monkeypatch.setattr(
        figure.Figure, "savefig", lambda figure, path, **_: seen.append(figure) or path.touch()
    )
    draw_curves(Run(folder, keep=1))
    return seen[0]


def test_each_curve_has_its_name_and_last_value_at_its_right_end_and_no_legend(tmp_path, monkeypatch):
    picture = drawn(tmp_path, monkeypatch, last=0.75)
    assert [[text.get_text() for text in axis.texts] for axis in picture.axes] == NAMES
    assert all(text.xy[0] == 3 for axis in picture.axes for text in axis.texts)
    assert all(axis.get_legend() is None for axis in picture.axes) and picture.dpi == 160
    picture.draw_without_rendering()
    boxes = [text.get_window_extent() for axis in picture.axes for text in axis.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])  # though 0.75 is near 0.729
    assert all(box.x1 <= picture.bbox.x1 for box in boxes)


def test_chance_and_floor_are_dashed_grey_and_each_curve_has_its_colour(tmp_path, monkeypatch):
    axes = drawn(tmp_path, monkeypatch, last=0.75).axes
    lines = [[(line.get_color(), line.get_linestyle()) for line in axis.lines] for axis in axes]
    grey = ("#595959", "--")
    assert lines == [[grey, ("#2a7f62", "-"), grey], [("#7aa6c2", "-")], [("#c9a227", "-")]]
    assert {text.get_color() for axis in axes for text in axis.texts} == {"#1a1a1a"}


def test_a_loss_that_is_no_number_has_no_name_at_its_end(tmp_path, monkeypatch):
    axes = drawn(tmp_path, monkeypatch, last=math.nan).axes
    assert [text.get_text() for text in axes[0].texts] == NAMES[0][::2]
