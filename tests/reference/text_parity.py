"""What the tests of the text tower and of the model share: golden files, and comparison with them."""

from __future__ import annotations

import json

import torch
from torch import Tensor, nn

from align_minimal.checkpoint import hugging_face_key
from tests.reference.parity import GRADIENTS, VALUES, golden

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
PRECISIONS = {dtype: (VALUES[dtype], GRADIENTS[dtype]) for dtype in VALUES}

try:
    import transformers

    OLD = int(transformers.__version__.split(".")[0]) < 5
except ImportError:
    transformers, OLD = None, False


def flatten(output) -> dict[str, Tensor]:
    """Every tensor of an output by its name; tuples get a number, towers a prefix. As the golden files."""
    flat = {}
    for name, value in output.items():
        if isinstance(value, Tensor):
            flat[name] = value
        elif isinstance(value, tuple):
            flat |= {f"{name}.{i}": tensor for i, tensor in enumerate(value)}
        else:
            flat |= {f"{name}.{key}": tensor for key, tensor in flatten(value).items()}
    return flat


class Golden:
    """tests/reference/NAME.npz: what transformers 4.37.2 gave (float64), and the weights it gave it with."""

    def __init__(self, name: str):
        self.arrays = golden(name)
        self.config = json.loads(str(self.arrays["config"]))

    def part(self, prefix: str, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """The tensors below `prefix/`, floats as `dtype`."""
        found = {}
        for name, array in self.arrays.items():
            if name.startswith(prefix + "/"):
                tensor = torch.from_numpy(array.copy())
                found[name[len(prefix) + 1 :]] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        return found

    def gradients(self, case: str) -> dict[str, Tensor]:
        """The flat gradient of a case, cut into the parameters it is made of."""
        weights = {key: w for key, w in self.part("weight").items() if not key.endswith(BUFFERS)}
        flat = torch.from_numpy(self.arrays[f"{case}/grad"])
        pieces = flat.split([w.numel() for w in weights.values()])
        return {key: piece.view(w.shape) for (key, w), piece in zip(weights.items(), pieces, strict=True)}

    def fill(self, model: nn.Module, dtype: torch.dtype = torch.float64, theirs: bool = False) -> nn.Module:
        """`model` in eval mode with the file's weights; `theirs` where its names are Hugging Face's."""
        weights = self.part("weight")
        name_of = (lambda name: name) if theirs else hugging_face_key
        ours = {name: weights.pop(name_of(name)) for name in model.state_dict()}
        assert not weights, f"golden weights that the model does not have: {list(weights)}"
        model.to(dtype).load_state_dict(ours)
        return model.eval()
