"""What a value that came from a file may be: one typed, bounded check, whose message names file and key.

A *kind* is a function of a value. It returns None if the value is right, and otherwise the words that say
what it must be. `check_values` compares a file, or a configuration, with a table of kinds, one for each key.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

Kind = Callable[[Any], "str | None"]
LARGEST = 10**9  # no size, count or index of a model or a file is larger


def check_values(
    content: Mapping[str, Any],
    kinds: Mapping[str, Kind],
    source: str | Path | None = None,
    required: Collection[str] = (),
) -> None:
    """ValueError in one line for the first key of `kinds` whose value in `content` is not of its kind.

    `source` is the file that the values came from, and stands first in the message. Keys that are absent are
    right, but for those in `required`; keys that `kinds` does not name are not looked at.

    >>> check_values({"size": "3"}, {"size": whole()}, source="preprocessor_config.json")
    Traceback (most recent call last):
    ValueError: preprocessor_config.json: size must be a whole number of at least 1, not '3'
    """
    start = "" if source is None else f"{source}: "
    for key in required:
        if key not in content:
            raise ValueError(f"{start}{key} is missing")
    for key, kind in kinds.items():
        if key in content and (wanted := kind(content[key])):
            raise ValueError(f"{start}{key} must {wanted}, not {shown(content[key])}")


def shown(value: Any, most: int = 100) -> str:
    """A value as it stands in an error message: its repr, in one line, cut after `most` characters.

    >>> shown("a\\n"), shown(10**30, most=12)
    ("'a\\\\n'", '10000000000…')
    """
    try:
        text = " ".join(repr(value).split("\n"))
    except (ValueError, RecursionError):  # an int of over 4,300 digits, or lists a thousand deep
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= most else text[: most - 1] + "…"


def plain(name: str, most: int = 100) -> str:
    """A key from a file as it stands in an error message: itself if it is short and printable, else shown.

    >>> plain("text_projection.bias"), plain("a\\nforged: line")
    ('text_projection.bias', "'a\\\\nforged: line'")
    """
    return name if name.isprintable() and len(name) <= most else shown(name, most)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def whole(low: int = 1) -> Kind:
    """A whole number from `low` to LARGEST.

    >>> whole()(0), whole(0)(0), whole()(10**20)
    ('be a whole number of at least 1', None, 'be at most 1000000000')
    """

    def wanted(value: Any) -> str | None:
        right = isinstance(value, int) and not isinstance(value, bool) and value >= low
        if right and value > LARGEST:
            return f"be at most {LARGEST}"
        return None if right else f"be a whole number of at least {low}"

    return wanted


def number(low: float = -math.inf, high: float = math.inf) -> Kind:
    """A finite number from `low` to `high`, a whole one too.

    >>> number(0, 1)(0.5), number()(float("nan")), number(0, 1)(True)
    (None, 'be a finite number', 'be a number from 0 to 1')
    """

    def wanted(value: Any) -> str | None:
        if _is_number(value) and low <= value <= high and abs(value) < 1e300:
            return None
        bounded = math.isfinite(low) or math.isfinite(high)
        return f"be a number from {low} to {high}" if bounded else "be a finite number"

    return wanted


def rate(value: Any) -> str | None:
    """A share of things that are dropped or kept, from 0 up to but not including 1.

    >>> rate(0.1), rate(1)
    (None, 'lie in [0, 1)')
    """
    return None if _is_number(value) and 0 <= value < 1 else "lie in [0, 1)"


def above_0(value: Any) -> str | None:
    """A number above 0, up to LARGEST.

    >>> above_0(1e-12), above_0(0), above_0(10**20)
    (None, 'be a number above 0', 'be at most 1000000000')
    """
    if _is_number(value) and LARGEST < value < math.inf:
        return f"be at most {LARGEST}"
    return None if _is_number(value) and 0 < value <= LARGEST else "be a number above 0"


def switch(value: Any) -> str | None:
    """True or False, and nothing that merely counts as one of them.

    >>> switch(False), switch("false")
    (None, 'be true or false')
    """
    return None if isinstance(value, bool) else "be true or false"


def one_of(*values: Any) -> Kind:
    """One of `values`, of the same type: 1 is not True.

    >>> one_of("left", "right")("top")
    "be one of 'left', 'right'"
    """
    words = "be one of " + ", ".join(map(repr, values))
    return lambda value: None if any(type(value) is type(v) and value == v for v in values) else words


def list_of(kind: Kind, words: str, most: int = 10_000) -> Kind:
    """A list (or tuple) of at most `most` values, each of `kind`. `words` say what they are.

    >>> list_of(whole(), "whole numbers above 0")([1, 0])
    'be a list of whole numbers above 0'
    """

    def wanted(value: Any) -> str | None:
        right = isinstance(value, (list, tuple)) and not any(map(kind, value))
        if right and len(value) > most:
            return f"be a list of at most {most} entries"
        return None if right else f"be a list of {words}"

    return wanted


def mapping(value: Any) -> str | None:
    """A JSON object (a dict), whose own entries another call of `check_values` looks at.

    >>> mapping([])
    'be a JSON object'
    """
    return None if isinstance(value, dict) else "be a JSON object"
