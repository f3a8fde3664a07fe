"""What models and processors return: dictionaries whose entries are also attributes.

They stand in for Hugging Face's ModelOutput, BatchEncoding and BatchFeature:
`out.logits_per_image`, `out["logits_per_image"]`, `out[0]` and `model(**batch)` all work. PyTorch knows them
as pytrees: torch.export, torch.func and DistributedDataParallel find the tensors inside.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def register(kind: type) -> None:
    """Tell PyTorch that the values in a `kind`, a dictionary that is made from items, are its leaves.

    >>> pytree.tree_map(lambda x: 2 * x, Batch(ids=3))
    {'ids': 6}
    """
    pytree.register_pytree_node(
        kind,
        lambda tree: (list(tree.values()), list(tree)),
        lambda values, names: kind(zip(names, values, strict=True)),
        serialized_type_name=f"{kind.__module__}.{kind.__qualname__}",
        flatten_with_keys_fn=lambda tree: ([(pytree.MappingKey(k), v) for k, v in tree.items()], list(tree)),
    )


class ModelOutput(dict):
    """A model's named results, in the order of the class's annotations: below, a class for each model.

    The entries of the dictionary are all that it stores; an attribute is another spelling of an entry. What
    is None is no entry: it can be asked for by attribute only.

    >>> out = VisionOutput(pooler_output=2.0, hidden_states=None)
    >>> out.last_hidden_state = 1.0
    >>> out["last_hidden_state"], out[1], out.hidden_states, list(out)
    (1.0, 2.0, None, ['last_hidden_state', 'pooler_output'])
    """

    __slots__ = ()
    fields: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls):
        cls.fields = tuple(cls.__annotations__)
        register(cls)

    def __init__(self, items: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), **fields):
        given = dict(items, **fields)
        in_order = (*self.fields, *given)  # the class's own fields first, in its order
        super().__init__({name: given[name] for name in in_order if given.get(name) is not None})

    def __getattr__(self, name):
        if name not in self and name not in self.fields:
            raise AttributeError(f"{type(self).__name__} has no {name!r}; it has {', '.join(self)}")
        return self.get(name)

    def __setattr__(self, name, value):
        self[name] = value

    def __getitem__(self, key):
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __setitem__(self, name, value):
        if value is None:
            self.pop(name, None)
            return
        known = name in self
        super().__setitem__(name, value)
        if not known and name in self.fields:  # what the class names later moves behind it
            for later in self.fields[self.fields.index(name) + 1 :]:
                if later in self:
                    super().__setitem__(later, self.pop(later))

    def __ior__(self, other):
        self.update(other)
        return self

    def update(self, items: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), /, **fields) -> None:
        """Set every field that is given, by a mapping, by pairs or by keyword."""
        for name, value in dict(items, **fields).items():
            self[name] = value

    def setdefault(self, name: str, default: Any = None) -> Any:
        """The field, which becomes `default` if it is None."""
        if name not in self:
            self[name] = default
        return self.get(name)

    def copy(self):
        """Another output with the same values."""
        return type(self)(self)

    def to_tuple(self) -> tuple:
        """The fields that are not None, in order; outputs inside it become tuples too."""
        return tuple(v.to_tuple() if isinstance(v, ModelOutput) else v for v in self.values())


class TextOutput(ModelOutput):
    """What AlignTextModel returns.

    >>> TextOutput(last_hidden_state=1.0).attentions is None
    True
    """

    __slots__ = ()
    last_hidden_state: Tensor  # (B, T, H)
    pooler_output: Tensor | None  # (B, H)
    hidden_states: tuple[Tensor, ...] | None  # (B, T, H) each
    attentions: tuple[Tensor, ...] | None  # (B, N, T, T) each


class VisionOutput(ModelOutput):
    """What AlignVisionModel returns.

    >>> VisionOutput({"pooler_output": 1.0}).to_tuple()
    (1.0,)
    """

    __slots__ = ()
    last_hidden_state: Tensor  # (B, C, h, w)
    pooler_output: Tensor  # (B, C)
    hidden_states: tuple[Tensor, ...] | None  # (B, C_i, h_i, w_i) each


class AlignOutput(ModelOutput):
    """What AlignModel returns.

    >>> AlignOutput(text_embeds=2.0, logits_per_text=1.0).to_tuple()
    (1.0, 2.0)
    """

    __slots__ = ()
    loss: Tensor | None  # ()
    logits_per_image: Tensor  # (B_i, B_t)
    logits_per_text: Tensor  # (B_t, B_i)
    text_embeds: Tensor  # (B_t, D), normalized
    image_embeds: Tensor  # (B_i, D), normalized
    text_model_output: TextOutput
    vision_model_output: VisionOutput


class Batch(dict):
    """A processor's results: `batch.input_ids`, `batch["input_ids"]`, `model(**batch)`, `batch.to(device)`.

    >>> batch = Batch(input_ids=[[101, 102]])
    >>> batch.input_ids
    [[101, 102]]
    """

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no entry {name!r} in this batch, which has: {', '.join(self)}") from None

    def to(self, *args, **options) -> Batch:
        """Tensor.to for every tensor, in place; a dtype is meant for floats, integers are only moved.

        >>> batch = Batch(input_ids=torch.tensor([[2, 3]]), pixel_values=torch.zeros(1, 3, 8, 8))
        >>> batch = batch.to("cpu", torch.float16)
        >>> batch.input_ids.dtype, batch.pixel_values.dtype
        (torch.int64, torch.float16)
        """
        for name, value in self.items():
            if isinstance(value, Tensor) and not value.is_floating_point():
                where = [x for x in args if not isinstance(x, torch.dtype)]
                self[name] = value.to(*where, **{k: v for k, v in options.items() if k != "dtype"})
            elif hasattr(value, "to"):
                self[name] = value.to(*args, **options)
        return self


register(Batch)
