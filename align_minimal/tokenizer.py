"""WordPiece: text → pieces → ids, and back (BERT's tokenizer; vocabulary trained as in ALIGN, 4.1).

    clean → lower-case → split at spaces and punctuation → greedy longest match in the vocabulary

Follows the slow BertTokenizer of transformers 4.37.2, id for id, on any Unicode text.
But: no offsets, no overflowing windows, no left padding.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from .hub import find_file, read_json, write_atomically, write_json
from .outputs import Batch

UNLIMITED = int(1e30)  # what the reference writes for "no model_max_length"
MAX_WORD = 100  # a longer word is [UNK]
CJK = (  # ideographs are words of their own
    *((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F)),
    *((0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)),
)
PUNCTUATION = set("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")  # ASCII, symbols included
CLEAN_UP = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"))
CLEAN_UP += ((" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"))


class CharacterMap(dict):
    """A table for str.translate that asks `rule(character)` once for each character it meets."""

    def __init__(self, rule):
        super().__init__()
        self.rule = rule

    def __missing__(self, code: int) -> str:
        self[code] = self.rule(chr(code))
        return self[code]


def clean_character(c: str) -> str:
    """Space for white space; nothing for control, private, unassigned and broken characters; else `c`."""
    category = unicodedata.category(c)
    if c in "\t\n\r" or category == "Zs":
        return " "
    return "" if category[0] == "C" or c == "\ufffd" else c


def space_ideograph(c: str) -> str:
    """clean_character, and spaces around what is left of a CJK ideograph."""
    kept = clean_character(c)  # an unassigned code point inside the ranges is dropped
    return f" {kept} " if kept and any(low <= ord(c) <= high for low, high in CJK) else kept


def space_punctuation(c: str) -> str:
    """`c`, between spaces if it is punctuation: ASCII's symbols, and Unicode's categories P*."""
    return f" {c} " if c in PUNCTUATION or unicodedata.category(c)[0] == "P" else c


CLEAN, CLEAN_CJK = CharacterMap(clean_character), CharacterMap(space_ideograph)
SPLIT = CharacterMap(space_punctuation)
DROP_MARKS = CharacterMap(lambda c: "" if unicodedata.category(c) == "Mn" else c)


def wordpiece(word: str, vocab: dict[str, int], unk_token: str = "[UNK]") -> list[str]:
    """The longest piece that starts the word, then the longest "##" piece that starts the rest, and so on.

    One [UNK] if any rest has no piece, or the word is longer than MAX_WORD characters.

    >>> wordpiece("unhappily", {"un": 0, "##happi": 1, "##ly": 2, "##h": 3})
    ['un', '##happi', '##ly']
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


def train_wordpieces(words: Counter, size: int, min_frequency: int = 2) -> list[str]:
    """At most `size` pieces: every character seen, then merged pairs, best first.

    The best pair ab has the highest freq(ab) / (freq(a) · freq(b)): the two that are seen together most for
    how often they are seen at all (Schuster & Nakajima 2012). Pairs rarer than `min_frequency` are left
    alone, or the score would begin with misspellings. Ties go to the pair first in the alphabet.

    >>> train_wordpieces(Counter({"hug": 10, "pug": 5, "hugs": 5}), 7)
    ['##g', '##s', '##u', 'h', 'p', '##gs', '##ug']
    """
    spelled = {word: [word[0], *("##" + c for c in word[1:])] for word in words}
    pieces: Counter = Counter()
    pairs: Counter = Counter()
    where: dict[tuple[str, str], set[str]] = defaultdict(set)

    def count(word: str, sign: int) -> None:
        parts = spelled[word]
        for a in parts:
            pieces[a] += sign * words[word]
        for pair in pairwise(parts):
            pairs[pair] += sign * words[word]
            where[pair].add(word)

    for word in words:
        count(word, +1)
    alphabet = sorted(pieces, key=lambda p: (-pieces[p], p))[:size]
    vocabulary = dict.fromkeys(sorted(alphabet))
    while len(vocabulary) < size:
        candidates = [
            (n / (pieces[a] * pieces[b]), a, b) for (a, b), n in pairs.items() if n >= min_frequency
        ]
        if not candidates:
            break
        _, a, b = min(candidates, key=lambda c: (-c[0], c[1], c[2]))
        merged = a + b[2:]
        for word in where.pop((a, b)):
            count(word, -1)
            spelled[word] = merge_pair(spelled[word], a, b, merged)
            count(word, +1)
        vocabulary[merged] = None
    return list(vocabulary)


