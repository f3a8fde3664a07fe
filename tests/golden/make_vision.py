"""Write vision_*.npz: what Hugging Face's image tower gives, part by part. Run with transformers 4.37.2:

    python tests/golden/make_vision.py

Each file holds `config` (JSON), `weight/KEY`, `pixels`, `last_hidden_state`, `pooler_output`, `hidden/I`,
`train/pooler_output` (in training mode, without drop), and for each part `NAME/input`, `NAME/output`,
`NAME/probe`, `NAME/grad_input` and `NAME/grad/KEY`: the gradients of Σ probe·output. float64; keys are
Hugging Face's.
"""

import json
from pathlib import Path

import numpy as np
import torch
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
)
CASES = {
    "vision_mean": {},
    "vision_max_padded": dict(pooling_type="max", depthwise_padding=[1], hidden_act="gelu"),
}
ACTIVATIONS = ("relu", "gelu_new", "silu", "mish")


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


def part(module: torch.nn.Module, *inputs: torch.Tensor) -> dict[str, np.ndarray]:
    """A part's output and gradients at some inputs (the first is the one to differentiate)."""
    module.zero_grad()
    x = inputs[0].detach().clone().requires_grad_()
    output = module(x, *inputs[1:])
    probe = torch.randn_like(output)
    (output * probe).sum().backward()
    arrays = {"input": x, "output": output, "probe": probe, "grad_input": x.grad}
    arrays |= {f"grad/{name}": p.grad for name, p in module.named_parameters()}
    return {name: a.detach().numpy().copy() for name, a in arrays.items()}


def parts(model: AlignVisionModel, pixels: torch.Tensor) -> dict[str, np.ndarray]:
    found = {"embeddings": (model.embeddings, (pixels,))}
    x = model.embeddings(pixels)
    for i, block in enumerate(model.encoder.blocks):
        found[f"encoder.blocks.{i}"] = (block, (x,))
        h = x
        for name in ("expansion", "depthwise_conv", "squeeze_excite"):
            if hasattr(block, name):
                found[f"encoder.blocks.{i}.{name}"] = (getattr(block, name), (h,))
                h = getattr(block, name)(h)
        found[f"encoder.blocks.{i}.projection"] = (block.projection, (x, h))
        x = block(x)
    arrays = {}
    for name, (module, inputs) in found.items():
        if name.endswith("projection"):  # theirs adds the residual inside; differentiate by the second input

            def last(h, module=module, x=inputs[0].detach()):
                return module(x, h)

            wrapped = torch.nn.Module()
            wrapped.inner, wrapped.forward = module, last
            values = part(wrapped, inputs[1])
            values = {k.replace("inner.", ""): v for k, v in values.items()} | {
                "residual": inputs[0].detach().numpy()
            }
        else:
            values = part(module, *inputs)
        arrays |= {f"{name}/{k}": v for k, v in values.items()}
    return arrays


def main() -> None:
    for name, options in CASES.items():
        config = TINY | options | dict(drop_connect_rate=0.0)
        model = AlignVisionModel(AlignVisionConfig(**config)).double().eval()
        randomize(model, seed=1)
        arrays = {f"weight/{k}": v.numpy().copy() for k, v in model.state_dict().items()}
        pixels = torch.randn(2, 3, 15, 11, dtype=torch.float64)
        out = model(pixels, output_hidden_states=True)
        arrays |= {"config": np.array(json.dumps(config)), "pixels": pixels.numpy()}
        arrays |= {k: out[k].detach().numpy() for k in ("last_hidden_state", "pooler_output")}
        arrays |= {f"hidden/{i}": h.detach().numpy() for i, h in enumerate(out.hidden_states)}
        arrays |= parts(model, pixels)
        for act in ACTIVATIONS if not options else ():
            twin = AlignVisionModel(AlignVisionConfig(**config | dict(hidden_act=act))).double().eval()
            twin.load_state_dict(model.state_dict())
            arrays[f"activation/{act}"] = twin(pixels).pooler_output.detach().numpy()
        arrays["train/pooler_output"] = model.train()(pixels).pooler_output.detach().numpy()
        np.savez_compressed(HERE / f"{name}.npz", **arrays)


if __name__ == "__main__":
    main()
