"""The notebooks keep the course's promises: what each has, what `check` says, and that answers are folded."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
sys.path.insert(0, str(ROOT / "notebooks"))

from answers import JUDGES, secret_options  # noqa: E402
from course import check, diagram, parts_of, shape, unwritten  # noqa: E402


def cells(path: Path, kind: str) -> list[dict]:
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in found if cell["cell_type"] == kind]


def texts(path: Path) -> str:
    return "\n\n".join(cell["source"] for cell in cells(path, "markdown"))


def codes(path: Path) -> str:
    return "\n\n".join(cell["source"] for cell in cells(path, "code"))


# ---- what each notebook has


def test_the_course_has_twelve_notebooks_under_8_megabytes():
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{i:02}" for i in range(12)]
    assert sum(path.stat().st_size for path in NOTEBOOKS) < 8e6


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_says_what_one_needs_how_long_it_takes_and_what_comes_before_and_after(path):
    head = cells(path, "markdown")[0]["source"]
    for row in ("You need", "Minutes", "Paper", "Open beside you", "Previous, next"):
        assert f"\n| {row} | " in head, row
    number = NOTEBOOKS.index(path)
    neighbours = re.search(r"\| Previous, next \| (.*) \|", head).group(1)
    wanted = [p.name for p in (NOTEBOOKS[number - 1 : number] + NOTEBOOKS[number + 1 : number + 2])]
    assert re.findall(r"\((\w+\.ipynb)\)", neighbours) == wanted


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_head_names_files_and_symbols_that_exist(path):
    row = re.search(r"\| Open beside you \| (.*) \|", cells(path, "markdown")[0]["source"]).group(1)
    files = re.split(r"(?=\[`)", row)[1:]
    assert files
    for part in files:
        target, symbols = re.match(r"\[`[\w/]+\.py`\]\((.+?)\)(.*)", part).groups()
        code = (path.parent / target).read_text(encoding="utf-8")
        for symbol in re.findall(r"`(\w+)`", symbols):
            defined = rf"^(class|def) {symbol}\b|^{symbol}\b.* = "
            assert re.search(defined, code, re.MULTILINE), (target, symbol)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_link_of_a_notebook_leads_somewhere(path):
    links = [t for t in re.findall(r"\]\(([^)#\s]+)\)", texts(path)) if "://" not in t and "$" not in t]
    assert len(links) > 2
    assert [target for target in links if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_ends_with_a_recap_of_three_lines_and_three_exercises(path):
    recap = texts(path).split("## Recap")[1].split("## Exercises")[0]
    assert len(re.findall(r"^\d\. \S", recap, re.MULTILINE)) == 3
    assert re.findall(rf'check\("{path.name[:2]}\.(\d)"', codes(path)) == ["1", "2", "3"]
    tried = [cell for cell in cells(path, "code") if "exercise" in cell["metadata"].get("tags", [])]
    assert len(tried) >= 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_started_in_a_wrong_folder_the_first_cell_says_so(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match="start this notebook in the folder notebooks/"):
        exec(cells(path, "code")[0]["source"], {})
    monkeypatch.chdir(path.parent)
    exec(cells(path, "code")[0]["source"], {})


# ---- predict, then check


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_what_answers_a_prediction_is_folded_until_the_reader_asks(path):
    answers = [cell for cell in cells(path, "code") if "answer" in cell["metadata"].get("tags", [])]
    assert answers
    for cell in answers:
        assert cell["metadata"]["jupyter"]["source_hidden"]
        for output in cell["outputs"]:
            page = "".join(output["data"]["text/html"])
            assert page.startswith("<details><summary>") and page.endswith("</details>")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_prediction_is_followed_by_something_folded(path):
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for i, cell in enumerate(found):
        if cell["cell_type"] == "markdown" and "**Predict first" in "".join(cell["source"]):
            near = found[i : i + 6]
            assert any(
                "answer" in c["metadata"].get("tags", []) or "<details>" in "".join(c["source"]) for c in near
            ), "".join(cell["source"])[:200]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_nothing_failed_and_no_time_of_day_is_kept(path):
    for cell in cells(path, "code"):
        assert "execution" not in cell["metadata"]
        assert all(output["output_type"] != "error" for output in cell["outputs"])
        assert not ("slider" in cell["metadata"].get("tags", []) and cell["outputs"])


def test_saving_folds_all_that_an_answer_printed_and_drew_into_one_output():
    pytest.importorskip("nbclient")
    import run

    streams = [{"output_type": "stream", "name": "stdout", "text": text} for text in ("1 < 2\n", "and more")]
    image = {"output_type": "display_data", "data": {"image/png": "QUJD", "text/plain": "<Figure>"}}
    (folded,) = run.fold([*streams, image])
    page = folded["data"]["text/html"]
    assert page.startswith("<details><summary>What came out</summary><pre>1 &lt; 2\nand more</pre><img ")
    assert "data:image/png;base64,QUJD" in page and page.endswith("</details>")
    assert run.fold([]) == []


# ---- check


UNWRITTEN = {str(x): x for x in (None, ..., (None, None), [])} | {"a function": lambda: ...}


@pytest.mark.parametrize("empty", UNWRITTEN.values(), ids=UNWRITTEN)
def test_an_answer_that_is_not_written_yet_is_not_judged(empty, capsys):
    if empty == []:
        assert not unwritten(empty)  # a list that is empty may be an answer
        return
    assert not check("03.1", empty)
    assert "nothing to check yet" in capsys.readouterr().out


def zero_labels(texts, images, first, sigma):
    logits = texts @ images.T / sigma
    return torch.nn.functional.cross_entropy(logits, torch.arange(len(texts)))


def worst_fault(found, limit):
    worst = max(found, key=found.get)
    return worst if found[worst] > limit else None


def first_merge_in_the_order_given(words):
    """Of words that occur as often, that of the first one, not of the first by alphabet."""
    word = next(iter(words))
    return word[:2] if len(words) == 2 else "?"


def same_in_the_stem_alone(model):
    """TensorFlow's padding there, and nowhere else."""

    def pad(stem, inputs):
        total = 1 + inputs[0].shape[-1] % 2  # of a kernel of 3 at stride 2
        stem.pad_first = (total // 2, total - total // 2) * 2

    model.stem.register_forward_pre_hook(pad)
    return model


SECRET = secret_options()
TWICE = [SECRET, {name: value for name, value in SECRET.items() if name != "include_top"}]  # True by default
WRONG = [
    ("00.1", 0.5 / 32, "divides"),  # the shipped checkpoint has σ = 1/32
    ("00.2", 16_384, "no negative"),
    ("00.3", 6, "natural"),
    ("01.1", {"unfishing": ["un", "##fish", "##ing"], "fisherman": ["fish", "##er", "##man"]}, "longest"),
    ("01.2", lambda words: "##zz", "another pair"),
    ("01.2", first_merge_in_the_order_given, "alphabet"),
    ("01.3", lambda word, vocab: ["[UNK]"], "greedy"),
    ("02.1", lambda picture: np.zeros((289, 289, 3), np.float32), "channels come first"),
    ("02.2", np.ones(7) / 7, "Pillow's eight weights"),
    ("02.2", np.ones(7), "sum to 1"),
    ("02.3", [{"size": 80}], "shape"),
    ("02.3", TWICE, "all that there are"),
    ("03.1", 1, "too small"),
    ("03.1", 144_024, "γ and β"),
    ("03.2", torch.nn.Conv2d(40, 240, 1), "relative error"),
    ("03.3", 0, "another block"),
    ("04.1", (40, 64, 4, 48), "rounded up"),
    ("04.1", (40, 64, 5, 56), "the stem's width"),
    ("04.2", (0, 0), "too early"),
    ("04.3", lambda model: model, "SAME gives"),
    ("04.3", same_in_the_stem_alone, "the last block gives 4"),
    ("05.1", 108_891_648, "pooler"),
    ("05.2", ("text_projection.weight", 0, 32), "does not silence"),
    ("05.3", lambda ids, mask: torch.zeros(3, 160), "relative error"),
    ("06.1", lambda N, sigma, eps: 0.0, "not sure"),
    ("06.2", (7.74, 0.876), "gap between logits"),
    ("06.3", zero_labels, "process 0"),
    ("07.1", 4.595, "difference of logits"),
    ("07.2", lambda key: key, "came back"),
    ("07.3", worst_fault, "first"),
    ("08.1", "b and a", "0.96"),
    ("08.1", "ba", "0.96"),
    ("08.2", (345, 38), "still above"),
    ("08.3", lambda encode, chunks: 0, "no parameter"),
    ("09.1", lambda labels: labels, "quokka"),
    ("09.2", lambda image, text, w: (image + w * text).argsort(), "descending"),
    ("09.3", lambda scores, target, grid: grid[0], "smaller mean"),
    ("10.1", ["cat"], "count its words"),
    ("10.1", ["a cat sleeping", "click here to enlarge", "nonsense"], "some of these"),
    ("10.2", lambda p, K: p, "by luck"),
    ("10.3", lambda images, texts, share: [], "indices"),
    ("11.1", lambda features, labels: 1.0, "itself"),
    ("11.2", lambda c, b, a: c + 2 * (b - a), "length 1"),
    ("11.3", lambda a, b: np.corrcoef(a, b)[0, 1], "ranks"),
]


@pytest.mark.parametrize(("exercise", "answer", "told"), WRONG, ids=[f"{w[0]}-{w[2]}" for w in WRONG])
def test_a_wrong_answer_is_told_what_may_be_wrong_with_it(exercise, answer, told, capsys):
    assert not check(exercise, answer)
    out = capsys.readouterr().out
    assert out.startswith(f"{exercise}: ✗ ") and told in out, out


def test_an_answer_may_be_written_as_a_sentence():
    assert check("08.1", "b and c") and check("08.1", "bc")


def test_every_judge_has_seen_a_wrong_answer_and_every_exercise_has_a_judge():
    asked = {name for path in NOTEBOOKS for name in re.findall(r'check\("(\d\d\.\d)"', codes(path))}
    assert set(JUDGES) == asked == {exercise for exercise, _, _ in WRONG}


def test_every_folded_solution_is_checked():
    for path in NOTEBOOKS:
        solutions = re.findall(r"<details><summary>Solution</summary>.*?</details>", texts(path), re.DOTALL)
        assert len(solutions) >= 3
        for number in "123":
            call = f'assert check("{path.name[:2]}.{number}"'
            assert any(call in solution for solution in solutions), (path.name, number)


def test_code_that_fails_is_told_the_error_and_raises_nothing(capsys):
    assert not check("06.1", lambda N, sigma, eps: 1 / 0)
    assert "ZeroDivisionError" in capsys.readouterr().out


def test_a_block_is_judged_by_the_suite_and_its_mistake_named(capsys):
    from align_minimal.efficientnet import SqueezeExcite

    class NoSigmoid(SqueezeExcite):
        def forward(self, x):
            return x * self.expand(self.activation(self.reduce(x.mean((2, 3), keepdim=True))))

    assert check("SqueezeExcite", SqueezeExcite)
    assert not check("SqueezeExcite", NoSigmoid)
    assert "forward" in capsys.readouterr().out


def test_a_block_that_fails_is_told_its_error_even_if_it_has_no_file(capsys):
    names: dict = {}
    exec("class Mine:\n    def __init__(self, *args): raise RuntimeError('not today')", names)
    assert not check("SqueezeExcite", names["Mine"])
    assert "RuntimeError: not today" in capsys.readouterr().out


def test_a_name_that_is_neither_exercise_nor_block_is_an_error_that_lists_them():
    with pytest.raises(KeyError, match=r"no exercise and no block '03.9'; exercises: 00.1"):
        check("03.9", 1)


# ---- diagrams


def test_a_diagram_s_boxes_are_the_parts_that_ran_with_their_real_shapes():
    from align_minimal import AlignModel

    tower = AlignModel.from_pretrained("emoji").vision_model
    boxes = parts_of(tower, torch.zeros(1, 3, 64, 64))
    assert boxes[0] == ("stem", "ConvNorm", "1 × 16 × 32 × 32")
    assert [name for name, _, _ in boxes[1:]] == [f"blocks {i}" for i in range(len(tower.blocks))]
    assert boxes[-1][2] == shape(tower(torch.zeros(1, 3, 64, 64)).last_hidden_state)


def test_a_diagram_draws_every_box_and_arrow():
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("Agg")
    diagram([("a", "A", "1"), ("b", "B", "2"), ("c", "C", "3")], "title", skips=[(0, 2, "around")])
    written = {text.get_text() for text in plt.gca().texts}
    assert {"a", "A", "1", "b", "c", "around"} <= written and len(plt.gca().patches) >= 3
    plt.close("all")


# ---- the paper's sections

SECTIONS = {"1", "2", "3", "4", "5", "6", "7", "8"}  # and the appendices A and B
SECTIONS |= {"4.1", "4.2", "4.3", "5.1", "5.2", "5.3", "6.1", "6.2"}
MAP = (ROOT / "align_minimal" / "README.md").read_text(encoding="utf-8")
MAP = MAP.split("\n## From the paper to the code")[1].split("\n## ")[0]


def section_links(text: str) -> list[tuple[str, str]]:
    """(what a link to a section of the paper is called, its anchor)"""
    return re.findall(r"\[([^\]]+)\]\(https://ar5iv\.labs\.arxiv\.org/html/2102\.05918#([\w.]+)\)", text)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_head_links_to_every_section_of_the_paper_that_it_names(path):
    (row,) = re.findall(r"^\| Paper \| (.*) \|$", cells(path, "markdown")[0]["source"], re.MULTILINE)
    links = section_links(row)
    assert links
    for name, anchor in links:
        number, _, part = name.partition(".")
        wanted = f"A{'AB'.index(name) + 1}" if name in "AB" else f"S{number}" + (f".SS{part}" if part else "")
        assert anchor == wanted and name in SECTIONS | {"A", "B"}
    ours = re.split(r"; \[(?:EfficientNet|BERT|LAMB)\]", row)[0]  # what follows is another paper's
    assert not re.search(r"sections? \d|appendix \w", ours)


def test_each_row_of_the_paper_map_that_begins_with_a_section_links_to_it():
    firsts = [cell for cell in re.findall(r"^\| (.*?) \|", MAP, re.MULTILINE) if re.match(r"\[?\d", cell)]
    assert len(firsts) > 18
    for first in firsts:
        (name, anchor), *_ = section_links(first) or [("", "")]
        number, _, part = name.partition(".")
        assert name in SECTIONS and anchor == f"S{number}" + (f".SS{part}" if part else ""), first


# ---- the map from the paper


def test_a_row_of_the_paper_map_names_a_symbol_that_occurs_in_its_notebook():
    rows = [line for line in MAP.splitlines() if ".ipynb" in line]
    assert len(rows) > 20
    for row in rows:
        symbol = re.search(r"\.py\) `(\w+)`", row).group(1)
        notebook = re.search(r"(\w+\.ipynb)", row).group(1)
        path = ROOT / "notebooks" / notebook
        assert symbol in codes(path) + texts(path), f"{notebook} does not mention {symbol}"
