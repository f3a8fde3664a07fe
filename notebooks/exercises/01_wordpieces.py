"""Text to wordpieces and ids (ALIGN, section 5; BERT).

Write the bodies; you need not use all the imports. Check them from the top of the repository, one by one:

    pytest --layer lower=notebooks/exercises/01_wordpieces.py:lower tests
    pytest --layer clean=notebooks/exercises/01_wordpieces.py:clean tests
    pytest --layer split_words=notebooks/exercises/01_wordpieces.py:split_words tests
    pytest --layer wordpiece=notebooks/exercises/01_wordpieces.py:wordpiece tests
    pytest --layer merge=notebooks/exercises/01_wordpieces.py:merge tests
    pytest --layer best_pair=notebooks/exercises/01_wordpieces.py:best_pair tests
    pytest --layer learn_pieces=notebooks/exercises/01_wordpieces.py:learn_pieces tests
    pytest --layer truncate=notebooks/exercises/01_wordpieces.py:truncate tests
    pytest --layer BertTokenizer=notebooks/exercises/01_wordpieces.py:BertTokenizer tests

or all that this file has:

    pytest --layer notebooks/exercises/01_wordpieces.py tests
"""

# ruff: noqa: F401
from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import torch

from align_minimal.support import batching, fast_wordpiece, vocab_files
from align_minimal.support.marks import LONG_RUN, sort_marks
from align_minimal.support.outputs import Batch
from align_minimal.support.vocab_files import OPTIONS, ROLES, SPECIAL_TOKENS
from align_minimal.training.vocabulary import Pair
from align_minimal.wordpiece import MAX_WORD


def lower(text: str) -> str:
    """Each character lower-cased by itself; in `str.lower` only a capital sigma looks at its neighbours.

    >>> lower("ΟΔΟΣ"), "ΟΔΟΣ".lower()
    ('οδοσ', 'οδος')
    """
    raise NotImplementedError


def clean(text: str, tokenize_chinese_chars: bool = True) -> str:
    """Control characters dropped; tabs, line ends and category Zs made spaces; spaces around 中 and its like.

    It is also composed (NFC): an e and its accent become é. split_words undoes that where it strips accents;
    Hugging Face does both, too.

    >>> clean("a\\x00b\\tc中d")
    'ab c 中 d'
    """
    raise NotImplementedError


def split_words(text: str, strip_accents: bool = True, special_tokens: Sequence[str] = ()) -> list[str]:
    """The words and punctuation marks of a clean text; a word that is in `special_tokens` stays whole.

    >>> split_words("un café, [SEP]", special_tokens=["[SEP]"])
    ['un', 'cafe', ',', '[SEP]']
    """
    raise NotImplementedError


def wordpiece(word: str, vocab: Mapping[str, int], unk_token: str = "[UNK]") -> list[str]:
    """The longest piece that starts the word, then the longest "##" piece that starts the rest, and so on.

    This is called greedy longest match first. One `unk_token` (it stands for any unknown word) if no piece
    starts some rest, or if the word has more than MAX_WORD characters. (support/fast_wordpiece.py finds the
    same pieces in linear time.)

    >>> wordpiece("abcdefz", {"a": 0, "ab": 1, "##cd": 2, "##efz": 3, "abcdefg": 4})
    ['ab', '##cd', '##efz']
    """
    raise NotImplementedError


def merge(pieces: Sequence[str], pair: Pair) -> list[str]:
    """The pieces of a word with `pair` made one wherever it stands, from left to right.

    >>> merge(["h", "##u", "##g", "##s"], ("##u", "##g"))
    ['h', '##ug', '##s']
    """
    raise NotImplementedError


def best_pair(
    pairs: Mapping[Pair, int], pieces: Mapping[str, int], min_frequency: int = 1, share: float = 0
) -> Pair | None:
    """The pair ab with the highest freq(ab) / (freq(a)·freq(b)), or None; of equal ones, the first.

    `pairs` and `pieces` say how often each occurs. Only those pairs compete that occur at least
    `min_frequency` times, and at least `share` times as often as the most frequent one.

    The textbook example: "gs" occurs 5 times, ##g 20, ##s 5, a score of 1/20; "hu" 15 / (15·36) is only 1/36.

    >>> best_pair({("##g", "##s"): 5, ("h", "##u"): 15}, {"##g": 20, "##s": 5, "h": 15, "##u": 36})
    ('##g', '##s')
    """
    raise NotImplementedError


