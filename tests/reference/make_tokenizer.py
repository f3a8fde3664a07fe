"""Write tokenizer.json: what transformers 4.37.2's slow BertTokenizer makes of difficult texts.

Run with transformers 4.37.2 installed: python tests/reference/make_tokenizer.py
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
    "[S\x00EP] [S\u00adEP]x [C\x00LS]\u0327 [\u0327SEP] [SE[SEP]P] [[SEP]] [UNK][PAD]]",
    "\x85next \x1cfile \u180emongol \u2066iso \u0600ar \U000110bdkaithi \uffffnon \U0010ffff",
    "\u0390 \u1fd3 \u212a \u2126 \u037e \u1fef \u0130\u0307 \u01c5 \u1e9e \u0345",
    "a\ufadab \U0002fa1ed \u3007 \u9fa5\u4db5 x\u3400y",
    "$1.50 + 2^3 = ~9 | `code` <b> @you #1 \u00ac \u20ac \u00a7 \u00b6 \u2044 \u2e18",
    "##s cat##s ## #",
    "A\u030a\u0323 \u0344 \u1e9b\u0323 각 \u1112\u1161\u11ab",
]
PAIRS = [("the cats sat", "hello"), ("a", "b c d e f g h"), ("", "a"), ("[SEP] x", "")]
OPTIONS = [
    {"do_lower_case": lower, "strip_accents": strip, "tokenize_chinese_chars": chinese}
    for lower in (True, False)
    for strip in (None, True, False)
    for chinese in (True, False)
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
    {"padding": "do_not_pad", "max_length": 6},
    {"truncation": "only_first", "max_length": 12},
    {"truncation": "only_second", "max_length": 8},
    {"padding": True, "pad_to_multiple_of": 8},
    {"padding": "max_length", "truncation": True, "max_length": 8, "pad_to_multiple_of": 4},
    {"padding": True, "return_special_tokens_mask": True, "return_length": True},
    {"padding": True, "return_attention_mask": False, "return_token_type_ids": False},
    {"truncation": True, "max_length": 5, "add_special_tokens": False, "return_special_tokens_mask": True},
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
            one = dict(tokenizer(TEXTS[2], **call))
            first, second = map(list, zip(*PAIRS[:2], strict=True))
            pairs = dict(tokenizer(first, second, **call))
            case = {"call": call, "pairs": pairs}
            if call.get("truncation") != "only_second":  # which leaves a text without a second one too long
                case |= {"texts": texts, "one": one}
            golden["calls"].append(case)
        words = dict(tokenizer([["the", "cats,"], ["[SEP]", "HELLO"]], is_split_into_words=True))
        golden["words"] = words
    (HERE / "tokenizer.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
