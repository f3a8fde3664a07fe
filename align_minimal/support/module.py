"""What the models offer beside their computation: where they are, and training in less memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

Output = TypeVar("Output")


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Inside it, BatchNorm in training gives the same numbers, but its running statistics stay as they are.

    >>> norm = nn.BatchNorm2d(1)
    >>> with statistics_kept(norm):
    ...     _ = norm(torch.ones(2, 1, 3, 3))
    >>> norm.running_mean, int(norm.num_batches_tracked)
    (tensor([0.]), 0)
    """
    kept = [(owner, name, b) for owner in module.modules() for name, b in owner.named_buffers(recurse=False)]
    for owner, name, buffer in kept:
        setattr(owner, name, buffer.clone())  # it is the copy that is updated
    try:
        yield
    finally:
        for owner, name, buffer in kept:
            setattr(owner, name, buffer)


def forget(block: nn.Module, *args):
    """block(*args), whose backward pass computes it again from `args` instead of keeping its activations.

    That is gradient checkpointing (Chen et al. 2016, arXiv 1604.06174). The second time, dropout draws the
    same numbers as the first, and BatchNorm does not count the batch again.

    >>> layer, x = nn.Linear(1, 1), torch.ones(1, requires_grad=True)
    >>> forget(layer, x).backward()
    >>> torch.equal(x.grad, layer.weight[0])
    True
    """
    forward = type(block).forward
    if not torch.is_grad_enabled():
        return forward(block, *args)
    if torch.compiler.is_compiling():  # recomputation is the compiler's own affair; it updates nothing twice
        return checkpoint(forward, block, *args, use_reentrant=False)
    contexts = lambda: (nullcontext(), statistics_kept(block))  # noqa: E731 - of the first time and the second
    return checkpoint(forward, block, *args, use_reentrant=False, context_fn=contexts)


class Module(nn.Module, Generic[Output]):
    """What AlignModel and its towers have in common as modules.

    >>> from align_minimal import AlignModel
    >>> model = AlignModel.from_pretrained("emoji")
    >>> model.device, model.dtype, model.get_input_embeddings()
    (device(type='cpu'), torch.float32, Embedding(4000, 128, padding_idx=0))
    """

    __call__: Callable[..., Output]  # what forward returns; PyTorch says Any

    input_embeddings: ClassVar[str]  # the name of the layer that meets the inputs first

    @property
    def device(self) -> torch.device:
        """Where the first parameter is."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The first parameter's type."""
        return next(self.parameters()).dtype

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings; of the image tower, the first convolution."""
        return self.get_submodule(self.input_embeddings)

    def recomputable(self) -> list[nn.Module]:
        """What the towers repeat: BERT's layers, EfficientNet's blocks."""
        return [block for part in self.modules() if isinstance(part, nn.ModuleList) for block in part]

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None
    ) -> None:
        """In training, keep each block's input alone, and compute the block again in the backward pass.

        The gradients are the same; it takes less memory and more time. The argument is Hugging Face's: None,
        or {"use_reentrant": False}, which is the only way here (else ValueError).
        """
        options = gradient_checkpointing_kwargs or {}
        if options.get("use_reentrant") or set(options) - {"use_reentrant"}:
            raise ValueError(
                f"gradient_checkpointing_kwargs {options}: only use_reentrant=False is supported"
            )
        for block in self.recomputable():
            block.forward = partial(forget, block)

    def gradient_checkpointing_disable(self) -> None:
        """Keep all activations for the backward pass again."""
        for block in self.recomputable():
            vars(block).pop("forward", None)
