"""Texts and pictures as one call: what `AlignModel` takes, from what people have.

Follows AlignProcessor of transformers 4.37.2. But: a text over max_length is cut, with a warning, as
coyo-align did (the reference leaves it long, and a mixed batch then fails); an unknown option is an error.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .image_processor import EfficientNetImageProcessor, Picture
from .support.outputs import Batch
from .support.settings import check_keywords
from .tokenizer import BertTokenizer


def _holds(value: object, kinds: type | tuple[type, ...]) -> bool:
    """Is it, or its first entry, of one of these kinds?"""
    return isinstance(value[0] if isinstance(value, (list, tuple)) and value else value, kinds)


class AlignProcessor:
    """An image processor and a tokenizer side by side.

    >>> tokenizer = BertTokenizer.train(["a cat", "a dog"], 30)
    >>> processor = AlignProcessor(EfficientNetImageProcessor(size=32), tokenizer)
    >>> batch = processor(text=["a cat", "cat"], images=Image.new("L", (9, 9)), return_tensors="pt")
    >>> batch.input_ids.shape, batch.pixel_values.shape
    (torch.Size([2, 64]), torch.Size([1, 3, 32, 32]))
    """

    def __init__(self, image_processor: EfficientNetImageProcessor, tokenizer: BertTokenizer):
        self.image_processor, self.tokenizer = image_processor, tokenizer

    @property
    def model_input_names(self) -> list[str]:
        return [*self.tokenizer.model_input_names, *self.image_processor.model_input_names]

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        images: Picture | Sequence[Picture] | None = None,
        padding: bool | str = "max_length",
        max_length: int | None = 64,
        return_tensors: str | None = None,
        **options,
    ) -> Batch:
        """B texts → input_ids, token_type_ids, attention_mask (B, T); N pictures → pixel_values (N, 3, H, W).

        `options` are the tokenizer's and the image processor's; each goes to the one that knows it. Texts of
        more than max_length tokens are cut, with one UserWarning; truncation=True cuts without a word,
        truncation=False leaves them long.
        Raises ValueError if there is neither text nor picture, TypeError if they are swapped (text comes
        first, as in transformers 4; version 5 has pictures first) or for an option that nobody knows.
        """
        if text is None and images is None:
            raise ValueError("text and images are both None: give at least one")
        if _holds(text, (Image.Image, np.ndarray, torch.Tensor)):
            raise TypeError("text and images are swapped: the order is (text, images); better, name them")
        for_text, for_images = self._route(options)
        batch = Batch()
        if text is not None:
            batch.update(
                self._encode(text, return_tensors, padding=padding, max_length=max_length, **for_text)
            )
        if images is not None:
            batch.update(self.image_processor(images, return_tensors=return_tensors, **for_images))
        return batch

    def _route(self, options: dict) -> tuple[dict, dict]:
        """(the tokenizer's options, the image processor's)"""
        if not options:
            return {}, {}
        text_names = [
            name for name in inspect.signature(self.tokenizer.__call__).parameters if name != "text"
        ]
        image_names = [*self.image_processor.keywords(), "data_format", "input_data_format"]
        own_names = ["images", "padding", "max_length", "return_tensors"]
        check_keywords("AlignProcessor", options, ["text", *own_names, *text_names, *image_names])
        return tuple({k: v for k, v in options.items() if k in names} for names in (text_names, image_names))

    def _encode(self, text: str | Sequence[str], return_tensors: str | None, **options) -> Batch:
        """Tokenize; cut to max_length unless told otherwise, and say how many texts that cut."""
        told = options.pop("truncation", None)
        batch = self.tokenizer(
            text, truncation=True if told is None else told, return_tensors=return_tensors, **options
        )
        limit = options["max_length"] or self.tokenizer.model_max_length
        rows = [batch.input_ids] if isinstance(text, str) and return_tensors is None else batch.input_ids
        at_limit = slice(limit - 1, limit)  # [the last token that there is room for], or [] in a shorter row
        last = [row[at_limit] for row in rows] if return_tensors is None else rows[:, at_limit].tolist()
        full = [token not in ([], [self.tokenizer.pad_token_id]) for token in last]
        if told is None and any(full):  # only then is it worth tokenizing twice
            whole = self.tokenizer(text, truncation=False, **options | {"padding": False}).input_ids
            long = sum(len(row) > limit for row in ([whole] if isinstance(text, str) else whole))
            if long:
                warnings.warn(
                    f"{long} of {len(full)} texts had more than {limit} tokens and were cut; "
                    "truncation=True does so silently",
                    stacklevel=3,
                )
        return batch

    def decode(self, *args, **kwargs) -> str:
        """Ids → text, as `BertTokenizer.decode`."""
        return self.tokenizer.decode(*args, **kwargs)

    def batch_decode(self, *args, **kwargs) -> list[str]:
        """Rows of ids → texts, as `BertTokenizer.batch_decode`."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    @classmethod
    def from_pretrained(cls, dir_or_name: str | Path) -> AlignProcessor:
        """Read both parts of a folder or hub name. Raises as their own from_pretrained do."""
        return cls(
            EfficientNetImageProcessor.from_pretrained(dir_or_name),
            BertTokenizer.from_pretrained(dir_or_name),
        )

    def save_pretrained(self, directory: str | Path) -> None:
        """Write preprocessor_config.json, vocab.txt and tokenizer_config.json, as transformers reads them."""
        self.image_processor.save_pretrained(directory, processor_class="AlignProcessor")
        self.tokenizer.save_pretrained(directory)
