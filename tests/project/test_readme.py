"""README keeps its promises: every file it links to and every test it names exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_linked_file_exists():
    links = [target for target in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in target]
    assert len(links) > 10
    assert [target for target in links if not (ROOT / target).exists()] == []


def test_every_deviation_names_a_test_that_exists():
    table = README.split("## Who does what")[1].split("\n## ")[0]
    named = re.findall(r"`(\w+/test_\w+\.py)::(test_\w+)`", table)
    rows = [line for line in table.splitlines() if line.startswith("| ") and line.count("|") == 7]
    assert len(named) == len(rows) - 2 > 10  # all but the heading and its rule
    for file, test in named:
        assert test in definitions(ROOT / "tests" / file), f"{file} has no {test}"


def test_every_row_of_the_paper_map_names_a_symbol_a_test_and_a_notebook_that_exist():
    table = README.split("## From the paper to the code")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 20
    for row in rows:
        assert row.count(" | ") == 3, row
        path, symbol = re.search(r"\((align_minimal/[\w/]+\.py)\) `(\w+)`", row).groups()
        file, test = re.search(r"`(\w+/test_\w+\.py)::(test_\w+)`", row).groups()
        assert symbol in definitions(ROOT / path), f"{path} has no {symbol}"
        assert test in definitions(ROOT / "tests" / file), f"{file} has no {test}"
        notebook = re.search(r"\((notebooks/\w+\.ipynb)\)", row).group(1)
        assert (ROOT / notebook).is_file(), f"no {notebook}"


def definitions(path: Path) -> set[str]:
    """The names of the functions and classes in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def test_the_python_blocks_run_one_after_the_other(monkeypatch, tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names: dict = {}
    for block in blocks:
        if "import faiss" not in block:  # not one of the project's dependencies
            exec(block, names)
    assert names["probabilities"][0, 0] > 0.5  # the apple is an apple
    assert names["path"].parent.name == "samples"


@pytest.mark.parametrize("number", [0, 1])
def test_the_first_two_bash_blocks_hold_commands_only(number):
    block = re.findall(r"^```bash\n(.*?)^```", README, re.MULTILINE | re.DOTALL)[number]
    assert all(re.match(r"(pip|align-minimal|pytest)\b", line) for line in block.splitlines())
