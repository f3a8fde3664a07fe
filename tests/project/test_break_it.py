"""The mistakes of mutations.py can be made, their tests exist, and one is really caught.

That all are caught takes a few minutes: `python -m tests.lab.break_it --all`, which CI runs.
"""

import ast
from collections import Counter

import pytest

from tests.lab.break_it import ROOT, main, mutate
from tests.lab.mutations import MUTATIONS
from tests.lab.warm import python

NAMES = [mutation.name for mutation in MUTATIONS]


def test_there_are_at_least_25_mistakes_each_with_a_name_of_its_own_and_a_hint():
    assert len(MUTATIONS) >= 25
    assert [name for name, times in Counter(NAMES).items() if times > 1] == []
    assert [mutation.name for mutation in MUTATIONS if len(mutation.hint) < 20] == []


@pytest.mark.parametrize("mutation", MUTATIONS, ids=NAMES)
def test_a_mistake_stands_in_one_place_and_leaves_the_file_python(mutation):
    source, mutated = mutate(mutation, ROOT / "align_minimal")
    assert source != mutated
    if mutation.file.endswith(".py"):
        assert ast.dump(ast.parse(source)) != ast.dump(ast.parse(mutated))


def test_every_test_named_exists():
    named = [mutation.test.split("[")[0].split("::") for mutation in MUTATIONS]
    sources = {file: (ROOT / "tests" / file).read_text(encoding="utf-8") for file, _ in named}
    assert [test for test in named if f"\ndef {test[1]}(" not in sources[test[0]]] == []


def test_the_temperature_multiplied_is_caught_on_a_copy():
    before = (ROOT / "align_minimal" / "contrastive.py").read_bytes()
    result = python("-m", "tests.lab.break_it", "sigma-multiplied")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "caught by tests/model/test_contrastive.py::test_temperature_divides" in result.stdout
    assert "hint: the cosines are divided by the temperature" in result.stdout
    assert (ROOT / "align_minimal" / "contrastive.py").read_bytes() == before


def test_an_unknown_mistake_names_the_nearest(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["sigma-multiplyed"])
    assert "did you mean sigma-multiplied?" in capsys.readouterr().err


def test_a_mistake_in_a_room_is_caught_on_a_copy():
    result = python("-m", "tests.lab.break_it", "no-bias-correction")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "caught by tests/training/test_lamb.py::test_two_steps_by_hand" in result.stdout


def test_a_proof_that_crashes_does_not_pass_for_a_mistake_that_was_caught(tmp_path):
    code = "from tests.lab.break_it import MUTATIONS, prove_and_exit\nfrom dataclasses import replace\n"
    code += "prove_and_exit([], replace(MUTATIONS[0], old='not in the file'))"
    (tmp_path / "crash.py").write_text(code)
    result = python(tmp_path / "crash.py")
    assert result.returncode == pytest.ExitCode.INTERNAL_ERROR and "not one" in result.stderr
