"""The machinery that asks the notebooks about each mistake, on a toy; and its list of those that none sees.

That the list is true takes minutes: `python -m tests.lab.seen`, which CI runs as `.ci/run seen`.
"""

import json
import os
from pathlib import Path

import pytest

if not hasattr(os, "fork"):
    pytest.skip("needs processes that fork", allow_module_level=True)

from tests.lab.mutations import MUTATIONS, Mutation
from tests.lab.seen import candidates, disagreement, hunt, places, reports, unbroken
from tests.lab.unseen import UNSEEN

TOY = """
def double(x):
    shown = str(x)
    while x < 0:
        x += 1
    return 2 * x


def never_called(x):
    return x
"""


def mistake(name: str, old: str, new: str) -> Mutation:
    return Mutation(name, "toy.py", old, new, "", "a hint")


BROKEN = mistake("broken", "return 2 * x", "return 3 * x")
HARMLESS = mistake("harmless", "shown = str(x)", "shown = repr(x)")
NOT_RUN = mistake("not-run", "    return x\n", "    return -x\n")
ENDLESS = mistake("endless", "while x < 0", "while x")


def notebook(*codes: str, tags: tuple[str, ...] = ()) -> str:
    cells = [{"cell_type": "markdown", "metadata": {}, "source": ["a head"]}]
    cells += [{"cell_type": "code", "metadata": {}, "source": [code]} for code in codes]
    cells[-1]["metadata"] = {"tags": list(tags)}
    return json.dumps({"cells": cells})


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("project")
    for name in ("align_minimal", "notebooks", "weights", "tests"):
        (root / name).mkdir()
    (root / "align_minimal" / "__init__.py").touch()
    (root / "align_minimal" / "toy.py").write_text(TOY, encoding="utf-8")
    code = (
        "from align_minimal.toy import double",
        "assert double(2) == 4",
        "assert double(2) == 'an exercise'",
    )
    (root / "notebooks" / "00_toy.ipynb").write_text(notebook(*code, tags=("exercise",)), encoding="utf-8")
    (root / "notebooks" / "01_other.ipynb").write_text(notebook("1 + 1"), encoding="utf-8")
    return root


def test_a_notebook_sees_what_breaks_its_assertion_and_does_not_see_what_is_harmless(project):
    found = {m.name: (where, tried) for m, where, tried in hunt(project, [BROKEN, HARMLESS, NOT_RUN], 2)}
    assert found == {
        "broken": ("00_toy, cell 2: AssertionError", ["00"]),
        "harmless": ("", ["00"]),
        "not-run": ("", []),  # no notebook runs this line, so none was tried
    }
    assert "return 2 * x" in (project / "align_minimal" / "toy.py").read_text(encoding="utf-8")


def test_a_cell_that_does_not_end_is_ended_and_counts_as_seen(project):
    ((_, _, report),) = reports(project, [("00_toy.ipynb", ENDLESS, 1)], 1)
    assert report["failed"] == "00_toy: no end in 1 s of work"


def test_a_notebook_that_could_not_run_is_an_error_and_does_not_count_as_seen(project):
    with pytest.raises(RuntimeError, match="did not run"):
        list(reports(project, [("no_such.ipynb", BROKEN, 5)], 1))


def test_a_notebook_that_fails_unbroken_is_an_error_that_names_its_cell(project):
    wrong = project / "notebooks" / "02_wrong.ipynb"
    wrong.write_text(notebook("assert 1 == 2, 'no'"), encoding="utf-8")
    with pytest.raises(AssertionError, match="unbroken, 02_wrong, cell 1: AssertionError: no"):
        unbroken(project, 1)
    wrong.unlink()


def test_the_notebook_that_opens_the_file_comes_first_and_then_the_quick_ones(project):
    (toy, other) = unbroken(project, 2)
    assert toy.runs("toy.py", places(TOY, BROKEN.old)) and not other.lines
    other.lines, other.seconds = toy.lines, toy.seconds - 1
    assert [n.name for n in candidates(BROKEN, project, [toy, other])[0]] == ["01_other", "00_toy"]
    toy.head = "[`toy.py`](../align_minimal/toy.py) `double`"
    assert [n.name for n in candidates(BROKEN, project, [toy, other])[0]] == ["00_toy", "01_other"]
    assert candidates(NOT_RUN, project, [toy, other])[0] == []


def test_quick_leaves_the_slow_notebooks_out_and_the_mistakes_that_only_they_could_see(project):
    slow = project / "notebooks" / "10_noisy_data.ipynb"
    slow.write_text(
        notebook("from align_minimal import toy", "assert toy.never_called(2) == 2"), encoding="utf-8"
    )
    found = {m.name: tried for m, _, tried in hunt(project, [BROKEN, HARMLESS, NOT_RUN], 2, quick=True)}
    assert found == {"broken": ["00"], "harmless": ["00"]}
    ((_, where, _),) = hunt(project, [NOT_RUN], 2)
    assert where == "10_noisy_data, cell 2: AssertionError"
    slow.unlink()


def test_a_mistake_must_be_seen_or_listed_and_not_both():
    assert disagreement("broken", "00_toy, cell 2", {}) == ""
    assert disagreement("broken", "", {"broken": "no line of it runs"}) == ""
    assert "does not say why" in disagreement("broken", "", {})
    assert "a notebook sees it" in disagreement("broken", "00_toy, cell 2", {"broken": "no line of it runs"})


def test_what_is_listed_as_unseen_is_a_mistake_and_has_a_reason():
    assert set(UNSEEN) <= {mutation.name for mutation in MUTATIONS}
    assert [name for name, reason in UNSEEN.items() if len(reason) < 20] == []