def learn_pieces(
    words: Mapping[str, int], number: int, min_frequency: int = 2, share: float = 0.25
) -> list[str]:
    """At most `number` pieces, each merged from two neighbours, in the order in which they were merged.

    `words` has each word's count. `best_pair` says which pair is merged next. By itself its score merges rare
    letters first ("qx", seen once, scores 1), so common words stay split: 2.7 pieces a word in a trial with
    4,000 pieces. With the limits `min_frequency` and `share` it took 1.2 pieces a word, as few as merging by
    frequency. Ties go to the pair that was met first, where the words are sorted by count, then by alphabet:
    the order of `words` does not matter.

    >>> learn_pieces({"hug": 10, "pug": 5, "pun": 12, "bun": 4, "hugs": 5}, 3)
    ['##gs', 'pu', 'hu']
    """
    raise NotImplementedError


def truncate(a: list[int], b: list[int] | None, room: int, strategy: str, limit: int) -> tuple:
    """`a` and `b` cut from the right until they have `room` ids together.

    longest_first takes from the longer one, an id at a time; from `b` where they are equal. The others take
    from one of them, and leave at least an id of it. ValueError where `room` cannot be reached so.

    >>> truncate([1, 2, 3, 4], [5, 6, 7], 3, "longest_first", limit=6)
    ([1, 2], [5])
    """
    raise NotImplementedError


