"""What the tests of the image tower share: its golden files, and our tower with their weights."""

from __future__ import annotations

import json

import torch
from torch import Tensor, nn

from align_minimal import AlignVisionConfig, AlignVisionModel
from align_minimal.checkpoint import hugging_face_key
from tests.reference.parity import GRADIENTS, assert_gradients_close, golden, gradients

CASES = {name: golden(name) for name in ("vision_mean", "vision_max_padded")}
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def tensors(case: str, place: str, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """The golden arrays below `place/`."""
    found = {k.removeprefix(f"{place}/"): v for k, v in CASES[case].items() if k.startswith(f"{place}/")}
    return {name: torch.from_numpy(array).to(dtype) for name, array in found.items()}


def pixels(case: str, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.from_numpy(CASES[case]["pixels"]).to(dtype).requires_grad_()


def tower(case: str, dtype: torch.dtype = torch.float64, **options) -> AlignVisionModel:
    """Our tower with the golden file's configuration and weights, in eval mode."""
    config = json.loads(str(CASES[case]["config"]))
    model = AlignVisionModel(AlignVisionConfig(**config | options)).to(dtype)
    weights = tensors(case, "weight")
    state = {name: weights.pop(hugging_face_key(name)) for name in model.state_dict()}
    assert not weights, f"golden weights that the tower does not have: {list(weights)}"
    model.load_state_dict(state)
    return model.eval()


def assert_gradients_like_golden(
    module: nn.Module, case: str, place: str, dtype: torch.dtype, ours: str = "", theirs: str = ""
) -> None:
    """Every gradient in `module`, which is at `ours` in our tower and at `theirs` in Hugging Face's.

    The file has them as one flat array, in the order of the weights.
    """
    weights = {k: w for k, w in tensors(case, "weight").items() if not k.endswith(BUFFERS)}
    weights = {k: w for k, w in weights.items() if k.startswith(theirs)}
    pieces = tensors(case, place)["grad"].split([w.numel() for w in weights.values()])
    expected = dict(zip(weights, pieces, strict=True))
    found = gradients(module, lambda name: hugging_face_key(ours + name))
    assert_gradients_close({k: g.flatten() for k, g in found.items()}, expected, GRADIENTS[dtype])
