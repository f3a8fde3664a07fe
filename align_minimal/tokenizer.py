"""Text to ids: BERT's tokenizer, and the training of its vocabulary (paper 4.1, Setup: 100k wordpieces).

A text passes through four small functions, in this order:

    lower        character by character, where do_lower_case is set; special tokens such as [SEP] stay as they are
    clean        drop control characters, make every white space a space, set Chinese characters apart
    split_words  split on white space, strip accents, make each punctuation mark a word of its own
    wordpiece    cut a word into the longest pieces that the vocabulary has

The ids are those of Hugging Face's slow `BertTokenizer` 4.37.2 on any Unicode text. Which characters are letters,
marks or punctuation is taken from `unicodedata`, so from the Unicode version of the running Python, as there.

But: no tokens beyond the vocabulary and the five special ones, padding and truncation on the right side only,
no strides, overflowing tokens or character offsets. A word is looked up once and remembered.
"""

from __future__ import annotations

import re
import string
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from . import hub
from .outputs import Batch

MAX_WORD = 100  # characters; a longer word is [UNK]
MAX_CACHE = 2**16  # words remembered
NO_LIMIT = int(1e30)  # Hugging Face's model_max_length where there is none
CHINESE = "\u4e00\u9fff \u3400\u4dbf \U00020000\U0002a6df \U0002a700\U0002b73f \U0002b740\U0002b81f \U0002b820\U0002ceaf \uf900\ufaff \U0002f800\U0002fa1f"  # fmt: skip # noqa: E501
PADDING = {False: None, "do_not_pad": None, True: "longest", "longest": "longest", "max_length": "max_length"}
TRUNCATION = {None: None, False: None, "do_not_truncate": None, True: "longest_first"}
TRUNCATION |= {name: name for name in ("longest_first", "only_first", "only_second")}
ROLES = ("unk", "sep", "pad", "cls", "mask")


# ---- characters ----------------------------------------------------------------------------------------------


class CharacterTable(dict):
    """For `str.translate`: asks `rule` what becomes of a character when it is first met, and remembers."""

    def __init__(self, rule: Callable[[str], str]):
        super().__init__()
        self.rule = rule

    def __missing__(self, code: int) -> str:
        self[code] = self.rule(chr(code))
        return self[code]


def _cleaned(char: str) -> str:
    if char in "\t\n\r" or unicodedata.category(char) == "Zs":
        return " "
    return "" if char == "\ufffd" or unicodedata.category(char)[0] == "C" else char


def _cleaned_chinese(char: str) -> str:
    return f" {char} " if any(first <= char <= last for first, last in CHINESE.split()) else _cleaned(char)


def _isolated(char: str) -> str:
    return f" {char} " if char in string.punctuation or unicodedata.category(char)[0] == "P" else char


CLEAN = CharacterTable(_cleaned)
CLEAN_CHINESE = CharacterTable(_cleaned_chinese)
STRIP_ACCENTS = CharacterTable(lambda char: "" if unicodedata.category(char) == "Mn" else char)
ISOLATE_PUNCTUATION = CharacterTable(_isolated)


# ---- the four steps ------------------------------------------------------------------------------------------


def lower(text: str) -> str:
    """Lower-case each character by itself: only capital sigma depends on its neighbours in Python's `lower`.

    >>> lower("ΟΔΟΣ"), "ΟΔΟΣ".lower()
    ('οδοσ', 'οδος')
    """
    return text.replace("Σ", "σ").lower()


def clean(text: str, tokenize_chinese_chars: bool = True) -> str:
    """Drop control characters, make white space a space, surround Chinese characters by spaces; then NFC.

    >>> clean("a\\x00b\\tc中d")
    'ab c 中 d'
    """
    return unicodedata.normalize("NFC", text.translate(CLEAN_CHINESE if tokenize_chinese_chars else CLEAN))


