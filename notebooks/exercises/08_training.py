"""LAMB (section 5).

Write the bodies; you need not use all the imports. Check them from the top of the repository, one by one:

    pytest --layer trust_ratio=notebooks/exercises/08_training.py:trust_ratio tests
    pytest --layer Lamb=notebooks/exercises/08_training.py:Lamb tests
    pytest --layer parameter_groups=notebooks/exercises/08_training.py:parameter_groups tests

or all that this file has:

    pytest --layer notebooks/exercises/08_training.py tests
"""

# ruff: noqa: F401
from __future__ import annotations

import math

import torch
import torch.nn as nn
from torch import Tensor


def trust_ratio(weight: Tensor, update: Tensor) -> Tensor:
    """‖w‖/‖u‖, and 1 where either norm is 0: a tensor of zeros could otherwise never leave zero.

    >>> trust_ratio(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0]))
    tensor(2.5000)
    """
    raise NotImplementedError


class Lamb(torch.optim.Optimizer):
    """Layer-wise adaptive moments. With g the gradient of the tensor w at step t, element by element:

        m ← β₁·m + (1 − β₁)·g          m̂ = m / (1 − β₁ᵗ)
        v ← β₂·v + (1 − β₂)·g²         v̂ = v / (1 − β₂ᵗ)
        u = m̂ / (√v̂ + ε) + λ·w         w ← w − lr · (‖w‖/‖u‖) · u

    λ is `weight_decay`. Where a group says trust_ratio=False, ‖w‖/‖u‖ is left out, and what remains is AdamW.
    All options may differ by group.

    Raises ValueError for lr, eps or weight_decay below 0 or not finite, or betas outside [0, 1);
    RuntimeError for a sparse gradient.

    >>> w = torch.tensor([3.0, 4.0], requires_grad=True)
    >>> optimizer = Lamb([w], lr=0.1, weight_decay=0.0)
    >>> w.sum().backward()
    >>> optimizer.step()
    >>> w  # u = (1, 1) after one step, so the ratio is 5/√2 and each moves by 0.1·5/√2
    tensor([2.6464, 3.6464], requires_grad=True)
    """

    def __init__(
        self,
        params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 1e-5,
        trust_ratio: bool = True,
    ):
        raise NotImplementedError

    def add_param_group(self, param_group: dict) -> None:
        """Check the group's options, and add it."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure=None):
        """One step for every parameter that has a gradient; returns the closure's loss, if one is given."""
        raise NotImplementedError

    def step_tensor(self, w: Tensor, group: dict) -> None:
        """The formulas above, for one tensor."""
        raise NotImplementedError


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """An AlignModel's parameters, as groups for Lamb or AdamW: "weights", "batch_norm" and "temperature".

    As in coyo-align, BatchNorm's scales and shifts (all the norms of the image tower) have neither decay nor
    the trust ratio; every other weight, bias and LayerNorm has both. Parameters that need no gradient are
    left out, and so is a group that would be empty.

    Nor has the temperature σ. A scalar's u is ±‖u‖, so the ratio would leave only its sign: σ ← σ(1 ∓ lr).
    From 1.0 to 1/64 such steps need Σ lr ≥ ln 64 = 4.16, about 9,100 steps of the paper's warm-up; without
    the ratio a step is about lr itself, and Σ lr ≈ 1 will do.

    >>> from align_minimal import AlignConfig, AlignModel
    >>> groups = parameter_groups(AlignModel(AlignConfig.preset("emoji")), weight_decay=1e-5)
    >>> [(group["name"], group["weight_decay"], group["trust_ratio"]) for group in groups]
    [('weights', 1e-05, True), ('batch_norm', 0.0, False), ('temperature', 0.0, False)]
    """
    raise NotImplementedError
