"""The judges of the course's exercises. SPOILERS: to read this is to read the answers.

Each takes an answer and says what may be wrong with it, "" if nothing is. None of them tells the answer; what
is right is computed, as far as possible, by the package.
"""

from __future__ import annotations

import copy
import functools
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from align_minimal import (
    AlignConfig,
    AlignModel,
    AlignTextConfig,
    AlignTextModel,
    AlignVisionConfig,
    AlignVisionModel,
    BertTokenizer,
    EfficientNetImageProcessor,
    contrastive_loss,
)
from align_minimal.checkpoint import hugging_face_key
from align_minimal.efficientnet import ConvNorm, block_specs, round_filters
from align_minimal.support.image_files import load_image
from align_minimal.training.lamb import Lamb
from align_minimal.training.step import PairEncoder, loss_floor, split
from align_minimal.training.vocabulary import learn_pieces
from align_minimal.using.retrieval import compose
from align_minimal.wordpiece import wordpiece

JUDGES: dict[str, Callable[[Any], str]] = {}
SAMPLES = Path(__file__).resolve().parent.parent / "weights" / "samples"


def exercise(name: str):
    """Enter a judge under the exercise's name."""

    def enter(function: Callable[[Any], str]) -> Callable[[Any], str]:
        JUDGES[name] = torch.no_grad()(function)
        return function

    return enter


def number(answer: Any, right: float, traps: dict[float, str], tolerance: float = 1e-3) -> str:
    """ "" if `answer` is `right` to within `tolerance`; else the trap that it fell into, or how far off."""
    answer = float(answer)
    if math.isclose(answer, right, rel_tol=tolerance):
        return ""
    for value, hint in traps.items():
        if math.isclose(answer, value, rel_tol=tolerance):
            return hint
    return "too small" if answer < right else "too large"


@functools.cache
def emoji() -> AlignModel:
    return AlignModel.from_pretrained("emoji")


# ---- 00 ----------------------------------------------------------------------------------------------------


@exercise("00.1")
def logit(answer: float) -> str:
    sigma = emoji().temperature.item()
    traps = {0.5 * sigma: "you multiplied by σ; it divides"}
    return number(answer, 0.5 / sigma, traps, 0.02)


@exercise("00.2")
def negatives(answer: int) -> str:
    traps = {
        16_384: "that is the batch: the pair's own text is no negative",
        15: "the negatives come from all cores",
    }
    return number(answer, 16_383, traps | {16: "the negatives come from all cores"}, 1e-6)


@exercise("00.3")
def guess(answer: float) -> str:
    traps = {
        math.log2(64): "nats, please: the natural logarithm",
        1 / 64: "that is the probability of a guess",
    }
    return number(answer, math.log(64), traps, 0.01)


# ---- 01 ----------------------------------------------------------------------------------------------------

CUTS = dict.fromkeys(["un", "fish", "##fish", "##ing", "##er", "##erm", "##an", "##man", "-", "hook"])


@exercise("01.1")
def greedy(answer: dict[str, list[str]]) -> str:
    words = BertTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]).words
    for text in ("unfishing", "fisherman", "fish-hook"):
        right = [piece for word in words(text) for piece in wordpiece(word, CUTS)]
        given = list(answer[text])
        if given == right:
            continue
        if text == "fisherman" and "##er" in given:
            return f"{text}: greedy takes the longest piece that fits, even if a shorter one looks better"
        if "[UNK]" in given:
            return f"{text}: it can be cut (split_words sets punctuation apart before wordpiece sees a word)"
        if any(piece not in CUTS for piece in given):
            return f"{text}: {next(p for p in given if p not in CUTS)!r} is not in the vocabulary"
        return f"{text}: not as greedy does it; go from the left, and try the longest piece first"
    return ""


@exercise("01.2")
def first_merge(function: Callable[[dict[str, int]], str]) -> str:
    rng = random.Random(0)
    drawn = [
        {"".join(rng.choices("abcd", k=rng.randint(2, 6))): rng.randint(1, 30) for _ in range(8)}
        for _ in range(30)
    ]
    for words in ({"cd": 3, "ab": 3}, *drawn):
        right, given = learn_pieces(words, 1), function(dict(words))
        if [given] == right:
            continue
        if len(words) == 2 and given == "cd":
            return f"{words}: both score the same; the words of one count are taken by alphabet"
        if [given] == learn_pieces(words, 1, min_frequency=1, share=0):
            return f"{words}: this is the best score of all pairs; rare pairs should not compete"
        if [given] == learn_pieces(words, 1, share=1):
            return f"{words}: this is the most frequent pair; among those frequent enough the score decides"
        return (
            f"{words}: another pair is merged first. (Is an inner letter written with ##? "
            "Is each word counted as often as it occurs?)"
        )
    return ""


