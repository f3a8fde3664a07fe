"""For each building block its results on the smallest input that shows what it does (see layers.py).

An example takes the block's class or function, and returns what came by name: the input (to be shown), the
parameters' names and shapes, values, gradients. Results must not depend on how chance is drawn.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from align_minimal import AlignConfig, AlignModel, AlignTextConfig, AlignVisionConfig
from align_minimal.efficientnet import BlockSpec
from align_minimal.image_processor import EfficientNetImageProcessor
from align_minimal.tokenizer import SPECIAL_TOKENS, BertTokenizer


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Numbers with one decimal, to be read easily."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).mul(10).round() / 10


def fill(module: nn.Module) -> dict:
    """Weights that depend on their names and shapes alone; returns those."""
    module.double()
    shapes = {}
    for name, tensor in sorted(module.state_dict().items()):
        if tensor.is_floating_point():
            drawn = draw(*tensor.shape, seed=zlib.crc32(name.encode()))
            tensor.copy_(drawn.abs() + 0.5 if "var" in name or name == "temperature" else drawn)
            shapes[name] = tuple(tensor.shape)
    return shapes


def slopes(result: Tensor, module: nn.Module, x: Tensor | None = None) -> dict:
    """The gradients of Σ probe·result."""
    module.zero_grad()
    (result * draw(*result.shape, seed=1)).sum().backward()
    found = {"gradient of the input": x.grad} if x is not None else {}
    parameters = sorted(module.named_parameters())
    return found | {f"gradient of {name}": p.grad for name, p in parameters if p.grad is not None}


def module(layer: nn.Module, x: Tensor, *more, train: bool = False) -> dict:
    """A layer's parameters, output and gradients; in training its running statistics too."""
    results = {"input": x.clone(), "parameters": fill(layer)}
    x = x.clone().requires_grad_()
    output = layer.train(train)(x, *more)
    several = output if isinstance(output, tuple) else (output,)
    results |= {"output" + f" {i}" * (i > 0): part for i, part in enumerate(several)}
    if train:
        results |= {name: b.clone() for name, b in layer.named_buffers() if b.is_floating_point()}
    return results | slopes(several[0], layer, x)


# ---- the image tower

VISION = dict(width_coefficient=0.5, depth_coefficient=1.0, depth_divisor=2, squeeze_expansion_ratio=0.5)
VISION |= dict(kernel_sizes=[3, 3], in_channels=[32, 4], out_channels=[4, 8], strides=[1, 2])
VISION |= dict(num_block_repeats=[1, 2], expand_ratios=[1, 2], image_size=8, batch_norm_momentum=0.9)


def vision_config(**options) -> AlignVisionConfig:
    return AlignVisionConfig(**VISION | options)


def round_filters(f) -> dict:
    config = AlignVisionConfig(width_coefficient=1.0)
    numbers = (1, 11, 16, 18, 320)
    return {"input": f"{numbers} channels at width 1"} | {f"{c} channels": f(c, config) for c in numbers}


def block_specs(f) -> dict:
    config = vision_config(in_channels=[4, 4])
    found = {f"block {i}": dict(sorted(vars(spec).items())) for i, spec in enumerate(f(config))}
    return {"input": f"two stages of {config.num_block_repeats} blocks"} | found


def batch_norm(f) -> dict:
    return module(f(2, vision_config()), draw(2, 2, 1, 2), train=True)


def conv_norm(f) -> dict:
    results = module(f(1, 1, 3, vision_config(), stride=2, activation=F.silu), draw(1, 1, 4, 4))
    centered = module(f(1, 1, 3, vision_config(), stride=2, centered=True), draw(1, 1, 4, 4))
    return results | {"output, centered": centered["output"]}


def squeeze_excite(f) -> dict:
    return module(f(2, 1, F.silu), draw(2, 2, 1, 2))


def drop_connect(f) -> dict:
    torch.manual_seed(0)
    x = torch.ones(1000, 2, 1, 2, requires_grad=True)
    layer = f(0.2)
    dropped, kept_whole = layer.train()(x), layer.eval()(x)
    dropped.sum().backward()
    return {
        "input": "1000 samples of ones (2, 1, 2), rate 0.2",
        "values in training": sorted({round(v, 5) for v in dropped.flatten().tolist()}),
        "one draw a sample": bool((dropped == dropped[:, :1, :, :1]).all()),
        "mean within 0.1 of 1": bool((dropped.mean() - 1).abs() < 0.1),
        "values in eval": kept_whole.unique().tolist(),
        "gradient, where it is 1.25": x.grad[dropped > 0].unique().tolist(),
    }


