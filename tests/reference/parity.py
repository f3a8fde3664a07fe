"""What the numeric tests share: errors that tell, healthy weights, golden files, Hugging Face's names."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
from torch import Tensor

from align_minimal import AlignVisionConfig, AlignVisionModel
from align_minimal.bert import BertLayer
from align_minimal.checkpoint import hugging_face_key
from align_minimal.efficientnet import MBConv

try:
    import transformers

    OLD = int(transformers.__version__.split(".")[0]) < 5
except ImportError:
    transformers, OLD = None, False

HERE = Path(__file__).parent
VALUES = {torch.float32: 1e-5, torch.float64: 1e-10}  # relative errors allowed
GRADIENTS = {torch.float32: 1e-3, torch.float64: 1e-10}
PRECISIONS = {dtype: (VALUES[dtype], GRADIENTS[dtype]) for dtype in VALUES}
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # the weights without a gradient


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """The norm of the difference over the norm of theirs."""
    ours, theirs = ours.detach().double(), theirs.detach().double()
    return ((ours - theirs).norm() / theirs.norm().clamp_min(1e-300)).item()


def assert_close(ours: Tensor, theirs, tolerance: float, what: str = "tensor") -> None:
    """Same shape, and a relative error within the tolerance; the message shows max and mean difference."""
    theirs = torch.as_tensor(theirs)
    assert ours.shape == theirs.shape, f"{what}: {tuple(ours.shape)}, expected {tuple(theirs.shape)}"
    error = relative_error(ours, theirs)
    difference = (ours.detach().double() - theirs.detach().double()).abs()
    assert error <= tolerance, (
        f"{what}: relative error {error:.2e} over {tolerance:.0e} "
        f"(max difference {difference.max():.2e}, mean {difference.mean():.2e})"
    )


def assert_alive(x: Tensor, what: str = "output") -> None:
    """A check on numbers near 0, or on the same number for every input, would prove nothing."""
    assert 0.05 < x.std() < 50, f"{what} has standard deviation {x.std():.1e}"
    if len(x) > 1:
        assert relative_error(x[0], x[1]) > 1e-2, f"{what} hardly depends on the input"


@torch.no_grad()
def healthy(model: nn.Module, seed: int = 0, sample: Tensor | None = None) -> nn.Module:
    """Weights as in a trained network, in place; `sample` pixels fill BatchNorm's running statistics.

    With the default N(0, 0.02), B7's output is of the order 1e-23 and every comparison passes.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(x: Tensor, mean: float, std: float) -> None:
        x.copy_(mean + std * torch.randn(x.shape, generator=generator, dtype=torch.float64))

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            fan_in = module.weight[0].numel()
            draw(module.weight, 0, (2 / fan_in) ** 0.5)
            if module.bias is not None:
                draw(module.bias, 0, 0.1)
        elif isinstance(module, nn.Embedding):
            draw(module.weight, 0, 1)
        elif isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            draw(module.weight, 1, 0.1)
            draw(module.bias, 0, 0.1)
    for block in model.modules():  # small branches, as in a trained network
        if isinstance(block, MBConv) and block.residual:
            block.project.bn.weight.mul_(0.15)  # or 55 blocks amplify rounding
        elif isinstance(block, BertLayer):
            block.attention.output.weight.mul_(0.3)  # or 12 layers make all tokens alike
            block.feed_forward.down.weight.mul_(0.3)
    if sample is not None:
        fill_running_statistics(getattr(model, "vision_model", model), sample)
    return model