def merge_pair(parts: list[str], a: str, b: str, merged: str) -> list[str]:
    """`parts` with each a b replaced by `merged`, left to right."""
    result, i = [], 0
    while i < len(parts):
        pair = parts[i : i + 2] == [a, b]
        result.append(merged if pair else parts[i])
        i += 2 if pair else 1
    return result


def read_vocab(path: Path) -> dict[str, int]:
    """vocab.txt: one piece a line, the line number its id. ValueError naming file and line."""
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 (byte {error.start})") from None
    vocab: dict[str, int] = {}
    for number, line in enumerate(lines[: -1 if lines[-1] == "" else None]):
        piece = line.rstrip("\r")
        if piece in vocab:
            raise ValueError(f"{path}: line {number + 1} repeats {piece!r} of line {vocab[piece] + 1}")
        vocab[piece] = number
    if not vocab:
        raise ValueError(f"{path}: an empty vocabulary")
    return vocab


class BertTokenizer:
    """Texts → ids, token types and masks; ids → text.

    `vocab_file` holds a piece a line. strip_accents=None strips them where do_lower_case does.

    >>> tokenizer = BertTokenizer.train(["a red apple", "a red bus"] * 2, vocab_size=40)
    >>> tokenizer.tokenize("A red bus!")
    ['a', 'red', 'bus', '[UNK]']
    >>> tokenizer.decode(tokenizer("a red apple").input_ids)
    '[CLS] a red apple [SEP]'
    """

    model_input_names = ("input_ids", "token_type_ids", "attention_mask")

    def __init__(
        self,
        vocab_file: str | Path,
        do_lower_case: bool = True,
        strip_accents: bool | None = None,
        tokenize_chinese_chars: bool = True,
        model_max_length: int = UNLIMITED,
        unk_token: str = "[UNK]",
        sep_token: str = "[SEP]",
        pad_token: str = "[PAD]",
        cls_token: str = "[CLS]",
        mask_token: str = "[MASK]",
    ):
        if not Path(vocab_file).is_file():
            raise FileNotFoundError(f"{vocab_file}: no such vocabulary file")
        self._set_up(
            read_vocab(Path(vocab_file)),
            str(vocab_file),
            do_lower_case=do_lower_case,
            strip_accents=strip_accents,
            tokenize_chinese_chars=tokenize_chinese_chars,
            model_max_length=model_max_length,
            unk_token=unk_token,
            sep_token=sep_token,
            pad_token=pad_token,
            cls_token=cls_token,
            mask_token=mask_token,
        )

    def _set_up(self, vocab: dict[str, int], source: str, **options) -> None:
        self.vocab, self.options = vocab, options
        self.do_lower_case = options["do_lower_case"]
        self.model_max_length = options["model_max_length"]
        for name in ("unk", "sep", "pad", "cls", "mask"):
            token = options[f"{name}_token"]
            if token not in vocab:
                raise ValueError(f"{source}: no {token} in this vocabulary")
            setattr(self, f"{name}_token", token)
            setattr(self, f"{name}_token_id", vocab[token])
        self.all_special_tokens = [options[f"{n}_token"] for n in ("unk", "sep", "pad", "cls", "mask")]
        self.all_special_ids = [vocab[t] for t in self.all_special_tokens]
        self.pieces = {i: piece for piece, i in vocab.items()}
        self._special = re.compile("(" + "|".join(map(re.escape, self.all_special_tokens)) + ")")
        self._known: dict[str, list[str]] = {}  # word → pieces: natural text repeats its words

    # ---- text → pieces

    def split_words(self, text: str) -> list[str]:
        """Clean, normalize and split a text that holds no special token into words and punctuation."""
        text = text.translate(CLEAN_CJK if self.options["tokenize_chinese_chars"] else CLEAN)
        strip = self.options["strip_accents"]
        words: list[str] = []
        for word in unicodedata.normalize("NFC", text).split():
            if word in self.all_special_tokens:
                words.append(word)  # as in the reference: cleaning may have uncovered one
                continue
            if self.do_lower_case:
                word = word.lower()
            if strip or (strip is None and self.do_lower_case):
                word = unicodedata.normalize("NFD", word).translate(DROP_MARKS)
            words += word.translate(SPLIT).split()
        return words

    def tokenize(self, text: str) -> list[str]:
        """The pieces of a text; special tokens written in it stand for themselves."""
        if not isinstance(text, str):
            raise TypeError(f"a text must be a string, not {type(text).__name__}")
        tokens: list[str] = []
        for part in self._special.split(text):
            if part in self.all_special_tokens:
                tokens.append(part)
                continue
            if self.do_lower_case:  # character by character: a final Σ becomes σ, not ς
                part = "".join(map(str.lower, part))
            for word in self.split_words(part):
                tokens += self._pieces(word)
        return tokens

    def _pieces(self, word: str) -> list[str]:
        if word not in self._known:
            if len(self._known) > 100_000:
                self._known.clear()
            self._known[word] = wordpiece(word, self.vocab, self.unk_token)
        return self._known[word]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> int | list[int]:
        """One id, or a list; a token outside the vocabulary has [UNK]'s."""
        if isinstance(tokens, str):
            return self.vocab.get(tokens, self.unk_token_id)
        return [self.vocab.get(token, self.unk_token_id) for token in tokens]

    def convert_ids_to_tokens(self, ids: int | Iterable[int], skip_special_tokens: bool = False):
        """One token, or a list; an id outside the vocabulary is [UNK]."""
        if isinstance(ids, int):
            return self.pieces.get(ids, self.unk_token)
        skipped = self.all_special_ids if skip_special_tokens else ()
        return [self.pieces.get(int(i), self.unk_token) for i in ids if int(i) not in skipped]

    # ---- texts → batch

    def __call__(
        self,
        text: str | Sequence[str],
        text_pair: str | Sequence[str] | None = None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        return_tensors: str | None = None,
    ) -> Batch:
        """Encode a text, or a list of them: [CLS] text [SEP], and text_pair [SEP] after it.

        padding: False; True or "longest" (to the longest here); "max_length".
        truncation: True or "longest_first", "only_first", "only_second"; False; by default only where
        max_length is given and padding is not. return_tensors: None (lists), "pt" or "np", (B, T).
        → input_ids, token_type_ids (1 in the pair), attention_mask (0 on padding).
        """
        single = isinstance(text, str)
        texts = [text] if single else list(text)
        pairs = [None] * len(texts) if text_pair is None else [text_pair] if single else list(text_pair)
        if len(pairs) != len(texts):
            raise ValueError(f"text has {len(texts)} texts, text_pair {len(pairs)}")
        padding, truncation, limit = self._strategies(padding, truncation, max_length)
        rows = [
            self._encode(a, b, add_special_tokens, truncation, limit)
            for a, b in zip(texts, pairs, strict=True)
        ]
        if padding == "longest":
            limit = max((len(ids) for ids, _ in rows), default=0)
        batch = Batch(input_ids=[], token_type_ids=[], attention_mask=[])
        for ids, types in rows:
            missing = max(0, limit - len(ids)) if padding else 0
            batch["input_ids"].append(ids + [self.pad_token_id] * missing)
            batch["token_type_ids"].append(types + [0] * missing)
            batch["attention_mask"].append([1] * len(ids) + [0] * missing)
        if return_tensors is None:
            return Batch(**{name: rows[0] for name, rows in batch.items()}) if single else batch
        return self._as_tensors(batch, return_tensors)

    def _strategies(self, padding, truncation, max_length) -> tuple[str | None, str | None, int]:
        names = {True: "longest", "longest": "longest", "max_length": "max_length"}
        names |= {False: None, None: None, "do_not_pad": None}
        if padding not in names:
            raise ValueError(f"padding {padding!r} is not one of True, False, 'longest', 'max_length'")
        padding = names[padding]
        if truncation is None:
            truncation = max_length is not None and padding is None
        kinds = ("longest_first", "only_first", "only_second")
        if truncation not in (True, False, "do_not_truncate", *kinds):
            raise ValueError(f"truncation {truncation!r} is not one of True, False, {', '.join(kinds)}")
        truncation = {True: "longest_first", False: None, "do_not_truncate": None}.get(truncation, truncation)
        limit = self.model_max_length if max_length is None else max_length
        if limit >= UNLIMITED // 10**10:  # no limit known: nothing to pad or cut to
            padding = None if padding == "max_length" else padding
            truncation = None
        return padding, truncation, limit

    def _encode(self, text, pair, special: bool, truncation: str | None, limit: int):
        a = self.convert_tokens_to_ids(self.tokenize(text))
        b = None if pair is None else self.convert_tokens_to_ids(self.tokenize(pair))
        added = (2 if b is None else 3) if special else 0
        excess = len(a) + len(b or []) + added - limit
        if truncation and excess > 0:
            a, b = self._truncate(a, b, excess, truncation, limit)
        if special:
            a = [self.cls_token_id, *a, self.sep_token_id]
            b = None if b is None else [*b, self.sep_token_id]
        return a + (b or []), [0] * len(a) + [1] * len(b or [])

    def _truncate(self, a, b, excess: int, truncation: str, limit: int):
        if truncation == "longest_first":
            for _ in range(excess):
                if b is None or len(a) > len(b):
                    a = a[:-1]
                else:
                    b = b[:-1]
            return a, b
        cut = a if truncation == "only_first" else b
        if cut is None or len(cut) < excess:
            raise ValueError(f"truncation {truncation!r} cannot bring this text down to max_length {limit}")
        cut = cut[: len(cut) - excess]
        return (cut, b) if truncation == "only_first" else (a, cut)

    def _as_tensors(self, batch: Batch, kind: str) -> Batch:
        if kind not in ("pt", "np"):
            raise ValueError(f"return_tensors {kind!r} is not one of 'pt', 'np'")
        if len({len(row) for row in batch["input_ids"]}) > 1:
            raise ValueError("the texts differ in length, so they make no tensor: use padding=True")
        make = torch.tensor if kind == "pt" else np.array
        return Batch(**{name: make(rows) for name, rows in batch.items()})

    def encode(self, text: str, text_pair: str | None = None, **kwargs) -> list[int]:
        """The ids alone; arguments as in a call."""
        return self(text, text_pair, **kwargs)["input_ids"]

    # ---- ids → text

    def decode(
        self, ids, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool = True
    ) -> str:
        """The text of a sequence of ids: pieces joined, and spaces before punctuation dropped."""
        tokens = self.convert_ids_to_tokens(np.atleast_1d(np.asarray(ids)).tolist(), skip_special_tokens)
        text = " ".join(tokens).replace(" ##", "").strip()
        for found, better in CLEAN_UP if clean_up_tokenization_spaces else ():
            text = text.replace(found, better)
        return text

    def batch_decode(self, sequences, **kwargs) -> list[str]:
        """`decode` for each row."""
        return [self.decode(ids, **kwargs) for ids in sequences]

    # ---- files and training

    def __len__(self) -> int:
        return len(self.vocab)

    @property
    def vocab_size(self) -> int:
        return len(self.vocab)

    def get_vocab(self) -> dict[str, int]:
        return dict(self.vocab)

    @classmethod
    def from_pretrained(cls, dir_or_name: str | Path, **kwargs) -> BertTokenizer:
        """Read vocab.txt and, where there is one, tokenizer_config.json, of a folder or hub name."""
        path = find_file(dir_or_name, "vocab.txt")
        try:
            content = read_json(find_file(dir_or_name, "tokenizer_config.json"))
        except FileNotFoundError:
            content = {}
        names = ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "model_max_length")
        names += ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
        options = {name: content[name] for name in names if content.get(name) is not None}
        for name, value in options.items():
            if isinstance(value, dict):  # how old files spell a special token
                options[name] = value["content"]
        return cls(path, **options | kwargs)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write vocab.txt and tokenizer_config.json, each atomically."""
        text = "".join(f"{piece}\n" for piece in self.vocab)
        write_atomically(
            Path(directory) / "vocab.txt", lambda f: f.write_text(text, encoding="utf-8", newline="\n")
        )
        config = self.options | {"tokenizer_class": "BertTokenizer"}
        write_json(Path(directory) / "tokenizer_config.json", config)

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int, do_lower_case: bool = True, **options
    ) -> BertTokenizer:
        """A vocabulary of at most `vocab_size` pieces from the words of `texts` (see train_wordpieces)."""
        tokenizer = cls.__new__(cls)
        defaults = dict(strip_accents=None, tokenize_chinese_chars=True, model_max_length=UNLIMITED)
        defaults |= {f"{n}_token": f"[{n.upper()}]" for n in ("pad", "unk", "cls", "sep", "mask")}
        options = defaults | {"do_lower_case": do_lower_case} | options
        special = [options[f"{n}_token"] for n in ("pad", "unk", "cls", "sep", "mask")]
        if vocab_size <= len(special):
            raise ValueError(f"vocab_size must be above {len(special)}, not {vocab_size}")
        vocab = {token: i for i, token in enumerate(special)}
        tokenizer._set_up(vocab, "train", **options)
        words: Counter = Counter()
        for text in texts:
            words.update(tokenizer.split_words("".join(map(str.lower, text)) if do_lower_case else text))
        if not words:
            raise ValueError("no words to train on: the texts are empty")
        words = Counter({w: n for w, n in words.items() if len(w) <= MAX_WORD and w not in vocab})
        for piece in train_wordpieces(words, vocab_size - len(special)):
            vocab[piece] = len(vocab)
        tokenizer._set_up(vocab, "train", **options)
        return tokenizer