@exercise("01.3")
def fewest(function: Callable[[str, dict], list[str]]) -> str:
    rng = random.Random(1)
    for _ in range(200):
        word = "".join(rng.choices("abc", k=rng.randint(1, 7)))
        vocab = {
            ("##" if rng.random() < 0.6 else "") + "".join(rng.choices("abc", k=rng.randint(1, 3))): None
            for _ in range(14)
        }
        given, best = list(function(word, vocab)), shortest(word, vocab)
        if best is None:
            if given != ["[UNK]"]:
                return f"{word!r} with {list(vocab)}: there is no cut, so it should be ['[UNK]']"
        elif given == ["[UNK]"] != wordpiece(word, vocab):
            return f"{word!r} with {list(vocab)}: it can be cut, and even greedy finds how"
        elif given == wordpiece(word, vocab) and len(given) != best:
            return f"{word!r} with {list(vocab)}: this is what greedy gives; there is a better cut"
        elif any(p not in vocab for p in given) or "".join(p.removeprefix("##") for p in given) != word:
            return (
                f"{word!r} with {list(vocab)}: {given} does not spell the word with pieces of the vocabulary"
            )
        elif len(given) != best:
            return f"{word!r} with {list(vocab)}: {len(given)} pieces, and fewer will do"
    return ""


def shortest(word: str, vocab: dict) -> int | None:
    """The fewest pieces that spell a word, by trying everything; None if nothing does."""
    counts: list[int | None] = [0]
    for end in range(1, len(word) + 1):
        fits = [counts[s] for s in range(end) if ("##" if s else "") + word[s:end] in vocab]
        counts.append(min((c + 1 for c in fits if c is not None), default=None))
    return counts[-1]


# ---- 02 ----------------------------------------------------------------------------------------------------

BASE = {"size": 346, "crop_size": 289, "resample": 2, "do_center_crop": True, "rescale_factor": 1 / 127.5}
BASE |= {"rescale_offset": True, "do_normalize": False, "include_top": False}


@exercise("02.1")
def align_base_pixels(function: Callable[[Image.Image], np.ndarray]) -> str:
    for name in ("cat.jpg", "coffee.jpg", "rocket.jpg"):
        picture = load_image(SAMPLES / name)
        given = np.asarray(function(picture))
        right = EfficientNetImageProcessor(**BASE)(picture, return_tensors="np").pixel_values[0]
        if given.shape == right.shape[1:] + (3,):
            return f"{name}: the channels come first, (3, height, width)"
        if given.shape != right.shape:
            return f"{name}: the shape is {given.shape}, not {right.shape}"
        if given.dtype != np.float32:
            return f"{name}: float32 is wanted, not {given.dtype}"
        if np.array_equal(given, right):
            continue
        if np.abs(given - right).max() < 1e-6:
            return (
                f"{name}: right but for the last bit; section 1 says in which precision the scaling is done"
            )
        if np.array_equal(given[:, :, 1:], right[:, :, :-1]) or np.array_equal(given[:, 1:], right[:, :-1]):
            return f"{name}: your crop begins one pixel too early"
        if np.array_equal(given[:, :, :-1], right[:, :, 1:]) or np.array_equal(given[:, :-1], right[:, 1:]):
            return f"{name}: your crop begins one pixel too late"
        if np.array_equal(given.transpose(0, 2, 1), right):
            return f"{name}: height and width are exchanged"
        return f"{name}: values from {given.min():.2f} to {given.max():.2f}; which filter, which order?"
    return ""


