"""WordPiece: what a word is, how it is cut into pieces, and how a vocabulary of pieces is learnt.

A text becomes pieces in four small functions; BertTokenizer (tokenizer.py) calls them:

    lower        character by character, where do_lower_case is set
    clean        drop control characters, make every white space a space, set Chinese characters apart
    split_words  split on white space, strip accents, make each punctuation mark a word of its own
    wordpiece    cut a word into the longest pieces that the vocabulary has

They follow the slow BertTokenizer of transformers 4.37.2 on any Unicode text; what is a mark or punctuation
is `unicodedata`'s answer, as there. The vocabulary is learnt as the paper's is (section 5: 100k wordpieces
from the alt-texts), by the usual score (Schuster & Nakajima 2012); Google's own trainer was never released.
"""

from __future__ import annotations

import string
import unicodedata
from array import array
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np

MAX_WORD = 100  # characters; a longer word is [UNK]
CHINESE = (  # first and last code point of the blocks whose characters are words
    *((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F)),
    *((0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)),
)


class CharacterMap(dict):
    """A table for str.translate that asks `rule(character)` once for each character it meets.

    >>> "cat".translate(CharacterMap(lambda c: "" if c == "a" else c.upper()))
    'CT'
    """

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
    unwanted = category[0] == "C" or c == "\ufffd"  # C: control, format, private, unassigned, surrogate
    return "" if unwanted else c


def _cleaned_and_spaced(c: str) -> str:
    kept = _cleaned(c)
    return f" {kept} " if kept and any(first <= ord(c) <= last for first, last in CHINESE) else kept


def _is_punctuation(c: str) -> bool:
    # string.punctuation has ASCII's symbols too: $ + < = > ^ ` | ~
    return c in string.punctuation or unicodedata.category(c)[0] == "P"


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
        if word.isascii() and word.isalnum():  # as most are: nothing to strip, nothing to split
            words.append(word)
            continue
        if strip_accents and word not in special:
            word = unicodedata.normalize("NFD", word).translate(DROP_MARKS)
        # Cleaning and stripping may have uncovered a special token, as in "[S\0EP]".
        words += [word] if word in special else word.translate(SPACE_PUNCTUATION).split()
    return words


def wordpiece(word: str, vocab: Mapping[str, int], unk_token: str = "[UNK]") -> list[str]:
    """The longest piece that starts the word, then the longest "##" piece that starts the rest, and so on.

    One `unk_token` if no piece starts some rest, or if the word has more than MAX_WORD characters.

    >>> wordpiece("abcdefz", {"a": 0, "ab": 1, "##cd": 2, "##efz": 3, "abcdefg": 4})
    ['ab', '##cd', '##efz']
    """
    if len(word) > MAX_WORD:
        return [unk_token]
    pieces, mark, rest = [], "", word
    while rest:
        rest = mark + rest
        for end in range(len(rest), len(mark), -1):
            if rest[:end] in vocab:
                break
        else:
            return [unk_token]
        pieces.append(rest[:end])
        mark, rest = "##", rest[end:]
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

    >>> pairs = PairCounts({"at": 5, "an": 1, "qu": 2})
    >>> pairs.merge(pairs.best(min_frequency=1, share=0))  # q and u occur only together
    'qu'
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
