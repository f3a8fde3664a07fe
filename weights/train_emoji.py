"""Make `weights/emoji` from nothing, in one command: fetch and draw the art, train, put the result in place.

    python weights/train_emoji.py data/emoji --out runs/emoji
    python weights/train_emoji.py data/emoji --out runs/tune --hold-out twemoji --small --steps 500

A loop of its own, made of the package's parts, as `align-minimal train` has no need of what it does besides:
distortions fade; σ is held; what is saved is the running
average of the weights; and captions come in twelve languages. A run that was interrupted goes on where it
stopped when the command is given again: everything random in a step follows from the seed and its number.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import itertools
import json
import random
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a checkout without installing
from align_minimal import AlignConfig, AlignModel, AlignProcessor, contrastive_loss
from align_minimal.__main__ import main as align_minimal
from align_minimal.support.hub import write_atomically, write_json
from align_minimal.support.outputs import Batch
from align_minimal.tokenizer import BertTokenizer
from align_minimal.training.lamb import parameter_groups
from align_minimal.training.loop import PairEncoder, new_image_processor
from align_minimal.training.pairs import Pair, Pairs, Prepare, batches, read_folder
from weights import ablations, evaluate_emoji, prepare_emoji

BATCH, RATE, WARMUP, DECAY = 256, 3e-3, 100, 0.05
VIEWS = 8
TAIL = 0.4  # the last share of a run: rate and distortions stay as they are until then, then fall evenly
AVERAGE = 0.998  # of the weights: what the average keeps at each step
SAVE_EVERY = 250
FILES = ("config.json", "model.safetensors", "preprocessor_config.json", "vocab.txt")
FILES += ("tokenizer_config.json", "special_tokens_map.json")

FIRST = ("twemoji", "openmoji", "fluent", "emojitwo", "fxemoji")
FIRST_RECIPE = "--preset emoji --augment drawings --flip --batch-size 256 --optimizer adamw --lr 3e-3"
FIRST_RECIPE += " --warmup 100 --weight-decay 0.05 --vocab-size 4000 --precision bf16 --steps 6000 --resume"

# ---- what it learns from -----------------------------------------------------------------------------------


def read_pairs(args: argparse.Namespace) -> tuple[list[Pair], list[Pair]]:
    """The emoji to learn from, and the noise."""
    held_out = next((f for f in prepare_emoji.FAMILIES if args.hold_out in f), (args.hold_out,))
    sets = [name for name in args.sets or prepare_emoji.TRAINING if name not in held_out]
    pairs = [pair for name in sets for pair in read_set(args.data / name, args.languages, args.halve)]
    noise = []
    if args.noise:
        noise = [pair for name in prepare_emoji.NOISE for pair in read_folder(args.noise / name)]
    if args.small:
        pairs = list(filter(ablations.used, pairs))
    return pairs, noise


def read_set(folder: Path, languages: list[str], halve: list[str]) -> list[Pair]:
    """Pairs with captions in English and `languages`; those of `halve` for half of the concepts only."""
    pairs = read_folder(folder)
    lines = (folder / "metadata.jsonl").read_text("utf-8").splitlines()
    for i, entry in enumerate(map(json.loads, lines)):
        texts = [
            text
            for language in languages
            if language not in halve or first_half(entry["concept"])
            for text in entry["world"].get(language, [])
        ]
        pairs[i] = dataclasses.replace(pairs[i], texts=(*pairs[i].texts, *texts))
    return pairs


def first_half(concept: str) -> bool:
    """Is it of the half of the concepts whose captions a language of --halve has? The same ones always."""
    return random.Random(f"half {concept}").random() < 0.5


class Pictures:
    """All pictures decoded once, as red, green, blue times alpha, and alpha: `pixels` (N, 4, R, R) uint8.

    They lie in a file beside the run, mapped into memory, so that several runs share them.
    """

    def __init__(self, pairs: list[Pair], processor: AlignProcessor, path: Path):
        self.rows = {pair.name: row for row, pair in enumerate(pairs)}
        if not path.exists():
            prepare = Prepare(*processor_parts(processor), augmentation="drawings", cache_bytes=0)
            pixels = np.stack([prepare.pixels(pair).numpy() for pair in pairs])
            write_atomically(path, lambda temporary: save_array(temporary, pixels))
        self.pixels = np.load(path, mmap_mode="r")
        if len(self.pixels) != len(pairs):
            raise ValueError(f"{path}: {len(self.pixels)} pictures, where the data have {len(pairs)}")

    def __call__(self, pairs: list[Pair]) -> Tensor:
        return torch.from_numpy(self.pixels[[self.rows[pair.name] for pair in pairs]])


def processor_parts(processor: AlignProcessor):
    return processor.image_processor, processor.tokenizer


def save_array(path: Path, array: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.save(file, array)


class Captions:
    """Texts → input_ids and attention_mask, each text cut into pieces once."""

    def __init__(self, tokenizer: BertTokenizer):
        self.tokenizer, self.known = tokenizer, {}

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        for text in texts:
            if text not in self.known:
                self.known[text] = self.tokenizer(text, truncation=True, max_length=32)["input_ids"]
        ids = [torch.tensor(self.known[text]) for text in texts]
        ids = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        return ids, (ids != self.tokenizer.pad_token_id).long()  # (B, T) each


def distort(pixels: Tensor, size: int, flip: Tensor, strength: float, draw: torch.Generator) -> Tensor:
    """`training.pairs.distort` of a given strength: 1 as there, 0 for the picture as it is, over white.

    (B, 4, R, R) in [0, 255] → (B, 3, size, size) in [−1, 1].
    """
    count, s = len(pixels), strength

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(count, *shape).uniform_(low, high, generator=draw)

    angle = uniform(-0.35 * s, 0.35 * s)  # radians, about 20 degrees
    scale, stretch = uniform(1 - 0.2 * s, 1 + 0.25 * s), uniform(-0.12 * s, 0.12 * s).exp()
    cos, sin, shear = angle.cos() * scale, angle.sin() * scale, uniform(-0.15 * s, 0.15 * s)
    mirror = torch.where(flip, -1.0, 1.0)
    x_row = torch.stack([mirror * cos * stretch, shear - sin, uniform(-0.12 * s, 0.12 * s)], dim=1)
    y_row = torch.stack([mirror * sin, cos / stretch, uniform(-0.12 * s, 0.12 * s)], dim=1)
    grid = F.affine_grid(torch.stack([x_row, y_row], dim=1), [count, 4, size, size], align_corners=False)
    rgba = F.grid_sample(pixels.float() / 255, grid, align_corners=False)  # (B, 4, size, size), 0 outside

    one = (1, 1, 1)
    background = torch.where(uniform(0, 1, *one) < 0.5 * s, uniform(0, 1, 3, 1, 1), 1.0)
    rgb = rgba[:, :3] + (1 - rgba[:, 3:]) * background  # (B, 3, size, size)
    grey = rgb.mean(dim=1, keepdim=True)
    saturation = torch.where(uniform(0, 1, *one) < 0.1 * s, 0.0, uniform(1 - 0.5 * s, 1 + 0.5 * s, *one))
    rgb = grey + saturation * (rgb - grey)
    rgb = rgb * uniform(1 - 0.25 * s, 1 + 0.2 * s, 3, 1, 1) + uniform(-0.1 * s, 0.1 * s, *one)
    blurred = F.avg_pool2d(rgb, 3, stride=1, padding=1, count_include_pad=False)
    return torch.where(uniform(0, 1, *one) < 0.2 * s, blurred, rgb).clamp(0, 1) * 2 - 1


# ---- the run -----------------------------------------------------------------------------------------------


def new_processor(args: argparse.Namespace, pairs: list[Pair], side: int) -> AlignProcessor:
    """A vocabulary learnt from all captions. Beside English, marks are letters: が is not か."""
    texts = (text for pair in pairs for text in pair.texts)
    options = {"strip_accents": False, "limit_alphabet": 3000} if args.languages else {}
    tokenizer = BertTokenizer.train(texts, 12000 if args.languages else 4000, model_max_length=64, **options)
    return AlignProcessor(new_image_processor(side, "drawings"), tokenizer)


def new_model(args: argparse.Namespace, vocabulary: int) -> AlignModel:
    """The preset `emoji`, or the ablations' smaller one, with σ held."""
    torch.manual_seed(args.seed)
    if args.small:
        model = ablations.make_model(ablations.Setting("small"), vocabulary)
    else:
        config = AlignConfig.preset("emoji")
        config.text_config.vocab_size = vocabulary
        model = AlignModel(config)
    if args.sigma:
        nn.init.constant_(model.temperature, args.sigma).requires_grad_(False)
    model.text_model.pooler.requires_grad_(False)  # it takes no part in ALIGN
    return model


