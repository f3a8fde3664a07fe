"""The forms that a call of the tokenizer may have, and what it may ask for; the rest is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from .outputs import Batch

NO_LIMIT = int(1e30)  # how Hugging Face writes "no model_max_length"
PADDING = {False: None, None: None, "do_not_pad": None}
PADDING |= {True: "longest", "longest": "longest", "max_length": "max_length"}
TRUNCATION = {False: None, "do_not_truncate": None, True: "longest_first"}
TRUNCATION |= {name: name for name in ("longest_first", "only_first", "only_second")}
FILL = {"token_type_ids": 0, "attention_mask": 0, "special_tokens_mask": 1}  # on padding


def as_examples(text: Any, text_pair: Any, are_words: bool) -> tuple[bool, list[tuple]]:
    """(whether it is one text, [(text, second text or None), …]) from a tokenizer's arguments.

    >>> as_examples("a cat", None, are_words=False), as_examples(["a", "b"], ["c", "d"], are_words=False)
    ((True, [('a cat', None)]), (False, [('a', 'c'), ('b', 'd')]))
    """
    if isinstance(text, list) and text_pair is None and not are_words and set(map(type, text)) == {str}:
        return False, [(t, None) for t in text]  # the usual call
    if not isinstance(text, (str, list, tuple)):
        raise TypeError(f"text must be a str or a list of them, not {type(text).__name__}")
    single = isinstance(text, str) or (are_words and all(isinstance(word, (str, int)) for word in text))
    if single:
        text, text_pair = [text], None if text_pair is None else [text_pair]
    if not text:
        raise ValueError("text is an empty list")
    if text_pair is None and not are_words:  # a batch may hold pairs, too
        text_pair = [t[1] if isinstance(t, (list, tuple)) and len(t) == 2 else None for t in text]
        text = [t[0] if pair is not None else t for t, pair in zip(text, text_pair, strict=True)]
    pairs = [None] * len(text) if text_pair is None else text_pair
    if isinstance(pairs, str) or len(pairs) != len(text):
        found = 1 if isinstance(pairs, str) else len(pairs)
        raise ValueError(f"text has {len(text)} texts, text_pair {found}")
    return single, list(zip(text, pairs, strict=True))


def one_text(
    text: Any, text_pair: Any, options: dict[str, Any], to_id: Callable[[Any], int]
) -> tuple[Any, Any, dict[str, Any]]:
    """(text, text_pair, options) of a call for an `encode` in which a list of tokens, or of ids, is one text.

    >>> one_text(["a", 7], "cat", {}, {"a": 5}.get)
    ([5, 7], 'cat', {'is_split_into_words': True})
    """
    lists = [isinstance(part, (list, tuple)) and len(part) > 0 for part in (text, text_pair)]
    if options.get("is_split_into_words") or not any(lists):
        return text, text_pair, options
    text, text_pair = (
        [token if isinstance(token, int) else to_id(token) for token in part] if is_list else part
        for part, is_list in zip((text, text_pair), lists, strict=True)
    )
    return text, text_pair, {**options, "is_split_into_words": True}


def strategies(
    padding: bool | str | None,
    truncation: bool | str | None,
    max_length: int | None,
    limit: int,
    multiple: int | None = None,
) -> tuple[str | None, str | None]:
    """(None, 'longest' or 'max_length'; None or how to truncate) to `limit`: max_length, or the model's.

    >>> strategies(True, None, None, 64), strategies(False, None, 9, 9)
    (('longest', None), (None, 'longest_first'))
    """
    if padding in PADDING and truncation in TRUNCATION and limit < NO_LIMIT and not multiple:
        return PADDING[padding], TRUNCATION[truncation]  # the usual call
    if truncation is None:
        truncation = max_length is not None and padding is False
    for name, value, known in (("padding", padding, PADDING), ("truncation", truncation, TRUNCATION)):
        if value not in known:
            raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, known))}")
    padding, truncation = PADDING[padding], TRUNCATION[truncation]
    if limit >= NO_LIMIT and (truncation or padding == "max_length"):
        warnings.warn("no max_length and no model_max_length: nothing to pad or truncate to", stacklevel=3)
        padding, truncation = None if padding == "max_length" else padding, None
    if truncation and padding and multiple and limit % multiple:
        raise ValueError(f"max_length={limit} is not a multiple of pad_to_multiple_of={multiple}")
    return padding, truncation


def truncate(a: list[int], b: list[int] | None, room: int, strategy: str, limit: int) -> tuple:
    """`a` and `b` cut from the right until they have `room` ids together.

    longest_first takes from the longer one, an id at a time; from `b` where they are equal. The others take
    from one of them, and leave at least an id of it. ValueError where `room` cannot be reached so.

    >>> truncate([1, 2, 3, 4], [5, 6, 7], 3, "longest_first", limit=6)
    ([1, 2], [5])
    """
    keep_a, keep_b = len(a), len(b or [])
    excess = keep_a + keep_b - room
    if strategy == "only_first" or (strategy == "longest_first" and b is None):
        keep_a -= excess
    elif strategy == "only_second":
        keep_b -= excess
    elif room >= 0:
        for _ in range(excess):
            keep_a, keep_b = (keep_a - 1, keep_b) if keep_a > keep_b else (keep_a, keep_b - 1)
    whole = {"only_first": keep_a, "only_second": keep_b}.get(strategy) == 0 and excess > 0
    if whole or room < 0 or keep_a < 0 or keep_b < 0:
        raise ValueError(f"max_length={limit} is too small: truncation={strategy!r} cannot reach it")
    return a[:keep_a], None if b is None else b[:keep_b]


def token_types(rows: Sequence[list[int]], firsts: Sequence[int]) -> Iterator[list[int]]:
    """0 for the first text's ids, of which there are as many as `firsts` says, and 1 for the second's.

    >>> list(token_types([[2, 5, 3, 6, 3]], [3]))
    [[0, 0, 0, 1, 1]]
    """
    return ([0] * n + [1] * (len(row) - n) for row, n in zip(rows, firsts, strict=True))


def special_tokens(rows: Sequence[list[int]], firsts: Sequence[int], added: bool) -> Iterator[list[int]]:
    """1 for [CLS] and [SEP], if they were added, and 0 for the texts' own ids.

    >>> list(special_tokens([[2, 5, 3, 6, 3]], [3], added=True))
    [[1, 0, 1, 0, 1]]
    """
    return (
        [int(added and i in (0, n - 1, len(row) - 1)) for i in range(len(row))]
        for row, n in zip(rows, firsts, strict=True)
    )


def padded_width(rows: Sequence[list[int]], padding: str | None, limit: int, multiple: int | None) -> int:
    """The length that rows are padded to; 0 if they are not.

    >>> padded_width([[2, 3], [2, 4, 3]], "longest", 64, None), padded_width([[2, 3]], "longest", 64, 8)
    (3, 8)
    """
    width = {None: 0, "longest": max(map(len, rows), default=0), "max_length": limit}[padding]
    return width if not multiple else -(-width // multiple) * multiple


def lengths(rows: Sequence[list[int]], width: int) -> list[int]:
    """The rows' lengths, or `width` where that is more: Hugging Face counts a single text with its padding.

    >>> lengths([[2, 3], [2, 4, 3]], 0), lengths([[2, 3]], 8)
    ([2, 3], [8])
    """
    return [max(len(row), width) for row in rows]


def as_columns(
    encoded: Mapping[str, Sequence] | Sequence[Mapping[str, Sequence]], mask: bool
) -> dict[str, list]:
    """{name: its rows} of a batch, or of a list of single texts; with an attention_mask if `mask`.

    Arrays and tensors become lists.

    >>> import numpy as np
    >>> as_columns([{"input_ids": [2, 3]}, {"input_ids": np.array([2, 4, 3])}], mask=True)
    {'input_ids': [[2, 3], [2, 4, 3]], 'attention_mask': [[1, 1], [1, 1, 1]]}
    """
    if not isinstance(encoded, Mapping):
        encoded = {name: [row[name] for row in encoded] for name in encoded[0]}
    columns = {
        name: [row.tolist() if hasattr(row, "tolist") else row for row in rows]
        for name, rows in encoded.items()
    }
    if mask:
        columns.setdefault("attention_mask", [[1] * len(row) for row in columns["input_ids"]])
    return columns


def as_lists(columns: Mapping[str, Iterable], width: int, fill: Mapping[str, int]) -> Batch:
    """Columns of rows → a batch of lists; the rows of those that `fill` names are padded to `width`.

    >>> as_lists({"input_ids": [[2, 3], [2, 4, 3]], "labels": [[7], [8]]}, 4, {"input_ids": 0})
    {'input_ids': [[2, 3, 0, 0], [2, 4, 3, 0]], 'labels': [[7], [8]]}
    """
    batch = Batch()
    for name, rows in columns.items():
        if name in fill:
            rows = ([*row, *[fill[name]] * (width - len(row))] for row in rows)
        batch[name] = list(rows)
    return batch


def no_tensors(kind: str) -> ValueError:
    """Why rows make no tensor of this kind: there is no such kind, or they differ in length.

    >>> no_tensors("tf")
    ValueError("return_tensors='tf' is not one of 'pt', 'np'")
    """
    if kind not in ("pt", "np"):
        return ValueError(f"return_tensors={kind!r} is not one of 'pt', 'np'")
    return ValueError("the texts differ in length, so they make no tensor: use padding=True")


def warn_of_cuts(cut: int, texts: int, limit: int) -> None:
    """One UserWarning that counts the texts that were cut.

    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warn_of_cuts(2, texts=3, limit=64)
    >>> str(caught[0].message)
    '2 of 3 texts had more than 64 tokens and were cut; truncation=True does so silently'
    """
    warnings.warn(
        f"{cut} of {texts} texts had more than {limit} tokens and were cut; truncation=True does so silently",
        stacklevel=4,
    )
