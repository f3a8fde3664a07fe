"""Make `weights/emoji` and `weights/emoji-world` from nothing, in one command: fetch, draw, train, install.

    python weights/train_emoji.py data/emoji --out runs/emoji    # about five hours on two cores

Five stages. The first is `align-minimal train` (it prints the command) on five designers' art with names in
English: 6,000 steps. The second goes on from there with eight sets, in a loop of its own made of the
package's parts: σ is held; distortions fade at the end; what is saved is the running average of the weights.
The third is the second once more, from where that one ended: the rate and the distortions start high again,
and fall. So does the fourth, with larger pictures, which are also bent, lit and recoloured as another hand
might draw them. That is `emoji`. The fifth goes on from its image tower with captions in twelve languages: a
new vocabulary, and a new text tower, which at first learns alone what the image tower knows. Then both learn
together, but the image tower's stem and first blocks, where most of the time goes, stay as they are, so what
they make of each picture is computed once, distorted in a few ways. That is `emoji-world`.

A run that was interrupted goes on where it stopped when the command is given again: everything random in a
step follows from the seed and the step's number. To try a setting on a designer held out, at small cost:

    python weights/train_emoji.py data/emoji --out runs/tune --hold-out twemoji --small --steps 500
"""

from __future__ import annotations

import argparse
import copy
import functools
import hashlib
import itertools
import json
import random
import re
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
from align_minimal.support.hub import read_json, write_atomically, write_json
from align_minimal.support.outputs import Batch
from align_minimal.tokenizer import BertTokenizer
from align_minimal.training.batches import batches
from align_minimal.training.build import new_image_processor
from align_minimal.training.dataset import Pairs
from align_minimal.training.lamb import parameter_groups
from align_minimal.training.pairs import Pair
from align_minimal.training.run_folder import Run, locked
from weights import ablations, evaluate_emoji, prepare_emoji
from weights.emoji_pairs import Captions, Pictures, distort, embed_texts, first_half, read_pairs, save_array

FIRST = ("twemoji", "openmoji", "fluent", "emojitwo", "fxemoji")
FIRST_RECIPE = "--preset emoji --augment drawings --flip --batch-size 256 --optimizer adamw --lr 3e-3"
FIRST_RECIPE += " --warmup 100 --weight-decay 0.05 --vocab-size 4000 --precision bf16 --steps 6000 --resume"

BATCH, WARMUP, DECAY, VOCABULARY = 256, 100, 0.05, 12000
AVERAGE = 0.998  # of the weights: what the average keeps at each step
TAIL = 0.3  # the last share of a run: rate and distortions stay as they are until then, then fall evenly
VIEWS = 8  # distortions of each picture that the frozen blocks see
SAVE_EVERY = 250
FREE = ("data", "out", "steps", "views", "threads", "fewer_concepts")  # what may differ where a run resumes
# A drawing whose name says one of these keeps its hue.
COLOURS = re.compile(r"\b(red|orange|yellow|green|blue|purple|brown|black|white|pink|grey|rainbow)\b")
# Runs, and their flags that are not the defaults. Each goes on from the one before; those that have a folder
# here ship.
RUNS = {
    "english": {},
    "again": {"seed": 1},
    "emoji": dict(seed=2, side=96, steps=5000, strong=0.8, bend=0.15, recolour=True),
    "emoji-world": dict(side=96, languages=prepare_emoji.LANGUAGES, texts_first=4000, steps=4720, freeze=3),
}
FILES = ("config.json", "preprocessor_config.json", "vocab.txt")
FILES += ("tokenizer_config.json", "special_tokens_map.json", "model.safetensors")

# ---- the model ---------------------------------------------------------------------------------------------


def new_processor(args: argparse.Namespace, pairs: list[Pair], side: int) -> AlignProcessor:
    """The run's own; or the first stage's; or with a vocabulary learnt from all captions.

    Beside English, marks are letters: が is not か.
    """
    if (args.out / "vocab.txt").exists():
        return AlignProcessor.from_pretrained(args.out)
    image_processor = new_image_processor(side, "drawings")
    if args.init and not args.languages:
        return AlignProcessor(image_processor, AlignProcessor.from_pretrained(args.init).tokenizer)
    texts = (text for pair in pairs for text in pair.texts)
    options = {"strip_accents": False, "limit_alphabet": 3000} if args.languages else {}
    tokenizer = BertTokenizer.train(
        texts, VOCABULARY if args.languages else 4000, model_max_length=64, **options
    )
    return AlignProcessor(image_processor, tokenizer)


