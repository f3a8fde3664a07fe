"""Texts → ids, token types and masks; ids → text: BERT's tokenizer.

A text is cut into words and pieces by the functions of wordpiece.py; special tokens such as [SEP] in it stand
for themselves. Ids, padding and truncation are those of the slow BertTokenizer of transformers 4.37.2. Words
already cut are remembered, so natural text costs little more than a dictionary look-up a word.

But: the five special tokens and no others, padding and truncation on the right, no strides, no offsets. Where
the reference logs an error and leaves a text too long (a max_length that the strategy cannot reach), this one
raises it.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from .support.hub import find_file, read_json, write_atomically, write_json
from .support.outputs import Batch
from .wordpiece import MAX_WORD, clean, learn_pieces, lower, split_words, wordpiece

MAX_REMEMBERED = 100_000  # words
NO_LIMIT = int(1e30)  # how the reference writes "no model_max_length"
ROLES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
OPTIONS = ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "model_max_length", *ROLES)
OPTIONS += ("clean_up_tokenization_spaces",)  # the constructor's arguments, and tokenizer_config.json's
ONLY = {
    "do_basic_tokenize": True,
    "padding_side": "right",
    "truncation_side": "right",
}  # other values: refused
PADDING = {False: None, None: None, "do_not_pad": None}
PADDING |= {True: "longest", "longest": "longest", "max_length": "max_length"}
TRUNCATION = {False: None, "do_not_truncate": None, True: "longest_first"}
TRUNCATION |= {name: name for name in ("longest_first", "only_first", "only_second")}
FILL = {"token_type_ids": 0, "attention_mask": 0, "special_tokens_mask": 1}  # on padding
CLEAN_UP = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")  # each loses its spaces


def read_vocabulary(path: Path) -> list[str]:
    """The tokens of vocab.txt, one a line, or of a tokenizer.json. ValueError naming the file.

    >>> read_vocabulary(find_file("emoji", "vocab.txt"))[:5]
    ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such vocabulary file")
    if path.suffix == ".json":
        model = read_json(path).get("model")
        if not isinstance(model, dict) or model.get("type") != "WordPiece":
            raise ValueError(f"{path}: not a WordPiece vocabulary")
        return sorted(model["vocab"], key=model["vocab"].get)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 (byte {error.start})") from None
    return lines if lines[-1] else lines[:-1]


def check_vocabulary(source: str, tokens: Sequence[str], special: Iterable[str]) -> None:
    """ValueError naming `source` if the tokens repeat themselves or lack a special one.

    >>> check_vocabulary("vocab.txt", ["[PAD]", "a", "a"], special=["[PAD]"])
    Traceback (most recent call last):
    ValueError: vocab.txt: line 3 repeats 'a' of line 2
    """
    if not any(tokens):
        raise ValueError(f"{source}: an empty vocabulary")
    seen: dict[str, int] = {}
    for number, token in enumerate(tokens, start=1):
        if seen.setdefault(token, number) != number:
            raise ValueError(f"{source}: line {number} repeats {token!r} of line {seen[token]}")
    for token in special:
        if token not in seen:
            raise ValueError(f"{source}: no {token} in this vocabulary of {len(tokens)}")


