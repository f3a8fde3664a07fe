"""Texts and pictures as one call: what `AlignModel` takes, from what people have.

Follows AlignProcessor of transformers 4.37.2.
Differs from Hugging Face: a text over max_length (64 tokens, the paper's section 5) is cut, with a warning,
as coyo-align did (KakaoBrain's TensorFlow code, which trained align-base). Hugging Face leaves it long, and a
batch of long and short texts then fails. An unknown option is an error.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .image_processor import EfficientNetImageProcessor
from .support.batching import warn_of_cuts
from .support.outputs import Batch
from .support.rgb import Picture
from .support.settings import share_out
from .support.vocab_files import KEYWORDS
from .tokenizer import BertTokenizer


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
        self, text: str | Sequence[str] | None = None, images: Picture | Sequence[Picture] | None = None,
        padding: bool | str = "max_length", max_length: int | None = 64, return_tensors: str | None = None,
        **options,
    ) -> Batch:  # fmt: skip
        """B_t texts → input_ids, token_type_ids, attention_mask (B_t, T); B_i pictures → pixel_values.

        pixel_values have the shape (B_i, 3, H, W).
        `options` are the tokenizer's and the image processor's; each goes to the one that knows it. Texts of
        more than max_length tokens are cut, with one UserWarning; truncation=True cuts without a word,
        truncation=False leaves them long.
        Raises ValueError if there is neither text nor picture, TypeError if they are swapped (text comes
        first, as in transformers 4; version 5 has pictures first) or for an option that nobody knows.
        """
        if text is None and images is None:
            raise ValueError("text and images are both None: give at least one")
        first = text[0] if isinstance(text, (list, tuple)) and text else text
        if isinstance(first, (Image.Image, np.ndarray, torch.Tensor)):
            raise TypeError("text and images are swapped: the order is (text, images); better, name them")
        for_text, for_images = self._route(options)
        for_text |= {"padding": padding, "max_length": max_length, "return_tensors": return_tensors}
        batch = Batch() if text is None else self._encode(text, **for_text)
        if images is not None:
            batch.update(self.image_processor(images, return_tensors=return_tensors, **for_images))
        return batch

    def _route(self, options: dict) -> tuple[dict, dict]:
        """(the tokenizer's options, the image processor's)"""
        if not options:
            return {}, {}
        # The names in the tokenizer's own signature; the image processor's are its fields.
        for_text = [n for n in inspect.signature(self.tokenizer.__call__).parameters if n != "text"]
        for_images = [*self.image_processor.keywords(), "data_format", "input_data_format"]
        return tuple(share_out("AlignProcessor", options, for_text, for_images, ["text", "images"])[:2])

    def _encode(self, text: str | Sequence[str], truncation: bool | str | None = None, **options) -> Batch:
        """Tokenize; cut to max_length unless told otherwise, and say how many texts were cut."""
        if truncation is not None:
            return self.tokenizer(text, truncation=truncation, **options)
        wanted = options.pop("return_num_truncated_tokens", False)
        batch = self.tokenizer(text, truncation=True, return_num_truncated_tokens=True, **options)
        lost = np.atleast_1d((batch.get if wanted else batch.pop)("num_truncated_tokens"))  # (B,)
        if lost.any():
            limit = options["max_length"] or self.tokenizer.model_max_length
            warn_of_cuts((lost > 0).sum(), len(lost), limit)
        return batch

    def decode(self, *args, **kwargs) -> str:
        """Ids → text, as `BertTokenizer.decode`."""
        return self.tokenizer.decode(*args, **kwargs)

    def batch_decode(self, *args, **kwargs) -> list[str]:
        """Rows of ids → texts, as `BertTokenizer.batch_decode`."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **overrides) -> AlignProcessor:
        """Read both parts of a folder or hub name. Raises as their own from_pretrained do.

        `overrides` replace what stands in the files; each goes to the part that knows it.

        >>> AlignProcessor.from_pretrained("emoji", do_normalize=False).image_processor.do_normalize
        False
        """
        parts, known = (EfficientNetImageProcessor, BertTokenizer), EfficientNetImageProcessor.keywords()
        given = zip(parts, share_out("AlignProcessor", overrides, known, KEYWORDS), strict=True)
        return cls(*(part.from_pretrained(pretrained_model_name_or_path, **more) for part, more in given))

    def save_pretrained(self, directory: str | Path) -> None:
        """Write preprocessor_config.json, vocab.txt and tokenizer_config.json, as transformers reads them."""
        self.image_processor.save_pretrained(directory, processor_class="AlignProcessor")
        self.tokenizer.save_pretrained(directory)
