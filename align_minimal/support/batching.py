"""Many become one: texts and pictures of a call in a list, their rows padded or cut, and made tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch

from .outputs import Batch

NO_LIMIT = int(1e30)  # how Hugging Face writes "no model_max_length"
PADDING = {False: None, None: None, "do_not_pad": None}
PADDING |= {True: "longest", "longest": "longest", "max_length": "max_length"}
TRUNCATION = {False: None, "do_not_truncate": None, True: "longest_first"}
TRUNCATION |= {name: name for name in ("longest_first", "only_first", "only_second")}
FILL = {"token_type_ids": 0, "attention_mask": 0, "special_tokens_mask": 1}  # on padding

Item, Result = TypeVar("Item"), TypeVar("Result")


# ---- texts


def as_examples(text: Any, text_pair: Any, split: bool) -> tuple[bool, list[tuple]]:
    """(whether it is one text, [(text, second text or None), …]) from a tokenizer's arguments.

    >>> as_examples("a cat", None, split=False), as_examples(["a", "b"], ["c", "d"], split=False)
    ((True, [('a cat', None)]), (False, [('a', 'c'), ('b', 'd')]))
    """
    if not isinstance(text, (str, list, tuple)):
        raise TypeError(f"text must be a str or a list of them, not {type(text).__name__}")
    single = isinstance(text, str) or (split and all(isinstance(word, str) for word in text))
    if single:
        text, text_pair = [text], None if text_pair is None else [text_pair]
    if not text:
        raise ValueError("text is an empty list")
    if text_pair is None and not split:  # a batch may hold pairs, too
        text_pair = [t[1] if isinstance(t, (list, tuple)) and len(t) == 2 else None for t in text]
        text = [t[0] if pair is not None else t for t, pair in zip(text, text_pair, strict=True)]
    pairs = [None] * len(text) if text_pair is None else text_pair
    if isinstance(pairs, str) or len(pairs) != len(text):
        found = 1 if isinstance(pairs, str) else len(pairs)
        raise ValueError(f"text has {len(text)} texts, text_pair {found}")
    return single, list(zip(text, pairs, strict=True))


def strategies(
    padding: bool | str | None,
    truncation: bool | str | None,
    max_length: int | None,
    model_max_length: int,
    multiple: int | None = None,
) -> tuple[str | None, str | None, int]:
    """(None, 'longest' or 'max_length'; None or how to truncate; the length that both refer to)

    >>> strategies(True, None, None, 64), strategies(False, None, 9, 64)
    (('longest', None, 64), (None, 'longest_first', 9))
    """
    if truncation is None:
        truncation = max_length is not None and padding is False
    for name, value, known in (("padding", padding, PADDING), ("truncation", truncation, TRUNCATION)):
        if value not in known:
            raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, known))}")
    padding, truncation = PADDING[padding], TRUNCATION[truncation]
    limit = model_max_length if max_length is None else max_length
    if limit >= NO_LIMIT and (truncation or padding == "max_length"):
        warnings.warn("no max_length and no model_max_length: nothing to pad or truncate to", stacklevel=3)
        padding, truncation = None if padding == "max_length" else padding, None
    if truncation and padding and multiple and limit % multiple:
        raise ValueError(f"max_length={limit} is not a multiple of pad_to_multiple_of={multiple}")
    return padding, truncation, limit


def truncate(a: list[int], b: list[int] | None, room: int, strategy: str, limit: int) -> tuple:
    """`a` and `b` cut from the right until they have `room` ids together.

    longest_first takes from the longer one, an id at a time; from `b` where they are equal.

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
    if room < 0 or keep_a < 0 or keep_b < 0:
        raise ValueError(f"max_length={limit} is too small: truncation={strategy!r} cannot reach it")
    return a[:keep_a], None if b is None else b[:keep_b]


def as_columns(
    rows: Sequence[list[int]], firsts: Sequence[int], added: bool, types: bool, special: bool
) -> dict[str, Iterable[list[int]]]:
    """Each example's ids → input_ids and, if `types`, token_type_ids and, if `special`, special_tokens_mask.

    `firsts`: how many ids of a row have token type 0; the others have 1. `added`: whether the rows have [CLS]
    and [SEP], which the mask marks. What comes beside the ids is made row by row, when `collate` asks for it:
    with thousands of lists alive at once, Python's garbage collector took half of a large call's time.

    >>> columns = as_columns([[2, 5, 3, 6, 3]], [3], added=True, types=True, special=False)
    >>> {name: list(rows) for name, rows in columns.items()}
    {'input_ids': [[2, 5, 3, 6, 3]], 'token_type_ids': [[0, 0, 0, 1, 1]]}
    """
    columns: dict[str, Iterable[list[int]]] = {"input_ids": rows}
    if types:
        columns["token_type_ids"] = (
            [0] * n + [1] * (len(row) - n) for row, n in zip(rows, firsts, strict=True)
        )
    if special:
        columns["special_tokens_mask"] = (
            [int(added and i in (0, n - 1, len(row) - 1)) for i in range(len(row))]
            for row, n in zip(rows, firsts, strict=True)
        )
    return columns