@exercise("02.2")
def antialiasing_kernel(answer: Any) -> str:
    kernel = np.asarray(answer, dtype=float)
    unit = np.eye(256, dtype=np.float32)
    rows = np.asarray(Image.fromarray(unit).resize((256, 64), Image.Resampling.BILINEAR))
    triangle = rows[20][rows[20] > 0]  # (8,): what Pillow does far from the border
    if kernel.shape != (7,):
        return f"seven numbers are wanted, not shape {kernel.shape}"
    if not math.isclose(kernel.sum(), 1, rel_tol=1e-3):
        return f"the weights must sum to 1, or the brightness changes; yours sum to {kernel.sum():.3f}"
    if not np.allclose(kernel, kernel[::-1], atol=1e-4):
        return "a blur must not move the picture: the kernel is symmetrical"
    if np.allclose(np.convolve([0.5, 0.5], kernel), triangle, atol=1e-3):
        return ""
    return "with it a row does not get Pillow's eight weights: print np.convolve([0.5, 0.5], kernel)"


FLAGS = ("do_center_crop", "rescale_offset", "do_normalize", "include_top")


def secret_options() -> dict[str, Any]:
    draw = np.random.default_rng(2102_05918)
    choice = {"size": 80, "crop_size": 80, "resample": int(draw.integers(0, 6))}
    choice |= {"rescale_factor": [1 / 255, 1 / 127.5][draw.integers(0, 2)]}
    choice |= {flag: bool(draw.integers(0, 2)) for flag in FLAGS}
    return choice | ({"crop_size": 64} if choice["do_center_crop"] else {})


def mystery_pixels(picture: Image.Image) -> np.ndarray:
    """The pixels whose options exercise 02.3 asks for. (1, 3, H, W)"""
    return EfficientNetImageProcessor(**secret_options())(picture, return_tensors="np").pixel_values


@exercise("02.3")
def options(found: list[dict[str, Any]]) -> str:
    picture = load_image(SAMPLES / "cat.jpg")
    right = mystery_pixels(picture)
    distinct = set()
    for attempt in found:
        processor = EfficientNetImageProcessor(**attempt)
        distinct.add(tuple(getattr(processor, key) for key in ("resample", "rescale_factor", *FLAGS)))
        given = processor(picture, return_tensors="np").pixel_values
        if given.shape != right.shape:
            return f"{attempt} gives the shape {given.shape}"
        if not np.array_equal(given, right):
            off = np.abs(given - right).max()
            return f"{attempt} is off by {off:.2g}" + (
                ", one level of 8 bits or less: which filter?" if off < 0.02 else ""
            )
    secret = secret_options()
    wanted = [
        secret | {"include_top": a, "rescale_factor": f} for a in (False, True) for f in (1 / 255, 1 / 127.5)
    ]
    same = [w for w in wanted if np.array_equal(mystery_like(w, picture), right)]
    return "" if len(distinct) >= len(same) else "these are right; but are they all that there are?"


def mystery_like(options: dict[str, Any], picture: Image.Image) -> np.ndarray:
    return EfficientNetImageProcessor(**options)(picture, return_tensors="np").pixel_values


# ---- 03 ----------------------------------------------------------------------------------------------------


@exercise("03.1")
def block_parameters(answer: int) -> str:
    block = emoji().vision_model.blocks[8]
    count = sum(p.numel() for p in block.parameters())
    norms = sum(p.numel() for name, p in block.named_parameters() if ".bn." in name)
    biases = sum(
        p.numel() for name, p in block.named_parameters() if "squeeze" in name and name.endswith("bias")
    )
    squeeze = sum(p.numel() for p in block.squeeze_excite.parameters())
    hidden = block.depthwise.conv.out_channels
    traps = {
        count - norms: "BatchNorm has parameters too: γ and β for each channel",
        count - norms / 2: "BatchNorm has two parameters a channel, γ and β",
        count - biases: "squeeze-and-excitation has biases, for no BatchNorm follows",
        count - squeeze: "squeeze-and-excitation is part of the block",
        count + squeeze * 5: "the squeeze is a quarter of the block's input channels, not of the wide ones",
        count + hidden * 9 * (hidden - 1): "the 3×3 convolution is depthwise: one kernel a channel",
    }
    return number(answer, count, traps, 1e-9)