def new_model(args: argparse.Namespace, vocabulary: int, side: int) -> AlignModel:
    """The preset `emoji`, or the ablations' smaller one, with σ held, for pictures of that side."""
    torch.manual_seed(args.seed)
    if args.small:
        model = ablations.make_model(ablations.Setting("small"), vocabulary)
    else:
        config = AlignConfig.preset("emoji")
        config.text_config.vocab_size = vocabulary
        model = AlignModel(config)
    model.config.vision_config.image_size = side
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


def start_from(model: AlignModel, folder: Path, tokenizer: BertTokenizer) -> None:
    """Take over another run's image tower, and its text tower too if the vocabularies are the same."""
    before = AlignModel.from_pretrained(folder)
    model.vision_model.load_state_dict(before.vision_model.state_dict())
    if BertTokenizer.from_pretrained(folder).vocab == tokenizer.vocab:
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


def freeze(model: AlignModel, blocks: int) -> None:
    """Hold the image tower's stem and first `blocks` blocks, BatchNorm's statistics too."""
    for module in (model.vision_model.stem, *model.vision_model.blocks[:blocks]):
        module.requires_grad_(False).eval()


def low_features(model: AlignModel, blocks: int, pixels: Tensor) -> Tensor:
    """The image tower's stem and first `blocks` blocks. (B, 3, H, W) → (B, C, h, w)"""
    x = model.vision_model.stem(pixels)
    for block in model.vision_model.blocks[:blocks]:
        x = block(x)
    return x


def check_same(path: Path, now: dict) -> None:
    """Write down at `path` what a run was begun with; ValueError if something else stands there."""
    now = json.loads(json.dumps(now, default=lambda path: str(path.resolve())))
    if not path.exists():
        write_json(path, now)
    before = read_json(path)
    for name in now:
        if before.get(name) != now[name]:
            raise ValueError(f"{path}: begun with {name} {before.get(name)}, not {now[name]}")


def digest_of(model: AlignModel, blocks: int) -> str:
    """SHA-256 of the weights of the image tower's stem and first `blocks` blocks."""
    found = hashlib.sha256()
    for module in (model.vision_model.stem, *model.vision_model.blocks[:blocks]):
        for tensor in module.state_dict().values():
            found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


class Views:
    """What the frozen blocks make of every picture, distorted VIEWS times, the least first: computed once.

    Each is a file of (N, C, h, w) in bfloat16 in `folder`, mapped into memory; several runs can share them.
    """

    def __init__(
        self, folder: Path, model: AlignModel, args: argparse.Namespace, pictures: Pictures, side: int
    ):
        folder.mkdir(parents=True, exist_ok=True)
        of = {"weak": args.weak, "strong": args.strong, "side": side, "freeze": args.freeze}
        of |= {"model": digest_of(model, args.freeze), "pictures": pictures.digest()}
        check_same(folder / "views.json", of)
        self.rows = []
        for view, strength in enumerate(np.linspace(args.weak, args.strong, VIEWS).tolist()):
            path = folder / f"view-{view}.npy"
            if not path.exists():
                features = self.compute(
                    copy.deepcopy(model).eval(), args.freeze, pictures, side, view, strength
                )
                write_atomically(path, lambda temporary: save_array(temporary, features))  # noqa: B023
            self.rows.append(np.load(path, mmap_mode="r"))

    @torch.no_grad()
    def compute(
        self, model: AlignModel, blocks: int, pictures: Pictures, side: int, seed: int, strength: float
    ) -> np.ndarray:
        rng, rows = random.Random(seed), []
        draw = torch.Generator().manual_seed(seed)
        for i in range(0, len(pictures.pairs), BATCH):
            pairs = pictures.pairs[i : i + BATCH]
            flip = torch.tensor([pair.mirror and rng.random() < 0.5 for pair in pairs])
            pixels = distort(pictures(pairs), side, flip, strength, draw)
            with torch.autocast("cpu", torch.bfloat16):
                rows.append(low_features(model, blocks, pixels).bfloat16())
        return torch.cat(rows).view(torch.int16).numpy()  # numpy has no bfloat16

    def __call__(self, rows: list[int], views: list[int]) -> Tensor:
        chosen = np.stack([self.rows[view][row] for row, view in zip(rows, views, strict=True)])
        return torch.from_numpy(chosen).view(torch.bfloat16)


# ---- the run -----------------------------------------------------------------------------------------------


