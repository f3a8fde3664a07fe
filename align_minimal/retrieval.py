"""Zero-shot classification: labels become texts, texts become a classifier (ALIGN, section 5.2).

An image belongs to the label whose text lies nearest to it. Several templates ("a photo of a {}", "art of
a {}") are averaged in embedding space, which the paper takes from CLIP as prompt ensembling.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .model import AlignModel
from .processor import AlignProcessor


def check_labels(labels: Sequence[str], templates: Sequence[str]) -> None:
    """ValueError for no label, an empty label, or a template without {}."""
    if not labels:
        raise ValueError("no labels: give at least one")
    if not all(label.strip() for label in labels):
        raise ValueError(f"label {next(label for label in labels if not label.strip())!r} is empty")
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"template {template!r} has no {{}} for the label to stand in")


class ZeroShotClassifier:
    """Labels × templates, embedded once; then images → logits.

    `labels` of K strings; `templates` each with `{}` where the label goes (by default the label alone).

        classifier = ZeroShotClassifier(model, processor, ["cat", "dog"], ["a photo of a {}"])
        probabilities = classifier([image]).softmax(dim=-1)  # (1, 2)

    Raises ValueError for no labels, an empty label, or a template without `{}`.
    """

    def __init__(
        self,
        model: AlignModel,
        processor: AlignProcessor,
        labels: Sequence[str],
        templates: Sequence[str] = ("{}",),
    ):
        check_labels(labels, templates)
        self.model, self.processor, self.labels = model, processor, list(labels)
        self.label_embeds = torch.stack([self.embed_label(label, templates) for label in labels])  # (K, D)

    @torch.inference_mode()
    def embed_label(self, label: str, templates: Sequence[str]) -> Tensor:
        """Normalize, average over the templates, normalize. (D,)"""
        texts = [template.replace("{}", label) for template in templates]
        limit = min(64, self.model.config.text_config.max_position_embeddings)
        batch = self.processor(
            text=texts, padding=True, truncation=True, max_length=limit, return_tensors="pt"
        )
        embeds = self.model.get_text_features(**batch.to(self.model.temperature.device))  # (templates, D)
        return F.normalize(F.normalize(embeds, dim=-1).mean(0), dim=-1)

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """Cosines over the temperature. B images → logits (B, K); their softmax is the probabilities."""
        batch = self.processor(images=list(images), return_tensors="pt").to(self.model.temperature.device)
        embeds = F.normalize(self.model.get_image_features(**batch), dim=-1)  # (B, D)
        return embeds @ self.label_embeds.T / self.model.temperature
