"""Write tokenizer.json: what transformers 4.37.2's slow BertTokenizer makes of difficult texts.

Run with transformers 4.37.2 installed: python tests/golden/make_tokenizer.py
"""

import json
import tempfile
from pathlib import Path

import transformers
from transformers import BertTokenizer

HERE = Path(__file__).parent
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = list("abcdefghijklmnopqrstuvwxyzABCDEHΣσςßéàœæıİ0123456789.,!?'-_$[]()中国한")
VOCAB = SPECIAL + LETTERS + ["##" + c for c in LETTERS if c.isalnum()]
VOCAB += ["the", "cat", "##s", "sat", "##ting", "Hello", "hello", "un", "##believ", "##able", "don", "n't"]
VOCAB = list(dict.fromkeys(VOCAB))

TEXTS = [
    "",
    " ",
    "The cats sat, unbelievable!",
    "HELLO Hello hello",
    "don't can't we're I'm it's ' a '",
    "ÉÀ e\u0301a\u0300 œÆ ß SS",
    "ΟΔΟΣ Σ ΑΣ. σς",
    "İstanbul ısı IĞDIR",
    "中国cat中 한국 カタカナ ﷺ",
    "tabs\tand\nnew\r\nlines\u00a0and\u3000wide\u2028line\u2029par",
    "nul\x00 bell\x07 soft\u00adhyphen zero\u200bwidth\u200djoin \ufeffbom \ufffdbad",
    "private\ue000 unassigned\u0378 \U000e0001tag \ud800lone",
    "[CLS] the [MASK] sat [SEP][UNK] [cls] [Mask] x[MASK]y",
    "[C\x00LS] [CL\u200dS]",
    "a" * 100 + " " + "b" * 101,
    "don.t--_$3.50 (a) [b] “quotes” … ¿qué? ‽ 、。",
    "👩\u200d👩\u200d👧 🇩🇪 ❤️ café",
    "ﬁ ﬂ Ⅷ ½ ² ℵ K Å Ω",
    "A\u030a\u0323 \u0344 \u1e9b\u0323 각 \u1112\u1161\u11ab",
]
PAIRS = [("the cats sat", "hello"), ("a", "b c d e f g h"), ("", "a"), ("[SEP] x", "")]
OPTIONS = [
    {},
    {"do_lower_case": False},
    {"strip_accents": False},
    {"do_lower_case": False, "strip_accents": True},
    {"tokenize_chinese_chars": False},
]
CALLS = [
    {"padding": True},
    {"padding": "max_length"},
    {"padding": "max_length", "max_length": 9},
    {"padding": "max_length", "max_length": 9, "truncation": True},
    {"padding": True, "max_length": 9},
    {"padding": False, "max_length": 9},
    {"truncation": True},
    {"truncation": True, "max_length": 6},
    {"truncation": False, "max_length": 6},
    {"padding": "longest", "truncation": "longest_first", "max_length": 7},
    {"padding": "do_not_pad", "add_special_tokens": False},
]


def main() -> None:
    golden = {"made_with": transformers.__version__, "vocab": VOCAB, "texts": [], "pairs": [], "calls": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.txt"
        path.write_text("\n".join(VOCAB) + "\n", encoding="utf-8")
        for options in OPTIONS:
            tokenizer = BertTokenizer(str(path), **options)
            for text in TEXTS:
                ids = tokenizer(text)["input_ids"]
                golden["texts"].append(
                    {
                        "options": options,
                        "text": text,
                        "tokens": tokenizer.tokenize(text),
                        "ids": ids,
                        "decoded": tokenizer.decode(ids),
                        "bare": tokenizer.decode(ids, skip_special_tokens=True),
                        "raw": tokenizer.decode(ids, clean_up_tokenization_spaces=False),
                    }
                )
        tokenizer = BertTokenizer(str(path), model_max_length=16)
        for a, b in PAIRS:
            golden["pairs"].append({"pair": [a, b], "plain": dict(tokenizer(a, b))})
        for call in CALLS:
            texts = dict(tokenizer(TEXTS[2:6], **call))
            first, second = map(list, zip(*PAIRS[:2]))
            golden["calls"].append(
                {"call": call, "texts": texts, "pairs": dict(tokenizer(first, second, **call))}
            )
    (HERE / "tokenizer.json").write_text(json.dumps(golden, indent=0) + "\n")


if __name__ == "__main__":
    main()