class Training:
    """A run: the model that learns, the average of its weights, and what is drawn at each step."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.step, self.folder = args, 0, Run(args.out, keep=1)
        pairs, noise = read_pairs(args)
        self.clean, self.noise = Pairs([]), Pairs([])
        self.clean.pairs, self.noise.pairs = pairs, noise
        usual = ablations.SIDE if args.small else AlignConfig.preset("emoji").vision_config.image_size
        self.side = args.side or usual
        self.processor = new_processor(args, pairs + noise, self.side)
        self.pictures = Pictures(pairs + noise, self.processor, args.out / "pictures.npy")
        options = {name: value for name, value in vars(args).items() if name not in FREE}
        check_same(args.out / "options.json", options | {"pictures": self.pictures.digest()})
        self.captions = Captions(self.processor.tokenizer)
        self.model = new_model(args, len(self.processor.tokenizer), self.side).train()
        if args.init:
            start_from(self.model, args.init, self.processor.tokenizer)
        self.average = copy.deepcopy(self.model).eval()
        make_strides_cheap(self.model)
        if args.freeze:
            freeze(self.model, args.freeze)
            self.views = Views(args.views or args.out / "views", self.model, args, self.pictures, self.side)
        groups = parameter_groups(self.model, weight_decay=DECAY)
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
        if (args.out / "training.pt").exists():
            self.load()
        else:
            self.folder.tidy(0)
        if self.step < args.texts_first:
            self.table = embed_pictures(copy.deepcopy(self.model), self.pictures, self.side)

    def load(self) -> None:
        """Go on from the newest checkpoint, and forget the metrics of steps that will come again."""
        state = torch.load(self.args.out / "training.pt", weights_only=True)
        self.step = state["step"]
        for name in ("model", "average", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.folder.tidy(self.step)
        print(f"resuming at step {self.step}", file=sys.stderr)

    def save(self) -> None:
        self.processor.save_pretrained(self.args.out)
        self.average.save_pretrained(self.args.out)
        state = {name: getattr(self, name).state_dict() for name in ("model", "average", "optimizer")}
        state["step"] = self.step
        write_atomically(self.args.out / "training.pt", lambda temporary: torch.save(state, temporary))

    def pairs(self) -> Iterator[list[Pair]]:
        """Batch after batch from this step on: `share` of each is noise, and no concept is in it twice."""
        noisy = round(self.args.share * BATCH) if self.noise.pairs else 0
        parts = [batches(self.clean, BATCH - noisy, self.args.seed)]
        if noisy:
            parts.append(batches(self.noise, noisy, self.args.seed))
        joined = ([pair for part, _ in several for pair in part] for several in zip(*parts, strict=True))
        return itertools.islice(joined, self.step, None)

    def batch(self, pairs: list[Pair]) -> Batch:
        rng = random.Random(f"{self.args.seed} {self.step}")
        strength = self.args.weak + (self.args.strong - self.args.weak) * self.left()
        texts = [rng.choice(pair.texts) for pair in pairs]
        flip = torch.tensor([pair.mirror and rng.random() < 0.5 for pair in pairs])
        draw = torch.Generator().manual_seed(rng.getrandbits(63))
        batch = Batch(ids=self.captions(texts))
        if self.step < self.args.texts_first:
            return batch
        if self.args.freeze:
            number = max(2, round(VIEWS * self.left()))  # the weaker ones only, towards the end
            rows = [self.pictures.rows[pair.name] for pair in pairs]
            batch["features"] = self.views(rows, [rng.randrange(number) for _ in pairs])
        else:
            turn = torch.tensor([not COLOURS.search(pair.texts[0]) for pair in pairs])
            hand = {"bend": self.args.bend, "turn": turn if self.args.recolour else None}
            batch["pixel_values"] = distort(self.pictures(pairs), self.side, flip, strength, draw, **hand)
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
        with torch.autocast("cpu", torch.bfloat16):
            texts = embed_texts(self.model, batch["ids"])
            if self.step < self.args.texts_first:
                images = self.table[[self.pictures.rows[pair.name] for pair in pairs]]
            elif self.args.freeze:
                images = batch["features"]
                for block in self.model.vision_model.blocks[self.args.freeze :]:
                    images = block(images)
                images = images.mean((2, 3))
            else:
                images = self.model.get_image_features(batch["pixel_values"])
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
        self.update_average()
        return loss.item()

    @torch.no_grad()
    def update_average(self) -> None:
        """Move the averaged weights a little towards the newest: at first a plain mean of about ten steps."""
        self.model.temperature.clamp_(min=1e-3)
        keep = min(AVERAGE, self.step / (self.step + 10))
        newest = self.model.state_dict()
        for name, mean in self.average.state_dict().items():
            if mean.is_floating_point():
                mean.lerp_(newest[name], 1 - keep)
            else:
                mean.copy_(newest[name])  # BatchNorm's count of batches

    def run(self) -> None:
        """All steps that are left."""
        before = time.perf_counter()
        for pairs in self.pairs() if self.step < self.args.steps else ():
            loss = self.learn(pairs)
            now = time.perf_counter()
            row = {"step": self.step, "loss": loss, "temperature": self.model.temperature.item()}
            self.folder.log(row | {"lr": self.optimizer.param_groups[0]["lr"], "seconds": now - before})
            before = now
            if self.step % SAVE_EVERY == 0 or self.step == self.args.steps:
                self.save()
            if self.step == self.args.steps:
                break


def measure(args: argparse.Namespace) -> dict:
    """R@K on the set held out, by language; with --halve, on each half of the concepts too."""

    def figures(model: Path, languages: list[str], wanted: tuple[bool, ...] = (True, False)) -> dict:
        def pick(concept: str) -> bool:
            return (not args.small or ablations.used_concept(concept)) and first_half(concept) in wanted

        return evaluate_emoji.evaluate(args.data / args.hold_out, str(model), pick, languages)

    result = figures(args.out, ["en", *args.languages])
    for language in args.halve:
        result[f"{language}, captions seen"] = figures(args.out, [language], (True,))[language]
        result[f"{language}, captions not seen"] = figures(args.out, [language], (False,))[language]
    return result | {"en, weights not averaged": figures(args.out / "last", ["en"])["en"]}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All flags; the defaults are those of the second stage."""
    add = parser.add_argument
    add("data", type=Path, help="folder for the imagefolders and the fetched packages")
    add("--out", type=Path, required=True, help="the run's folder")
    add("--init", type=Path, help="a checkpoint to go on from, instead of the first stage")
    add("--hold-out", help="a set to leave out, with its family, and measure on; weights/ stays as it is")
    add("--small", action="store_true", help="the ablations' model and one concept in three, to tune")
    add("--sets", nargs="+", help="learn from these (all that have colours)")
    add("--fewer-concepts", action="store_true", help="leave out one concept in ten")
    add("--noise", type=Path, help="folder of `prepare_emoji.py --noise`, to mix in")
    add("--share", type=float, default=0.125, help="of a batch that is noise (0.125)")
    add("--languages", nargs="*", default=[], help="of captions, beside English")
    add("--halve", nargs="*", default=[], help="languages whose captions half of the concepts lack")
    add("--texts-first", type=int, default=0, help="steps in which the text tower learns alone (0)")
    add("--steps", type=int, default=5500, help="of these and of both towers together (5500)")
    add("--rate", type=float, default=2e-3, help="the highest learning rate (2e-3)")
    add("--sigma", type=float, default=1 / 32, help="hold σ there; 0: learn it (1/32)")
    add("--strong", type=float, default=0.7, help="strength of the distortions at first (0.7)")
    add("--weak", type=float, default=0.1, help="and at the end (0.1)")
    add("--side", type=int, help="of the pictures in pixels (the preset's)")
    add("--bend", type=float, default=0.0, help="how far pictures are bent, of half their side (0)")
    add("--recolour", action="store_true", help="pictures are also lit, and their hues turned, at random")
    add("--freeze", type=int, default=0, help="blocks of the image tower that stay as they are (0)")
    add("--views", type=Path, help="folder for what these compute, to share between runs (default: in --out)")
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=2, help="of PyTorch's; pictures of 32 pixels gain little from two (2)")