class BertTokenizer:
    """Texts → ids, token types and masks; ids → text.

    `vocab_file` is a path (UTF-8, a token a line, its id the line's number from 0), or the tokens themselves.
    strip_accents=None strips them where do_lower_case does. model_max_length: what truncation=True and
    padding="max_length" mean without max_length. ValueError or FileNotFoundError naming the file.

    >>> tokenizer = BertTokenizer([*SPECIAL_TOKENS, "a", "red", "cat", "##s"])
    >>> tokenizer.tokenize("A red cats!")
    ['a', 'red', 'cat', '##s', '[UNK]']
    >>> tokenizer(["a cat", "red cats"], padding=True).input_ids
    [[2, 5, 7, 3, 0], [2, 6, 7, 8, 3]]
    >>> tokenizer.decode([2, 6, 7, 8, 3], skip_special_tokens=True)
    'red cats'
    """

    model_input_names = ("input_ids", "token_type_ids", "attention_mask")

    def __init__(
        self,
        vocab_file: str | Path | Sequence[str],
        do_lower_case: bool = True,
        strip_accents: bool | None = None,
        tokenize_chinese_chars: bool = True,
        model_max_length: int | None = None,
        unk_token: str = "[UNK]",
        sep_token: str = "[SEP]",
        pad_token: str = "[PAD]",
        cls_token: str = "[CLS]",
        mask_token: str = "[MASK]",
        clean_up_tokenization_spaces: bool = True,
    ):
        is_file = isinstance(vocab_file, (str, Path))
        tokens = read_vocabulary(Path(vocab_file)) if is_file else list(vocab_file)
        self.do_lower_case, self.strip_accents = do_lower_case, strip_accents
        self.tokenize_chinese_chars = tokenize_chinese_chars
        self.model_max_length = NO_LIMIT if model_max_length is None else int(model_max_length)
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces
        self.pad_token, self.unk_token, self.cls_token = pad_token, unk_token, cls_token
        self.sep_token, self.mask_token = sep_token, mask_token
        special = (unk_token, sep_token, pad_token, cls_token, mask_token)
        self.all_special_tokens = list(dict.fromkeys(special))
        check_vocabulary(str(vocab_file) if is_file else "vocabulary", tokens, self.all_special_tokens)
        self.vocab = {token: i for i, token in enumerate(tokens)}
        self.ids_to_tokens = dict(enumerate(tokens))
        self.all_special_ids = [self.vocab[token] for token in self.all_special_tokens]
        for role in ROLES:  # pad_token_id, unk_token_id, …
            setattr(self, f"{role}_id", self.vocab[getattr(self, role)])
        longest_first = sorted(self.all_special_tokens, key=len, reverse=True)
        self._special = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self._remembered: dict[str, tuple[int, ...]] = {}  # word → ids of its pieces

    @property
    def vocab_size(self) -> int:
        return len(self.vocab)

    def __len__(self) -> int:
        return len(self.vocab)

    def get_vocab(self) -> dict[str, int]:
        """Token → id, a copy."""
        return dict(self.vocab)

    # ---- text → tokens

    def _parts(self, text: str) -> list[str]:
        """The text lower-cased and cut around its special tokens, which are the odd entries."""
        if not isinstance(text, str):
            raise TypeError(f"a text must be a str, not {type(text).__name__}")
        if not self.do_lower_case:
            return self._special.split(text)
        parts = self._special.split(text)
        parts[::2] = map(lower, parts[::2])
        return self._special.split("".join(parts))  # again: lowering can make a special token such as "<pad>"

    def _split(self, text: str) -> list[str]:
        strip = self.do_lower_case if self.strip_accents is None else self.strip_accents
        return split_words(text, strip, self.all_special_tokens)

    def words(self, text: str) -> list[str]:
        """The words of a text as the vocabulary sees them, its special tokens left out.

        >>> BertTokenizer(SPECIAL_TOKENS).words("Un Café![SEP]")
        ['un', 'cafe', '!']
        """
        return [
            word
            for part in self._parts(text)[::2]
            for word in self._split(clean(part, self.tokenize_chinese_chars))
        ]

    def tokenize(self, text: str) -> list[str]:
        """The pieces of a text, [CLS] and [SEP] not added."""
        return [self.ids_to_tokens[i] for i in self._ids(text)]

    def _ids(self, text: str | Sequence[str], split: bool = False) -> list[int]:
        if split and not isinstance(text, str):
            return [i for word in text for i in self._ids(word)]
        ids: list[int] = []
        for i, part in enumerate(self._parts(text)):
            if i % 2:
                ids.append(self.vocab[part])
                continue
            for word in clean(part, self.tokenize_chinese_chars).split():
                ids += self._remembered.get(word) or self._ids_of_word(word)
        return ids

    def _ids_of_word(self, word: str) -> tuple[int, ...]:
        pieces = [p for part in self._split(word) for p in wordpiece(part, self.vocab, self.unk_token)]
        if len(self._remembered) >= MAX_REMEMBERED:
            self._remembered.clear()
        ids = self._remembered[word] = tuple(map(self.vocab.__getitem__, pieces))
        return ids

    # ---- texts → batch

    def __call__(
        self,
        text: str | Sequence,
        text_pair: str | Sequence | None = None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        return_tensors: str | None = None,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_special_tokens_mask: bool = False,
        return_length: bool = False,
    ) -> Batch:
        """Encode a text, or a list of B texts: [CLS] text [SEP], and text_pair [SEP] after it.

        padding: False; True or "longest" (to the longest of the batch); "max_length". truncation: True or
        "longest_first", "only_first", "only_second"; False; None truncates only where max_length is given
        and padding is not. is_split_into_words: each text is a list of words. return_tensors: "pt" or "np".

        Returns lists, or int64 tensors (B, T): input_ids, token_type_ids (1 in the second text) and
        attention_mask (0 on padding); special_tokens_mask and length (B,) on request. ValueError or TypeError
        naming the argument.
        """
        single, examples = self._examples(text, text_pair, is_split_into_words)
        padding, truncation, limit = self._strategies(padding, truncation, max_length, pad_to_multiple_of)
        rows, firsts = [], []  # the ids of each example, and how many of them have token type 0
        for texts in examples:
            a, b = (None if t is None else self._ids(t, is_split_into_words) for t in texts)
            row, first = self._row(a, b, add_special_tokens, truncation, limit)
            rows.append(row)
            firsts.append(first)
        batch = {"input_ids": rows}
        # Generators, as in `pad`: thousands of lists alive at once would keep the garbage collector busy.
        if return_token_type_ids is not False:
            batch["token_type_ids"] = (
                [0] * n + [1] * (len(row) - n) for row, n in zip(rows, firsts, strict=True)
            )
        if return_special_tokens_mask:
            batch["special_tokens_mask"] = (
                [int(add_special_tokens and i in (0, n - 1, len(row) - 1)) for i in range(len(row))]
                for row, n in zip(rows, firsts, strict=True)
            )
        batch = self.pad(batch, padding, limit, pad_to_multiple_of, return_attention_mask, return_tensors)
        if return_length:  # as in the reference: of one text with its padding, of a batch without
            ids = batch["input_ids"] if single else rows
            lengths = Batch(length=list(map(len, ids)))
            batch |= lengths if return_tensors is None else as_tensors(lengths, return_tensors, 0, {})
        if return_tensors is not None or not single:
            return batch
        return Batch({name: column[0] for name, column in batch.items()})

    def _examples(self, text, text_pair, split: bool) -> tuple[bool, list]:
        """(whether it is one text, [(text, second text or None), …])"""
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

    def _strategies(self, padding, truncation, max_length, multiple=None) -> tuple:
        """(None, 'longest' or 'max_length'; None or how to truncate; the length that both refer to)"""
        if truncation is None:
            truncation = max_length is not None and padding is False
        for name, value, known in (("padding", padding, PADDING), ("truncation", truncation, TRUNCATION)):
            if value not in known:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, known))}")
        padding, truncation = PADDING[padding], TRUNCATION[truncation]
        limit = self.model_max_length if max_length is None else max_length
        if limit >= NO_LIMIT and (truncation or padding == "max_length"):
            warnings.warn(
                "no max_length and no model_max_length: nothing to pad or truncate to", stacklevel=3
            )
            padding, truncation = None if padding == "max_length" else padding, None
        if truncation and padding and multiple and limit % multiple:
            raise ValueError(f"max_length={limit} is not a multiple of pad_to_multiple_of={multiple}")
        return padding, truncation, limit

    def _row(
        self, a: list[int], b: list[int] | None, special: bool, truncation: str | None, limit: int
    ) -> tuple:
        """(ids of one example, how many of them have token type 0)"""
        added = special * (2 if b is None else 3)
        if truncation and len(a) + len(b or []) + added > limit:
            a, b = truncate(a, b, limit - added, truncation, limit)
        if not special:
            a = a + (b or [])
            return a, len(a)
        first = [self.cls_token_id, *a, self.sep_token_id]
        return first if b is None else [*first, *b, self.sep_token_id], len(first)

    def pad(
        self,
        encoded_inputs: Mapping[str, Sequence] | Sequence[Mapping[str, Sequence]],
        padding: bool | str | None = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
    ) -> Batch:
        """Pad a batch of encoded texts, or a list of single ones (so it can be a DataLoader's collate_fn).

        >>> BertTokenizer(SPECIAL_TOKENS).pad([{"input_ids": [2, 3]}, {"input_ids": [2, 4, 3]}])
        {'input_ids': [[2, 3, 0], [2, 4, 3]], 'attention_mask': [[1, 1, 0], [1, 1, 1]]}
        """
        if not isinstance(encoded_inputs, Mapping):
            encoded_inputs = {name: [row[name] for row in encoded_inputs] for name in encoded_inputs[0]}
        batch = Batch(encoded_inputs)
        for name, rows in batch.items():
            batch[name] = (row.tolist() if hasattr(row, "tolist") else row for row in rows)
        batch["input_ids"] = list(batch["input_ids"])
        lengths = list(map(len, batch["input_ids"]))
        if return_attention_mask is not False:
            batch.setdefault("attention_mask", ([1] * length for length in lengths))
        padding, _, width = self._strategies(padding, False, max_length)
        width = {None: 0, "longest": max(lengths, default=0), "max_length": width}[padding]
        if pad_to_multiple_of:
            width = -(-width // pad_to_multiple_of) * pad_to_multiple_of
        fill = {"input_ids": self.pad_token_id} | FILL
        if return_tensors is not None:
            return as_tensors(batch, return_tensors, width, fill)
        for name, rows in batch.items():
            if name in fill:
                rows = ([*row, *[fill[name]] * (width - len(row))] for row in rows)
            batch[name] = list(rows)
        return batch

    def encode(self, text: str, text_pair: str | None = None, **options) -> list[int]:
        """The input_ids of a call with these arguments."""
        return self(text, text_pair, **options)["input_ids"]

    # ---- ids → text

    def convert_tokens_to_ids(self, tokens: str | Iterable[str] | None) -> int | list[int] | None:
        """One id, or a list; a token outside the vocabulary has [UNK]'s."""
        if tokens is None or isinstance(tokens, str):
            return None if tokens is None else self.vocab.get(tokens, self.unk_token_id)
        return [self.vocab.get(token, self.unk_token_id) for token in tokens]

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
        """Read vocab.txt or tokenizer.json, and tokenizer_config.json if there, of a folder or hub name."""
        vocab_file = find_file(name, "vocab.txt", "tokenizer.json")
        try:
            config_file = find_file(name, "tokenizer_config.json")
        except FileNotFoundError:
            return cls(vocab_file, **overrides)
        config = read_json(config_file)
        for key, only in ONLY.items():
            if config.get(key, only) != only:
                raise ValueError(f"{config_file}: {key}={config[key]!r} is not supported, only {only!r}")
        options = {key: config[key] for key in OPTIONS if config.get(key) is not None}
        for key, value in options.items():
            if isinstance(value, dict):  # an AddedToken
                options[key] = value["content"]
        return cls(vocab_file, **options | overrides)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write vocab.txt, tokenizer_config.json and special_tokens_map.json, each atomically."""
        text = "".join(f"{token}\n" for token in self.vocab)
        vocab_file = Path(folder) / "vocab.txt"
        write_atomically(vocab_file, lambda file: file.write_text(text, encoding="utf-8", newline="\n"))
        config = {**{name: getattr(self, name) for name in OPTIONS}, "tokenizer_class": "BertTokenizer"}
        write_json(Path(folder) / "tokenizer_config.json", config)
        write_json(Path(folder) / "special_tokens_map.json", {role: getattr(self, role) for role in ROLES})

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        min_frequency: int = 2,
        limit_alphabet: int = 1000,
        **options,
    ) -> BertTokenizer:
        """Learn a vocabulary of at most `vocab_size` tokens from texts; `options` are the constructor's.

        First [PAD], [UNK], [CLS], [SEP], [MASK]; then the `limit_alphabet` most frequent characters, each as
        the start and as the inside of a word, so that any word made of them can be encoded; then pieces, in
        the order in which `learn_pieces` merges them. ValueError if the characters do not fit.

        >>> list(BertTokenizer.train(["ab ab ac"] * 3, vocab_size=12).vocab)[5:]
        ['a', 'b', 'c', '##a', '##b', '##c', 'ab']
        """
        if isinstance(texts, str):
            raise TypeError("texts must be several texts, not one str")
        special = [options.get(role, token) for role, token in zip(ROLES, SPECIAL_TOKENS, strict=True)]
        tokenizer = cls(special, **options)
        words = Counter(word for text in texts for word in tokenizer.words(text) if len(word) <= MAX_WORD)
        if not words:
            raise ValueError("texts hold no words to learn a vocabulary from")
        letters: Counter[str] = Counter()
        for word, times in words.items():
            letters.update({c: times * word.count(c) for c in set(word)})
        alphabet = sorted(letters, key=lambda c: (-letters[c], c))[:limit_alphabet]
        inside = ["##" + c for c in alphabet if len(tokenizer.words("a" + c)) == 1]
        tokens = [*special, *alphabet, *inside]
        if len(tokens) > vocab_size:
            found = f"{len(special)} special tokens, {len(alphabet)} letters and {len(inside)} inside words"
            raise ValueError(f"vocab_size={vocab_size} is too small: the texts have {found}")
        dropped = letters.keys() - alphabet
        known = {word: times for word, times in words.items() if dropped.isdisjoint(word)}
        pieces = learn_pieces(known, vocab_size - len(tokens), min_frequency)
        return cls(list(dict.fromkeys(tokens + pieces)), **options)


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


def as_tensors(batch: Mapping[str, Iterable], kind: str, width: int, fill: Mapping[str, int]) -> Batch:
    """Rows of numbers → torch ("pt") or numpy ("np") int64, (B, T); those named in `fill` padded to `width`.

    >>> as_tensors({"input_ids": [[2, 5, 3], [2, 3]]}, "pt", width=4, fill={"input_ids": 0}).input_ids
    tensor([[2, 5, 3, 0],
            [2, 3, 0, 0]])
    """
    if kind not in ("pt", "np"):
        raise ValueError(f"return_tensors={kind!r} is not one of 'pt', 'np'")
    lengths = [max(len(row), width) for row in batch.get("input_ids", ())]
    if len(set(lengths)) > 1:
        raise ValueError("the texts differ in length, so they make no tensor: use padding=True")
    arrays = {}
    for name, rows in batch.items():
        if name not in fill:
            arrays[name] = np.array(list(rows), dtype=np.int64)
            continue
        # Rows go into an array full of padding: making tensors of padded lists took most of a call's time.
        arrays[name] = np.full((len(lengths), *set(lengths)), fill[name], dtype=np.int64)
        for i, row in enumerate(rows):
            arrays[name][i, : len(row)] = row
    return Batch(arrays if kind == "np" else {name: torch.from_numpy(a) for name, a in arrays.items()})