def make_strides_cheap(model: AlignModel) -> None:
    """Depthwise convolutions at stride 2 as every second pixel of stride 1: the same numbers.

    On a CPU in bfloat16 the backward pass of the strided ones took 230 ms of 650 a step, of these 76 ms.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1 and module.stride == (2, 2):
            module.stride = (1, 1)
            module.register_forward_hook(lambda module, inputs, output: output[:, :, ::2, ::2].contiguous())


def first_stage(args: argparse.Namespace) -> Path:
    """The run that the second stage starts from, by `align-minimal train`: English, five designers."""
    folder = args.out / "first"
    command = ["train", *(str(args.data / name) for name in FIRST), "--out", str(folder)]
    command += FIRST_RECIPE.split()
    print("align-minimal", shlex.join(command), file=sys.stderr)
    if align_minimal(command):
        raise ValueError(f"{folder}: the first stage did not end")
    return folder


def start_from(model: AlignModel, folder: Path) -> None:
    """Take over another run's image tower, and its text tower too if the vocabularies are of one size."""
    before = AlignModel.from_pretrained(folder)
    model.vision_model.load_state_dict(before.vision_model.state_dict())
    if before.config.text_config.vocab_size == model.config.text_config.vocab_size:
        model.text_model.load_state_dict(before.text_model.state_dict())
        model.text_projection.load_state_dict(before.text_projection.state_dict())