def split_words(text: str, strip_accents: bool, special: Iterable[str] = ()) -> list[str]:
    """Split clean text into words and punctuation marks; a word in `special` stays whole.

    >>> split_words("un café, [SEP]", strip_accents=True, special=["[SEP]"])
    ['un', 'cafe', ',', '[SEP]']
    """
    words = []
    for word in text.split():
        if word in special:
            words.append(word)
            continue
        if strip_accents:
            word = unicodedata.normalize("NFD", word).translate(STRIP_ACCENTS)
        words += word.translate(ISOLATE_PUNCTUATION).split()
    return words


def wordpiece(word: str, vocab: Mapping[str, int], unk_token: str = "[UNK]") -> list[str]:
    """Cut `word` greedily into the longest pieces in `vocab`; a piece inside a word is written with ##.

    A word with a rest that no piece matches, or over 100 characters long, is one `unk_token`.

    >>> wordpiece("abcdefz", {"a": 0, "ab": 1, "##cd": 2, "##efz": 3, "abcdefg": 4})
    ['ab', '##cd', '##efz']
    """
    if len(word) > MAX_WORD:
        return [unk_token]
    pieces, start = [], 0
    while start < len(word):
        for end in range(len(word), start, -1):
            piece = word[start:end] if start == 0 else "##" + word[start:end]
            if piece in vocab:
                break
        else:
            return [unk_token]
        pieces.append(piece)
        start = end
    return pieces


# ---- training ------------------------------------------------------------------------------------------------


def learn_pieces(word_counts: Mapping[str, int], number: int, min_frequency: int = 2) -> list[str]:
    """At most `number` pieces, merged from the letters of the words in the order of their usefulness.

    The pair of neighbouring pieces with the highest freq(ab) / (freq(a)·freq(b)) is merged, again and again.
    Pairs that occur fewer than `min_frequency` times are left alone.

    >>> learn_pieces({"hug": 10, "pug": 5, "pun": 12, "bun": 4, "hugs": 5}, 3)
    ['##gs', 'pu', 'hu']
    """
    words = sorted(word_counts, key=lambda word: (-word_counts[word], word))
    names: list[str] = []  # of each piece
    index: dict = {}  # name of a piece, or pair of pieces → its number
    splits = []
    for word in words:
        splits.append([])
        for position, letter in enumerate(word):
            name = letter if position == 0 else "##" + letter
            if name not in index:
                index[name] = len(names)
                names.append(name)
            splits[-1].append(index[name])
    frequency = np.zeros(len(names) + number)  # of each piece
    pairs: list[tuple[int, int]] = []
    where: list[set[int]] = []  # the words that hold a pair
    left, right, together = np.zeros((3, 1024), dtype=np.int64)

    def count(w: int, sign: int):
        nonlocal left, right, together
        times = sign * word_counts[words[w]]
        for piece in splits[w]:
            frequency[piece] += times
        for pair in zip(splits[w], splits[w][1:]):
            k = index.setdefault(pair, len(pairs))
            if k == len(pairs):
                pairs.append(pair)
                where.append(set())
                if k == len(left):
                    left, right, together = (
                        np.concatenate([x, np.zeros_like(x)]) for x in (left, right, together)
                    )
                left[k], right[k] = pair
            together[k] += times
            where[k].add(w)

    for w in range(len(words)):
        count(w, +1)
    learnt = []
    while len(learnt) < number:
        n = len(pairs)
        score = together[:n] / np.maximum(frequency[left[:n]] * frequency[right[:n]], 1)
        score[together[:n] < min_frequency] = 0
        best = int(score.argmax()) if n else 0
        if n == 0 or score[best] == 0:
            break
        pair = pairs[best]
        name = names[pair[0]] + names[pair[1]].removeprefix("##")
        if name not in index:
            index[name] = len(names)
            names.append(name)
            learnt.append(name)
        for w in sorted(where[best]):
            count(w, -1)
            splits[w] = _merge(splits[w], pair, index[name])
            count(w, +1)
        where[best].clear()
    return learnt


