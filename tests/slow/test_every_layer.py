"""Each building block by itself through `pytest --layer`: the package's own, the empty starter, a mistake."""

import subprocess
import sys

import pytest

from tests import layers, starters
from tests.break_it import ROOT


def run_pytest(file, block) -> tuple[int, str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-x"]
    command += ["--layer", f"{block}={file}:{block}", "tests"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    return result.returncode, result.stdout + result.stderr


@pytest.mark.parametrize("block", layers.BLOCKS)
def test_own_is_green_empty_is_red_and_a_mistake_is_red_and_named(tmp_path, block):
    source = starters.solution([block] if block != "learn_pieces" else [block, "PairCounts"])
    mistake = next(m for m in layers.mistakes(block) if source.count(m.old) == 1)
    versions = {
        "own": source,
        "empty": starters.starter("empty.py", [block], "Empty"),
        "wrong": source.replace(mistake.old, mistake.new),
    }
    told = {}
    for name, text in versions.items():
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        told[name] = run_pytest(tmp_path / f"{name}.py", block)
    assert [status for status, _ in told.values()] == [0, 1, 1], told
    assert f"{block} is not written yet" in told["empty"][1]
    assert f"likely cause: {mistake.hint}" in told["wrong"][1]