@torch.no_grad()
def embed_pictures(model: AlignModel, pictures: Pictures, side: int) -> Tensor:
    """Every picture as it is, to teach a new text tower what the image tower knows already. (N, D)"""
    model.eval()
    rows = []
    for i in range(0, len(pictures.pixels), BATCH):
        pixels = torch.from_numpy(np.array(pictures.pixels[i : i + BATCH]))
        plain = torch.zeros(len(pixels), dtype=torch.bool)
        rows.append(model.get_image_features(distort(pixels, side, plain, 0.0, torch.Generator())))
    return torch.cat(rows)


def low_features(model: AlignModel, blocks: int, pixels: Tensor) -> Tensor:
    """The image tower's stem and first `blocks` blocks. (B, 3, H, W) → (B, C, h, w)"""
    x = model.vision_model.stem(pixels)
    for block in model.vision_model.blocks[:blocks]:
        x = block(x)
    return x


class Views:
    """What the frozen blocks make of every picture, distorted VIEWS times, the least first: computed once.

    Most of a step's time goes into these blocks, where maps are large; what is learnt lies above them.
    Each view is a file of (N, C, h, w) in bfloat16, mapped into memory, which several runs can share.
    """

    def __init__(
        self, model: AlignModel, args: argparse.Namespace, pictures: Pictures, pairs: list[Pair], side: int
    ):
        self.args, self.pictures, self.pairs, self.side = args, pictures, pairs, side
        self.model = copy.deepcopy(model).eval()
        args.views.mkdir(parents=True, exist_ok=True)
        for view in sorted(range(VIEWS), reverse=args.backwards):
            self.write(view)
        self.rows = [np.load(self.path(view), mmap_mode="r") for view in range(VIEWS)]

    def path(self, view: int) -> Path:
        return self.args.views / f"view-{view}.npy"

    @torch.no_grad()
    def write(self, view: int) -> None:
        if self.path(view).exists():
            return
        rng, rows = random.Random(view), []
        draw = torch.Generator().manual_seed(view)
        strength = self.args.weak + (self.args.strong - self.args.weak) * view / (VIEWS - 1)
        for i in range(0, len(self.pairs), BATCH):
            pairs = self.pairs[i : i + BATCH]
            flip = torch.tensor([pair.mirror and rng.random() < 0.5 for pair in pairs])
            pixels = distort(self.pictures(pairs), self.side, flip, strength, draw)
            with torch.autocast("cpu", torch.bfloat16):
                rows.append(low_features(self.model, self.args.freeze, pixels).bfloat16())
        array = torch.cat(rows).view(torch.int16).numpy()
        write_atomically(self.path(view), lambda temporary: save_array(temporary, array))

    def __call__(self, rows: list[int], views: list[int]) -> Tensor:
        chosen = np.stack([self.rows[view][row] for row, view in zip(rows, views, strict=True)])
        return torch.from_numpy(chosen).view(torch.bfloat16)


