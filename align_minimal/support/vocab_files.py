"""The files of a tokenizer: vocab.txt or tokenizer.json, tokenizer_config.json, special_tokens_map.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .hub import find_file, read_json, write_atomically, write_json

ROLES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
# The constructor's arguments, and what it reads of tokenizer_config.json.
OPTIONS = ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "model_max_length", *ROLES)
OPTIONS += ("clean_up_tokenization_spaces",)
# tokenizer_config.json may say so, or nothing: any other value is refused.
ONLY = {"do_basic_tokenize": True, "padding_side": "right", "truncation_side": "right"}


def read_vocabulary(path: Path) -> list[str]:
    """The tokens of vocab.txt, one a line, or of a tokenizer.json. ValueError naming the file.

    >>> read_vocabulary(find_file("emoji", "vocab.txt"))[:5]
    ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
    """
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
    """ValueError naming `source` if the tokens repeat themselves or lack a special one.

    >>> check_vocabulary("vocab.txt", ["[PAD]", "a", "a"], special=["[PAD]"])
    Traceback (most recent call last):
    ValueError: vocab.txt: line 3 repeats 'a' of line 2
    """
    if not any(tokens):
        raise ValueError(f"{source}: an empty vocabulary")
    seen: dict[str, int] = {}
    for number, token in enumerate(tokens, start=1):
        if seen.setdefault(token, number) != number:
            raise ValueError(f"{source}: line {number} repeats {token!r} of line {seen[token]}")
    for token in special:
        if token not in seen:
            raise ValueError(f"{source}: no {token} in this vocabulary of {len(tokens)}")


def load_vocabulary(vocab_file: str | Path | Sequence[str], special: Iterable[str]) -> list[str]:
    """The tokens of a vocabulary file, or those given, once they are checked. Their ids are their places.

    >>> load_vocabulary(["[PAD]", "a"], special=["[PAD]"])
    ['[PAD]', 'a']
    """
    is_file = isinstance(vocab_file, (str, Path))
    tokens = read_vocabulary(Path(vocab_file)) if is_file else list(vocab_file)
    check_vocabulary(str(vocab_file) if is_file else "vocabulary", tokens, special)
    return tokens


def read_options(name: str | Path) -> dict[str, Any]:
    """The options in the tokenizer_config.json of a folder or hub name; {} if it has no such file.

    >>> read_options("emoji")["do_lower_case"]
    True
    """
    try:
        path = find_file(name, "tokenizer_config.json")
    except FileNotFoundError:
        return {}
    config = read_json(path)
    for key, only in ONLY.items():
        if config.get(key, only) != only:
            raise ValueError(f"{path}: {key}={config[key]!r} is not supported, only {only!r}")
    options = {key: config[key] for key in OPTIONS if config.get(key) is not None}
    # A special token may be written as an AddedToken: a dictionary with its text and how to look for it.
    return {k: value["content"] if isinstance(value, dict) else value for k, value in options.items()}


def write_files(
    folder: str | Path, tokens: Iterable[str], options: Mapping[str, Any], special: Mapping[str, str]
) -> None:
    """Write vocab.txt, tokenizer_config.json and special_tokens_map.json, each atomically.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_files(folder, ["[PAD]", "a"], {"do_lower_case": True}, {"pad_token": "[PAD]"})
    ...     read_vocabulary(Path(folder, "vocab.txt")), read_options(folder)
    (['[PAD]', 'a'], {'do_lower_case': True})
    """
    text = "".join(f"{token}\n" for token in tokens)
    vocab_file = Path(folder) / "vocab.txt"
    write_atomically(vocab_file, lambda file: file.write_text(text, encoding="utf-8", newline="\n"))
    write_json(Path(folder) / "tokenizer_config.json", {**options, "tokenizer_class": "BertTokenizer"})
    write_json(Path(folder) / "special_tokens_map.json", dict(special))