def _merge(split: list[int], pair: tuple[int, int], merged: int) -> list[int]:
    result: list[int] = []
    for piece in split:
        if result and (result[-1], piece) == pair:
            result[-1] = merged
        else:
            result.append(piece)
    return result


# ---- the tokenizer -------------------------------------------------------------------------------------------


class BertTokenizer:
    """Texts to ids and back.

    `vocab_file` is a path (UTF-8, one token a line, the id is the line number from 0) or the tokens themselves.

    >>> tokenizer = BertTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "##s"])
    >>> tokenizer.tokenize("A cats!")
    ['a', 'cat', '##s', '[UNK]']
    >>> tokenizer(["a cat", "cats"], padding=True).input_ids
    [[2, 5, 6, 3], [2, 6, 7, 3]]
    >>> tokenizer.decode([2, 6, 7, 3], skip_special_tokens=True)
    'cats'
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
        tokens = read_vocabulary(vocab_file) if isinstance(vocab_file, (str, Path)) else list(vocab_file)
        source = vocab_file if isinstance(vocab_file, (str, Path)) else "vocabulary"
        self.vocab = {token: index for index, token in enumerate(tokens)}
        if len(self.vocab) < len(tokens):
            twice = next(token for token, times in Counter(tokens).items() if times > 1)
            raise ValueError(f"{source}: the token {twice!r} stands there more than once")
        self.ids_to_tokens = dict(enumerate(tokens))
        self.do_lower_case, self.strip_accents = do_lower_case, strip_accents
        self.tokenize_chinese_chars = tokenize_chinese_chars
        self.model_max_length = NO_LIMIT if model_max_length is None else int(model_max_length)
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces
        self.unk_token, self.sep_token, self.pad_token = unk_token, sep_token, pad_token
        self.cls_token, self.mask_token = cls_token, mask_token
        self.all_special_tokens = list(
            dict.fromkeys([unk_token, sep_token, pad_token, cls_token, mask_token])
        )
        for role in ROLES:
            token = getattr(self, f"{role}_token")
            if token not in self.vocab:
                raise ValueError(
                    f"{source}: no {token} among its {len(tokens)} tokens (needed as {role}_token)"
                )
            setattr(self, f"{role}_token_id", self.vocab[token])
        self.all_special_ids = [self.vocab[token] for token in self.all_special_tokens]
        longest_first = sorted(self.all_special_tokens, key=len, reverse=True)
        self._special = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self._pieces_of: dict[str, list[str]] = {}

    @property
    def vocab_size(self) -> int:
        return len(self.vocab)

    def __len__(self) -> int:
        return len(self.vocab)

    def get_vocab(self) -> dict[str, int]:
        return dict(self.vocab)

    # ---- text to ids -----------------------------------------------------------------------------------------

    def words(self, text: str) -> list[str]:
        """The words of `text` before they are cut into pieces: lowered, cleaned, split."""
        words = []
        for part in self._parts(text):
            strip = self.do_lower_case if self.strip_accents is None else self.strip_accents
            words += (
                [part]
                if part in self.all_special_tokens
                else split_words(clean(part, self.tokenize_chinese_chars), strip, self.all_special_tokens)
            )
        return words

    def _parts(self, text: str) -> list[str]:
        """`text` lowered and cut around the special tokens in it: the odd entries are special tokens."""
        if not isinstance(text, str):
            raise TypeError(f"a text must be a str, not {type(text).__name__}: {text!r:.60}")
        if self.do_lower_case:
            parts = self._special.split(text)
            parts[::2] = map(lower, parts[::2])
            text = "".join(parts)
        return self._special.split(text)

    def tokenize(self, text: str) -> list[str]:
        """The pieces of `text`, without [CLS] and [SEP] around them."""
        pieces: list[str] = []
        for position, part in enumerate(self._parts(text)):
            if position % 2:
                pieces.append(part)
                continue
            for word in clean(part, self.tokenize_chinese_chars).split():
                pieces += self._pieces_of.get(word) or self._cut(word)
        return pieces

    def _cut(self, word: str) -> list[str]:
        """The pieces of a word that has not been met lately."""
        strip = self.do_lower_case if self.strip_accents is None else self.strip_accents
        pieces: list[str] = []
        for part in split_words(word, strip, self.all_special_tokens):
            pieces += wordpiece(part, self.vocab, self.unk_token)
        if len(self._pieces_of) >= MAX_CACHE:
            self._pieces_of.clear()
        self._pieces_of[word] = pieces
        return pieces

    def __call__(
        self,
        text,
        text_pair=None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        return_tensors: str | None = None,
        is_split_into_words: bool = False,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_special_tokens_mask: bool = False,
        return_length: bool = False,
        pad_to_multiple_of: int | None = None,
    ) -> Batch:
        batched, pairs = self._examples(text, text_pair, is_split_into_words)
        padding, truncation, max_length = self._lengths(padding, truncation, max_length, pad_to_multiple_of)
        rows = []
        for first, second in pairs:
            if truncation:
                first, second = self._truncate(
                    first, second, truncation, max_length, 2 + (second is not None)
                )
            rows.append(self._row(first, second, add_special_tokens))
        batch = {name: [row[name] for row in rows] for name in rows[0]}
        if return_token_type_ids is False:
            del batch["token_type_ids"]
        if not return_special_tokens_mask:
            del batch["special_tokens_mask"]
        lengths = [len(ids) for ids in batch["input_ids"]]
        batch = self.pad(batch, padding or False, max_length, pad_to_multiple_of, return_attention_mask)
        if return_length:
            batch["length"] = lengths if batched else [len(batch["input_ids"][0])]
        if return_tensors is None and not batched:
            return Batch(**{name: column[0] for name, column in batch.items()})
        return _to_tensors(batch, return_tensors)

    def _examples(self, text, text_pair, split: bool):
        """(whether it is a batch, [(ids, ids of the second text or None), …])"""
        batched = isinstance(text, (list, tuple)) and (
            not split or not text or isinstance(text[0], (list, tuple))
        )
        if not batched:
            text, text_pair = [text], None if text_pair is None else [text_pair]
        if len(text) == 0:
            raise ValueError("text: an empty list, nothing to encode")
        if text_pair is None:
            pairs = [(t, None) if split or not isinstance(t, (list, tuple)) else tuple(t) for t in text]
        elif isinstance(text_pair, str) or len(text_pair) != len(text):
            raise ValueError(f"text_pair: must be a list of {len(text)} texts, as many as text has")
        else:
            pairs = list(zip(text, text_pair))
        return batched, [(self._ids(a, split), None if b is None else self._ids(b, split)) for a, b in pairs]

    def _ids(self, text, split: bool) -> list[int]:
        if split:
            return [i for word in text for i in self._ids(word, False)]
        return [self.vocab[piece] for piece in self.tokenize(text)]

    def _lengths(self, padding, truncation, max_length, multiple):
        if max_length is not None and padding is False and truncation is None:
            truncation = True
        if padding not in PADDING:
            raise ValueError(f"padding={padding!r}: must be one of {list(PADDING)}")
        if truncation not in TRUNCATION:
            raise ValueError(f"truncation={truncation!r}: must be one of {list(TRUNCATION)}")
        padding, truncation = PADDING[padding], TRUNCATION[truncation]
        if max_length is None and (padding == "max_length" or truncation):
            if self.model_max_length < NO_LIMIT:
                max_length = self.model_max_length
            else:
                warnings.warn(
                    "neither max_length nor model_max_length is set: no padding or truncation", stacklevel=3
                )
                padding, truncation = None if padding == "max_length" else padding, None
        return padding, truncation, max_length

    def _truncate(self, first, second, strategy, max_length, special):
        excess = len(first) + len(second or []) + special - max_length
        if excess <= 0:
            return first, second
        a, b = len(first), len(second or [])
        if strategy == "only_first" or second is None:
            from_a, from_b = excess, 0
        elif strategy == "only_second":
            from_a, from_b = 0, excess
        else:
            level = min(abs(a - b), excess)
            rest = excess - level
            from_a, from_b = (
                (level + rest // 2, rest - rest // 2) if a > b else (rest // 2, level + rest - rest // 2)
            )
        return first[: a - from_a], second if second is None else second[: b - from_b]

    def _row(self, first: list[int], second: list[int] | None, special: bool) -> dict[str, list[int]]:
        if not special:
            ids = first + (second or [])
            return {"input_ids": ids, "token_type_ids": [0] * len(ids), "special_tokens_mask": [0] * len(ids)}
        ids = [self.cls_token_id, *first, self.sep_token_id]
        types, mask = [0] * len(ids), [1] + [0] * len(first) + [1]
        if second is not None:
            ids += [*second, self.sep_token_id]
            types += [1] * (len(second) + 1)
            mask += [0] * len(second) + [1]
        return {"input_ids": ids, "token_type_ids": types, "special_tokens_mask": mask}

    def pad(
        self,
        encoded_inputs,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
    ) -> Batch:
        """Pad the rows of a batch to one length."""
        padding = PADDING[padding]
        batch = dict(encoded_inputs)
        rows = batch["input_ids"]
        if return_attention_mask is not False and "attention_mask" not in batch:
            batch["attention_mask"] = [[1] * len(row) for row in rows]
        if padding:
            target = max(map(len, rows)) if padding == "longest" else max_length
            if pad_to_multiple_of:
                target = -(-target // pad_to_multiple_of) * pad_to_multiple_of
            fill = {
                "input_ids": self.pad_token_id,
                "special_tokens_mask": 1,
                "token_type_ids": 0,
                "attention_mask": 0,
            }
            for name in batch.keys() & fill.keys():
                batch[name] = [row + [fill[name]] * (target - len(row)) for row in batch[name]]
        return _to_tensors(Batch(**batch), return_tensors)

    def encode(self, text: str, text_pair: str | None = None, **options) -> list[int]:
        """The ids alone; the options are those of a call."""
        return self(text, text_pair, **options).input_ids

    # ---- ids to text -----------------------------------------------------------------------------------------

    def convert_tokens_to_ids(self, tokens):
        """The id of a token, or the ids of several; the id of [UNK] for a token that is not in the vocabulary."""
        if tokens is None or isinstance(tokens, str):
            return None if tokens is None else self.vocab.get(tokens, self.unk_token_id)
        return [self.vocab.get(token, self.unk_token_id) for token in tokens]

    def convert_ids_to_tokens(self, ids, skip_special_tokens: bool = False):
        """The token of an id, or the tokens of several; [UNK] for an id outside the vocabulary."""
        ids = ids.tolist() if hasattr(ids, "tolist") else ids
        if isinstance(ids, int):
            return self.ids_to_tokens.get(ids, self.unk_token)
        ids = [int(i) for i in ids]
        skip = self.all_special_ids if skip_special_tokens else ()
        return [self.ids_to_tokens.get(i, self.unk_token) for i in ids if i not in skip]

    def decode(self, token_ids, skip_special_tokens: bool = False, clean_up_tokenization_spaces=None) -> str:
        """The text of some ids."""
        tokens = self.convert_ids_to_tokens(token_ids, skip_special_tokens)
        text = " ".join([tokens] if isinstance(tokens, str) else tokens).replace(" ##", "").strip()
        tidy = (
            self.clean_up_tokenization_spaces
            if clean_up_tokenization_spaces is None
            else clean_up_tokenization_spaces
        )  # noqa: E501
        if tidy:
            for mark in (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"):
                text = text.replace(mark, mark.strip())
        return text

    def batch_decode(self, sequences, skip_special_tokens: bool = False, clean_up_tokenization_spaces=None):
        """The texts of several rows of ids."""
        return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in sequences]

    # ---- files and training ----------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, name: str | Path, **overrides) -> BertTokenizer:
        """The tokenizer in a folder, or of a hub name: vocab.txt, and tokenizer_config.json where there is one."""
        vocab_file = hub.find_file(name, "vocab.txt")
        try:
            config = hub.read_json(hub.find_file(name, "tokenizer_config.json"))
        except FileNotFoundError:
            config = {}
        known = {key: config[key] for key in cls._OPTIONS if key in config}
        known |= {k: v["content"] for k, v in known.items() if isinstance(v, dict)}
        return cls(vocab_file, **{**known, **overrides})

    _OPTIONS = ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "model_max_length",
                "clean_up_tokenization_spaces", *(f"{role}_token" for role in ROLES))  # fmt: skip

    def save_pretrained(self, folder: str | Path) -> None:
        """Write vocab.txt, tokenizer_config.json and special_tokens_map.json."""
        text = "".join(token + "\n" for token in self.vocab)
        folder = Path(folder)
        hub.write_atomically(
            folder / "vocab.txt", lambda file: file.write_text(text, encoding="utf-8", newline="\n")
        )
        config = {key: getattr(self, key) for key in self._OPTIONS}
        hub.write_json(folder / "tokenizer_config.json", {**config, "tokenizer_class": "BertTokenizer"})
        special = {f"{role}_token": getattr(self, f"{role}_token") for role in ROLES}
        hub.write_json(folder / "special_tokens_map.json", special)

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        min_frequency: int = 2,
        limit_alphabet: int = 1000,
        **options,
    ) -> BertTokenizer:
        """A tokenizer with a vocabulary of at most `vocab_size` tokens, learnt from `texts`.

        Its first five tokens are [PAD], [UNK], [CLS], [SEP], [MASK]; then come the letters of the texts (the
        `limit_alphabet` most frequent), each as the start and the inside of a word, then pieces.
        """
        tokenizer = cls(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], **options)
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(tokenizer.words(text))
        counts = Counter({w: n for w, n in counts.items() if w not in tokenizer.vocab and len(w) <= MAX_WORD})
        letters: Counter[str] = Counter()
        for word, times in counts.items():
            for letter in word:
                letters[letter] += times
        alphabet = sorted(letters, key=lambda letter: (-letters[letter], letter))[:limit_alphabet]
        inside = ["##" + letter for letter in alphabet if len(tokenizer.words("a" + letter)) == 1]
        tokens = [*tokenizer.vocab, *alphabet, *inside]
        if len(tokens) > vocab_size:
            raise ValueError(
                f"vocab_size={vocab_size}: too small for the {len(tokens)} special tokens and letters"
            )
        kept = {word: times for word, times in counts.items() if set(word) <= set(alphabet)}
        return cls(tokens + learn_pieces(kept, vocab_size - len(tokens), min_frequency), **options)


def read_vocabulary(path: str | Path) -> list[str]:
    """The tokens in a vocabulary file, one a line."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such vocabulary file")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error})") from None
    if not text.strip():
        raise ValueError(f"{path}: an empty vocabulary file")
    return text.removesuffix("\n").split("\n")


def _to_tensors(batch: Batch, kind: str | None) -> Batch:
    if kind not in (None, "pt", "np"):
        raise ValueError(f"return_tensors={kind!r}: must be 'pt', 'np' or None")
    if kind is None:
        return batch
    if len({len(row) for row in batch["input_ids"]}) > 1:
        raise ValueError("the texts have different lengths in tokens: use padding=True for tensors")
    return Batch(
        **{k: torch.tensor(v) if kind == "pt" else np.array(v, dtype=np.int64) for k, v in batch.items()}
    )