class Training:
    """A run: the model that learns, the average of its weights, and what is drawn at each step."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.step = args, 0
        pairs, noise = read_pairs(args)
        self.streams = [Pairs([]), Pairs([])]
        self.streams[0].pairs, self.streams[1].pairs = pairs, noise
        side = ablations.SIDE if args.small else AlignConfig.preset("emoji").vision_config.image_size
        self.side = side
        if (args.out / "vocab.txt").exists():
            self.processor = AlignProcessor.from_pretrained(args.out)
        elif args.init and not args.languages:
            self.processor = AlignProcessor.from_pretrained(args.init)
        else:
            self.processor = new_processor(args, pairs + noise, side)
        self.pictures = Pictures(pairs + noise, self.processor, args.out / "pictures.npy")
        self.captions = Captions(self.processor.tokenizer)
        self.model = new_model(args, len(self.processor.tokenizer)).train()
        if args.init:
            start_from(self.model, args.init)
        self.average = copy.deepcopy(self.model).eval()
        make_strides_cheap(self.model)
        for module in (self.model.vision_model.stem, *self.model.vision_model.blocks)[: args.freeze + 1]:
            if args.freeze:
                module.requires_grad_(False).eval()
        groups = parameter_groups(self.model, weight_decay=DECAY)
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), fused=True)
        self.encoder = PairEncoder(self.model, "bf16")
        self.state = args.out / "training.pt"
        if self.state.exists():
            self.load()
        if args.freeze:
            self.views = Views(self.model, args, self.pictures, pairs + noise, side)
        if self.step < args.texts_first:
            self.table = embed_pictures(copy.deepcopy(self.model), self.pictures, self.side)

    def load(self) -> None:
        state = torch.load(self.state, weights_only=True)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        print(f"resuming at step {self.step}", file=sys.stderr)

    def save(self) -> None:
        self.processor.save_pretrained(self.args.out)
        self.average.save_pretrained(self.args.out)
        state = {"step": self.step, "optimizer": self.optimizer.state_dict()}
        state |= {"model": self.model.state_dict(), "average": self.average.state_dict()}
        write_atomically(self.state, lambda temporary: torch.save(state, temporary))

    def pairs(self) -> Iterator[list[Pair]]:
        """Batch after batch from this step on: `share` of each is noise, and no concept is in it twice."""
        noisy = round(self.args.share * BATCH) if self.streams[1].pairs else 0
        parts = [batches(self.streams[0], BATCH - noisy, self.args.seed)]
        if noisy:
            parts.append(batches(self.streams[1], noisy, self.args.seed))
        joined = ([pair for part in several for pair in part] for several in zip(*parts, strict=True))
        return itertools.islice(joined, self.step, None)

    def batch(self, pairs: list[Pair]) -> Batch:
        rng = random.Random(f"{self.args.seed} {self.step}")
        strength = self.args.weak + (self.args.strong - self.args.weak) * self.left()
        texts = [rng.choice(pair.texts) for pair in pairs]
        flip = torch.tensor([pair.mirror and rng.random() < 0.5 for pair in pairs])
        draw = torch.Generator().manual_seed(rng.getrandbits(63))
        ids, mask = self.captions(texts)
        batch = Batch(input_ids=ids, attention_mask=mask)
        if self.step < self.args.texts_first:
            return batch
        if self.args.freeze:
            number = max(2, round(VIEWS * self.left()))  # the weaker ones only, towards the end
            rows = [self.pictures.rows[pair.name] for pair in pairs]
            batch["features"] = self.views(rows, [rng.randrange(number) for _ in pairs])
        else:
            batch["pixel_values"] = distort(self.pictures(pairs), self.side, flip, strength, draw)
        return batch

    def left(self) -> float:
        """1 until the tail, from there evenly to 0 after the last step."""
        together = self.args.steps - self.args.texts_first or self.args.steps  # steps of both towers, if any
        return min(1.0, (self.args.steps - self.step) / (TAIL * together))

    def rate(self) -> float:
        """Up from 0 at first, and again where the image tower joins in; down in the tail."""
        joined = self.step - self.args.texts_first
        since = joined if joined >= 0 else self.step
        return self.args.rate * min((since + 1) / WARMUP, self.left())

    def embeddings(self, pairs: list[Pair]) -> tuple[Tensor, Tensor, Tensor]:
        """Texts and images, (B, D) each, normalized, and σ. At first, maybe, only the texts are learnt."""
        batch = self.batch(pairs)
        if self.step >= self.args.texts_first and not self.args.freeze:
            return self.encoder(batch)
        with torch.autocast("cpu", torch.bfloat16):
            texts = self.model.get_text_features(batch["input_ids"], batch["attention_mask"])
            if self.step < self.args.texts_first:
                images = self.table[[self.pictures.rows[pair.name] for pair in pairs]]
            else:
                images = batch["features"]
                for block in self.model.vision_model.blocks[self.args.freeze :]:
                    images = block(images)
                images = images.mean((2, 3))
        return F.normalize(texts.float(), dim=-1), F.normalize(images.float(), dim=-1), self.model.temperature

    def learn(self, pairs: list[Pair]) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        loss = contrastive_loss(*self.embeddings(pairs))
        if not loss.isfinite():
            raise ValueError(f"step {self.step + 1}: the loss is {loss.item()}")
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        with torch.no_grad():
            self.model.temperature.clamp_(min=1e-3)
            keep = min(self.args.average, self.step / (self.step + 10))  # a running mean at first
            for mean, now in zip(
                self.average.state_dict().values(), self.model.state_dict().values(), strict=True
            ):
                if mean.is_floating_point():
                    mean.lerp_(now, 1 - keep)
                else:
                    mean.copy_(now)
        return loss.item()

    def run(self) -> None:
        began, first = time.perf_counter(), self.step
        for pairs in self.pairs() if self.step < self.args.steps else ():
            loss = self.learn(pairs)
            if self.step % 20 == 0:
                took = (time.perf_counter() - began) / (self.step - first)
                row = {"step": self.step, "loss": round(loss, 3), "seconds_a_step": round(took, 3)}
                row |= {"temperature": round(self.model.temperature.item(), 4)}
                with open(self.args.out / "metrics.jsonl", "a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
            if self.step % SAVE_EVERY == 0 or self.step == self.args.steps:
                self.save()
            if self.step == self.args.steps:
                break


def measure(args: argparse.Namespace) -> dict:
    """R@K on the set held out, by language; with --halve, on each half of the concepts too."""

    def figures(model: Path, language: str, wanted: tuple[bool, ...] = (True, False)) -> dict:
        def pick(concept: str) -> bool:
            return (not args.small or ablations.used_concept(concept)) and first_half(concept) in wanted

        folder = args.data / args.hold_out
        return evaluate_emoji.evaluate(folder, str(model), pick=pick, language=language)

    result = {language: figures(args.out, language) for language in ["en", *args.languages]}
    for language in args.halve:
        result[f"{language}, captions seen"] = figures(args.out, language, (True,))
        result[f"{language}, captions not seen"] = figures(args.out, language, (False,))
    return result | {"en, weights not averaged": figures(args.out / "last", "en")}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("data", type=Path, help="folder for the imagefolders and the fetched packages")
    add("--out", type=Path, required=True, help="the run's folder")
    add("--hold-out", help="a set to leave out, with its family, and measure on; weights/ stays as it is")
    add("--sets", nargs="+", help="learn from these only")
    add("--noise", type=Path, help="folder of `prepare_emoji.py --noise`, to mix in")
    add("--share", type=float, default=0.125, help="of a batch that is noise")
    add("--languages", nargs="*", default=prepare_emoji.LANGUAGES, help="of captions, beside English")
    add("--halve", nargs="*", default=[], help="languages whose captions half of the concepts lack")
    add("--small", action="store_true", help="the ablations' model and one concept in three, to tune")
    add("--init", type=Path, help="a checkpoint to start from instead of from nothing")
    add("--texts-first", type=int, default=0, help="steps in which the text tower learns alone")
    add("--steps", type=int, default=6000)
    add("--seed", type=int, default=0)
    add("--sigma", type=float, default=1 / 32, help="hold σ there; 0: learn it")
    add("--strong", type=float, default=1.0, help="strength of the distortions at first")
    add("--weak", type=float, default=0.3, help="and at the end")
    add("--rate", type=float, default=RATE)
    add("--average", type=float, default=AVERAGE)
    add("--prepared", action="store_true", help="the data are there already")
    add("--views", type=Path, help="folder for what the frozen blocks compute (default: in --out)")
    add("--backwards", action="store_true", help="compute them last first, while another run does the first")
    add("--freeze", type=int, default=0, help="keep the stem and this many blocks as --init has them")
    args = parser.parse_args(argv)
    if not args.prepared:
        status = prepare_emoji.main([str(args.data)])
        if status:
            return status
    args.out.mkdir(parents=True, exist_ok=True)
    args.views = args.views or args.out / "views"
    if not args.init and not args.hold_out:
        args.init = first_stage(args)
    torch.set_num_threads(1)
    training = Training(args)
    training.run()
    if args.hold_out:
        training.processor.save_pretrained(args.out / "last")
        training.model.save_pretrained(args.out / "last")
        write_json(args.out / "evaluation.json", measure(args))
        return 0
    for name in FILES:
        shutil.copy(args.out / name, Path(__file__).parent / "emoji" / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
