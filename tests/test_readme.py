"""README keeps its promises: every file it links to and every test it names exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_linked_file_exists():
    links = [target for target in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in target]
    assert len(links) > 10
    assert [target for target in links if not (ROOT / target).exists()] == []


def test_every_deviation_names_a_test_that_exists():
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", README)
    rows = [line for line in README.splitlines() if line.startswith("| ") and line.count("|") == 7]
    assert len(named) == len(rows) - 2 > 10  # all but the heading and its rule
    for file, test in named:
        functions = [
            node.name
            for node in ast.walk(ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8")))
            if isinstance(node, ast.FunctionDef)
        ]
        assert test in functions, f"{file} has no {test}"


@pytest.mark.parametrize("number", [0, 1])
def test_the_first_two_bash_blocks_hold_commands_only(number):
    block = re.findall(r"^```bash\n(.*?)^```", README, re.MULTILINE | re.DOTALL)[number]
    assert all(re.match(r"(pip|align-minimal|pytest)\b", line) for line in block.splitlines())
