"""Dataclasses that are files: a field is a keyword of the constructor and a key of a JSON file."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import inspect
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from .hub import find_file, read_json, write_json
from .values import check_values, mapping, shown


def check_keywords(owner: str, keywords: Iterable[str], known: Iterable[str]) -> None:
    """TypeError that names the nearest of the known keywords, for the first that is not among them.

    >>> check_keywords("AlignTextConfig", ["hiden_size"], ["vocab_size", "hidden_size"])
    Traceback (most recent call last):
    TypeError: AlignTextConfig has no keyword 'hiden_size'; the nearest is 'hidden_size'
    """
    known = list(known)
    for keyword in keywords:
        if keyword not in known:
            near = difflib.get_close_matches(keyword, known, n=1, cutoff=0)[0]
            raise TypeError(f"{owner} has no keyword {keyword!r}; the nearest is {near!r}")


def share_out(owner: str, keywords: Mapping[str, Any], *known: Collection[str]) -> list[dict[str, Any]]:
    """For each collection of known keywords, those of `keywords` that are in it. TypeError as check_keywords.

    >>> share_out("AlignProcessor", {"size": 64}, ["size", "resample"], ["do_lower_case"])
    [{'size': 64}, {}]
    """
    check_keywords(owner, keywords, [name for names in known for name in names])
    return [{name: value for name, value in keywords.items() if name in names} for names in known]


def own_keywords(owner: type) -> list[str]:
    """The keywords of a model's constructor, but for the first: the configuration.

    >>> from align_minimal import AlignTextModel
    >>> own_keywords(AlignTextModel)
    ['add_pooling_layer']
    """
    return list(inspect.signature(owner).parameters)[1:]


class Settings:
    """What the configurations and the image processor share: keyword checks, and a JSON file both ways.

    >>> from align_minimal import AlignTextConfig
    >>> AlignTextConfig.from_dict(AlignTextConfig(hidden_size=24).to_dict()).hidden_size
    24
    """

    filenames: ClassVar[tuple[str, ...]]  # looked for in this order; the first is the one that is written

    def __new__(cls, *args, **keywords):
        # Before __init__ sees them: a dataclass's own TypeError does not name the nearest keyword.
        check_keywords(cls.__name__, keywords, cls.keywords())
        return super().__new__(cls)

    @classmethod
    def keywords(cls) -> list[str]:
        return [field.name for field in dataclasses.fields(cls)]

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that `from_dict`, and transformers, read back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]):
        """Build from a dictionary. Keys that are not keywords of this class (bookkeeping) are ignored."""
        return cls(**copy.deepcopy({key: content[key] for key in cls.keywords() if key in content}))

    @classmethod
    def read(cls, path: Path) -> dict[str, Any]:
        """The part of the file at `path` that describes this class: here, all of it."""
        return read_json(path)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **overrides):
        """Read the file of a folder or hub name; `overrides` are keywords that replace what stands in it.

        Raises FileNotFoundError, ValueError naming the file and the value that is wrong in it, or TypeError
        for an override that is no keyword of this class.

        >>> from align_minimal import AlignConfig
        >>> AlignConfig.from_pretrained("emoji", temperature_init_value=0.5).temperature_init_value
        0.5
        """
        check_keywords(cls.__name__, overrides, cls.keywords())
        path = find_file(pretrained_model_name_or_path, *cls.filenames)
        try:
            return cls.from_dict(cls.read(path) | overrides)
        except (TypeError, ValueError) as error:
            said, given = str(error), f" with {', '.join(overrides)} replaced" if overrides else ""
            raise ValueError(said if said.startswith(str(path)) else f"{path}{given}: {said}") from None

    def save_pretrained(self, directory: str | Path, **bookkeeping: str) -> None:
        """Write the file into `directory`, atomically, with `bookkeeping` beside the settings."""
        write_json(Path(directory) / self.filenames[0], self.to_dict() | bookkeeping)


# Options of Hugging Face's configurations that change what a model gives, with the one value that is read.
CALL_OPTIONS = {"output_hidden_states": False, "output_attentions": False, "return_dict": True}
ONLY = {"is_decoder": False, "add_cross_attention": False, "pruned_heads": {}, "torchscript": False}


def check_options(owner: str, content: dict[str, Any]) -> None:
    """ValueError naming the first option in `content` that a configuration here does not honour.

    >>> check_options("AlignTextConfig", {"return_dict": False})
    Traceback (most recent call last):
    ValueError: return_dict=False is not read from AlignTextConfig; give it to the model's call
    """
    for name, only in (CALL_OPTIONS | ONLY).items():
        value = content.get(name)
        if value is not None and value != only:
            where = f"not read from {owner}; give it to the model's call"
            where = where if name in CALL_OPTIONS else f"not supported in {owner}, only {only}"
            raise ValueError(f"{name}={shown(value)} is {where}")


class Config(Settings):
    """What the three configurations share: `config.json`, and being parts of one another.

    >>> from align_minimal import AlignConfig
    >>> AlignConfig().to_dict()["text_config"]["model_type"]
    'align_text_model'
    """

    filenames: ClassVar[tuple[str, ...]] = ("config.json",)
    model_type: ClassVar[str]
    part_of_align: ClassVar[str | None] = None  # the key of this configuration inside a full ALIGN's

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary, also of its parts, that `from_dict`, and transformers, read back."""
        parts = {name: value.to_dict() for name, value in vars(self).items() if isinstance(value, Config)}
        return {"model_type": self.model_type} | super().to_dict() | parts

    @classmethod
    def from_dict(cls, content: dict[str, Any]):
        """Build from a dictionary, also from a full ALIGN's. Keys that are no keywords here are ignored.

        ValueError for one that is an option of Hugging Face's (see `check_options`).
        """
        content = cls.part(content)
        check_options(cls.__name__, content)
        return super().from_dict(content)

    def __setattr__(self, name, value):
        check_options(type(self).__name__, {name: value})
        # A file has no tuples: what is saved and read again shall be equal.
        super().__setattr__(name, list(value) if isinstance(value, tuple) else value)

    @classmethod
    def part(cls, content: dict[str, Any]) -> dict[str, Any]:
        """What describes this class in a full ALIGN's dictionary (null: nothing), or else all of it."""
        if content.get(cls.part_of_align) is None:
            return {} if cls.part_of_align in content else content
        check_values(content, {cls.part_of_align: mapping})
        return content[cls.part_of_align]

    @classmethod
    def read(cls, path: Path) -> dict[str, Any]:
        """The part of the file at `path` that describes this class."""
        return cls.part(super().read(path))

    def save_pretrained(self, directory: str | Path, **bookkeeping: str) -> None:
        """Write `directory/config.json`, atomically. ValueError if an activation is a callable."""
        for config in (self, *vars(self).values()):
            if callable(getattr(config, "hidden_act", None)):
                raise ValueError("hidden_act is a callable; only a named activation can be saved")
        super().save_pretrained(directory, **bookkeeping)
