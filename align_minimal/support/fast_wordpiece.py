"""`wordpiece` in time linear in the word's length: LinMaxMatch (Song et al. 2021, arXiv 2012.15524).

The plain function tries, for each piece, every end of the word. LinMaxMatch reads each letter once. It walks
through a tree whose states are the beginnings of tokens, one letter a step. With the vocabulary a, ab, ##cd,
##efz, abcdefg, the word "abcdefz" leads through the states

    a   ab   abc   abcd   abcde   abcdef

and from there z leads nowhere: no token begins with abcdefz. What now? The longest token that begins abcdef
is ab, so ab is the first piece. The rest, cdef, would have led to ##cd, the second piece, and on to the state
##ef. All this depends on abcdef alone, so it is worked out for every state when the vocabulary is known:

    state    rest: where to go on     passed: the pieces that are certain by then
    abcdef   ##ef                     ab, ##cd
    ##efz    ##                       ##efz
    abc      NOWHERE                  none: ab leaves c, which begins no piece, so the word is [UNK]

(The paper calls them failure links and failure pops.) From ##ef, z leads to ##efz; there the word ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

from ..wordpiece import MAX_WORD, wordpiece

START, INSIDE, NOWHERE = 0, 1, -1  # states: nothing is read yet of a first piece, or of a later one; none
PLAIN = 2_000_000  # squares of letters that FastWordPiece leaves to the plain function


class LinMaxMatch:
    """word → its pieces, those of `wordpiece` with this vocabulary.

    >>> cut = LinMaxMatch(["a", "ab", "##cd", "##efz", "abcdefg"], "[UNK]")
    >>> cut("abcdefz"), cut("abcx")
    (['ab', '##cd', '##efz'], ['[UNK]'])
    """

    def __init__(self, vocab: Iterable[str], unk_token: str):
        self.unk_token = unk_token
        self.after: list[dict[str, int]] = [{}, {}]  # of each state: letter → the next state
        self.token: dict[int, str] = {}  # a state → the token that is complete there
        for token in vocab:
            if len(token) > MAX_WORD + len("##"):
                continue  # no word that is cut is so long
            self._add(token, START, token)
            if token.startswith("##"):
                self._add(token[2:], INSIDE, token)
        self.rest = [NOWHERE] * len(self.after)
        self.passed: list[tuple[str, ...]] = [()] * len(self.after)
        states = [START, INSIDE]
        for state in states:  # the list grows meanwhile, in order of letters: long states build on short ones
            for letter, longer in self.after[state].items():
                states.append(longer)
                self._link(longer, state, letter)

    def _add(self, letters: str, state: int, token: str) -> None:
        """Add the states on the way of these letters, of which the last has the whole token."""
        for letter in letters:
            if letter not in self.after[state]:
                self.after[state][letter] = len(self.after)
                self.after.append({})
            state = self.after[state][letter]
        self.token[state] = token

    def _link(self, longer: int, state: int, letter: str) -> None:
        """Fill in `rest` and `passed` of the state `longer`, to which the letter leads from `state`."""
        if longer in self.token:
            self.rest[longer], self.passed[longer] = INSIDE, (self.token[longer],)
            return
        rest, passed = self.rest[state], self.passed[state]
        while rest != NOWHERE and letter not in self.after[rest]:
            rest, passed = self.rest[rest], passed + self.passed[rest]
        if rest != NOWHERE:
            self.rest[longer], self.passed[longer] = self.after[rest][letter], passed

    def __call__(self, word: str) -> list[str]:
        if len(word) > MAX_WORD:
            return [self.unk_token]
        after, rest, passed = self.after, self.rest, self.passed
        pieces: list[str] = []
        state = START
        for letter in word:
            while letter not in after[state]:
                pieces += passed[state]
                state = rest[state]
                if state == NOWHERE:
                    return [self.unk_token]
            state = after[state][letter]
        while state > INSIDE:  # what was read since the last certain piece must be pieces, too
            pieces += passed[state]
            state = rest[state]
        return [self.unk_token] if state == NOWHERE else pieces


class FastWordPiece:
    """word → its pieces. It begins with the plain function, and changes to LinMaxMatch after many words.

    For BERT's vocabulary, making a LinMaxMatch takes some tenths of a second and 20 MB. That pays for a
    program that cuts very many words, or very long ones. It is made when the plain function has taken about
    as long (PLAIN), so a program never waits much more than twice as long as with the better of the two.

    >>> cut = FastWordPiece({"a": 0, "##b": 1}, "[UNK]")
    >>> cut("ab"), cut("ac")
    (['a', '##b'], ['[UNK]'])
    """

    def __init__(self, vocab: Mapping[str, int], unk_token: str):
        self.vocab, self.unk_token = vocab, unk_token
        self.spent = 0  # the plain function takes time in proportion to the square of a word's letters

    @cached_property
    def linear(self) -> LinMaxMatch:
        return LinMaxMatch(self.vocab, self.unk_token)

    def __call__(self, word: str) -> list[str]:
        self.spent += len(word) ** 2 * (len(word) <= MAX_WORD)
        return self.linear(word) if self.spent > PLAIN else wordpiece(word, self.vocab, self.unk_token)
