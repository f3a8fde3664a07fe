"""Texts → ids, token types and masks; ids → text: BERT's tokenizer.

A text is cut into words and pieces by the functions of wordpiece.py; special tokens such as [SEP] in a text
stand for themselves. Ids, padding and truncation are those of the slow BertTokenizer of transformers 4.37.2.
The ids of words that were cut before are remembered, so natural text costs little more than a dictionary
look-up for each word.

ALIGN gives it single texts: [CLS] text [SEP] [PAD] …, 64 ids in all. Second texts (token type 1), lists of
words, `pad` and most of the return_… options are for programs that were written for Hugging Face's tokenizer:
skip them at first.

Leaves out: special tokens other than [PAD] [UNK] [CLS] [SEP] [MASK], padding and truncation on the left,
strides (overlapping windows of a long text), offsets (the characters that a piece came from).
Differs from Hugging Face: where the strategy that was asked for cannot reach max_length, this tokenizer
raises an error; Hugging Face logs one and leaves the text too long.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import torch

from .support import batching, fast_wordpiece, vocab_files
from .support.outputs import Batch
from .support.vocab_files import OPTIONS, ROLES, SPECIAL_TOKENS
from .wordpiece import MAX_WORD, clean, lower, split_words

MAX_REMEMBERED = 100_000  # stretches without spaces
CLEAN_UP = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")  # each loses its spaces


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
        self.strip_accents, self.tokenize_chinese_chars = strip_accents, tokenize_chinese_chars
        self.do_lower_case, self.clean_up_tokenization_spaces = do_lower_case, clean_up_tokenization_spaces
        self.model_max_length = batching.NO_LIMIT if model_max_length is None else int(model_max_length)
        self.pad_token, self.unk_token, self.cls_token = pad_token, unk_token, cls_token
        self.sep_token, self.mask_token = sep_token, mask_token
        self.all_special_tokens = [*dict.fromkeys((unk_token, sep_token, pad_token, cls_token, mask_token))]
        self.ids_to_tokens = dict(enumerate(vocab_files.load_vocabulary(vocab_file, self.all_special_tokens)))
        self.vocab = {token: i for i, token in self.ids_to_tokens.items()}
        self.vocab_size = len(self.vocab)
        self.all_special_ids = [self.vocab[token] for token in self.all_special_tokens]
        for role in ROLES:  # pad_token_id, unk_token_id, …
            setattr(self, f"{role}_id", self.vocab[getattr(self, role)])
        longest_first = sorted(self.all_special_tokens, key=len, reverse=True)
        self._special_pattern = re.compile(f"({'|'.join(map(re.escape, longest_first))})")
        self._wordpiece = fast_wordpiece.FastWordPiece(self.vocab, unk_token)  # word → its pieces
        self._remembered: dict[str, tuple[int, ...]] = {}  # a stretch without spaces → ids of its pieces

    def __len__(self) -> int:
        return len(self.vocab)

    def get_vocab(self) -> dict[str, int]:
        """Token → id, a copy."""
        return dict(self.vocab)

    # ---- text → ids

    def _parts(self, text: str) -> list[str]:
        """The text lower-cased and cut around its special tokens: [text, special token, text, …]."""
        if not isinstance(text, str):
            raise TypeError(f"a text must be a str, not {type(text).__name__}")
        parts = self._special_pattern.split(text)  # the group keeps what separates: odd entries are special
        if self.do_lower_case:
            parts[::2] = map(lower, parts[::2])
            parts = self._special_pattern.split("".join(parts))  # lowering can make one, such as "<pad>"
        return parts

    def _split_words(self, text: str) -> list[str]:
        """`split_words` with the options of this tokenizer."""
        strip = self.do_lower_case if self.strip_accents is None else self.strip_accents
        return split_words(text, strip, self.all_special_tokens)

    def words(self, text: str) -> list[str]:
        """The words of a text as the vocabulary sees them, its special tokens left out.

        >>> BertTokenizer(SPECIAL_TOKENS).words("Un Café![SEP]")
        ['un', 'cafe', '!']
        """
        cleaned = (clean(part, self.tokenize_chinese_chars) for part in self._parts(text)[::2])
        return [word for part in cleaned for word in self._split_words(part)]

    def _ids_of_stretch(self, stretch: str) -> tuple[int, ...]:
        """The ids of a stretch without spaces, such as "cats!": it can hold several words. Remembered, unless
        it is very long: so there is a limit to the memory."""
        ids = tuple(self.vocab[p] for w in self._split_words(stretch) for p in self._wordpiece(w))
        if len(self._remembered) >= MAX_REMEMBERED:
            self._remembered.clear()
        return ids if len(stretch) > MAX_WORD else self._remembered.setdefault(stretch, ids)

    def _ids(self, text: str | Sequence[str], are_words: bool = False) -> list[int]:
        """The ids of a text, or (are_words) of a list of words; [CLS] and [SEP] not added."""
        if are_words and not isinstance(text, str):
            return [i for word in text for i in ([word] if isinstance(word, int) else self._ids(word))]
        ids: list[int] = []
        for i, part in enumerate(self._parts(text)):
            if i % 2:
                ids.append(self.vocab[part])
                continue
            for stretch in clean(part, self.tokenize_chinese_chars).split():
                ids += self._remembered.get(stretch) or self._ids_of_stretch(stretch)
        return ids

    def tokenize(self, text: str) -> list[str]:
        """The pieces of a text, [CLS] and [SEP] not added."""
        return [self.ids_to_tokens[i] for i in self._ids(text)]

    # ---- texts → batch

    def _row(self, texts, are_words, add_special_tokens, truncation, limit) -> tuple[list[int], int, int]:
        """(ids of a text or of a pair, how many of them have token type 0, how many were cut)"""
        a, b = (None if text is None else self._ids(text, are_words) for text in texts)
        added = add_special_tokens * (2 if b is None else 3)
        cut = max(len(a) + len(b or []) + added - limit, 0) if truncation else 0
        if cut:
            a, b = batching.truncate(a, b, limit - added, truncation, limit)
        if not add_special_tokens:
            return a + (b or []), len(a) + len(b or []), cut  # Hugging Face gives both texts type 0 here
        first = [self.cls_token_id, *a, self.sep_token_id]
        return first if b is None else [*first, *b, self.sep_token_id], len(first), cut

    def _padded(self, columns: Mapping[str, Iterable], width: int, kind: str | None) -> Batch:
        """Columns of rows → a batch; rows with an entry for each token are padded on the right to `width`."""
        fill = batching.FILL | {"input_ids": self.pad_token_id}
        if kind is None:
            return batching.as_lists(columns, width, fill)
        widths = {max(len(row), width) for row in columns["input_ids"]}
        if kind not in ("pt", "np") or len(widths) > 1:
            raise batching.no_tensors(kind)
        shape, batch = (len(columns["input_ids"]), *widths), Batch()  # (B, T)
        for name, rows in columns.items():
            array = np.full(shape, fill.get(name, 0), dtype=np.int64)
            for i, row in enumerate(rows if name in fill else ()):
                array[i, : len(row)] = row
            array = array if name in fill else np.array(rows, dtype=np.int64)
            batch[name] = array if kind == "np" else torch.from_numpy(array)
        return batch

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
        single, examples = batching.as_examples(text, text_pair, is_split_into_words)
        limit = self.model_max_length if max_length is None else max_length
        padding, truncation = batching.strategies(padding, truncation, max_length, limit, pad_to_multiple_of)
        rows, firsts, cut = [], [], []  # ids, how many have token type 0, how many were cut
        for texts in examples:
            row, first, lost = self._row(texts, is_split_into_words, add_special_tokens, truncation, limit)
            rows.append(row)
            firsts.append(first)
            cut.append(lost)
        # Generators: thousands of lists more at a time would keep Python's garbage collector busy.
        columns: dict[str, Iterable] = {"input_ids": rows}
        if return_token_type_ids is not False:
            columns["token_type_ids"] = batching.token_types(rows, firsts)
        if return_special_tokens_mask:
            columns["special_tokens_mask"] = batching.special_tokens(rows, firsts, add_special_tokens)
        if return_attention_mask is not False:
            columns["attention_mask"] = ([1] * len(row) for row in rows)
        width = batching.padded_width(rows, padding, limit, pad_to_multiple_of)
        if return_length:
            columns["length"] = batching.lengths(rows, width if single else 0)
        if return_num_truncated_tokens:
            columns["num_truncated_tokens"] = cut
        batch = self._padded(columns, width, return_tensors)
        return batch if return_tensors or not single else Batch({k: rows[0] for k, rows in batch.items()})

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
        columns = batching.as_columns(encoded_inputs, return_attention_mask is not False)
        limit = self.model_max_length if max_length is None else max_length
        padding, _ = batching.strategies(padding, False, max_length, limit)
        width = batching.padded_width(columns["input_ids"], padding, limit, pad_to_multiple_of)
        return self._padded(columns, width, return_tensors)

    def encode(self, text: str | Sequence, text_pair: str | Sequence | None = None, **options) -> list[int]:
        """The input_ids of a call with these arguments; but a list of tokens, or of ids, is one text.

        >>> BertTokenizer(SPECIAL_TOKENS).encode(["[MASK]", "[PAD]"])
        [2, 4, 0, 3]
        """
        text, text_pair, options = batching.one_text(text, text_pair, options, self.convert_tokens_to_ids)
        return self(text, text_pair, **options)["input_ids"]

    # ---- ids → text (the overloads tell type checkers: one gives one, several give a list)

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int: ...
    @overload
    def convert_tokens_to_ids(self, tokens: Iterable[str]) -> list[int]: ...
    def convert_tokens_to_ids(self, tokens: str | Iterable[str] | None) -> int | list[int] | None:
        """One id, or a list; a token outside the vocabulary has [UNK]'s."""
        if tokens is None or isinstance(tokens, str):
            return None if tokens is None else self.vocab.get(tokens, self.unk_token_id)
        return [self.vocab.get(token, self.unk_token_id) for token in tokens]

    @overload
    def convert_ids_to_tokens(self, ids: int, skip_special_tokens: bool = ...) -> str: ...
    @overload
    def convert_ids_to_tokens(self, ids: Iterable, skip_special_tokens: bool = ...) -> list[str]: ...
    def convert_ids_to_tokens(self, ids, skip_special_tokens: bool = False) -> str | list[str]:
        """One token, or a list; an id outside the vocabulary is [UNK]. ids: an int, list, array or tensor."""
        ids = ids.tolist() if hasattr(ids, "tolist") else ids
        if isinstance(ids, int):
            return self.ids_to_tokens.get(ids, self.unk_token)
        skipped = self.all_special_ids if skip_special_tokens else ()
        return [self.ids_to_tokens.get(i, self.unk_token) for i in map(int, ids) if i not in skipped]

    def decode(
        self, token_ids, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> str:
        """The text of a sequence of ids: pieces joined, spaces before punctuation dropped."""
        tokens = self.convert_ids_to_tokens(token_ids, skip_special_tokens)
        text = " ".join([tokens] if isinstance(tokens, str) else tokens).replace(" ##", "").strip()
        wanted = clean_up_tokenization_spaces
        if self.clean_up_tokenization_spaces if wanted is None else wanted:
            for found in CLEAN_UP:
                text = text.replace(found, found.strip())
        return text

    def batch_decode(self, sequences, *args, **kwargs) -> list[str]:
        """`decode` for each row."""
        return [self.decode(ids, *args, **kwargs) for ids in sequences]

    # ---- files and training

    @classmethod
    def from_pretrained(cls, name: str | Path, **overrides) -> BertTokenizer:
        """Read vocab.txt or tokenizer.json of a folder or hub name, and, if they are there,
        tokenizer_config.json and special_tokens_map.json.

        `overrides` are the constructor's keywords, and replace what stands in the file. ValueError naming the
        file for what is wrong or not supported in it, TypeError for an override that is no keyword.
        """
        vocab_file, options = vocab_files.find_vocabulary(name, overrides)
        return cls(vocab_file, **options)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write vocab.txt, tokenizer_config.json and special_tokens_map.json, each atomically."""
        options, special = ({k: getattr(self, k) for k in names} for names in (OPTIONS, ROLES))
        vocab_files.write_files(folder, self.vocab, options, special)

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
        from .training.vocabulary import learn_vocabulary

        special = [options.get(role, token) for role, token in zip(ROLES, SPECIAL_TOKENS, strict=True)]
        # The tokenizer made here has no pieces yet: it only cuts the texts into words.
        limits = vocab_size, min_frequency, limit_alphabet
        return cls(learn_vocabulary(texts, cls(special, **options).words, special, *limits), **options)