@exercise("03.2")
def folded(layer: torch.nn.Conv2d) -> str:
    ours = emoji().vision_model.blocks[4].expand
    x = torch.randn(2, ours.conv.in_channels, 4, 4, generator=torch.Generator().manual_seed(0))
    right, given = ours.bn(ours.conv(x)), layer(x)
    if given.shape != right.shape:
        return f"the output's shape is {tuple(given.shape)}, not {tuple(right.shape)}"
    if torch.allclose(given, right, rtol=1e-3, atol=1e-4):
        return ""
    flat = (given - right).std((0, 2, 3))
    if flat.max() < 1e-4:
        return "the weights are right, the bias is not"
    scale = ours.bn.weight / ours.bn.running_var.sqrt()
    if torch.allclose(layer.weight, ours.conv.weight * scale[:, None, None, None], rtol=1e-4):
        return "you forgot BatchNorm's ε"
    if torch.allclose(layer.weight, ours.conv.weight, rtol=1e-4):
        return "the convolution's weights must be scaled too"
    error = ((given - right).norm() / right.norm()).item()
    return f"relative error {error:.2g}; wanted is (x − mean) · γ / √(variance + ε) + β, without activation"


@exercise("03.3")
def listens_most(answer: int) -> str:
    tower = emoji().vision_model
    pictures = [load_image(p) for p in sorted(SAMPLES.glob("*.*g"))]
    pixels = EfficientNetImageProcessor.from_pretrained("emoji")(pictures, return_tensors="pt").pixel_values
    right = tower(pixels).pooler_output

    def cosine(block) -> float:
        gate = block.squeeze_excite.expand
        hook = gate.register_forward_hook(lambda _, __, y: y.mean(0, keepdim=True).expand_as(y))
        frozen = tower(pixels).pooler_output
        hook.remove()
        return F.cosine_similarity(frozen, right).mean().item()

    cosines = [cosine(block) for block in tower.blocks]
    if not 0 <= int(answer) < len(cosines):
        return f"blocks are counted from 0 to {len(cosines) - 1}"
    return (
        ""
        if cosines[int(answer)] == min(cosines)
        else "another block moves the embedding further when its gates are frozen"
    )


# ---- 04 ----------------------------------------------------------------------------------------------------


@exercise("04.1")
def b5_stage_3(answer: tuple[int, int, int, int]) -> str:
    config = AlignVisionConfig(width_coefficient=1.6, depth_coefficient=2.2)
    specs = block_specs(config)
    starts = [i for i, spec in enumerate(specs) if not spec.residual]
    first = specs[starts[2]]
    right = (first.in_channels, first.out_channels, starts[3] - starts[2], round_filters(32, config))
    names = ("channels in", "channels out", "blocks", "the stem's width")
    for name, given, wanted in zip(names, answer, right, strict=True):
        if given == wanted:
            continue
        if name == "blocks":
            return "blocks: the number is rounded up, always" if given == wanted - 1 else "blocks: times d"
        if given % 8:
            return f"{name}: must be a multiple of 8"
        return f"{name}: to the nearest multiple of 8, unless that loses more than a tenth"
    return ""


def field_widths(config: AlignVisionConfig, stem_stride: int = 2) -> list[int]:
    field, jump, found = 3, stem_stride, [3]
    for spec in block_specs(config):
        field, jump = field + (spec.kernel_size - 1) * jump, jump * spec.stride
        found.append(field)
    return found


@exercise("04.2")
def receptive(answer: tuple[int, int]) -> str:
    config = AlignVisionConfig()
    block, width = answer
    first = next(i for i, field in enumerate(field_widths(config)) if field >= 289) - 1  # blocks from 0
    if block != first:
        return "the block: " + (
            "count from 0, and hidden state 0 is the stem's"
            if abs(block - first) == 1
            else "too early"
            if block < first
            else "too late"
        )
    traps = {field_widths(config)[-1]: "that is the field with the stem's stride of 2"}
    return number(width, field_widths(config, 1)[-1], traps, 1e-9)