def pad_batch(
    encoded: Mapping[str, Iterable] | Sequence[Mapping[str, Sequence]],
    pad_id: int,
    padding: str | None,
    limit: int,
    pad_to_multiple_of: int | None = None,
    return_attention_mask: bool | None = None,
    return_tensors: str | None = None,
) -> Batch:
    """A batch of encoded texts, or a list of single ones, padded; with an attention_mask if it had none.

    >>> pad_batch([{"input_ids": [2, 3]}, {"input_ids": torch.tensor([2, 4, 3])}], 0, "longest", limit=64)
    {'input_ids': [[2, 3, 0], [2, 4, 3]], 'attention_mask': [[1, 1, 0], [1, 1, 1]]}
    """
    if not isinstance(encoded, Mapping):
        encoded = {name: [row[name] for row in encoded] for name in encoded[0]}
    columns = {
        name: (row.tolist() if hasattr(row, "tolist") else row for row in rows)
        for name, rows in encoded.items()
    }
    ids = columns["input_ids"] = list(columns["input_ids"])
    if return_attention_mask is not False:
        columns.setdefault("attention_mask", ([1] * len(row) for row in ids))
    width = {None: 0, "longest": max(map(len, ids), default=0), "max_length": limit}[padding]
    if pad_to_multiple_of:
        width = -(-width // pad_to_multiple_of) * pad_to_multiple_of
    return collate(columns, return_tensors, width, pad_id)


def collate(columns: Mapping[str, Iterable], kind: str | None, width: int = 0, pad_id: int = 0) -> Batch:
    """Columns of rows → a batch; rows with an entry for each token are padded on the right to `width`.

    kind: None for lists, "pt" or "np" for int64 tensors or arrays (B, T).

    >>> collate({"input_ids": [[2, 5, 3], [2, 3]]}, "pt", width=4).input_ids
    tensor([[2, 5, 3, 0],
            [2, 3, 0, 0]])
    """
    if kind not in (None, "pt", "np"):
        raise ValueError(f"return_tensors={kind!r} is not one of 'pt', 'np'")
    fill = FILL | {"input_ids": pad_id}
    lengths = [max(len(row), width) for row in columns.get("input_ids", ())]
    if kind and len(set(lengths)) > 1:
        raise ValueError("the texts differ in length, so they make no tensor: use padding=True")
    batch = Batch()
    for name, rows in columns.items():
        if kind is None and name in fill:
            batch[name] = [[*row, *[fill[name]] * (width - len(row))] for row in rows]
        elif kind is None:
            batch[name] = list(rows)
        else:
            of_tokens = name in fill
            array = _padded(rows, lengths, fill[name]) if of_tokens else np.array(list(rows), np.int64)
            batch[name] = array if kind == "np" else torch.from_numpy(array)
    return batch


def _padded(rows: Iterable[Sequence[int]], lengths: list[int], fill: int) -> np.ndarray:
    """(B, T) int64: an array full of padding takes the rows, which is faster than to pad them as lists."""
    array = np.full((len(lengths), *set(lengths)), fill, dtype=np.int64)
    for i, row in enumerate(rows):
        array[i, : len(row)] = row
    return array


def warn_of_cuts(lost: Any, limit: int) -> None:
    """One UserWarning that counts the texts that lost ids, if any did. lost: a number, or (B,) of them.

    >>> warn_of_cuts([0, 0], 64)  # no warning
    """
    cut = np.atleast_1d(lost) > 0
    if cut.any():
        warnings.warn(
            f"{cut.sum()} of {len(cut)} texts had more than {limit} tokens and were cut; "
            "truncation=True does so silently",
            stacklevel=4,
        )


# ---- pictures


def on_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """function(item) for each item, in order, on as many threads as PyTorch uses.

    It pays where the work is Pillow's or numpy's, which let go of Python's lock.

    >>> list(on_threads(len, ["a", "ab"]))
    [1, 2]
    """
    threads = min(len(items), torch.get_num_threads())
    if threads == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(function, items)


def stack(arrays: Iterable[np.ndarray], count: int) -> np.ndarray:
    """`count` arrays of one shape → one array with one more axis in front. Each is copied once, then freed.

    >>> stack(iter([np.zeros((3, 5, 7))] * 2), count=2).shape
    (2, 3, 5, 7)
    """
    batch = None
    for i, x in enumerate(arrays):
        if batch is None:
            batch = np.empty((count, *x.shape), np.float32)
        if x.shape != batch.shape[1:]:
            raise ValueError(
                f"image {i} comes out as {x.shape}, image 0 as {batch.shape[1:]}: one tensor needs one size "
                "(resize or crop them, or pass return_tensors=None)"
            )
        batch[i] = x
    return batch