def mbconv(f) -> dict:
    spec = BlockSpec(3, 2, 2, 1, 2, residual=True, centered_padding=False, drop_rate=0.0)
    results = module(f(spec, vision_config()), draw(1, 2, 2, 2))
    spec.drop_rate = 1 - 1e-9  # as good as certain
    dropped = module(f(spec, vision_config()), draw(1, 2, 2, 2), train=True)
    return results | {"output where the branch is dropped": dropped["output"]}


def vision_model(f) -> dict:
    model = f(vision_config())
    results = {"input": draw(2, 3, 8, 8), "parameters": fill(model)}
    x = draw(2, 3, 8, 8).requires_grad_()
    output = model.eval()(x)
    results |= {"last_hidden_state": output.last_hidden_state, "pooler_output": output.pooler_output}
    return results | slopes(output.pooler_output, model, x)


# ---- the text tower

TEXT = dict(vocab_size=7, hidden_size=4, num_attention_heads=2, num_hidden_layers=2, intermediate_size=4)
TEXT |= dict(max_position_embeddings=4)
IDS = torch.tensor([[2, 5, 3], [2, 3, 0]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])


def text_config(**options) -> AlignTextConfig:
    return AlignTextConfig(**TEXT | options)


def bert_embeddings(f) -> dict:
    layer = f(text_config())
    results = {"input": IDS, "parameters": fill(layer)}
    output = layer.eval()(IDS)
    return results | {"output": output} | slopes(output, layer)


def self_attention(f) -> dict:
    results = module(f(text_config()), draw(1, 2, 4))
    mask = torch.tensor([0.0, -1e9], dtype=torch.float64).view(1, 1, 1, 2)
    masked = module(f(text_config()), draw(1, 2, 4), mask)
    relative = module(f(text_config(position_embedding_type="relative_key_query")), draw(1, 2, 4))
    results["output, the second key masked"] = masked["output"]
    return results | {
        f"relative_key_query, {name}": value for name, value in relative.items() if name != "input"
    }


def feed_forward(f) -> dict:
    return module(f(text_config()), draw(1, 1, 4))


def bert_layer(f) -> dict:
    return module(f(text_config()), draw(1, 2, 4))


def additive_mask(f) -> dict:
    wide = torch.ones(1, 2, 2, dtype=torch.long).tril()
    results = {"(B, T) mask": f(MASK, torch.float32), "(B, T, T) mask": f(wide, torch.float32)}
    return {"input": MASK} | results


def layer_head_masks(f) -> dict:
    rows = torch.tensor([[1.0, 0.0], [0.0, 0.5]])
    of_all, of_each = f(rows[0], text_config()), f(rows, text_config())
    results = {"without a mask": f(None, text_config())}
    results |= {f"(N,) mask, layer {i}": m for i, m in enumerate(of_all)}
    return {"input": rows} | results | {f"(layers, N) mask, layer {i}": m for i, m in enumerate(of_each)}


def text_model(f) -> dict:
    model = f(text_config())
    results = {"input": IDS, "parameters": fill(model)}
    output = model.eval()(IDS, MASK)
    results |= {"last_hidden_state": output.last_hidden_state, "pooler_output": output.pooler_output}
    return results | slopes(output.pooler_output, model)


# ---- loss, model, optimiser


def contrastive_loss(f) -> dict:
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], dtype=torch.float64, requires_grad=True)
    images = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, -1.0]], dtype=torch.float64, requires_grad=True)
    sigma = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    loss = f(texts, images, sigma)
    slope = torch.autograd.grad(loss, [texts, images, sigma])
    names = ("text_embeds", "image_embeds", "temperature")
    return {
        "input": f"temperature 0.5, text_embeds {texts.tolist()}, image_embeds {images.tolist()}",
        "loss, no label smoothing": f(texts, images, sigma, label_smoothing=0.0),
        "loss": loss,
        **{f"gradient of {name}": g for name, g in zip(names, slope, strict=True)},
    }


def align_config() -> AlignConfig:
    return AlignConfig(text_config=text_config(), vision_config=vision_config(), projection_dim=4)