@exercise("04.3")
def use_same(function: Callable[[AlignVisionModel], AlignVisionModel]) -> str:
    plain, changed = (AlignVisionModel.from_pretrained("emoji") for _ in range(2))
    changed = function(changed) or changed
    for side in (64, 65, 67):
        x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(side))
        stem, *blocks = changed(x, output_hidden_states=True).hidden_states
        if stem.shape[-1] != math.ceil(side / 2):
            return f"at {side} pixels the stem gives {stem.shape[-1]}, where SAME gives {math.ceil(side / 2)}"
        total = max((math.ceil(side / 2) - 1) * 2 + 3 - side, 0)
        padded = F.pad(x, (total // 2, total - total // 2) * 2)
        layer = plain.stem
        if not torch.allclose(stem, layer.activation(layer.bn(layer.conv(padded))), rtol=1e-4, atol=1e-4):
            return f"at {side} pixels the sides are right, the zeros are not: where does the odd one go?"
        sides = [side]
        for layer in plain.modules():
            if isinstance(layer, ConvNorm) and layer.conv.stride == (2, 2):
                sides.append(math.ceil(sides[-1] / 2))
        if (last := blocks[-1].shape[-1]) != sides[-1]:
            return f"at {side} pixels the stem is right, but the last block gives {last}, SAME {sides[-1]}"
    again = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    same = torch.allclose(changed(again).pooler_output, plain(again).pooler_output, atol=1e-4)
    return (
        "" if same else "after an odd picture an even one comes out wrong: set the padding before each call"
    )


# ---- 05 ----------------------------------------------------------------------------------------------------


@exercise("05.1")
def bert_base(answer: int) -> str:
    config = AlignTextConfig()
    with torch.device("meta"):
        model = AlignTextModel(config)
    count = sum(p.numel() for p in model.parameters())
    h, layers = config.hidden_size, config.num_hidden_layers
    traps = {
        count - h * h - h: "the pooler is in the file too",
        count
        - sum(
            p.numel() for n, p in model.named_parameters() if n.endswith("bias")
        ): "you left out the biases",
        count
        - 2 * h: "there is a LayerNorm after the tables, or a table of types (2 rows), that you left out",
        count - 4 * h * layers: "each layer has two LayerNorms, each with two vectors",
    }
    return number(answer, count, traps, 1e-9)


@exercise("05.2")
def silenced(answer: tuple[str, int, int]) -> str:
    name, start, stop = answer
    model, twin = emoji(), copy.deepcopy(emoji())
    weights = dict(twin.named_parameters())
    if name not in weights or weights[name].ndim != 2:
        return (
            f"no matrix {name!r} among the model's parameters (print the names of model.named_parameters())"
        )
    ids = torch.tensor([[2, 284, 2053, 3]])
    mask = torch.ones(len(model.text_model.layers), model.config.text_config.num_attention_heads)
    mask[-1, 1] = 0
    right = model.get_text_features(ids, head_mask=mask)
    weights[name][:, start:stop] = 0
    if torch.allclose(twin.get_text_features(ids), right, atol=1e-4):
        return ""
    rows = copy.deepcopy(emoji())
    dict(rows.named_parameters())[name][start:stop] = 0
    if torch.allclose(rows.get_text_features(ids), right, atol=1e-4):
        return "the rows of it would do (if the bias is silenced too); columns of which matrix?"
    return "this does not silence head 1 of the last layer. Which matrix reads what the heads give?"


@exercise("05.3")
def text_features(function: Callable) -> str:
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 4000, (3, 9), generator=draw)
    mask = torch.tensor([[1] * 9, [1] * 5 + [0] * 4, [1] * 7 + [0] * 2])
    right, given = emoji().get_text_features(ids, mask), function(ids, mask)
    if given.shape != right.shape:
        return f"the shape is {tuple(given.shape)}, not {tuple(right.shape)}"
    errors = ((given - right).norm(dim=1) / right.norm(dim=1)).tolist()
    if max(errors) < 1e-4:
        return ""
    if errors[0] < 1e-4:
        return "right where there is no padding, wrong where there is: the mask"
    if max(errors) < 0.01:
        return (
            f"nearly: relative error {max(errors):.1g}. ε of LayerNorm? The exact GELU, or the tanh formula?"
        )
    return f"relative error {max(errors):.2g}: compare layer by layer with output_hidden_states=True"


# ---- 06 ----------------------------------------------------------------------------------------------------


@exercise("06.1")
def collapsed(function: Callable[[int, float, float], float]) -> str:
    for N, sigma, eps in ((32, 1.0, 0.0), (32, 0.01, 0.1), (7, 5.0, 0.5), (1000, 1 / 64, 0.1)):
        same = F.normalize(torch.ones(N, 3, dtype=torch.float64), dim=-1)
        right = contrastive_loss(same, same, sigma, eps).item()
        traps = {
            2 * right: "the mean of the two directions, not their sum",
            right / math.log(2): "nats, not bits",
            0.0: "the model is not sure of anything",
        }
        told = number(function(N, sigma, eps), right, traps, 1e-6)
        if told:
            return f"for N = {N}, σ = {sigma:.3g}, ε = {eps}: {told}"
    return ""


@exercise("06.2")
def best_sigma(answer: tuple[float, float]) -> str:
    gap = math.log((0.9 + 0.1 / 256) / (0.1 / 256))
    told = number(
        answer[0],
        1 / gap,
        {
            gap: "that is the ideal gap between logits; what is the gap between these cosines?",
            gap / 64: "that is a gap between cosines, at another σ",
            2 / gap: "the cosines are 1 and 0, not 1 and −1",
        },
        0.01,
    )
    return (
        f"σ: {told}"
        if told
        else (lambda t: f"the loss: {t}" if t else "")(
            number(answer[1], loss_floor(256, 0.1), {0.0: "with smoothing there is a floor"}, 0.01)
        )
    )


@exercise("06.3")
def local_rows(function: Callable) -> str:
    draw = torch.Generator().manual_seed(0)
    texts, images = (
        F.normalize(torch.randn(8, 5, generator=draw, dtype=torch.float64), dim=-1) for _ in range(2)
    )
    for first in (0, 4):
        given = float(function(texts[first : first + 4], images, first, 0.1))
        logits = texts[first : first + 4] @ images.T / 0.1
        right = F.cross_entropy(logits, torch.arange(first, first + 4)).item()
        if math.isclose(given, right, rel_tol=1e-6):
            continue
        if math.isclose(given, F.cross_entropy(logits, torch.arange(4)).item(), rel_tol=1e-6):
            return f"first = {first}: these are process 0's labels; pair {first}'s image is column {first}"
        return f"first = {first}: {given:.4f}, expected {right:.4f}"
    return ""


# ---- 07 ----------------------------------------------------------------------------------------------------


@exercise("07.1")
def needed(answer: float) -> str:
    sigma = emoji().temperature.item()
    odds = math.log(99)
    traps = {
        odds: "that is the difference of logits",
        odds / sigma: "you divided by σ: logit = cosine / σ",
        sigma * math.log(100): "the odds are 99 to 1, not 100 to 1",
        sigma * 0.99: "a probability is no logit",
    }
    return number(answer, sigma * odds, traps, 0.02)


@exercise("07.2")
def our_key(function: Callable[[str], str]) -> str:
    for name in emoji().state_dict():
        if function(hugging_face_key(name)) != name:
            return f"{hugging_face_key(name)} came back as {function(hugging_face_key(name))}"
    return ""


@exercise("07.3")
def first_fault(function: Callable[[dict[str, float], float], str | None]) -> str:
    layers = [f"vision_model.{n}" for n in ("stem", "blocks.0", "blocks.1")]
    layers += [f"text_model.{n}" for n in ("embeddings", "layers.0")]
    for bad, hint in (
        ({}, "nothing is over the limit: None is wanted"),
        ({1: 1e-3}, "one layer is over the limit"),
        (
            {1: 1e-3, 2: 0.5},
            "the first over the limit is wanted, not the worst: later errors are consequences",
        ),
        ({4: 1e-3}, "the text tower counts too"),
        ({2: math.nan, 4: 0.1}, "NaN is a fault, and NaN > limit is False"),
    ):
        found = {name: bad.get(i, 1e-14) for i, name in enumerate(layers)}
        if function(found, 1e-12) != (layers[min(bad)] if bad else None):
            return hint
    return ""


# ---- 08 ----------------------------------------------------------------------------------------------------


@exercise("08.1")
def strangers_log(answer: str) -> str:
    letters = re.findall(r"\b[a-d]\b", str(answer).lower()) or [c for c in str(answer).lower() if c in "abcd"]
    if len(letters) != 2:
        return "two letters are wanted, the first for 6.24, the second for 0.96"
    if letters[0] != "b":
        return "6.24: compare it with the natural logarithm of the batch"
    return "" if letters[1] == "c" else "0.96: compare it with loss_floor(512, 0.1)"


@exercise("08.2")
def lamb_steps(answer: tuple[int, int]) -> str:
    for given, ratio in zip(answer, (True, False), strict=True):
        sigma = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
        optimizer, count = Lamb([sigma], lr=0.004, weight_decay=0.0, trust_ratio=ratio), 0
        while sigma > 0.05:
            sigma.grad = torch.ones_like(sigma)
            optimizer.step()
            count += 1
        told = number(given, count, {count - 1: "after that many steps σ is still above 0.05"}, 1e-9)
        if told:
            return f"{'with' if ratio else 'without'} the ratio: {told}"
    return ""


@torch.enable_grad()
def tiny_pairs() -> tuple[AlignModel, list, torch.Tensor]:
    """A small model, a batch of 8 pairs as four chunks, and the gradient of the whole batch's loss."""
    from align_minimal.support.outputs import Batch

    text = dict(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    image = dict(
        image_size=16,
        width_coefficient=0.5,
        depth_coefficient=1.0,
        kernel_sizes=[3],
        in_channels=[32],
        out_channels=[32],
        strides=[1],
        num_block_repeats=[1],
        expand_ratios=[1],
        hidden_dim=64,
        drop_connect_rate=0.0,
    )
    torch.manual_seed(0)
    model = AlignModel(AlignConfig(text, image, projection_dim=16, temperature_init_value=0.2)).train()
    batch = Batch(
        pixel_values=torch.randn(8, 3, 16, 16),
        input_ids=torch.randint(1, 50, (8, 5)),
        attention_mask=torch.ones(8, 5, dtype=torch.long),
        names=list("abcdefgh"),
    )
    chunks = split(batch, 2)
    encode = PairEncoder(model, "float32")
    texts, images, sigmas = zip(*(encode(chunk) for chunk in chunks), strict=True)
    contrastive_loss(torch.cat(texts), torch.cat(images), sigmas[0]).backward()
    return model, chunks, flat_gradient(model)


def flat_gradient(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@exercise("08.3")
def my_backward(function: Callable) -> str:
    model, chunks, right = tiny_pairs()
    with torch.enable_grad():
        function(PairEncoder(model, "float32"), chunks)
    given = flat_gradient(model)
    if not given:
        return "no parameter has a gradient"
    for name in ("temperature", *right):
        if name not in given:
            return f"{name} has no gradient"
        error = ((given[name] - right[name]).norm() / right[name].norm().clamp_min(1e-9)).item()
        if right[name].norm() > 1e-6 and not error < 1e-3:
            ratio = (given[name].sum() / right[name].sum()).item()
            if name == "temperature" and math.isclose(ratio, len(chunks), rel_tol=1e-3):
                return "the temperature's gradient was counted once for each chunk; it enters the loss once"
            return f"the gradient of {name} is off by {error:.1e}"
    return ""


# ---- 09 ----------------------------------------------------------------------------------------------------


@exercise("09.1")
def unreadable(function: Callable[[list[str]], list[str]]) -> str:
    given = function(["dog", "quokka", "ᚹᛟᛚᚠ", "ᛒᛖᚨᚱ dog"])
    if "quokka" in given:
        return "'quokka' is cut into known pieces: no [UNK] in it"
    if "ᛒᛖᚨᚱ dog" not in given:
        return "one [UNK] among known pieces counts too"
    return "" if list(given) == ["ᚹᛟᛚᚠ", "ᛒᛖᚨᚱ dog"] else "not these"


@exercise("09.2")
def order(function: Callable) -> str:
    draw = torch.Generator().manual_seed(0)
    embeds, image, text = (F.normalize(torch.randn(n, 8, generator=draw), dim=-1) for n in (40, 1, 1))
    for w in (0.25, 0.5, 1.0, 2.0, 4.0):
        right = (embeds @ compose(text[0], image[0], text_weight=w)).argsort(descending=True)
        given = torch.as_tensor(function(embeds @ image[0], embeds @ text[0], w))
        if torch.equal(given, right.flip(0)):
            return "the best answer comes first: descending, please"
        if not torch.equal(given, right):
            return f"at w = {w} the order differs from that of compose()"
    return ""


@exercise("09.3")
def temperature_scaling(function: Callable) -> str:
    grid = torch.logspace(-2, 0.5, 200)
    for seed in range(3):
        draw = torch.Generator().manual_seed(seed)
        target = torch.randint(0, 8, (64,), generator=draw)
        scores = 0.3 * torch.randn(64, 8, generator=draw) + 0.5 * F.one_hot(target, 8)
        losses = torch.stack([F.cross_entropy(scores / s, target) for s in grid])
        right, given = grid[losses.argmin()].item(), float(function(scores, target, grid))
        if math.isclose(given, 1 / right, rel_tol=0.02):
            return "σ divides the cosines; you multiplied"
        if not math.isclose(given, right, rel_tol=0.02):
            return f"another σ of the grid has a smaller mean −log p (yours: {given:.3f})"
    return ""


# ---- 10 ----------------------------------------------------------------------------------------------------


@exercise("10.1")
def passing(answer: list[str]) -> str:
    from align_minimal.training.filters import Filters
    from align_minimal.training.pairs import Pair

    texts = ["cat", "a cat", "a cat sleeping", "DSC_0042.JPG", "click here to enlarge"]
    if isinstance(answer, str) or not all(text in texts for text in answer):
        return f"a list is wanted of some of these: {texts}"
    keep = Filters([Pair(str(i), b"", (text,)) for i, text in enumerate(texts)])
    for text in texts:
        passes = keep.check_text(text) is None
        if passes and text not in answer:
            return f"{text!r} passes: the rules look at length, at sharing and at rare words, not at sense"
        if not passes and text in answer:
            return f"{text!r} falls: count its words"
    return ""


@exercise("10.2")
def wrong_share(function: Callable[[float, int], float]) -> str:
    for p, K in ((0.5, 30), (0.2, 2), (1.0, 10), (0.0, 5)):
        told = number(
            function(p, K), p * (K - 1) / K, {p: "some of the captions drawn are right by luck"}, 1e-6
        )
        if told:
            return f"for p = {p}, K = {K}: {told}"
    return ""


@exercise("10.3")
def suspects(function: Callable) -> str:
    draw = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(40, 8, generator=draw), dim=-1)
    texts = F.normalize(images + 0.3 * torch.randn(40, 8, generator=draw), dim=-1)
    texts[[3, 17, 29]] = texts[[17, 29, 3]]
    order = (images * texts).sum(1).argsort()
    for share in (0.1, 0.25):
        given = torch.as_tensor(function(images, texts, share)).tolist()
        if len(given) != round(share * 40):
            return f"share {share}: {len(given)} indices, not {round(share * 40)}"
        if given == order.flip(0)[: len(given)].tolist():
            return "these are the pairs that fit best"
        if given != order[: len(given)].tolist():
            return "not the pairs with the lowest cosines (of row i with row i), the lowest first"
    return ""


# ---- 11 ----------------------------------------------------------------------------------------------------


@exercise("11.1")
def leave_one_out(function: Callable) -> str:
    draw = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(30, 6, generator=draw), dim=-1)
    labels = torch.randint(0, 3, (30,), generator=draw)
    cosines = features @ features.T
    right = labels[cosines.clone().fill_diagonal_(-2).argmax(1)].eq(labels).float().mean().item()
    traps = {
        1.0: "each picture has found itself: take it out",
        1 - right: "that is the error, not the share of the right ones",
    }
    return number(function(features, labels), right, traps, 1e-5)


@exercise("11.2")
def analogy(function: Callable) -> str:
    draw = torch.Generator().manual_seed(1)
    a, b, c = (F.normalize(torch.randn(8, generator=draw), dim=-1) for _ in range(3))
    right = F.normalize(c + 2 * (b - a), dim=-1)
    given = torch.as_tensor(function(c, b, a))
    if torch.allclose(given, right, atol=1e-5):
        return ""
    if torch.allclose(F.normalize(given, dim=-1), right, atol=1e-5):
        return "the direction is right; the query must have length 1"
    if torch.allclose(given, F.normalize(c + b - a, dim=-1), atol=1e-5):
        return "the texts have weight 2, the picture weight 1 (section 7)"
    return "picture + 2 · (what to add − what to take away), then to length 1"


@exercise("11.3")
def spearman(function: Callable) -> str:
    for seed in range(3):
        draw = np.random.default_rng(seed)
        a = draw.normal(size=12)
        b = a**3 + draw.normal(size=12)
        ranks = [np.argsort(np.argsort(v)) for v in (a, b)]
        right = np.corrcoef(*ranks)[0, 1]
        given = float(function(a, b))
        if math.isclose(given, np.corrcoef(a, b)[0, 1], abs_tol=1e-6):
            return "this is the correlation of the values; of the *ranks* it is asked"
        if not math.isclose(given, right, abs_tol=1e-6):
            return f"{given:.3f} is not the correlation of the two rankings"
    return ""
