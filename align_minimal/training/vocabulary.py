"""How a vocabulary of word pieces is learnt from texts; the paper learns its own from the alt-texts (4.1).

Every word starts as its letters. Again and again, the pair of neighbours with the highest score becomes one
piece. The score is the usual one for WordPiece (Schuster & Nakajima 2012); Google's own trainer was never
released. BertTokenizer.train (tokenizer.py) calls `learn_vocabulary`.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from ..wordpiece import MAX_WORD

Pair = tuple[str, str]


def merge(pieces: Sequence[str], pair: Pair) -> list[str]:
    """The pieces of a word with `pair` made one wherever it stands, from left to right.

    >>> merge(["h", "##u", "##g", "##s"], ("##u", "##g"))
    ['h', '##ug', '##s']
    """
    merged: list[str] = []
    first, second = pair
    for piece in pieces:
        if piece == second and merged and merged[-1] == first:
            merged[-1] += piece.removeprefix("##")
        else:
            merged.append(piece)
    return merged


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
    least = max(min_frequency, 1, share * max(pairs.values(), default=0))
    best, highest = None, 0.0
    for (a, b), times in pairs.items():
        if times >= least and (score := times / (pieces[a] * pieces[b])) > highest:
            best, highest = (a, b), score
    return best


class PairCounts:
    """How often each pair occurs, and where; numpy finds the frequent ones in a flat array of counts.

    Learning 4,000 pieces meets some 25,000 pairs, of which 450 are frequent: `best_pair` needs to look at no
    others. With all of them in a dictionary it took 6 times as long.

    >>> counts = PairCounts()
    >>> counts.count("hug", ["h", "##u", "##g"], times=10)
    >>> counts.count("hi", ["h", "##i"], times=1)
    >>> counts.frequent(share=0.25), counts.holders[0]
    ({('h', '##u'): 10, ('##u', '##g'): 10}, {'hug'})
    """

    def __init__(self):
        self.number: dict[Pair, int] = {}  # its place in the three lists
        self.pairs: list[Pair] = []  # in the order in which they were met
        self.holders: list[set] = []  # the words that hold the pair, or once did
        self.times = array("q")

    def count(self, word: Hashable, pieces: Sequence[str], times: int) -> None:
        """Count the pairs of a word so many times more."""
        number, counts, holders = self.number, self.times, self.holders
        for pair in pairwise(pieces):
            k = number.setdefault(pair, len(counts))
            if k == len(counts):
                self.pairs.append(pair)
                holders.append(set())
                counts.append(0)
            counts[k] += times
            holders[k].add(word)

    def recount(self, word: Hashable, before: Sequence[str], after: Sequence[str], times: int) -> None:
        """Count the pairs of `after` and no longer those of `before`, whose ends may be the same pieces."""
        start, end = 0, 1
        while before[start] == after[start]:
            start += 1
        while before[-end] == after[-end]:
            end += 1
        start = max(0, start - 1)  # the last piece that is the same has another neighbour
        for pair in pairwise(before[start : len(before) - end + 2]):
            self.times[self.number[pair]] -= times
        self.count(word, after[start : len(after) - end + 2], times)

    def frequent(self, share: float) -> dict[Pair, int]:
        """The pairs that occur at least `share` times as often as the most frequent one, and their counts."""
        times = np.asarray(self.times)  # (P,), the same memory
        least = math.ceil(max(1, share * times.max(initial=0)))  # whole numbers are compared twice as fast
        numbers = np.nonzero(times >= least)[0].tolist()
        return {self.pairs[k]: self.times[k] for k in numbers}


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
    names = sorted(sorted(words), key=words.__getitem__, reverse=True)
    spelling = [[word[0], *("##" + letter for letter in word[1:])] for word in names]
    pieces: dict[str, int] = {}  # how often each occurs; no Counter, which is slower to read
    pairs = PairCounts()
    for i, word in enumerate(names):
        pairs.count(i, spelling[i], words[word])
        for piece in spelling[i]:
            pieces[piece] = pieces.get(piece, 0) + words[word]
    learnt: dict[str, None] = {}  # a set that keeps its order
    while len(learnt) < number:
        best = best_pair(pairs.frequent(share), pieces, min_frequency, share)
        if best is None:
            break
        a, b = best
        ab = a + b.removeprefix("##")
        merges = 0
        holders = pairs.holders[pairs.number[best]]
        for i in sorted(holders):  # only these words change
            merged, times = merge(spelling[i], best), words[names[i]]
            if found := len(spelling[i]) - len(merged):
                pairs.recount(i, spelling[i], merged, times)
                spelling[i] = merged
                merges += found * times
        holders.clear()
        pieces[a] -= merges
        pieces[b] -= merges
        pieces[ab] = pieces.get(ab, 0) + merges
        learnt[ab] = None
    return list(learnt)


def learn_vocabulary(
    texts: Iterable[str],
    words_of: Callable[[str], list[str]],
    special: Sequence[str],
    vocab_size: int,
    min_frequency: int = 2,
    limit_alphabet: int = 1000,
) -> list[str]:
    """At most `vocab_size` tokens: the special ones, the letters, and the pieces merged from them.

    `words_of` cuts a text into words, as BertTokenizer.words does. Each of the `limit_alphabet` most frequent
    letters stands in the vocabulary as the start and as the inside of a word (but what is always a word of
    its own, as punctuation is, only as a start), so that any word made of them can be encoded. ValueError if
    the letters do not fit, TypeError if `texts` is one text.

    >>> learn_vocabulary(["ab ab ac"] * 3, str.split, ["[UNK]"], vocab_size=8)
    ['[UNK]', 'a', 'b', 'c', '##a', '##b', '##c', 'ab']
    """
    if isinstance(texts, str):
        raise TypeError("texts must be several texts, not one str")
    words = Counter(word for text in texts for word in words_of(text) if len(word) <= MAX_WORD)
    if not words:
        raise ValueError("texts hold no words to learn a vocabulary from")
    letters: Counter[str] = Counter()
    for word, times in words.items():
        letters.update({letter: times * word.count(letter) for letter in set(word)})
    alphabet = sorted(letters, key=lambda letter: (-letters[letter], letter))[:limit_alphabet]
    inside = ["##" + letter for letter in alphabet if len(words_of("a" + letter)) == 1]  # 中 is always a word
    tokens = [*special, *alphabet, *inside]
    if len(tokens) > vocab_size:
        found = f"{len(special)} special tokens, {len(alphabet)} letters and {len(inside)} inside words"
        raise ValueError(f"vocab_size={vocab_size} is too small: the texts have {found}")
    dropped = letters.keys() - alphabet
    known = {word: times for word, times in words.items() if dropped.isdisjoint(word)}
    return list(dict.fromkeys(tokens + learn_pieces(known, vocab_size - len(tokens), min_frequency)))
