"""What the shared space is good for: zero-shot classification (ALIGN, section 5.2) and retrieval (5.1).

Classification: labels become texts, texts become a classifier, and an image belongs to the label whose text
lies nearest to it. Several templates ("a photo of a {}", "art of a {}") are averaged in embedding space,
which the paper takes from CLIP as prompt ensembling. Retrieval: how often the right text or image is found.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from .image_processor import open_image, to_rgb
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


def count_competitors(
    queries: Tensor, candidates: Tensor, query_image: Tensor, candidate_image: Tensor, block: int
) -> tuple[Tensor, Tensor, Tensor]:
    """For every query's best right candidate: those that score above it, wrong ties, right ties with itself.

    (Q, D), (C, D), both normalized, (Q,), (C,) → three times (Q,). A candidate is right for a query if both
    belong to the same image. Never more than block × C scores in memory.
    """
    counts = []
    for start in range(0, len(queries), block):
        rows = slice(start, start + block)
        scores = queries[rows] @ candidates.T  # (block, C)
        right = query_image[rows, None] == candidate_image  # (block, C)
        # Taken from the same product as its rivals: another order of summing would break exact ties.
        best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)  # (block, 1)
        tied = scores == best
        tied_right = (tied & right).sum(1)
        counts.append(torch.stack([(scores > best).sum(1), tied.sum(1) - tied_right, tied_right]).cpu())
    above, wrong, right = torch.cat(counts, dim=1)
    return above, wrong, right


def expected_recall(above: Tensor, wrong: Tensor, right: Tensor, k: int) -> float:
    """The mean probability that one of `right` is among the first k, were the ties shuffled.

    After the `above`, k − above places are left. Each in turn goes to a wrong tie with the share of the wrong
    among those still left.

    >>> one = torch.tensor([1])
    >>> expected_recall(above=one, wrong=one, right=one, k=1), expected_recall(one, one, one, k=2)
    (0.0, 0.5)
    """
    miss = torch.ones(len(above), dtype=torch.float64)
    for place in range(min(k, int((above + wrong + right).max()))):
        share = (wrong - place).clamp(min=0) / (wrong + right - place).clamp(min=1).double()
        miss = torch.where(place < k - above, miss * share, miss)
    return (1 - miss).mean().item()


def check_pairs(image_embeds: Tensor, text_embeds: Tensor, text_image: Tensor) -> None:
    """ValueError unless the embeddings are finite and of one width, and every image has a text."""
    if image_embeds.ndim != 2 or text_embeds.ndim != 2 or image_embeds.shape[1] != text_embeds.shape[1]:
        shapes = f"{tuple(image_embeds.shape)} and {tuple(text_embeds.shape)}"
        raise ValueError(f"image_embeds and text_embeds must be (N, width) and (M, width), not {shapes}")
    for name, embeds in (("image_embeds", image_embeds), ("text_embeds", text_embeds)):
        if not embeds.isfinite().all():
            row = int((~embeds.isfinite()).any(1).nonzero()[0])
            raise ValueError(f"{name} must be finite, but row {row} is not")
    images, texts = len(image_embeds), len(text_embeds)
    if text_image.shape != (texts,) or text_image.is_floating_point():
        raise ValueError(f"text_image must hold one image's index for each of the {texts} texts")
    outside = text_image[(text_image < 0) | (text_image >= images)]
    if len(outside):
        raise ValueError(f"text_image names image {int(outside[0])}, but there are {images}, from 0")
    alone = (torch.bincount(text_image, minlength=images) == 0).nonzero()
    if images == 0 or len(alone):
        raise ValueError(f"image {int(alone[0])} has no text" if images else "no images")


@torch.no_grad()
def recall_at_k(
    image_embeds: Tensor,
    text_embeds: Tensor,
    text_image: Tensor,
    ks: Sequence[int] = (1, 5, 10),
    block: int = 256,
) -> dict[str, dict[str, float]]:
    """How often a right candidate is among the K nearest by cosine, both ways (5.1, table 1).

    `image_embeds` (N, D) and `text_embeds` (M, D), normalized here; `text_image` (M,) is the index of each
    text's image. To find an image's text is to find any of its texts. → {"image_to_text": {"R@1": …, …},
    "text_to_image": {…}}, fractions in [0, 1]. Exact; scores in memory at once: block × max(N, M).

    Candidates with exactly the same score are taken in random order, and R@K is the expectation over it: a
    collapsed model, which gives everything one embedding, gets chance (K/N) and neither 1 nor 0, and a text
    that two images share costs a perfect model half a hit each.

    Raises ValueError for embeddings that are not finite or of two widths, an image without a text, a text
    whose image is not there, or a K below 1.

    >>> recall_at_k(torch.eye(4), torch.eye(4).roll(1, 0), torch.arange(4), ks=(1, 4))["text_to_image"]
    {'R@1': 0.0, 'R@4': 1.0}
    """
    check_pairs(image_embeds, text_embeds, text_image)
    if not all(k >= 1 for k in ks):
        raise ValueError(f"every K must be at least 1, not {min(ks)}")
    # Half precision would make ties of scores that differ.
    precision = torch.promote_types(torch.promote_types(image_embeds.dtype, text_embeds.dtype), torch.float32)
    images = F.normalize(image_embeds.to(precision), dim=-1)
    texts = F.normalize(text_embeds.to(precision), dim=-1)
    image_of_text = text_image.to(images.device)
    image_of_image = torch.arange(len(images), device=images.device)
    ways = {
        "image_to_text": count_competitors(images, texts, image_of_image, image_of_text, block),
        "text_to_image": count_competitors(texts, images, image_of_text, image_of_image, block),
    }
    return {way: {f"R@{k}": expected_recall(*counts, k) for k in ks} for way, counts in ways.items()}


@torch.inference_mode()
def evaluate(model: AlignModel, processor: AlignProcessor, pairs: Iterable, batch_size: int = 64) -> dict:
    """Retrieval over `pairs`, which have name, image (a path, or bytes) and texts, as those of data.Pairs.

    Pairs of one name are one image with all their texts. Images that cannot be read are left out with a
    warning. → {"images": N, "texts": M, "image_to_text": {"R@1": …}, "text_to_image": {…}}. Puts the model
    in eval mode. Raises ValueError if no image can be read.
    """
    model.eval()
    texts: dict[str, dict[str, None]] = {}  # by image, each text once
    images, batch = [], []
    broken: dict[str, str] = {}  # what is wrong, by image
    device = model.temperature.device

    def embed_images() -> None:
        pixels = processor(images=batch, return_tensors="pt").to(device)["pixel_values"]
        images.append(model.get_image_features(pixels).cpu())  # (B, D)
        batch.clear()

    for pair in tqdm(pairs, "pictures", unit="", leave=False):
        if pair.name in broken:
            continue
        if pair.name not in texts:
            try:
                batch.append(to_rgb(open_image(pair.image, pair.name)))
            except (OSError, ValueError) as error:
                broken[pair.name] = str(error)
                warnings.warn(f"skipped: {error}", stacklevel=2)
                continue
            if len(batch) == batch_size:
                embed_images()
        texts.setdefault(pair.name, {}).update(dict.fromkeys(pair.texts))
    if not texts:
        raise ValueError(f"no image could be read; {next(iter(broken.values()), 'there is none')}")
    if batch:
        embed_images()
    text_image = [i for i, own in enumerate(texts.values()) for _ in own]
    all_texts = [text for own in texts.values() for text in own]
    limit = min(64, model.config.text_config.max_position_embeddings)
    embeds = []
    for i in tqdm(range(0, len(all_texts), batch_size), "texts", unit="batch", leave=False):
        part = all_texts[i : i + batch_size]
        tokens = processor(text=part, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        embeds.append(model.get_text_features(**tokens.to(device)).cpu())  # (B, D)
    recall = recall_at_k(torch.cat(images), torch.cat(embeds), torch.tensor(text_image))
    return {"images": len(texts), "texts": len(all_texts), **recall}


def print_recall(result: dict) -> None:
    """What `evaluate` returns, for a person."""
    print(f"{result['images']:,} images, {result['texts']:,} texts")
    for direction in ("image_to_text", "text_to_image"):
        values = "  ".join(f"{k} {v:.3f}" for k, v in result[direction].items())
        print(f"  {direction.replace('_', ' ')}: {values}")
