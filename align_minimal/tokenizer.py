"""Text → ids, and back: BERT's WordPiece tokenizer, and the training of its vocabulary.

(Paper, section 5: 100k wordpieces, learnt from the alt-texts.) A text passes through four small functions:

    lower        character by character, where do_lower_case is set
    clean        drop control characters, make every white space a space, set Chinese characters apart
    split_words  split on white space, strip accents, make each punctuation mark a word of its own
    wordpiece    cut a word into the longest pieces that the vocabulary has

Special tokens such as [SEP] in the text stand for themselves. The ids are those of the slow BertTokenizer of
transformers 4.37.2 on any Unicode text; what is a mark or punctuation is `unicodedata`'s answer, as there.
But: the five special tokens and no others, padding and truncation on the right, no strides, no offsets. Words
already cut are remembered, so natural text costs little more than a dictionary look-up a word.
"""

from __future__ import annotations

import re
import string
import unicodedata
import warnings
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from .hub import find_file, read_json, write_atomically, write_json
from .outputs import Batch

MAX_WORD = 100  # characters; a longer word is [UNK]
MAX_REMEMBERED = 100_000  # words
NO_LIMIT = int(1e30)  # how the reference writes "no model_max_length"
ROLES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CHINESE = (  # first and last code point of the blocks whose characters are words
    *((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F)),
    *((0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)),
)
PADDING = {False: None, "do_not_pad": None, True: "longest", "longest": "longest", "max_length": "max_length"}
TRUNCATION = {False: None, "do_not_truncate": None, True: "longest_first"}
TRUNCATION |= {name: name for name in ("longest_first", "only_first", "only_second")}
CLEAN_UP = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")  # each loses its spaces


class CharacterMap(dict):
    """A table for str.translate that asks `rule(character)` once for each character it meets."""

    def __init__(self, rule: Callable[[str], str]):
        super().__init__()
        self.rule = rule

    def __missing__(self, code: int) -> str:
        self[code] = self.rule(chr(code))
        return self[code]


def _cleaned(c: str) -> str:
    category = unicodedata.category(c)
    if c in "\t\n\r" or category == "Zs":
        return " "
    return (
        "" if category[0] == "C" or c == "\ufffd" else c
    )  # C: control, format, private, unassigned, surrogate


def _cleaned_and_spaced(c: str) -> str:
    kept = _cleaned(c)
    return f" {kept} " if kept and any(first <= ord(c) <= last for first, last in CHINESE) else kept


def _is_punctuation(c: str) -> bool:
    return (
        c in string.punctuation or unicodedata.category(c)[0] == "P"
    )  # ASCII's symbols too: $ + < = > ^ ` | ~


CLEAN, CLEAN_CHINESE = CharacterMap(_cleaned), CharacterMap(_cleaned_and_spaced)
DROP_MARKS = CharacterMap(lambda c: "" if unicodedata.category(c) == "Mn" else c)
SPACE_PUNCTUATION = CharacterMap(lambda c: f" {c} " if _is_punctuation(c) else c)


# ---- the four steps


def lower(text: str) -> str:
    """Each character lower-cased by itself; in `str.lower` only a capital sigma looks at its neighbours.

    >>> lower("ΟΔΟΣ"), "ΟΔΟΣ".lower()
    ('οδοσ', 'οδος')
    """
    return text.replace("Σ", "σ").lower()


def clean(text: str, tokenize_chinese_chars: bool = True) -> str:
    """Control characters dropped, white space made spaces, spaces around Chinese characters; composed (NFC).

    >>> clean("a\\x00b\\tc中d")
    'ab c 中 d'
    """
    return unicodedata.normalize("NFC", text.translate(CLEAN_CHINESE if tokenize_chinese_chars else CLEAN))


def split_words(text: str, strip_accents: bool = True, special: Sequence[str] = ()) -> list[str]:
    """The words and punctuation marks of a clean text; a word that is in `special` stays whole.

    >>> split_words("un café, [SEP]", special=["[SEP]"])
    ['un', 'cafe', ',', '[SEP]']
    """
    words: list[str] = []
    for word in text.split():
        if word in special:  # cleaning may have uncovered one, as in "[S\\0EP]"
            words.append(word)
            continue
        if strip_accents:
            word = unicodedata.normalize("NFD", word).translate(DROP_MARKS)
        words += word.translate(SPACE_PUNCTUATION).split()
    return words


