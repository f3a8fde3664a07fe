"""The loss (equations 1 and 2).

Write the bodies; you need not use all the imports. Check them from the top of the repository, one by one:

    pytest --layer contrastive_loss=notebooks/exercises/06_loss.py:contrastive_loss tests

or all that this file has:

    pytest --layer notebooks/exercises/06_loss.py tests
"""

# ruff: noqa: F401
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from align_minimal.support.checks import check_pairs


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

    The paper sums the two. Hugging Face takes their mean, half of the paper's, and so does this function.
    σ divides, is the same in both directions, and is not clamped. Cosines lie in [−1, 1], so at σ = 1 the
    loss without smoothing cannot fall below log(1 + (B−1)/e²): σ must shrink, and is learnt (in the paper it
    ends near 1/64). Label smoothing ε gives each of the B candidates ε/B of the target, and the right one
    1 − ε more, so the loss cannot reach 0.

    tile: never more than a tile × B block of logits is in memory. distributed: the negatives come from every
    rank of the default process group; each rank gets the loss of all pairs, and averaging the ranks'
    gradients gives the gradient of the full batch. Both are in training/large_batch.py, with the same numbers
    as the lines below.

    Raises ValueError if shapes differ, label_smoothing is outside [0, 1], temperature is not above 0 or tile
    is below 1; RuntimeError if distributed and there is no process group.

    >>> pairs = torch.eye(4)
    >>> contrastive_loss(pairs, pairs, temperature=1.0, label_smoothing=0.0)
    tensor(0.7437)

    That is log(1 + 3/e): far from 0, because σ is 1.
    """
    raise NotImplementedError
