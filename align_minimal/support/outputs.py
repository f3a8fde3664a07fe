"""What models and processors return: dictionaries whose entries are also attributes.

They stand in for Hugging Face's ModelOutput, BatchEncoding and BatchFeature:
`out.logits_per_image`, `out["logits_per_image"]`, `out[0]` and `model(**batch)` all work.
"""

from __future__ import annotations


class ModelOutput(dict):
    """A model's named results, in order. A field that is None can be asked for by attribute only.

    >>> out = ModelOutput(loss=None, logits=2.0, embeds=3.0)
    >>> out.logits, out["logits"], out[0], out.loss, list(out)
    (2.0, 2.0, 2.0, None, ['logits', 'embeds'])
    """

    def __init__(self, **fields):
        super().__init__({name: value for name, value in fields.items() if value is not None})
        self.__dict__.update(fields)

    def __getitem__(self, key):
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple:
        """The fields that are not None, in order; outputs inside it become tuples too."""
        return tuple(v.to_tuple() if isinstance(v, ModelOutput) else v for v in self.values())


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

    def to(self, device) -> Batch:
        """Move every tensor to `device`, in place, and return the batch."""
        for name, value in self.items():
            if hasattr(value, "to"):
                self[name] = value.to(device)
        return self