def fill_running_statistics(tower: nn.Module, sample: Tensor) -> None:
    """Each BatchNorm's running statistics become those of what reaches it, layer after layer, in one pass."""

    def fill(norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        norm.running_mean.copy_(inputs[0].mean((0, 2, 3)))
        norm.running_var.copy_(inputs[0].var((0, 2, 3), correction=0))

    hooks = [m.register_forward_pre_hook(fill) for m in tower.modules() if isinstance(m, nn.BatchNorm2d)]
    training = tower.training
    tower.eval()(sample)  # in training, drop-connect would have its part in them
    tower.train(training)
    for hook in hooks:
        hook.remove()


def copy_to_hugging_face(ours: nn.Module, theirs: nn.Module) -> nn.Module:
    """Load our weights into their module, every key matched; the dtype follows ours."""
    state = {hugging_face_key(name): tensor.clone() for name, tensor in ours.state_dict().items()}
    theirs.to(next(ours.parameters()).dtype).load_state_dict(state, strict=True)
    return theirs.train(ours.training)


def gradients(model: nn.Module, rename=lambda name: name) -> dict[str, Tensor]:
    """Each parameter's gradient by (renamed) name; zeros where there is none."""
    return {rename(n): torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}


def assert_gradients_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    """Each parameter's gradient within the tolerance.

    Where nothing but rounding is left of theirs (a bias that a BatchNorm in training takes away again, a
    key's bias before the softmax), ours must be as good as 0 too, beside the largest gradient there is.
    """
    assert set(ours) == set(theirs)
    largest = max(g.double().norm().item() for g in theirs.values())
    for name, expected in theirs.items():
        rounding = 1e2 * torch.finfo(expected.dtype).eps * largest
        if expected.double().norm() > rounding:
            assert_close(ours[name], expected, tolerance, f"gradient of {name}")
        else:
            limit = 1e2 * torch.finfo(ours[name].dtype).eps * largest
            assert ours[name].double().norm() <= limit, f"gradient of {name} is not 0"


def flatten(output) -> dict[str, Tensor]:
    """Every tensor of an output by its name; tuples get a number, towers a prefix. As in the golden files."""
    flat = {}
    for name, value in output.items():
        if isinstance(value, Tensor):
            flat[name] = value
        elif isinstance(value, tuple):
            flat |= {f"{name}.{i}": tensor for i, tensor in enumerate(value)}
        else:
            flat |= {f"{name}.{key}": tensor for key, tensor in flatten(value).items()}
    return flat


# ---- golden files: what transformers 4.37.2 gave, and the weights that it gave it with (make_*.py)


def golden(name: str) -> dict[str, np.ndarray]:
    """The arrays of tests/reference/NAME.npz."""
    with np.load(HERE / f"{name}.npz") as file:
        return dict(file)


class Golden:
    """tests/reference/NAME.npz, read when it is first asked for. Iterating gives the names of its arrays."""

    def __init__(self, name: str):
        self.name = name

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        return golden(self.name)

    @cached_property
    def config(self) -> dict:
        return json.loads(str(self.arrays["config"]))

    def __iter__(self):
        return iter(self.arrays)

    def part(self, prefix: str, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """The tensors below `prefix/`, floats as `dtype`."""
        found = {}
        for name, array in self.arrays.items():
            if name.startswith(f"{prefix}/"):
                tensor = torch.from_numpy(array.copy())
                found[name[len(prefix) + 1 :]] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        return found

    def gradients(self, case: str, start: str = "") -> dict[str, Tensor]:
        """The flat gradient of a case, cut into its parameters: those whose names begin with `start`."""
        weights = {key: w for key, w in self.part("weight").items() if not key.endswith(BUFFERS)}
        weights = {key: w for key, w in weights.items() if key.startswith(start)}
        pieces = self.part(case)["grad"].split([w.numel() for w in weights.values()])
        return {key: piece.view(w.shape) for (key, w), piece in zip(weights.items(), pieces, strict=True)}

    def fill(self, model: nn.Module, dtype: torch.dtype = torch.float64, theirs: bool = False) -> nn.Module:
        """`model` in eval mode with the file's weights; `theirs` where its names are Hugging Face's."""
        weights = self.part("weight")
        name_of = (lambda name: name) if theirs else hugging_face_key
        ours = {name: weights.pop(name_of(name)) for name in model.state_dict()}
        assert not weights, f"golden weights that the model does not have: {list(weights)}"
        model.to(dtype).load_state_dict(ours)
        return model.eval()


# ---- the image tower's golden files, by case

CASES = {name: Golden(name) for name in ("vision_mean", "vision_max_padded")}


def tensors(case: str, place: str, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """The golden tensors below `place/`."""
    return CASES[case].part(place, dtype)


def pixels(case: str, dtype: torch.dtype = torch.float64) -> Tensor:
    """The pixels that went in, ready for a gradient: (2, 3, 15, 18)."""
    return torch.from_numpy(CASES[case].arrays["pixels"]).to(dtype).requires_grad_()


def tower(case: str, dtype: torch.dtype = torch.float64, **options) -> AlignVisionModel:
    """Our image tower with the golden file's configuration and weights, in eval mode."""
    config = AlignVisionConfig(**CASES[case].config | options)
    return CASES[case].fill(AlignVisionModel(config), dtype)


def assert_gradients_like_golden(
    module: nn.Module, case: str, place: str, dtype: torch.dtype, ours: str = "", theirs: str = ""
) -> None:
    """Every gradient in `module`, which is at `ours` in our tower and at `theirs` in Hugging Face's."""
    found = gradients(module, lambda name: hugging_face_key(ours + name))
    assert_gradients_close(found, CASES[case].gradients(place, theirs), GRADIENTS[dtype])
