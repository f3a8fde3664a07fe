"""Write the golden files of the text tower, the model and MiniLM. Run under transformers 4.37.2:

    python tests/reference/make_text.py [FOLDER OF all-MiniLM-L6-v2]

Everything is float64, on tiny random towers whose weights are large enough for every part to show in the
output. A file holds `config` (JSON), `weight/<key>`, `probe/<output>`, and for each case `<case>/input/…`,
`<case>/output/…` and `<case>/grad`: the gradients of Σ probe·output, flat, one parameter after the other in
the order of the weights (zeros where there is none). Keys are Hugging Face's.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AlignConfig, AlignModel, AlignTextConfig, AlignTextModel, BertModel

HERE = Path(__file__).parent
TEXT = dict(
    vocab_size=13,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=8,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
VISION = dict(
    image_size=16,
    width_coefficient=0.25,
    depth_coefficient=1.0,
    kernel_sizes=[3, 5],
    in_channels=[32, 16],
    out_channels=[16, 48],
    strides=[1, 2],
    num_block_repeats=[1, 2],
    expand_ratios=[1, 2],
    depth_divisor=4,
    hidden_dim=12,
    drop_connect_rate=0.0,
)
IDS = torch.tensor([[2, 7, 5, 11, 3], [2, 4, 3, 0, 0], [2, 12, 8, 3, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
NOTHING = MASK.clone()
NOTHING[1] = 0  # the second text is masked throughout
CAUSAL = torch.ones(5, 5, dtype=torch.long).tril().expand(3, 5, 5).clone()
HEADS = torch.tensor([1.0, 0.0])
LAYER_HEADS = torch.tensor([[0.5, 1.0], [0.0, 0.25]])


def cases() -> dict[str, dict]:
    """The inputs of every case of the text tower."""
    torch.manual_seed(1)
    return {
        "plain": dict(input_ids=IDS),
        "mask_2d": dict(input_ids=IDS, attention_mask=MASK),
        "mask_3d": dict(input_ids=IDS, attention_mask=CAUSAL),
        "masked_row": dict(input_ids=IDS, attention_mask=NOTHING),
        "head_mask_1d": dict(input_ids=IDS, attention_mask=MASK, head_mask=HEADS),
        "head_mask_2d": dict(input_ids=IDS, attention_mask=MASK, head_mask=LAYER_HEADS),
        "token_types": dict(input_ids=IDS, token_type_ids=torch.tensor([[0, 0, 1, 1, 1]] * 3)),
        "positions": dict(input_ids=IDS, position_ids=torch.tensor([[7, 0, 3, 3, 1]])),
        "embeds": dict(inputs_embeds=torch.randn(3, 5, 8, dtype=torch.float64), attention_mask=MASK),
    }


def healthy(model: torch.nn.Module) -> torch.nn.Module:
    """float64, eval mode, weights of a size at which every part moves the output."""
    torch.manual_seed(0)
    model = model.double().eval()
    for name, tensor in model.state_dict().items():
        if "num_batches" in name or name == "temperature":
            continue
        if "running_var" in name:
            tensor.uniform_(0.5, 2.0)
        elif ("Norm" in name and name.endswith("weight")) or "bn.weight" in name or "norm.weight" in name:
            tensor.uniform_(0.5, 1.5)
        elif tensor.ndim < 2:
            tensor.normal_(0, 0.3)
        else:
            tensor.normal_(0, (1.5 if tensor.ndim == 4 else 1.0) / tensor[0].numel() ** 0.5)
    return model


def flatten(output) -> dict[str, torch.Tensor]:
    """Every tensor of a model's output by its name; tuples get a number, towers a prefix."""
    flat = {}
    for name, value in output.items():
        if isinstance(value, torch.Tensor):
            flat[name] = value
        elif isinstance(value, tuple):
            flat |= {f"{name}.{i}": tensor for i, tensor in enumerate(value)}
        else:
            flat |= {f"{name}.{key}": tensor for key, tensor in flatten(value).items()}
    return flat


def run(model, inputs: dict, probes: dict, **options) -> dict[str, np.ndarray]:
    """Inputs, outputs and gradients of one case, by the names that the file gives them."""
    seen = {}
    layer = model.text_model.encoder.layer[0] if hasattr(model, "text_model") else model.encoder.layer[0]
    hooks = [
        module.register_forward_hook(lambda _, __, result, name=name: seen.__setitem__(name, result))
        for name, module in (
            ("attention", layer.attention.output.dense),
            ("feed_forward", layer.output.dense),
        )
    ]
    model.zero_grad()
    output = flatten(model(**inputs, **options)) | seen
    sum((probe * output[name]).sum() for name, probe in probes.items()).backward()
    for hook in hooks:
        hook.remove()
    arrays = {f"input/{name}": value for name, value in inputs.items()}
    arrays |= {f"output/{name}": value for name, value in output.items()}
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    arrays["grad"] = torch.cat([grad.flatten() for grad in grads])
    return {name: value.detach().numpy() for name, value in arrays.items()}