def align_model(f) -> dict:
    model = f(align_config())
    results = {"input": IDS, "parameters": fill(model)}
    pixels = draw(2, 3, 8, 8)
    output = model.eval()(IDS, pixels, MASK, return_loss=True)
    results["get_text_features"] = model.get_text_features(IDS, MASK)
    results["get_image_features"] = model.get_image_features(pixels)
    for name in ("text_embeds", "image_embeds", "logits_per_text", "logits_per_image", "loss"):
        results[name] = output[name]
    return results | slopes(output.loss, model)


def trust_ratio(f) -> dict:
    w, u, zero = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0]), torch.zeros(2)
    results = {"ratio": f(w, u), "ratio of zeros to u": f(zero, u), "ratio of w to zeros": f(w, zero)}
    return {"input": f"w = {w.tolist()}, u = {u.tolist()}"} | results


def lamb(f) -> dict:
    w = torch.tensor([6.0, 8.0], dtype=torch.float64, requires_grad=True)
    optimizer = f([w], lr=1 / 8, betas=(1 / 2, 3 / 4), eps=1.0, weight_decay=1 / 4)
    results = {"input": "w = (6, 8), β = (1/2, 3/4), ε = 1, λ = 1/4, lr = 1/8, gradients (1, −1), (1, 5/2)"}
    for step, gradient in (("one step", [1.0, -1.0]), ("two steps", [1.0, 2.5])):
        w.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        results[f"w after {step}"] = w.detach().clone()
    return results


def parameter_groups(f) -> dict:
    groups = f(AlignModel(align_config()), 0.1)
    found = {g["name"]: (len(g["params"]), g["weight_decay"], g["trust_ratio"]) for g in groups}
    return {"input": "a small AlignModel, weight_decay 0.1", "parameters, decay, ratio by group": found}


# ---- texts and pictures

VOCABULARY = [*SPECIAL_TOKENS, "a", "red", "cat", "##s", "the", "!"]


def of_each(f, *inputs) -> dict:
    """A function of one argument (or a tuple of them), on each of `inputs`."""
    called = {repr(x): f(*x) if isinstance(x, tuple) else f(x) for x in inputs}
    return {"input": ", ".join(called)} | called


def lower(f) -> dict:
    return of_each(f, "ΟΔΟΣ", "İ", "Ab")


def clean(f) -> dict:
    return of_each(f, "a\x00b\tc中d", "cafe\u0301", "\ufb01")


def split_words(f) -> dict:
    return of_each(f, ("un caf\u00e9, 1+1", True, []), ("[SEP] caf\u00e9", False, ["[SEP]"]))


def wordpiece(f) -> dict:
    vocab = {"a": 0, "ab": 1, "##cd": 2, "##efz": 3, "abcdefg": 4, "cd": 5, "efz": 6}
    vocab |= {"y" * 100: 7, "##y": 8}  # of a word that is too long by one, each piece is known
    return of_each(lambda word: f(word, vocab), "abcdefz", "abcdx", "y" * 100, "y" * 101)


def merge(f) -> dict:
    return of_each(f, (["h", "##u", "##g"], ("##u", "##g")), (["a", "##a", "##a", "##a"], ("##a", "##a")))


def best_pair(f) -> dict:
    pairs, pieces = {("##g", "##s"): 5, ("h", "##u"): 15}, {"##g": 20, "##s": 5, "h": 15, "##u": 36}
    return {
        "input": (pairs, pieces),
        "of all": f(pairs, pieces),
        "frequent": f(pairs, pieces, 2, 0.5),
    }


def learn_pieces(f) -> dict:
    words = {"qu": 3, "ab": 6, "ac": 6, "cb": 6}
    return {
        "input": words,
        "first": f(words, 1),
        "all": f({"hug": 10, "pug": 5, "pun": 12, "bun": 4, "hugs": 5}, 9),
    }


def truncate(f) -> dict:
    return of_each(f, ([1, 2], [3, 4], 3, "longest_first", 6), ([1, 2, 3], None, 2, "only_first", 4))


