"""What a value from a file may be: each kind takes what it names and nothing beside it."""

import math

import pytest

from align_minimal.support.values import (
    LARGEST,
    above_0,
    check_values,
    list_of,
    mapping,
    number,
    one_of,
    rate,
    shown,
    switch,
    whole,
)

EVERYTHING = [None, True, False, -1, 0, 1, 5, 10**9, 10**9 + 1, 10**50, 0.0, 0.5, 1.0, -0.5, math.nan]
EVERYTHING += [math.inf, -math.inf, 10**400, "", "1", "true", "x" * 1001, [], [1], {}, {"a": 1}, (1, 2), b"1"]
KINDS = {
    "whole": (whole(), [1, 5, LARGEST]),
    "whole from 0": (whole(0), [0, 1, 5, LARGEST]),
    "number": (number(), [-1, 0, 1, 5, 10**9, 10**9 + 1, 10**50, 0.0, 0.5, 1.0, -0.5]),
    "number from 0 to 1": (number(0, 1), [0, 1, 0.0, 0.5, 1.0]),
    "rate": (rate, [0, 0.0, 0.5]),
    "above 0": (above_0, [1, 5, 10**9, 0.5, 1.0]),
    "switch": (switch, [True, False]),
    "one of": (one_of(1, "true", None), [1, "true", None]),
    "list of": (list_of(whole(), "counts", most=1), [[], [1]]),
    "mapping": (mapping, [{}, {"a": 1}]),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_takes_what_it_names_and_nothing_else(name):
    kind, right = KINDS[name]
    taken = [value for value in EVERYTHING if kind(value) is None]
    assert list(map(repr, taken)) == [repr(v) for v in EVERYTHING if repr(v) in map(repr, right)]
    assert len(taken) == len(right)
    assert all(isinstance(kind(v), str) for v in EVERYTHING if repr(v) not in map(repr, right))


def test_a_wrong_value_is_one_line_naming_file_key_and_value():
    with pytest.raises(ValueError) as caught:
        check_values({"size": 3, "mean": "a\n\x1b" * 99}, {"size": whole(), "mean": number()}, "dir/a.json")
    said = str(caught.value)
    assert said.startswith("dir/a.json: mean must be a finite number, not 'a\\n\\x1b")
    assert said.isprintable() and len(said) < 200
    with pytest.raises(ValueError, match=r"^mean must be"):
        check_values({"mean": ""}, {"mean": number()})


def test_a_missing_key_is_named_only_where_it_is_required():
    check_values({}, {"size": whole()}, "a.json")
    with pytest.raises(ValueError, match=r"a\.json: size is missing"):
        check_values({}, {"size": whole()}, "a.json", required=["size"])


def test_any_value_can_be_shown():
    deep = []
    for _ in range(5000):
        deep = [deep]
    for value in (*EVERYTHING, deep, 10**5000, "\ud800", "\u202e"):
        assert len(shown(value)) <= 100 and shown(value).isprintable()