def wordpiece(word: str, vocab: Mapping[str, int], unk_token: str = "[UNK]") -> list[str]:
    """The longest piece that starts the word, then the longest "##" piece that starts the rest, and so on.

    One `unk_token` if no piece starts some rest, or if the word has more than MAX_WORD characters.

    >>> wordpiece("abcdefz", {"a": 0, "ab": 1, "##cd": 2, "##efz": 3, "abcdefg": 4})
    ['ab', '##cd', '##efz']
    """
    if len(word) > MAX_WORD:
        return [unk_token]
    pieces, start = [], 0
    while start < len(word):
        mark = "##" if start else ""
        for end in range(len(word), start, -1):
            if mark + word[start:end] in vocab:
                break
        else:
            return [unk_token]
        pieces.append(mark + word[start:end])
        start = end
    return pieces


# ---- training


def learn_pieces(
    words: Mapping[str, int], number: int, min_frequency: int = 2, share: float = 0.25
) -> list[str]:
    """At most `number` pieces, each merged from two neighbours, in the order in which they were merged.

    `words` has each word's count. The pair ab with the highest freq(ab) / (freq(a)·freq(b)) is merged, again
    and again. Alone, that score starts with the rarest letters ("qx", seen once, scores 1) and leaves common
    words in bits: 2.7 pieces a word in a trial with 4,000 pieces. So only pairs that occur `min_frequency`
    times, and `share` times as often as the most frequent one, are candidates: 1.2 pieces a word, as few as
    merging by frequency gives. Ties go to the pair met first, the words sorted by count, then by alphabet:
    the order of `words` does not matter.

    The textbook example: "gs" occurs 5 times, ##g 20, ##s 5, a score of 1/20; "hu" 15 / (15·36) is only 1/36.

    >>> learn_pieces({"hug": 10, "pug": 5, "pun": 12, "bun": 4, "hugs": 5}, 3)
    ['##gs', 'pu', 'hu']
    """
    pairs = PairCounts(words)
    learnt: dict[str, None] = {}
    while len(learnt) < number:
        best = pairs.best(min_frequency, share)
        if best is None:
            break
        learnt[pairs.merge(best)] = None
    return list(learnt)


class PairCounts:
    """How often each piece and each pair of neighbours occurs, in words that are merged step by step.

    Pieces and pairs are numbered as they are met. The counts lie in flat arrays, so that numpy can score all
    pairs at once: a merge changes freq(a) and freq(b), and so the score of every pair that holds a or b.
    """

    def __init__(self, words: Mapping[str, int]):
        self.words = sorted(words, key=lambda word: (-words[word], word))
        self.times = [words[word] for word in self.words]
        self.names: list[str] = []  # of each piece
        self.numbers: dict[str, int] = {}  # of each piece
        self.pairs: dict[tuple[int, int], int] = {}  # pair of pieces → its number
        self.where: defaultdict[int, set[int]] = defaultdict(set)  # pair → words that hold it, or once did
        self.frequency = array("q")  # of each piece
        self.left, self.right, self.together = array("q"), array("q"), array("q")  # of each pair
        self.spelling = [[self._number("##" * (i > 0) + c) for i, c in enumerate(w)] for w in self.words]
        for w in range(len(self.words)):
            self._count(w, +1)

    def _number(self, name: str) -> int:
        if name not in self.numbers:
            self.numbers[name] = len(self.names)
            self.names.append(name)
            self.frequency.append(0)
        return self.numbers[name]

    def _count(self, w: int, sign: int) -> None:
        """Add (+1) or take away (-1) the pieces and pairs of word number `w`."""
        for piece in self.spelling[w]:
            self.frequency[piece] += sign * self.times[w]
        for pair in pairwise(self.spelling[w]):
            k = self.pairs.setdefault(pair, len(self.pairs))
            if k == len(self.together):
                for column, value in zip((self.left, self.right, self.together), (*pair, 0), strict=True):
                    column.append(value)
            self.together[k] += sign * self.times[w]
            self.where[k].add(w)

    def best(self, min_frequency: int, share: float) -> int | None:
        """The number of the pair with the highest score; None if no pair is frequent enough."""
        if not self.pairs:
            return None
        columns = (self.frequency, self.left, self.right, self.together)
        frequency, left, right, together = (np.frombuffer(column, dtype=np.int64) for column in columns)
        candidates = np.flatnonzero(together >= max(min_frequency, 1, share * together.max()))
        if not len(candidates):
            return None
        a, b = frequency[left[candidates]], frequency[right[candidates]]
        return int(candidates[np.argmax(together[candidates] / (a * b))])

    def merge(self, k: int) -> str:
        """Make pair number `k` one piece wherever it stands, left to right; the name of the piece."""
        pair = self.left[k], self.right[k]
        name = self.names[pair[0]] + self.names[pair[1]].removeprefix("##")
        merged = self._number(name)
        for w in sorted(self.where.pop(k)):
            self._count(w, -1)
            spelling: list[int] = []
            for piece in self.spelling[w]:
                if spelling and (spelling[-1], piece) == pair:
                    spelling[-1] = merged
                else:
                    spelling.append(piece)
            self.spelling[w] = spelling
            self._count(w, +1)
        return name


