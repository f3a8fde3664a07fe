"""Each script beside the package starts and writes nothing unasked; README's picture is as it should be."""

import sys
from pathlib import Path

import pytest

from tests.lab.warm import python

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [*sorted((ROOT / "weights").glob("*.py")), ROOT / "notebooks" / "run.py"]
TOOLS = ["benchmark", "break_it", "compare", "growth", "loading", "seen", "starters"]
# They run where the packages that only drawing, fetching or notebooks need are absent.
ABSENT = ("matplotlib", "resvg_py")


def tracked() -> dict[Path, int]:
    """When each file that a script could overwrite was last written."""
    folders = [ROOT / name for name in ("weights", "notebooks", "tests")]
    files = [path for folder in folders for path in folder.rglob("*") if "__pycache__" not in path.parts]
    return {path: path.stat().st_mtime_ns for path in files if path.is_file()}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_starts_and_writes_nothing_when_asked_for_help(path):
    if path.name == "run.py":
        pytest.importorskip("nbformat", reason="the notebooks' packages are not installed")
    before = tracked()
    done = python(path, "--help", without=ABSENT)
    assert done.returncode == 0, done.stderr
    if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8"):
        assert f"usage: {path.name}" in done.stdout
    assert tracked() == before


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_starts_and_writes_nothing_when_asked_for_help(tool):
    before = tracked()
    done = python("-m", f"tests.lab.{tool}", "--help", without=ABSENT)
    assert done.returncode == 0 and "usage: " in done.stdout, done.stderr
    assert tracked() == before


def test_what_writes_over_files_of_the_project_wants_an_argument():
    before = tracked()
    for words in (["weights/draw_readme.py"], ["-m", "tests.lab.growth"], ["-m", "tests.lab.starters"]):
        done = python(*words, without=ABSENT)
        assert done.returncode == 2 and "required" in done.stderr, done.stderr
    assert tracked() == before


# ---- README's picture


def luminance(colour: str) -> float:
    """Of #rrggbb, as WCAG defines it: 0 for black, 1 for white."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.fixture(scope="module")
def drawn():
    """The module, and the figure that it draws."""
    figure = pytest.importorskip("matplotlib.figure", reason="matplotlib is not installed")
    sys.path.insert(0, str(ROOT / "weights"))
    try:
        import draw_readme
    finally:
        sys.path.pop(0)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figure.Figure, "savefig", lambda figure, *_, **__: seen.append(figure))
        draw_readme.draw(Path("nowhere.png"))
    seen[0].draw_without_rendering()
    return draw_readme, seen[0]


def test_contrast_is_that_of_wcag():
    assert contrast("#000000", "#ffffff") == pytest.approx(21) and contrast("#777777", "#ffffff") < 4.5


def test_the_picture_separates_photographs_from_drawings_under_a_caption_of_their_own(drawn):
    module, figure = drawn
    drawings, photographs = figure.subfigs
    assert "Drawings" in drawings.get_suptitle() and "Photographs" in photographs.get_suptitle()
    shown = [sum(bool(axis.images) for axis in part.axes) for part in (drawings, photographs)]
    assert shown == [len(list(module.SAMPLES.glob(f"*{suffix}"))) for suffix in (".png", ".jpg")]


def test_the_picture_s_text_has_a_contrast_of_7_and_lies_over_no_bar(drawn):
    module, figure = drawn
    texts = [(axis, text) for part in figure.subfigs for axis in part.axes for text in axis.texts]
    assert len(texts) == 2 * module.SHOWN * 11
    for axis, text in texts:
        assert contrast(text.get_color(), "#ffffff") >= 7
        box = text.get_window_extent()
        assert not [bar for bar in axis.patches if bar.get_window_extent().overlaps(box)], text.get_text()
    assert figure.dpi == 160


def test_the_picture_s_green_bar_is_the_right_name_s(drawn):
    module, figure = drawn
    green = [
        rgb(bar) == module.RIGHT for part in figure.subfigs for axis in part.axes for bar in axis.patches
    ]
    assert sum(green) == 8 and len(green) == 3 * 11  # all drawings and no photograph, as the card says


def rgb(bar) -> str:
    return "#" + "".join(f"{round(255 * c):02x}" for c in bar.get_facecolor()[:3])
