"""The loss: normalized softmax over the batch, both ways (ALIGN, 4.1, equations 1 and 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive_loss(
    text_embeds: Tensor,
    image_embeds: Tensor,
    temperature: Tensor | float,
    label_smoothing: float = 0.1,
    tile: int | None = None,
    distributed: bool = False,
) -> Tensor:
    """The mean of image-to-text and text-to-image cross-entropy. (B, D), (B, D) → scalar.

    With x_i, y_i the embeddings of pair i's image and text, both L2-normalized, and σ the temperature:

        (1)  L_i2t = −1/B Σ_i log[ exp(x_i·y_i/σ) / Σ_j exp(x_i·y_j/σ) ]
        (2)  L_t2i = −1/B Σ_i log[ exp(y_i·x_i/σ) / Σ_j exp(y_i·x_j/σ) ]

    The paper sums the two; as in the reference this is their mean, half of the paper's. σ divides, is shared,
    and has no clamp. Label smoothing ε moves ε/B of the target to every text, so the loss cannot reach 0.

    tile: never more than a tile × B block of logits in memory. distributed: negatives from every rank of the
    default process group; each gets the loss of all pairs, and the mean of the ranks' gradients is its
    gradient. Both are large_batch.py's; the numbers are those of the lines below.

    Raises ValueError if shapes differ, label_smoothing is outside [0, 1], temperature is not above 0 or tile
    is below 1; RuntimeError if distributed and there is no process group.

    >>> pairs = torch.eye(4)
    >>> contrastive_loss(pairs, pairs, temperature=1.0, label_smoothing=0.0)
    tensor(0.7437)
    """
    if text_embeds.ndim != 2 or text_embeds.shape != image_embeds.shape:
        raise ValueError(
            "text_embeds and image_embeds must both be (batch, width), "
            f"not {tuple(text_embeds.shape)} and {tuple(image_embeds.shape)}"
        )
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must lie in [0, 1], not {label_smoothing}")
    sigma = temperature.item() if isinstance(temperature, Tensor) else temperature
    if not sigma > 0:
        raise ValueError(f"temperature must be above 0, not {sigma}")
    if tile is not None or distributed:
        from .training.large_batch import tiled_loss

        return tiled_loss(text_embeds, image_embeds, temperature, label_smoothing, tile, distributed)
    logits = text_embeds @ image_embeds.T / temperature  # (B, B): row = text, column = image
    labels = torch.arange(len(logits), device=logits.device)  # pair i belongs to pair i
    text_to_image = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    image_to_text = F.cross_entropy(logits.T, labels, label_smoothing=label_smoothing)
    return (text_to_image + image_to_text) / 2