def save(filename: str, config: dict, model, probes: dict, results: dict[str, dict]) -> None:
    """One golden file: configuration, weights, probes and every case."""
    arrays = {"config": np.array(json.dumps(config))}
    arrays |= {f"weight/{key}": tensor.numpy() for key, tensor in model.state_dict().items()}
    arrays |= {f"probe/{name}": probe.numpy() for name, probe in probes.items()}
    arrays |= {f"{case}/{name}": a for case, result in results.items() for name, a in result.items()}
    np.savez_compressed(HERE / filename, **arrays)
    print(filename, (HERE / filename).stat().st_size // 1024, "KiB", list(results))


def text_probes() -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    shapes = dict(last_hidden_state=(3, 5, 8), pooler_output=(3, 8))
    return {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}


def make_text_towers() -> None:
    options = dict(output_hidden_states=True, output_attentions=True)
    for kind in ("absolute", "relative_key", "relative_key_query"):
        config = TEXT | dict(position_embedding_type=kind)
        model = healthy(AlignTextModel(AlignTextConfig(**config)))
        wanted = (
            cases() if kind == "absolute" else {c: cases()[c] for c in ("plain", "mask_2d", "head_mask_2d")}
        )
        results = {case: run(model, inputs, text_probes(), **options) for case, inputs in wanted.items()}
        save(f"bert_{kind}.npz", config, model, text_probes(), results)


def make_activations() -> None:
    results = {}
    for act in ("gelu", "relu", "silu", "gelu_new"):
        model = healthy(AlignTextModel(AlignTextConfig(**TEXT, hidden_act=act)))
        results[act] = run(model, cases()["mask_2d"], text_probes())
    save("bert_activations.npz", TEXT, model, text_probes(), results)


def make_model() -> None:
    """Three pairs with the loss, and two texts against three images without it."""
    sizes = dict(projection_dim=12, temperature_init_value=0.3)
    config = dict(text_config=TEXT, vision_config=VISION, **sizes)
    model = healthy(AlignModel(AlignConfig(**config)))
    torch.manual_seed(3)
    pixels = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    pairs = dict(input_ids=IDS, pixel_values=pixels, attention_mask=MASK)
    uneven = dict(input_ids=IDS[:2], pixel_values=pixels, attention_mask=MASK[:2])
    options = dict(output_hidden_states=True)
    results = {
        "pairs": run(model, pairs, dict(loss=torch.ones(())), return_loss=True, **options),
        "uneven": run(model, uneven, dict(logits_per_text=torch.arange(6.0).view(2, 3))),
    }
    with torch.no_grad():
        features = dict(
            text=model.get_text_features(input_ids=IDS, attention_mask=MASK),
            image=model.get_image_features(pixel_values=pixels),
        )
    results["features"] = {f"output/{name}": tensor.numpy() for name, tensor in features.items()}
    save("model.npz", config, model, {}, results)


def make_minilm(folder: str) -> None:
    """The hidden states of real weights for two real sentences (ids from its own vocabulary), float32."""
    vocab = (Path(folder) / "vocab.txt").read_text(encoding="utf-8").splitlines()
    words = ("[CLS] a photo of two cats [SEP]", "[CLS] hello world [SEP] [PAD] [PAD] [PAD]")
    ids = torch.tensor([[vocab.index(word) for word in text.split()] for text in words])
    mask = (ids != 0).long()
    model = BertModel.from_pretrained(folder).eval()
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    slices = np.stack([h[:, :, ::16].numpy() for h in out.hidden_states])  # (7, 2, 7, 24)
    np.savez_compressed(
        HERE / "minilm.npz",
        input_ids=ids.numpy(),
        attention_mask=mask.numpy(),
        every_16th=slices,
        last_hidden_state=out.last_hidden_state.numpy(),
        pooler_output=out.pooler_output.numpy(),
    )


if __name__ == "__main__":
    assert transformers.__version__ == "4.37.2", "later versions ignore relative positions and head_mask"
    make_text_towers()
    make_activations()
    make_model()
    if len(sys.argv) > 1:
        make_minilm(sys.argv[1])