def bert_tokenizer(f) -> dict:
    tokenizer = f(VOCABULARY)
    batch = tokenizer(["a cat", "the red cats!"], padding=True)
    return {
        "input": '"a cat", "the red cats!"',
        "tokenize": tokenizer.tokenize("The red cats!"),
        **{name: batch[name] for name in ("input_ids", "token_type_ids", "attention_mask")},
        "a pair": dict(tokenizer("a cat", "cats")),
        "decode": tokenizer.decode([2, 6, 7, 8, 10, 3], skip_special_tokens=True),
    }


PHOTO = (np.arange(5 * 4 * 3).reshape(5, 4, 3) * 4).astype(np.uint8)


def to_rgb(f) -> dict:
    fifth, grey = Image.new("RGBA", (1, 1), (255, 0, 0, 51)), Image.new("L", (1, 1), 100)
    results = {"RGBA": np.asarray(f(fifth)), "L": np.asarray(f(grey))}
    return {"input": "one red pixel of opacity 1/5; one grey pixel, 100"} | results


def grey_to_bytes(f) -> dict:
    dark, deep, real = np.array([0, 200], np.uint16), np.array([0, 70000]), np.array([-1.0, 0.0, 4.0])
    results = {"dark uint16": f(dark), "int": f(deep), "float": f(real)}
    return {"input": "[0, 200] uint16, [0, 70000], [-1.0, 0.0, 4.0]"} | results


def to_rgb_array(f) -> dict:
    results = {"(H, W)": f(PHOTO[..., 0]), "(C, H, W)": f(PHOTO.transpose(2, 0, 1)), "(H, W, C)": f(PHOTO)}
    return {"input": "a photograph of 5 × 4 pixels, as"} | results


def resize(f) -> dict:
    fractions = f(PHOTO / 255, (2, 3), 2)
    return {"input": "5 × 4 pixels to (2, 3)", "whole numbers": f(PHOTO, (2, 3), 2), "fractions": fractions}


def center_crop(f) -> dict:
    results = {"smaller": f(PHOTO, (2, 2))[..., 0], "larger": f(PHOTO, (6, 7))[..., 0]}
    return {"input": PHOTO[..., 0]} | results


def image_processor(f) -> dict:
    plain = f(size=2)(PHOTO, return_tensors="np")["pixel_values"]
    offset = dict(rescale_factor=1 / 127.5, rescale_offset=True, do_normalize=False, include_top=False)
    other = f(size=2, **offset)(PHOTO, return_tensors="np")["pixel_values"]
    cropped = f(do_resize=False, do_center_crop=True, crop_size=(2, 3))(PHOTO, return_tensors="np")
    results = {"size=2": plain, "with rescale_offset": other, "cropped": cropped["pixel_values"]}
    return {"input": "a photograph of 5 × 4 pixels"} | results


def align_processor(f) -> dict:
    processor = f(EfficientNetImageProcessor(size=2), BertTokenizer(VOCABULARY))
    batch = processor(text=["a cat"], images=PHOTO, return_tensors="pt", max_length=6)
    return {"input": '"a cat" and a photograph of 5 × 4 pixels, max_length 6', **batch}


EXAMPLES = {
    "lower": lower,
    "clean": clean,
    "split_words": split_words,
    "wordpiece": wordpiece,
    "merge": merge,
    "best_pair": best_pair,
    "learn_pieces": learn_pieces,
    "truncate": truncate,
    "BertTokenizer": bert_tokenizer,
    "to_rgb": to_rgb,
    "grey_to_bytes": grey_to_bytes,
    "to_rgb_array": to_rgb_array,
    "resize": resize,
    "center_crop": center_crop,
    "EfficientNetImageProcessor": image_processor,
    "AlignProcessor": align_processor,
    "round_filters": round_filters,
    "block_specs": block_specs,
    "BatchNorm": batch_norm,
    "ConvNorm": conv_norm,
    "SqueezeExcite": squeeze_excite,
    "DropConnect": drop_connect,
    "MBConv": mbconv,
    "AlignVisionModel": vision_model,
    "BertEmbeddings": bert_embeddings,
    "SelfAttention": self_attention,
    "FeedForward": feed_forward,
    "BertLayer": bert_layer,
    "additive_mask": additive_mask,
    "layer_head_masks": layer_head_masks,
    "AlignTextModel": text_model,
    "contrastive_loss": contrastive_loss,
    "AlignModel": align_model,
    "trust_ratio": trust_ratio,
    "Lamb": lamb,
    "parameter_groups": parameter_groups,
}