def train(args: argparse.Namespace) -> Training:
    """A whole second stage, or what is left of it."""
    args.out.mkdir(parents=True, exist_ok=True)
    with locked(args.out):
        training = Training(args)
        training.run()
    return training


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    args = parser.parse_args(argv)
    if args.small and not args.hold_out:  # or small models would take the shipped ones' place
        parser.error("--small: to try a setting only, with --hold-out")
    for name in {args.hold_out, *(args.sets or ())} & prepare_emoji.FINAL_TEST.keys():
        parser.error(f"{name}: the designer of the final test, never to learn from or to choose by")
    status = prepare_emoji.main([str(args.data), *["--fewer-concepts"] * args.fewer_concepts])
    if status:
        return status
    try:
        return make(args, parser)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1


def make(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """The run with a set held out, or all runs and what ships."""
    torch.set_num_threads(args.threads)
    if args.hold_out:
        if not (args.data / args.hold_out / "metadata.jsonl").exists():
            parser.error(f"--hold-out {args.hold_out}: no such set in {args.data}")
        training = train(args)
        training.processor.save_pretrained(args.out / "last")
        training.model.save_pretrained(args.out / "last")
        write_json(args.out / "evaluation.json", measure(args))
        return 0
    args.init = args.init or first_stage(args)
    for name, changes in RUNS.items():
        train(argparse.Namespace(**vars(args) | changes | {"out": args.out / name}))
        shipped = Path(__file__).parent / name
        for file in FILES if shipped.is_dir() else ():  # not over the old file: who has it open keeps it
            write_atomically(shipped / file, functools.partial(shutil.copyfile, args.out / name / file))
        args.init = args.out / name  # for the next
    return 0


if __name__ == "__main__":
    sys.exit(main())
