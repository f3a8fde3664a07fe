r"""WordPiece: what a word is, and how it is cut into pieces.

A text becomes pieces in four small functions; BertTokenizer (tokenizer.py) calls them, the last one through
support/fast_wordpiece.py, which after very many words finds the same pieces in another way:

    lower        each character by itself (if BertTokenizer's do_lower_case)
    clean        drop control characters, make tabs, line ends and Zs spaces, set Chinese characters apart
    split_words  split at white space, strip accents, make each punctuation mark a word of its own
    wordpiece    cut a word into the longest pieces that the vocabulary has

They follow the slow (pure Python) BertTokenizer of transformers 4.37.2 on any Unicode text. How a vocabulary
of pieces is learnt is in training/vocabulary.py.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

import regex

from .support.marks import LONG_RUN, sort_marks

MAX_WORD = 100  # characters; a longer word is [UNK]
# The blocks of Chinese characters: each character is a word.
CHINESE = regex.compile(
    r"[\u3400-\u4DBF\u4E00-\u9FFF\uF900-\uFAFF"
    r"\U00020000-\U0002A6DF\U0002A700-\U0002CEAF\U0002F800-\U0002FA1F]"
)
# Mn: a mark above or below its letter, such as an accent; Mc: one beside it. Hugging Face asks Python's
# `unicodedata` what a character is; the patterns here ask `regex`, which knows a newer Unicode. The answers
# agree: `clean` drops every character that `unicodedata` does not know, and MOVED lists the two that Unicode
# 14 and 16 moved from Mn to Mc; until Python does so too, they are dropped.
MOVED = "".join(c for c in "\u1734\U0001171e" if unicodedata.category(c) == "Mn")
ACCENTS = regex.compile(rf"[\p{{Mn}}{MOVED}]+")
# The inside of a [...]: \p{P} is Unicode's punctuation, and the ranges are ASCII's.
PUNCTUATION = r"\p{P}!-/:-@\[-`{-~"  # BERT counts ASCII's symbols as well: $ + < = > ^ ` | ~
WORDS = regex.compile(f"[^{PUNCTUATION}]+|[{PUNCTUATION}]")  # a run without punctuation, or one mark of it


class CleanTable(dict):
    """A table for str.translate that asks what to make of a character the first time it meets it.

    >>> "a\\tb\\0c中".translate(CleanTable(chinese=True))
    'a bc 中 '
    """

    def __init__(self, chinese: bool):
        super().__init__()
        self.chinese = chinese  # set Chinese characters apart?

    def __missing__(self, code: int) -> str:
        c, category = chr(code), unicodedata.category(chr(code))
        if c in "\t\n\r" or category == "Zs":
            self[code] = " "
        elif category[0] == "C" or c == "\ufffd":  # C: control, format, private, unassigned, surrogate
            self[code] = ""
        else:
            self[code] = f" {c} " if self.chinese and CHINESE.match(c) else c
        return self[code]


CLEAN = {chinese: CleanTable(chinese) for chinese in (True, False)}


def lower(text: str) -> str:
    """Each character lower-cased by itself; in `str.lower` only a capital sigma looks at its neighbours.

    >>> lower("ΟΔΟΣ"), "ΟΔΟΣ".lower()
    ('οδοσ', 'οδος')
    """
    return text.replace("Σ", "σ").lower()


def clean(text: str, tokenize_chinese_chars: bool = True) -> str:
    """Control characters dropped; tabs, line ends and category Zs made spaces; spaces around 中 and its like.

    It is also composed (NFC): an e and its accent become é. split_words undoes that where it strips accents;
    Hugging Face does both, too.

    >>> clean("a\\x00b\\tc中d")
    'ab c 中 d'
    """
    text = text.translate(CLEAN[bool(tokenize_chinese_chars)])
    return unicodedata.normalize("NFC", text if len(text) < LONG_RUN else sort_marks(text))


def split_words(text: str, strip_accents: bool = True, special_tokens: Sequence[str] = ()) -> list[str]:
    """The words and punctuation marks of a clean text; a word that is in `special_tokens` stays whole.

    >>> split_words("un café, [SEP]", special_tokens=["[SEP]"])
    ['un', 'cafe', ',', '[SEP]']
    """
    words: list[str] = []
    for word in text.split():
        if strip_accents and not word.isascii() and word not in special_tokens:
            word = unicodedata.normalize("NFD", word)  # é becomes e and an accent
            word = word if word.isalnum() else ACCENTS.sub("", word)  # an accent is not alnum
        # Most words are nothing but letters. Cleaning can produce a special token: "[S\0EP]" becomes "[SEP]".
        words += [word] if word.isalnum() or word in special_tokens else WORDS.findall(word)
    return words


def wordpiece(word: str, vocab: Mapping[str, int], unk_token: str = "[UNK]") -> list[str]:
    """The longest piece that starts the word, then the longest "##" piece that starts the rest, and so on.

    This is called greedy longest match first. One `unk_token` (it stands for any unknown word) if no piece
    starts some rest, or if the word has more than MAX_WORD characters. (support/fast_wordpiece.py finds the
    same pieces in linear time.)

    >>> wordpiece("abcdefz", {"a": 0, "ab": 1, "##cd": 2, "##efz": 3, "abcdefg": 4})
    ['ab', '##cd', '##efz']
    """
    if len(word) > MAX_WORD:
        return [unk_token]
    pieces, mark, rest = [], "", word
    while rest:
        rest = mark + rest  # after the first piece, look up "##" + rest
        for end in range(len(rest), len(mark), -1):
            if rest[:end] in vocab:
                break
        else:  # no piece starts the rest
            return [unk_token]
        pieces.append(rest[:end])
        mark, rest = "##", rest[end:]
    return pieces
