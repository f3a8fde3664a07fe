"""Write vision_*.npz: what Hugging Face's image tower gives, part by part. Run with transformers 4.37.2:

    python tests/reference/make_vision.py

Each file holds `config` (JSON), `weight/KEY`, `pixels`, `probe/NAME`, and for the tower in eval and in train
mode (`eval/…`, `train/…`, no drop): its outputs, `grad_input` and `grad`, the gradients of Σ probe·output,
flat, one parameter after the other in the order of the weights. For each part (`embeddings`,
`encoder.blocks.1`, …) `PART/input`, `probe`, `output`, `grad_input`, `grad`, and the `residual` that their
projection adds inside.
Keys are Hugging Face's. Results are float64; weights and inputs are float16 numbers, exact in any precision.
"""

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import AlignVisionConfig, AlignVisionModel

HERE = Path(__file__).parent
TINY = dict(
    width_coefficient=0.25,
    depth_divisor=4,
    depth_coefficient=1.0,
    kernel_sizes=[3, 5, 3],
    in_channels=[32, 16, 24],
    out_channels=[16, 24, 32],
    strides=[1, 2, 2],
    num_block_repeats=[1, 2, 1],
    expand_ratios=[1, 3, 2],
    hidden_dim=64,
    drop_connect_rate=0.0,
)
CASES = {
    "vision_mean": {},
    "vision_max_padded": dict(pooling_type="max", depthwise_padding=[1], hidden_act="gelu"),
}
ACTIVATIONS = ("relu", "gelu_new", "mish")  # the two cases have swish and gelu
SMALL = ("weight/", "pixels", "/input", "/residual", "probe")  # the arrays kept as float16


def rounded(x: Tensor) -> Tensor:
    """The nearest float16 numbers, as float64."""
    return x.detach().half().double()


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Weights at which every part shows in the output."""
    torch.manual_seed(seed)
    for name, x in model.state_dict().items():
        if x.ndim == 4:
            x.normal_(std=(2 / x[0].numel()) ** 0.5)
        elif "running_var" in name:
            x.uniform_(0.5, 2)
        elif x.ndim == 1:
            x.normal_(mean=1.0 if ("bn.weight" in name or "norm.weight" in name) else 0.0, std=0.3)
        x.copy_(rounded(x))


def flat_gradient(module: torch.nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in module.parameters()])


def part(module: torch.nn.Module, *inputs: Tensor) -> dict[str, Tensor]:
    """A part's output, and its gradients with respect to the last of the inputs and to the parameters."""
    module.zero_grad()
    *residual, x = inputs
    x = x.clone().requires_grad_()
    output = module(*residual, x)
    probe = rounded(torch.randn_like(output))
    (output * probe).sum().backward()
    arrays = dict(input=x, output=output, probe=probe, grad_input=x.grad, grad=flat_gradient(module))
    return arrays | ({"residual": residual[0]} if residual else {})


def parts(model: AlignVisionModel, pixels: Tensor, blocks: range) -> dict[str, Tensor]:
    """The stem, and each part of the blocks asked for, each at the (rounded) output of the one before."""
    pixels = pixels[:1]
    found = {"embeddings": (model.embeddings, (pixels,))}
    x = rounded(model.embeddings(pixels))
    for i, block in enumerate(model.encoder.blocks):
        name, h = f"encoder.blocks.{i}", x
        found[name] = (block, (x,))
        for step in ("expansion", "depthwise_conv", "squeeze_excite"):
            if hasattr(block, step):
                found[f"{name}.{step}"] = (getattr(block, step), (h,))
                h = rounded(getattr(block, step)(h))
        found[f"{name}.projection"] = (block.projection, (x, h))
        x = rounded(block(x))
    wanted = ("embeddings", *(f"encoder.blocks.{i}" for i in blocks))
    return {
        f"{name}/{key}": value
        for name, (module, inputs) in found.items()
        if name.startswith(wanted)
        for key, value in part(module, *inputs).items()
    }


def whole(model: AlignVisionModel, pixels: Tensor, probes: dict[str, Tensor], mode: str) -> dict[str, Tensor]:
    """The tower's outputs and gradients."""
    model.zero_grad()
    x = pixels.clone().requires_grad_()
    out = model(x, output_hidden_states=True)
    sum((probe * out[name]).sum() for name, probe in probes.items()).backward()
    arrays = {f"{mode}/{name}": out[name] for name in probes}
    if mode == "eval":
        arrays |= {f"{mode}/hidden/{i}": h for i, h in enumerate(out.hidden_states)}
    return arrays | {f"{mode}/grad_input": x.grad, f"{mode}/grad": flat_gradient(model)}


def activations(model: AlignVisionModel, config: dict, pixels: Tensor, probe: Tensor) -> dict[str, Tensor]:
    """What the tower pools with other activations, and the gradient of the pixels."""
    arrays = {}
    for act in ACTIVATIONS:
        twin = AlignVisionModel(AlignVisionConfig(**config | dict(hidden_act=act))).double().eval()
        twin.load_state_dict(model.state_dict())
        x = pixels.clone().requires_grad_()
        pooled = twin(x).pooler_output
        (probe * pooled).sum().backward()
        arrays |= {f"activation/{act}/pooler_output": pooled, f"activation/{act}/grad_input": x.grad}
    return arrays


def main() -> None:
    for name, options in CASES.items():
        config = TINY | options
        model = AlignVisionModel(AlignVisionConfig(**config)).double().eval()
        randomize(model, seed=1)
        arrays = {f"weight/{key}": tensor.clone() for key, tensor in model.state_dict().items()}
        pixels = rounded(torch.randn(2, 3, 15, 18))  # sides 7×9, 3×4, 1×2: odd and even at either stride
        out = model(pixels)
        probes = {n: rounded(torch.randn_like(out[n])) for n in ("last_hidden_state", "pooler_output")}
        arrays |= {"pixels": pixels} | {f"probe/{n}": probe for n, probe in probes.items()}
        arrays |= parts(model, pixels, range(1, 2) if options else range(4))  # of the second, what differs
        arrays |= whole(model, pixels, probes, "eval")
        if not options:
            arrays |= activations(model, config, pixels, probes["pooler_output"])
        arrays |= whole(model.train(), pixels, probes, "train")
        numbers = {
            key: (x.half() if any(s in key for s in SMALL) and x.is_floating_point() else x).detach().numpy()
            for key, x in arrays.items()
        }
        np.savez_compressed(HERE / f"{name}.npz", config=np.array(json.dumps(config)), **numbers)
        print(name, (HERE / f"{name}.npz").stat().st_size // 1024, "KiB")


if __name__ == "__main__":
    assert transformers.__version__ == "4.37.2", "the version of the documentation that is followed here"
    main()
