"""The files of a tokenizer: vocab.txt or tokenizer.json, tokenizer_config.json, special_tokens_map.json."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .hub import Unreachable, find_file, read_json, write_atomically, write_json
from .settings import check_keywords
from .values import check_values, mapping, one_of, plain, shown, switch, whole

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROLES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
# The constructor's arguments, and what it reads of tokenizer_config.json.
OPTIONS = ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "model_max_length", *ROLES)
OPTIONS += ("clean_up_tokenization_spaces",)
INPUT_NAMES = ("input_ids", "token_type_ids", "attention_mask")
# tokenizer_config.json may say so, or nothing: any other value is refused.
ONLY = {"do_basic_tokenize": True, "padding_side": "right", "truncation_side": "right", "never_split": []}
ONLY |= {"split_special_tokens": False, "model_input_names": [*INPUT_NAMES]}
# What a tokenizer is built from: to set one of them afterwards would change half of what it does.
BUILT_FROM = ("do_lower_case", "strip_accents", *ROLES, *(f"{role}_id" for role in ROLES))
BUILT_FROM += ("vocab", "ids_to_tokens", "vocab_size", "all_special_tokens", "all_special_ids")
# Where tokens may stand that were added to the vocabulary, which is not supported. Key None: all of the file.
ADDED = {
    "tokenizer_config.json": ("added_tokens_decoder", "additional_special_tokens", "extra_special_tokens"),
    "tokenizer.json": ("added_tokens",),
    "special_tokens_map.json": ("additional_special_tokens", "extra_special_tokens"),
    "added_tokens.json": (None,),
}
# Those that are looked for on the hub, too. In them any key such as bos_token is a special token.
ALWAYS = ("tokenizer_config.json", "special_tokens_map.json")


KEYWORDS = (*OPTIONS, *ONLY)


class Only:
    """An attribute that has one value; setting another is refused.

    >>> class Reader:
    ...     side = Only("right")
    >>> Reader().side = "left"
    Traceback (most recent call last):
    ValueError: side='left' is not supported, only 'right'
    """

    def __init__(self, value: Any):
        self.value = value

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        return self.value

    def __set__(self, instance: Any, value: Any) -> None:
        check_only(self.name, value, self.value)


def check_only(name: str, value: Any, only: Any, start: str = "") -> None:
    """ValueError naming the attribute or key unless it is the one value that it may have (a list: a tuple).

    >>> check_only("model_input_names", ("input_ids",), only=["input_ids"])
    >>> check_only("never_split", ["cats"], only=[])
    Traceback (most recent call last):
    ValueError: never_split=['cats'] is not supported, only []
    """
    found, wanted = (list(v) if isinstance(v, tuple) else v for v in (value, only))
    if found != wanted:
        raise ValueError(f"{start}{name}={shown(value)} is not supported, only {only!r}")


class FixedOnceBuilt:
    """A base for a tokenizer: once its constructor is done, what would not take full effect cannot be set.

    Those are the attributes in BUILT_FROM, and names that it does not have, such as bos_token. An attribute
    that it does have (an option that is looked up in each call, a method, a subclass's own) can be set.

    >>> class Reader(FixedOnceBuilt):
    ...     def __init__(self, do_lower_case):
    ...         self.do_lower_case, self.model_max_length = do_lower_case, 64
    >>> reader = Reader(do_lower_case=True)
    >>> reader.model_max_length = 32
    >>> reader.do_lower_case = False
    Traceback (most recent call last):
    AttributeError: do_lower_case cannot be set any more: build a new Reader with it
    """

    _built = False

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "__init__" in vars(cls):
            cls.__init__ = _marked_as_built(cls.__init__)

    def __setattr__(self, name: str, value: Any) -> None:
        if self._built and name in ONLY:
            check_only(name, value, ONLY[name])
            return
        unknown = not name.startswith("_") and not hasattr(self, name)
        if self._built and (unknown or name in BUILT_FROM):
            kind = type(self).__name__
            why = f"is no attribute of a {kind}" if unknown else "cannot be set any more"
            advice = "what it takes" if unknown else "it"
            raise AttributeError(f"{name} {why}: build a new {kind} with {advice}")
        super().__setattr__(name, value)


def _marked_as_built(build: Callable) -> Callable:
    """The constructor `build`, which ends by marking what it has built, unless a subclass's goes on."""

    @functools.wraps(build)
    def __init__(self, *args, **options):
        build(self, *args, **options)
        if type(self).__init__ is __init__:
            self._built = True

    return __init__


def _token(value: Any) -> str | None:
    content = value.get("content") if isinstance(value, dict) else value
    right = isinstance(content, str) and 0 < len(content) <= 1000
    return None if right else 'be a token, or an object with a token as its "content"'


def _length(value: Any) -> str | None:
    right = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value // 1
    return None if right and 0 < value < 1e40 else "be a whole number of at least 1"


KINDS = {"do_lower_case": switch, "strip_accents": switch, "tokenize_chinese_chars": switch}
KINDS |= {"model_max_length": _length, "clean_up_tokenization_spaces": switch} | dict.fromkeys(ROLES, _token)


def read_vocabulary(path: Path) -> list[str]:
    """The tokens of vocab.txt, one a line, or of a tokenizer.json. ValueError naming the file.

    >>> read_vocabulary(find_file("emoji", "vocab.txt"))[:5]
    ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such vocabulary file")
    if path.suffix == ".json":
        return _read_tokenizer_json(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 (byte {error.start})") from None
    return lines if lines[-1] else lines[:-1]


def _read_tokenizer_json(path: Path) -> list[str]:
    model = read_json(path).get("model")
    if not isinstance(model, dict) or model.get("type", "WordPiece") != "WordPiece":
        raise ValueError(f"{path}: not a WordPiece vocabulary")
    only = {"continuing_subword_prefix": one_of("##"), "max_input_chars_per_word": one_of(100)}
    check_values(model, {"vocab": mapping, **only}, f"{path}: model", required=["vocab"])
    tokens: dict[int, str] = {}
    for token, i in model["vocab"].items():
        if wrong := whole(0)(i):
            raise ValueError(f"{path}: model: vocab: the id of {shown(token)} must {wrong}, not {shown(i)}")
        if tokens.setdefault(i, token) != token:
            raise ValueError(
                f"{path}: model: vocab: {shown(tokens[i])} and {shown(token)} both have the id {i}"
            )
    gap = next((i for i in range(len(tokens)) if i not in tokens), None)
    if gap is not None:
        raise ValueError(f"{path}: model: vocab: no token has the id {gap}, but one has {max(tokens)}")
    return [tokens[i] for i in range(len(tokens))]


def _check_rows(path: Path, tokens: Sequence[str]) -> None:
    """ValueError if the model in the same folder has more or fewer rows than the vocabulary has tokens."""
    config_file = path.parent / "config.json"
    config = read_json(config_file) if config_file.is_file() else {}
    text = config.get("text_config")
    rows = (text if isinstance(text, dict) else config).get("vocab_size")
    if isinstance(rows, int) and rows != len(tokens):
        raise ValueError(f"{path}: {len(tokens)} tokens, but config.json has vocab_size={shown(rows)}")


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
    if is_file:
        _check_rows(Path(vocab_file), tokens)
    return tokens


def find_vocabulary(
    name: str | Path, overrides: Mapping[str, Any] = MappingProxyType({})
) -> tuple[Path, dict]:
    """The vocabulary file of a folder or hub name, and BertTokenizer's options: its own, then `overrides`.

    ValueError naming the file that says what is wrong, or not supported; TypeError for an override that is
    no option.

    >>> file, options = find_vocabulary("emoji", {"do_lower_case": False})
    >>> file.name, options["do_lower_case"]
    ('vocab.txt', False)
    """
    check_keywords("BertTokenizer", overrides, KEYWORDS)
    path = find_file(name, "vocab.txt", "tokenizer.json")
    options = read_options(name) | _options(overrides, None)
    special = [options.get(role, token) for role, token in zip(ROLES, SPECIAL_TOKENS, strict=True)]
    for source, added in _added_tokens(name):
        for token in added:
            if token not in special:
                raise ValueError(f"{source}: the added token {shown(token)} is not supported")
    return path, options


def read_options(name: str | Path) -> dict[str, Any]:
    """The options in a folder's or hub name's tokenizer_config.json and special_tokens_map.json, if there.

    >>> read_options("emoji")["do_lower_case"]
    True
    """
    path = _beside(name, "tokenizer_config.json")
    content = {} if path is None else read_json(path)
    options = _options({k: v for k, v in content.items() if v is not None or k in ROLES}, path)
    return options | _read_map(name, options, is_new="added_tokens_decoder" in content)


def _read_map(name: str | Path, options: Mapping[str, Any], is_new: bool) -> dict[str, str]:
    """The five special tokens as special_tokens_map.json has them; {} if there is no such file.

    Hugging Face lets them replace those of tokenizer_config.json (`options`), unless that one `is_new`: with
    added_tokens_decoder in it, the map says nothing. Where it says something else then, it is refused.
    """
    path = _beside(name, "special_tokens_map.json")
    content = {} if path is None else read_json(path)
    for key, value in content.items():
        if not key.endswith("_token") and key not in ADDED["special_tokens_map.json"]:
            raise ValueError(f"{path}: {plain(key)}={shown(value)} is not supported, only special tokens")
    tokens = _options({key: value for key, value in content.items() if key in ROLES}, path)
    for role, token in zip(ROLES, SPECIAL_TOKENS, strict=True):
        said = options.get(role, token)
        if is_new and tokens.get(role, said) != said:
            given = shown(tokens[role])
            raise ValueError(f"{path}: {role}={given}, but tokenizer_config.json has {shown(said)}")
    return tokens


def _options(content: Mapping[str, Any], source: Path | None) -> dict[str, Any]:
    """The options among `content`, checked. ValueError naming the source for what is not supported."""
    for key, only in ONLY.items():
        check_only(key, content.get(key, only), only, start="" if source is None else f"{source}: ")
    looked_at = [key for key in OPTIONS if content.get(key) is not None or key in ROLES]
    check_values(content, {key: KINDS[key] for key in looked_at}, source)
    options = {key: content[key] for key in OPTIONS if key in content}
    return {key: _content(value) for key, value in options.items()}


def _content(value: Any) -> Any:
    """The token that `value` is; of an AddedToken (an object with a text and how to look for it) the text."""
    return value.get("content") if isinstance(value, dict) else value


def _beside(name: str | Path, filename: str) -> Path | None:
    try:
        return find_file(name, filename)
    except Unreachable as error:
        warnings.warn(f"without {filename}, which may exist: {error}", stacklevel=2)
    except FileNotFoundError:
        pass
    return None


def _added_tokens(name: str | Path) -> Iterator[tuple[str, list]]:
    """(file and key, the tokens that were added to the vocabulary there) for a folder or hub name."""
    for filename, keys in ADDED.items():
        path = _beside(name, filename) if Path(name).is_dir() or filename in ALWAYS else None
        content = {} if path is None else read_json(path)
        if filename in ALWAYS:
            for key, value in content.items():  # null, or a switch such as add_bos_token, is no token
                if key.endswith("_token") and key not in ROLES and not isinstance(value, (bool, type(None))):
                    yield f"{path}: {plain(key)}", [_content(value)]
        for key in keys:
            entries = content if key is None else content.get(key) or []
            values = entries.values() if isinstance(entries, dict) and key is not None else entries
            source = f"{path}: {key}" if key else str(path)
            if not isinstance(entries, (list, dict)):
                raise ValueError(f"{source} must be a list or a JSON object, not {shown(entries)}")
            yield source, [_content(value) for value in values]


def write_files(
    folder: str | Path, tokens: Iterable[str], options: Mapping[str, Any], special: Mapping[str, str]
) -> None:
    """Write vocab.txt, tokenizer_config.json and special_tokens_map.json, each atomically.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_files(folder, ["[PAD]", "a"], {"do_lower_case": True}, {"pad_token": "[PAD]"})
    ...     read_vocabulary(Path(folder, "vocab.txt")), read_options(folder)
    (['[PAD]', 'a'], {'do_lower_case': True, 'pad_token': '[PAD]'})
    """
    text = "".join(f"{token}\n" for token in tokens)
    vocab_file = Path(folder) / "vocab.txt"
    write_atomically(vocab_file, lambda file: file.write_text(text, encoding="utf-8", newline="\n"))
    write_json(Path(folder) / "tokenizer_config.json", {**options, "tokenizer_class": "BertTokenizer"})
    write_json(Path(folder) / "special_tokens_map.json", dict(special))
