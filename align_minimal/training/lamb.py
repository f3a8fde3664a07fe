"""LAMB, the optimizer of ALIGN's section 5 (You et al. 2019, arXiv 1904.00962, algorithm 2).

Adam's direction for every tensor, with the length of the step set by the tensor itself: a learning rate of
1e-3 moves each by a thousandth of its own norm, however large its gradient is. That is what lets the batch
grow.
Differs from the paper: its φ is the identity here, so the norm is taken as it is, and no ratio is clipped.
"""

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
    weight_norm, update_norm = torch.linalg.vector_norm(weight), torch.linalg.vector_norm(update)
    both = (weight_norm > 0) & (update_norm > 0)  # torch.where and no `if`, so that a GPU need not wait
    return torch.where(both, weight_norm / update_norm, torch.ones_like(weight_norm))


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
        defaults = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, trust_ratio=trust_ratio)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict) -> None:
        """Check the group's options, and add it."""
        options = {**self.defaults, **param_group}
        for name in ("lr", "eps", "weight_decay"):
            if not 0 <= options[name] < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, not {options[name]}")
        if len(options["betas"]) != 2 or not all(0 <= beta < 1 for beta in options["betas"]):
            raise ValueError(f"betas must be two numbers in [0, 1), not {options['betas']}")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure=None):
        """One step for every parameter that has a gradient; returns the closure's loss, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is not None:
                    self.step_tensor(w, group)
        return loss

    def step_tensor(self, w: Tensor, group: dict) -> None:
        """The formulas above, for one tensor."""
        g, state, (beta1, beta2) = w.grad, self.state[w], group["betas"]
        if g.is_sparse:
            raise RuntimeError("Lamb needs dense gradients: make the embedding with sparse=False")
        if not state:
            state.update(step=0, m=torch.zeros_like(w), v=torch.zeros_like(w))
        state["step"] += 1
        m = state["m"].mul_(beta1).add_(g, alpha=1 - beta1)
        v = state["v"].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        m_hat = m / (1 - beta1 ** state["step"])
        v_hat = v / (1 - beta2 ** state["step"])
        u = m_hat.div_(v_hat.sqrt_().add_(group["eps"])).add_(w, alpha=group["weight_decay"])
        if group["trust_ratio"]:
            u *= trust_ratio(w, u)
        w.sub_(u, alpha=group["lr"])


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
    in_batch_norm = {p for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    members: dict[str, list[nn.Parameter]] = {"weights": [], "batch_norm": [], "temperature": []}
    for p in model.parameters():
        if p.requires_grad:
            exempt = "batch_norm" if p in in_batch_norm else "weights"
            members["temperature" if p is model.temperature else exempt].append(p)
    return [
        {
            "name": name,
            "params": params,
            "weight_decay": weight_decay if name == "weights" else 0.0,
            "trust_ratio": name == "weights",
        }
        for name, params in members.items()
        if params
    ]