class BertTokenizer(vocab_files.FixedOnceBuilt):
    """Texts → ids, token types and masks; ids → text.

    `vocab_file` is a path (UTF-8, a token a line, its id the line's number from 0), or the tokens themselves.
    strip_accents=None: as do_lower_case says. model_max_length: the max_length of a call that gives none.
    ValueError or FileNotFoundError naming the file. What it is built from cannot be set later.

    >>> tokenizer = BertTokenizer([*SPECIAL_TOKENS, "a", "red", "cat", "##s"])
    >>> tokenizer.tokenize("A red cats!")
    ['a', 'red', 'cat', '##s', '[UNK]']
    >>> tokenizer(["a cat", "red cats"], padding=True).input_ids
    [[2, 5, 7, 3, 0], [2, 6, 7, 8, 3]]
    >>> tokenizer.decode([2, 6, 7, 8, 3], skip_special_tokens=True)
    'red cats'
    """

    model_input_names = vocab_files.Only(vocab_files.INPUT_NAMES)
    padding_side, truncation_side = vocab_files.Only("right"), vocab_files.Only("right")

    def __init__(
        self, vocab_file: str | Path | Sequence[str], do_lower_case: bool = True,
        strip_accents: bool | None = None, tokenize_chinese_chars: bool = True,
        model_max_length: int | None = None, unk_token: str = "[UNK]", sep_token: str = "[SEP]",
        pad_token: str = "[PAD]", cls_token: str = "[CLS]", mask_token: str = "[MASK]",
        clean_up_tokenization_spaces: bool = True,
    ):  # fmt: skip
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def get_vocab(self) -> dict[str, int]:
        """Token → id, a copy."""
        raise NotImplementedError

    def words(self, text: str) -> list[str]:
        """The words of a text as the vocabulary sees them, its special tokens left out.

        >>> BertTokenizer(SPECIAL_TOKENS).words("Un Café![SEP]")
        ['un', 'cafe', '!']
        """
        raise NotImplementedError

    def tokenize(self, text: str) -> list[str]:
        """The pieces of a text, [CLS] and [SEP] not added."""
        raise NotImplementedError

    def __call__(
        self, text: str | Sequence, text_pair: str | Sequence | None = None, add_special_tokens: bool = True,
        padding: bool | str = False, truncation: bool | str | None = None, max_length: int | None = None,
        return_tensors: str | None = None, is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None, return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None, return_special_tokens_mask: bool = False,
        return_length: bool = False, return_num_truncated_tokens: bool = False,
    ) -> Batch:  # fmt: skip
        """Encode a text, or a list of B texts: [CLS] text [SEP], and text_pair [SEP] after it.

        padding: False; True or "longest" (to the longest of the batch); "max_length". truncation: True or
        "longest_first", "only_first", "only_second"; False; None truncates only where max_length is given
        and padding is not. is_split_into_words: each text is a list of words. return_tensors: "pt" or "np".

        Returns lists, or int64 tensors (B, T): input_ids, token_type_ids (1 in the second text) and
        attention_mask (0 on padding); on request special_tokens_mask, and (B,) length and
        num_truncated_tokens, how many ids each text lost. ValueError or TypeError naming the argument.
        """
        raise NotImplementedError

    def pad(
        self, encoded_inputs: Mapping[str, Sequence] | Sequence[Mapping[str, Sequence]],
        padding: bool | str | None = True, max_length: int | None = None,
        pad_to_multiple_of: int | None = None, return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
    ) -> Batch:  # fmt: skip
        """Pad a batch of encoded texts, or a list of single ones (so it can be a DataLoader's collate_fn).

        >>> BertTokenizer(SPECIAL_TOKENS).pad([{"input_ids": [2, 3]}, {"input_ids": [2, 4, 3]}])
        {'input_ids': [[2, 3, 0], [2, 4, 3]], 'attention_mask': [[1, 1, 0], [1, 1, 1]]}
        """
        raise NotImplementedError

    def encode(self, text: str | Sequence, text_pair: str | Sequence | None = None, **options) -> list[int]:
        """The input_ids of a call with these arguments; but a list of tokens, or of ids, is one text.

        >>> BertTokenizer(SPECIAL_TOKENS).encode(["[MASK]", "[PAD]"])
        [2, 4, 0, 3]
        """
        raise NotImplementedError

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int: ...

    @overload
    def convert_tokens_to_ids(self, tokens: Iterable[str]) -> list[int]: ...

    def convert_tokens_to_ids(self, tokens: str | Iterable[str] | None) -> int | list[int] | None:
        """One id, or a list; a token outside the vocabulary has [UNK]'s."""
        raise NotImplementedError

    @overload
    def convert_ids_to_tokens(self, ids: int, skip_special_tokens: bool = ...) -> str: ...

    @overload
    def convert_ids_to_tokens(self, ids: Iterable, skip_special_tokens: bool = ...) -> list[str]: ...

    def convert_ids_to_tokens(self, ids, skip_special_tokens: bool = False) -> str | list[str]:
        """One token, or a list; an id outside the vocabulary is [UNK]. ids: an int, list, array or tensor."""
        raise NotImplementedError

    def decode(
        self, token_ids, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> str:
        """The text of a sequence of ids: pieces joined, spaces before punctuation dropped."""
        raise NotImplementedError

    def batch_decode(self, sequences, *args, **kwargs) -> list[str]:
        """`decode` for each row."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls, name: str | Path, **overrides) -> BertTokenizer:
        """Read vocab.txt or tokenizer.json of a folder or hub name, and, if they are there,
        tokenizer_config.json and special_tokens_map.json.

        `overrides` are the constructor's keywords, and replace what stands in the file. ValueError naming the
        file for what is wrong or not supported in it, TypeError for an override that is no keyword.
        """
        raise NotImplementedError

    def save_pretrained(self, folder: str | Path) -> None:
        """Write vocab.txt, tokenizer_config.json and special_tokens_map.json, each atomically."""
        raise NotImplementedError

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int, min_frequency=2, limit_alphabet=1000, **options
    ) -> BertTokenizer:
        """Learn a vocabulary of at most `vocab_size` tokens from texts; `options` are the constructor's.

        First [PAD], [UNK], [CLS], [SEP], [MASK]; then the `limit_alphabet` most frequent characters, each as
        the start and as the inside of a word, so that any word made of them can be encoded; then pieces, in
        the order in which `learn_pieces` merges them (training/vocabulary.py: read it after the ten files).
        ValueError if the characters do not fit.

        >>> list(BertTokenizer.train(["ab ab ac"] * 3, vocab_size=12).vocab)[5:]
        ['a', 'b', 'c', '##a', '##b', '##c', 'ab']
        """
        raise NotImplementedError
