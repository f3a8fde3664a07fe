"""Train `weights/emoji` from nothing: one file, one loop, two cores, well under an hour.

    python weights/prepare_emoji.py data/emoji
    python weights/train_emoji.py data/emoji --out runs/emoji
    python weights/train_emoji.py data/emoji --out runs/tune --hold-out fluent --steps 600    # to tune

The paper's recipe (section 5) in small: both towers from scratch, the contrastive loss with a learnt
temperature and label smoothing 0.1, warm-up and linear decay, random crops and mirror images. But: AdamW
where the paper has LAMB (made for batches of 16,384, not 256), and stronger augmentation: there are five
drawings of an apple, not millions of photographs, and what must carry over is the next designer's drawing.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a checkout without installing
from align_minimal import AlignConfig, AlignModel, BertTokenizer, EfficientNetImageProcessor, contrastive_loss
from weights.evaluate_emoji import evaluate, held_out

SIDE = 72  # pixels kept in memory, an eighth more than the model sees
MAX_TOKENS = 24
SMOOTHING = 0.1


@dataclass
class Pairs:
    """N pictures with their captions: one row of `images`, one entry of the lists, per picture."""

    images: Tensor  # (N, 4, 72, 72) uint8: red, green and blue times alpha, alpha
    texts: list[list[str]]
    concepts: list[str]
    mirror: Tensor  # (N,) bool: may be mirrored

    def select(self, keep: list[int]) -> Pairs:
        texts, concepts = [self.texts[i] for i in keep], [self.concepts[i] for i in keep]
        return Pairs(self.images[keep], texts, concepts, self.mirror[keep])


def load(folders: list[Path]) -> Pairs:
    """Read imagefolders whole into memory."""
    images, texts, concepts, mirror = [], [], [], []
    for folder in folders:
        for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            art = Image.open(folder / entry["file_name"]).convert(
                "RGBa"
            )  # a: colours times alpha, no fringes
            images.append(np.asarray(art.resize((SIDE, SIDE), Image.Resampling.BILINEAR)))
            texts.append(entry["text"])
            concepts.append(entry["concept"])
            mirror.append(entry["mirror"])
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()  # (N, 4, 72, 72)
    return Pairs(pixels, texts, concepts, torch.tensor(mirror))


def over(rgba: Tensor, background: Tensor | float) -> Tensor:
    """Premultiplied (B, 4, H, W) in [0, 1] over a background, (B, 3, 1, 1) or one grey → (B, 3, H, W)."""
    return rgba[:, :3] + (1 - rgba[:, 3:]) * background


def uniform(low: float, high: float, *shape: int) -> Tensor:
    return torch.empty(*shape).uniform_(low, high)


def augment(images: Tensor, mirror: Tensor, size: int) -> Tensor:
    """A random affine map, background, colour and blur for each picture. (B, 4, H, W) → (B, 3, size, size)"""
    count = len(images)
    angle = uniform(-0.35, 0.35, count)  # radians, about 20 degrees
    scale, stretch = uniform(0.8, 1.25, count), uniform(-0.12, 0.12, count).exp()
    flip = torch.where(mirror & (torch.rand(count) < 0.5), -1.0, 1.0)
    cos, sin, shear = angle.cos() * scale, angle.sin() * scale, uniform(-0.15, 0.15, count)
    row_x = torch.stack([flip * cos * stretch, shear - sin, uniform(-0.12, 0.12, count)], dim=1)
    row_y = torch.stack([flip * sin, cos / stretch, uniform(-0.12, 0.12, count)], dim=1)
    grid = F.affine_grid(torch.stack([row_x, row_y], dim=1), [count, 4, size, size], align_corners=False)
    rgba = F.grid_sample(images.float() / 255, grid, align_corners=False)  # (B, 4, size, size), 0 outside

    def some(share: float) -> Tensor:
        return torch.rand(count, 1, 1, 1) < share

    rgb = over(rgba, torch.where(some(0.5), 1.0, torch.rand(count, 3, 1, 1)))
    grey = rgb.mean(dim=1, keepdim=True)
    saturation = torch.where(some(0.1), 0.0, uniform(0.5, 1.5, count, 1, 1, 1))
    rgb = grey + saturation * (rgb - grey)
    rgb = rgb * uniform(0.75, 1.2, count, 3, 1, 1) + uniform(-0.1, 0.1, count, 1, 1, 1)
    blurred = F.avg_pool2d(rgb, 3, stride=1, padding=1, count_include_pad=False)
    return torch.where(some(0.2), blurred, rgb).clamp(0, 1) * 2 - 1


def encode(texts: list[list[str]], tokenizer: BertTokenizer) -> list[list[list[int]]]:
    """Every caption's ids, once, so that a step only looks them up."""
    known = {t: None for captions in texts for t in captions}
    ids = tokenizer(list(known), truncation=True, max_length=MAX_TOKENS)["input_ids"]
    known = dict(zip(known, ids, strict=True))
    return [[known[t] for t in captions] for captions in texts]