# ---- the tokenizer


def read_vocabulary(path: Path) -> list[str]:
    """The tokens of vocab.txt, one a line, or of a tokenizer.json. ValueError naming the file."""
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
    """ValueError naming `source` if the tokens repeat themselves or lack a special one."""
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
        self.all_special_tokens = list(
            dict.fromkeys((unk_token, sep_token, pad_token, cls_token, mask_token))
        )
        check_vocabulary(str(vocab_file) if is_file else "vocabulary", tokens, self.all_special_tokens)
        self.vocab = {token: i for i, token in enumerate(tokens)}
        self.ids_to_tokens = dict(enumerate(tokens))
        self.all_special_ids = [self.vocab[token] for token in self.all_special_tokens]
        for role in ROLES:  # pad_token_id, unk_token_id, …
            setattr(self, f"{role}_id", self.vocab[getattr(self, role)])
        longest_first = sorted(self.all_special_tokens, key=len, reverse=True)
        self._special = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self._remembered: dict[str, list[str]] = {}  # word → pieces

    @property
    def options(self) -> dict:
        """The constructor's arguments after the vocabulary."""
        names = ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "model_max_length", *ROLES)
        return {name: getattr(self, name) for name in (*names, "clean_up_tokenization_spaces")}

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
        tokens: list[str] = []
        for i, part in enumerate(self._parts(text)):
            if i % 2:
                tokens.append(part)
                continue
            for word in clean(part, self.tokenize_chinese_chars).split():
                pieces = self._remembered.get(word)
                tokens += self._pieces(word) if pieces is None else pieces
        return tokens

    def _pieces(self, word: str) -> list[str]:
        pieces = [p for part in self._split(word) for p in wordpiece(part, self.vocab, self.unk_token)]
        if len(self._remembered) >= MAX_REMEMBERED:
            self._remembered.clear()
        self._remembered[word] = pieces
        return pieces

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
        padding, truncation, limit = self._strategies(padding, truncation, max_length)
        rows = [self._row(a, b, add_special_tokens, truncation, limit) for a, b in examples]
        batch = Batch(
            zip(("input_ids", "token_type_ids", "special_tokens_mask"), zip(*rows, strict=True), strict=True)
        )
        if return_token_type_ids is False:
            del batch["token_type_ids"]
        if not return_special_tokens_mask:
            del batch["special_tokens_mask"]
        lengths = [len(row) for row in batch["input_ids"]]
        batch = self.pad(batch, padding, limit, pad_to_multiple_of, return_attention_mask)
        if return_length:  # as in the reference: of one text with its padding, of a batch without
            batch["length"] = [len(batch["input_ids"][0])] if single else lengths
        if return_tensors is not None:
            return as_tensors(batch, return_tensors)
        return Batch({name: rows[0] for name, rows in batch.items()}) if single else batch

    def _examples(self, text, text_pair, split: bool) -> tuple[bool, list]:
        """(whether it is one text, [(ids, ids of the second text or None), …])"""
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
            raise ValueError(
                f"text has {len(text)} texts, text_pair {1 if isinstance(pairs, str) else len(pairs)}"
            )
        return single, [tuple(self._ids(t, split) for t in both) for both in zip(text, pairs, strict=True)]

    def _ids(self, text, split: bool) -> list[int] | None:
        if text is None:
            return None
        words = text if split and not isinstance(text, str) else [text]
        return [self.vocab[token] for word in words for token in self.tokenize(word)]

    def _strategies(self, padding, truncation, max_length) -> tuple:
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
        return padding, truncation, limit

    def _row(
        self, a: list[int], b: list[int] | None, special: bool, truncation: str | None, limit: int
    ) -> tuple:
        """(ids, token types, special tokens mask) of one example."""
        added = (2 if b is None else 3) if special else 0
        if truncation and len(a) + len(b or []) + added > limit:
            a, b = truncate(a, b, limit - added, truncation, limit)
        second = b or []
        if not special:
            return a + second, [0] * len(a + second), [0] * len(a + second)
        ids, types, mask = (
            [self.cls_token_id, *a, self.sep_token_id],
            [0] * (len(a) + 2),
            [1, *[0] * len(a), 1],
        )
        if b is not None:
            ids, types, mask = (
                [*ids, *b, self.sep_token_id],
                types + [1] * (len(b) + 1),
                [*mask, *[0] * len(b), 1],
            )
        return ids, types, mask

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
        batch = Batch({name: list(map(list, rows)) for name, rows in encoded_inputs.items()})
        lengths = [len(row) for row in batch["input_ids"]]
        if return_attention_mask is not False:
            batch.setdefault("attention_mask", [[1] * length for length in lengths])
        padding = PADDING.get(padding, padding)
        width = (
            max(lengths)
            if padding == "longest"
            else self.model_max_length
            if max_length is None
            else max_length
        )
        if pad_to_multiple_of:
            width = -(-width // pad_to_multiple_of) * pad_to_multiple_of
        fill = {
            "input_ids": self.pad_token_id,
            "token_type_ids": 0,
            "attention_mask": 0,
            "special_tokens_mask": 1,
        }
        for name in batch if padding else ():
            batch[name] = [row + [fill[name]] * (width - len(row)) for row in batch[name]]
        return batch if return_tensors is None else as_tensors(batch, return_tensors)

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
        for key, only in {
            "do_basic_tokenize": True,
            "padding_side": "right",
            "truncation_side": "right",
        }.items():
            if config.get(key, only) != only:
                raise ValueError(f"{config_file}: {key}={config[key]!r} is not supported, only {only!r}")
        options = {key: config[key] for key in cls(SPECIAL_TOKENS).options if config.get(key) is not None}
        for key, value in options.items():
            if isinstance(value, dict):  # an AddedToken
                options[key] = value["content"]
        return cls(vocab_file, **options | overrides)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write vocab.txt, tokenizer_config.json and special_tokens_map.json, each atomically."""
        text = "".join(f"{token}\n" for token in self.vocab)
        vocab_file = Path(folder) / "vocab.txt"
        write_atomically(vocab_file, lambda file: file.write_text(text, encoding="utf-8", newline="\n"))
        config = {**self.options, "tokenizer_class": "BertTokenizer"}
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
        tokens = [*special, *alphabet, *("##" + c for c in alphabet if len(tokenizer.words("a" + c)) == 1)]
        if len(tokens) > vocab_size:
            found = f"{len(special)} special tokens and {len(tokens) - len(special)} letters"
            raise ValueError(f"vocab_size={vocab_size} is too small for the {found} of these texts")
        known = {word: times for word, times in words.items() if letters.keys() & set(word) <= set(alphabet)}
        pieces = learn_pieces(known, vocab_size - len(tokens), min_frequency)
        return cls(tokens + pieces, **options)


def truncate(a: list[int], b: list[int] | None, room: int, strategy: str, limit: int) -> tuple:
    """`a` and `b` cut from the right until they have `room` ids together.

    longest_first takes from the longer one, an id at a time; from `b` where they are equal.

    >>> truncate([1, 2, 3, 4], [5, 6, 7], 4, "longest_first", limit=7)
    ([1, 2], [5, 6])
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


def as_tensors(batch: Batch, kind: str) -> Batch:
    """Lists (B, T) → torch ("pt") or numpy ("np") int64, (B, T)."""
    if kind not in ("pt", "np"):
        raise ValueError(f"return_tensors={kind!r} is not one of 'pt', 'np'")
    if len({len(row) for row in batch["input_ids"]}) > 1:
        raise ValueError("the texts differ in length, so they make no tensor: use padding=True")
    make = torch.tensor if kind == "pt" else np.array
    return Batch(
        {name: make(rows, dtype=torch.int64 if kind == "pt" else np.int64) for name, rows in batch.items()}
    )