def make_tokenizer(texts: list[str], most: int, folder: Path) -> BertTokenizer:
    """Merge until the captions' words are whole (at most `most` pieces), then keep the pieces they use.

    WordPiece's score favours rare pairs: a small limit would leave "red" as r ##e ##d beside whole rarities.
    Greedy encoding takes the longest piece that fits, so dropping those never taken changes nothing here.
    """
    full = BertTokenizer.train(texts, most)
    used = {piece for text in set(texts) for piece in full.tokenize(text)}
    keep = [p for i, p in enumerate(full.get_vocab()) if i < 5 or p in used or len(p.removeprefix("##")) == 1]
    path = folder / "vocab.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(keep) + "\n", encoding="utf-8")
    longest = AlignConfig.preset("emoji").text_config.max_position_embeddings
    return BertTokenizer(path, model_max_length=longest)


def pad(ids: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Ids of different lengths → (B, T) with 0 after the end, and the mask that says so."""
    length = max(map(len, ids))
    padded = torch.tensor([row + [0] * (length - len(row)) for row in ids])
    return padded, (padded != 0).long()


def batches(pairs: Pairs, size: int, rng: random.Random):
    """Endless lists of `size` indices. Walks the concepts in random order, so no batch holds one twice."""
    by_concept: dict[str, list[int]] = {}
    for i, concept in enumerate(pairs.concepts):
        by_concept.setdefault(concept, []).append(i)
    order, size = sorted(by_concept), min(size, len(by_concept))
    while True:
        rng.shuffle(order)
        for start in range(0, len(order) - size + 1, size):
            yield [rng.choice(by_concept[c]) for c in order[start : start + size]]


def make_model(vocab_size: int, init: str | None) -> AlignModel:
    """A new model of the preset `emoji`, or the checkpoint to go on from."""
    if init:
        return AlignModel.from_pretrained(init)
    config = AlignConfig.preset("emoji")
    config.text_config.vocab_size = vocab_size
    return AlignModel(config)


def make_optimizer(model: AlignModel, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW; biases, norms and the temperature are not decayed, and the temperature moves a tenth as fast."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for name, p in model.named_parameters() if p.ndim < 2 and name != "temperature"]
    groups = [
        {"params": matrices, "rate": lr, "weight_decay": weight_decay},
        {"params": vectors, "rate": lr, "weight_decay": 0.0},
        {"params": [model.temperature], "rate": lr / 10, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98))


def loss_floor(n: int, smoothing: float) -> float:
    """The least that the smoothed loss of n pairs can be: the entropy of its own target."""
    wrong = smoothing / n
    right = 1 - smoothing + wrong
    return -right * math.log(right) - (n - 1) * wrong * math.log(wrong)


def train(pairs: Pairs, tokenizer: BertTokenizer, args: argparse.Namespace) -> AlignModel:
    """The loop. The schedule also ends after args.minutes, whatever step it has reached by then."""
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    model = make_model(len(tokenizer), args.init).train()
    side = model.config.vision_config.image_size
    optimizer = make_optimizer(model, args.lr, args.weight_decay)
    ids, drawn = encode(pairs.texts, tokenizer), batches(pairs, args.batch_size, rng)
    bar, average, began = tqdm(total=args.steps, unit="step"), None, time.monotonic()
    for step in range(args.steps):
        progress = max(step / args.steps, (time.monotonic() - began) / 60 / args.minutes)
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * min((step + 1) / args.warmup, 1 - progress)
        chosen = next(drawn)
        pixels = augment(pairs.images[chosen], pairs.mirror[chosen], side)
        # The square favours the front of the list, where the captions that hold the name stand.
        tokens, mask = pad([ids[i][int(len(ids[i]) * rng.random() ** 2)] for i in chosen])
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            image, text = model.get_image_features(pixels), model.get_text_features(tokens, mask)
        image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
        loss = contrastive_loss(text, image, model.temperature, SMOOTHING)
        if not loss.isfinite():
            raise ValueError(f"step {step}: the loss is {loss.item()}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average = loss.item() if average is None else 0.98 * average + 0.02 * loss.item()
        bounds = f"(log N {math.log(len(chosen)):.2f}, floor {loss_floor(len(chosen), SMOOTHING):.2f})"
        bar.update()
        bar.set_postfix_str(f"loss {average:.3f} {bounds}, temperature {model.temperature.item():.4f}")
        if (step + 1) % args.save_every == 0:
            save(model, tokenizer, args.out)
    bar.close()
    return model.eval()


def save(model: AlignModel, tokenizer: BertTokenizer, out: Path) -> None:
    """A complete checkpoint; each file is replaced atomically."""
    size = model.config.vision_config.image_size
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    EfficientNetImageProcessor(
        size={"height": size, "width": size},
        resample=2,  # bilinear
        rescale_factor=1 / 127.5,
        rescale_offset=True,  # [0, 255] → [−1, 1]
        do_normalize=False,
        include_top=False,
    ).save_pretrained(out)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of imagefolders, one a designer")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--init", help="a checkpoint to go on from, with its vocabulary and a new schedule")
    parser.add_argument("--hold-out", help="a designer to leave out and measure on")
    parser.add_argument("--hold-out-concepts", action="store_true", help="also leave out one concept in ten")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--minutes", type=float, default=120, help="the schedule ends by then at the latest")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--vocab-size", type=int, default=20000, help="before unused pieces are dropped")
    parser.add_argument("--lr", type=float, default=3e-3, help="the highest rate, after warm-up")
    parser.add_argument("--warmup", type=int, default=100, help="steps")
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument(
        "--bf16", action="store_true", help="towers in bfloat16 (faster where the CPU has it)"
    )
    parser.add_argument("--save-every", type=int, default=500, help="steps")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    designers = sorted(p.parent for p in args.data.glob("*/metadata.jsonl"))
    if not designers or (args.hold_out and args.data / args.hold_out not in designers):
        print(f"{args.data}: no {args.hold_out or '*'}/metadata.jsonl here", file=sys.stderr)
        return 1
    pairs = load([d for d in designers if d.name != args.hold_out])
    if args.hold_out_concepts:
        pairs = pairs.select([i for i, c in enumerate(pairs.concepts) if not held_out(c)])
    if args.init:
        tokenizer = BertTokenizer.from_pretrained(args.init)
    else:
        tokenizer = make_tokenizer([t for texts in pairs.texts for t in texts], args.vocab_size, args.out)
    save(train(pairs, tokenizer, args), tokenizer, args.out)
    if args.hold_out:
        print(json.dumps(evaluate(args.data / args.hold_out, str(args.out)), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
