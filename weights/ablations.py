"""The paper's ablations (ALIGN, section 6, tables 8 to 10) in miniature: a table and a picture.

    python weights/prepare_emoji.py data/emoji
    python weights/ablations.py data/emoji                  # 23 runs of two minutes, two at a time
    python weights/ablations.py data/emoji --only sigma-64  # one of them

Each run trains a small ALIGN from scratch on emoji at 32×32 pixels by four designers, and is measured on a
fifth, `fluent`: every picture is asked for its name among all the others', and the reverse. One concept in
three is used, so that two minutes are some sixty epochs: of all of them a run this short learns too little to
tell settings apart. All runs see the same number of batches of the same size, and a run differs from `base`
in what its row says alone.
OUT/results.json takes each result as it comes, so a second call goes on where the first one stopped;
OUT/ablations.png is drawn from it. What the figures say, beside the paper's, is in OUT/README.md.

Differs from the paper: the batch is 256, where the paper's is 16,384; and noise is made, by giving pictures
one another's captions, where the paper's came from the web.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import json
import multiprocessing
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
import torch.nn as nn
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a checkout without installing
from align_minimal import AlignConfig, AlignModel, AlignProcessor, contrastive_loss
from align_minimal.support.hub import write_atomically, write_json
from align_minimal.tokenizer import BertTokenizer
from align_minimal.training.batches import BatchStream, Prepare
from align_minimal.training.build import new_image_processor
from align_minimal.training.dataset import Pairs
from align_minimal.training.lamb import parameter_groups
from align_minimal.training.options import positive
from align_minimal.training.pairs import Pair, read_folder
from align_minimal.training.step import PairEncoder, learning_rate
from align_minimal.using.retrieval import evaluate

DESIGNERS, HELD_OUT = ("twemoji", "openmoji", "emojitwo", "fxemoji"), "fluent"
BATCH, RATE, SIDE, VOCABULARY = 256, 2e-3, 32, 4000
CONCEPTS = 1 / 3  # the share that is used at all, in training and in measuring
AUGMENTATION = "paper"  # 400 steps learn more from it than from "drawings"
BASE_SEEDS = 3  # of `base`, so that the table can tell a difference from luck
SHOWN = "R@5"  # of 522 pictures: R@1's sampling error is greater beside its differences


@dataclass(frozen=True)
class Setting:
    """How a run differs from `base`. `paper`: MSCOCO R@1 image-to-text and text-to-image of the like row."""

    label: str
    paper: str = ""
    sigma: float | None = None  # the temperature held at this; None: learnt
    parts: int = 1  # each pair's negatives come from its part of the batch
    width: int | None = None  # of the embedding, both towers projected to it; None: the image tower's, as is
    noise: float = 0.0  # share of the pictures that have another picture's captions
    data: float = 1.0  # share of the pictures that are there at all


SETTINGS = {
    "base": Setting("base: σ learnt, all negatives, width 160, clean, all data", "51.7 / 37.5"),
    "sigma-128": Setting("σ fixed at 1/128", "52.2 / 36.5", sigma=1 / 128),
    "sigma-64": Setting("σ fixed at 1/64", "52.2 / 37.3", sigma=1 / 64),
    "sigma-32": Setting("σ fixed at 1/32", "39.6 / 26.9", sigma=1 / 32),
    "negatives-half": Setting("half of the negatives", "50.2 / 37.0", parts=2),
    "negatives-quarter": Setting("a quarter of the negatives", "48.7 / 35.8", parts=4),
    "width-160": Setting("width 160, with an image projection", width=160),
    "width-80": Setting("width 80 (a half)", "50.3 / 34.1", width=80),
    "width-40": Setting("width 40 (a quarter)", "47.0 / 34.4", width=40),
    "width-20": Setting("width 20 (an eighth)", "42.0 / 29.3", width=20),
    "noise-20": Setting("20 % noise", noise=0.2),
    "noise-50": Setting("50 % noise", noise=0.5),
    "noise-80": Setting("80 % noise", noise=0.8),
}
for size, share in (("half", 0.5), ("quarter", 0.25)):
    SETTINGS[size] = Setting(f"clean, a {size} of the data", data=share)
    for rate in (20, 50, 80):
        label = f"{rate} % noise, a {size} of the data"
        SETTINGS[f"{size}-noise-{rate}"] = Setting(label, noise=rate / 100, data=share)


def used_concept(concept: str) -> bool:
    """Is it one of the concepts in three? The same ones always, whatever the designer."""
    return random.Random(f"ablations {concept}").random() < CONCEPTS


def used(pair: Pair) -> bool:
    return used_concept(pair.concept)


def choose(pairs: list[Pair], setting: Setting, seed: int) -> list[Pair]:
    """The pictures that are there, the first of them with the next one's captions instead of their own.

    Of one seed, less data is part of more data, and less noise part of more noise.
    """
    chosen = random.Random(seed).sample(pairs, len(pairs))[: round(setting.data * len(pairs))]
    wrong = round(setting.noise * len(chosen))
    others = chosen[1:wrong] + chosen[: min(wrong, 1)]  # in a ring, so that every caption is still used once
    swapped = zip(chosen[:wrong], others, strict=True)
    return [dataclasses.replace(p, texts=other.texts) for p, other in swapped] + chosen[wrong:]


class Projected(AlignModel):
    """Both towers projected to `width`, as in the paper's ablations; AlignModel has no image projection."""

    def __init__(self, config: AlignConfig, width: int):
        super().__init__(config)
        self.text_projection = nn.Linear(config.text_config.hidden_size, width)
        self.image_projection = nn.Linear(config.projection_dim, width)

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        return self.image_projection(super().get_image_features(pixel_values))  # (B, width)


def make_model(setting: Setting, vocabulary: int) -> AlignModel:
    """The preset `emoji` with one block a stage, one layer of BERT and a quarter of the pixels."""
    config = AlignConfig.preset("emoji")
    text, vision = config.text_config, config.vision_config
    text.vocab_size, text.num_hidden_layers = vocabulary, 1
    vision.image_size, vision.depth_coefficient, vision.kernel_sizes = SIDE, 0.25, [3] * 7
    vision.strides = [2, 2, 1, 1, 1, 1, 1]  # 4×4 before the pool, like the preset at 64 pixels
    vision.batch_norm_momentum = 0.9  # with 0.99 a run this short would still remember its start
    model = Projected(config, setting.width) if setting.width else AlignModel(config)
    if setting.sigma:
        nn.init.constant_(model.temperature, setting.sigma).requires_grad_(False)
    return model


def loss_in_parts(text: Tensor, image: Tensor, temperature: Tensor, parts: int) -> Tensor:
    """The mean loss of the batch's parts, each one a batch of its own: (B, D), (B, D) → scalar."""
    pieces = zip(text.chunk(parts), image.chunk(parts), strict=True)
    return torch.stack([contrastive_loss(t, i, temperature) for t, i in pieces]).mean()


class Bench:
    """What all runs share: the pictures, decoded once, the vocabulary and the held-out designer."""

    def __init__(self, data: Path):
        self.pairs = Pairs([data / designer for designer in DESIGNERS])
        self.pairs.pairs = list(filter(used, self.pairs))
        texts = (text for pair in self.pairs for text in pair.texts)
        tokenizer = BertTokenizer.train(texts, VOCABULARY, model_max_length=64)
        image_processor = new_image_processor(SIDE, AUGMENTATION)
        self.processor = AlignProcessor(image_processor, tokenizer)
        self.prepare = Prepare(image_processor, tokenizer, augmentation=AUGMENTATION, flip=True)
        held_out = filter(used, read_folder(data / HELD_OUT))
        self.held_out = [dataclasses.replace(p, texts=p.texts[:1]) for p in held_out]

    def run(self, setting: Setting, seed: int, steps: int) -> dict:
        """Train, then measure. → R@K both ways, the mean of the last losses, the temperature, seconds."""
        began, losses = time.perf_counter(), []
        pairs = copy.copy(self.pairs)
        pairs.pairs = choose(self.pairs.pairs, setting, seed)
        torch.manual_seed(seed)
        model = make_model(setting, len(self.processor.tokenizer)).train()
        encoder = PairEncoder(model, "bf16")
        optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.05), betas=(0.9, 0.98))
        stream = iter(BatchStream(pairs, self.prepare, BATCH, seed))
        for step in range(1, steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, max(1, steps // 10), RATE)
            loss = loss_in_parts(*encoder(next(stream)), setting.parts)
            if not loss.isfinite():
                raise ValueError(f"step {step}: the loss is {loss.item()}")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                model.temperature.clamp_(min=1e-3)  # as in the trainer
            losses.append(loss.item())
        return evaluate(model, self.processor, self.held_out, batch_size=256) | {
            "loss": fmean(losses[-20:]),
            "temperature": model.temperature.item(),
            "seconds": round(time.perf_counter() - began),
        }


@functools.cache
def open_bench(data: Path) -> Bench:
    """One a process, with one thread: small towers gain more from two runs at once than from two threads."""
    torch.set_num_threads(1)
    return Bench(data)


def work(task: tuple[Path, str, int, int]) -> tuple[str, dict]:
    data, name, seed, steps = task
    return f"{name} {seed}", open_bench(data).run(SETTINGS[name], seed, steps)


def read_results(path: Path, steps: int) -> dict:
    """What is there already; ValueError if it was measured after another number of steps."""
    results = json.loads(path.read_text("utf-8")) if path.exists() else {"steps": steps, "runs": {}}
    if results["steps"] != steps:
        raise ValueError(f"{path}: of {results['steps']} steps, not {steps}; give another --out")
    return results


def recalls(results: dict, name: str, k: str = SHOWN) -> list[float]:
    """R@K in per cent, the mean of both ways, of each seed that has been run."""
    runs = [run for key, run in results["runs"].items() if key.split()[0] == name]
    return [50 * (run["image_to_text"][k] + run["text_to_image"][k]) for run in runs]


def print_table(results: dict) -> None:
    """In Markdown; each cell the mean of the seeds, and in the end each seed's SHOWN."""
    print(f"| run | paper, COCO R@1 | i→t R@1 | t→i R@1 | R@1 | R@5 | R@10 | σ | {SHOWN} of each seed |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, setting in SETTINGS.items():
        runs = [run for key, run in results["runs"].items() if key.split()[0] == name]
        if not runs:
            continue
        cells = [fmean(100 * run[way]["R@1"] for run in runs) for way in ("image_to_text", "text_to_image")]
        cells += [fmean(recalls(results, name, k)) for k in ("R@1", "R@5", "R@10")]
        sigma = f"1/{1 / fmean(run['temperature'] for run in runs):.0f}"
        seeds = ", ".join(f"{r:.1f}" for r in recalls(results, name))
        numbers = " | ".join(f"{cell:.1f}" for cell in cells)
        print(f"| {setting.label} | {setting.paper} | {numbers} | {sigma} | {seeds} |")


def draw(results: dict, path: Path) -> None:
    """A panel for each ablation: a setting's mean on the line, a dot for each seed; the band is `base`."""
    import matplotlib.pyplot as plt

    noises = {"all": ["base", "noise-20", "noise-50", "noise-80"]}
    noises |= {s: [s, *(f"{s}-noise-{rate}" for rate in (20, 50, 80))] for s in ("half", "quarter")}
    panels = (
        ("temperature σ", "1/128 1/64 1/32 learnt", {"": ["sigma-128", "sigma-64", "sigma-32", "base"]}),
        ("negatives", "quarter half all", {"": ["negatives-quarter", "negatives-half", "base"]}),
        ("embedding width", "20 40 80 160", {"": [f"width-{w}" for w in (20, 40, 80, 160)]}),
        ("noise, by size of data", "clean 20% 50% 80%", noises),
    )
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.2), sharey=True, layout="constrained")
    for axis, (title, ticks, lines) in zip(axes, panels, strict=True):
        axis.set_title(title)
        axis.set_xticks(range(len(ticks.split())), ticks.split())
        for (label, names), colour in zip(lines.items(), ("#2a7f62", "#7aa6c2", "#c9a227"), strict=False):
            seeds = {x: recalls(results, name) for x, name in enumerate(names) if recalls(results, name)}
            axis.plot(list(seeds), [fmean(r) for r in seeds.values()], color=colour, label=label)
            for x, r in seeds.items():
                axis.scatter([x] * len(r), r, color=colour, s=14)
        base = recalls(results, "base") or [0]
        axis.axhspan(min(base), max(base), color="#2a7f62", alpha=0.15, linewidth=0)
    axes[3].legend(frameon=False)
    axes[0].set_ylabel(f"{SHOWN} on a new designer, per cent")
    axes[0].set_ylim(bottom=0)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=100))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = Path(__file__).resolve().parent / "ablations"
    parser.add_argument("data", type=Path, help="folder of imagefolders, one a designer")
    parser.add_argument("--out", type=Path, default=here, help="folder of the results (default: beside this)")
    parser.add_argument("--steps", type=positive, default=400, help="of training, every run (default: 400)")
    parser.add_argument("--seeds", type=positive, default=1, help="runs of each setting; of base, 3 at least")
    parser.add_argument("--jobs", type=positive, default=2, help="runs at once, one core each (default: 2)")
    parser.add_argument("--only", choices=SETTINGS, metavar="NAME", help=f"one of {', '.join(SETTINGS)}")
    args = parser.parse_args(argv)
    path = args.out / "results.json"
    try:
        results = read_results(path, args.steps)
        tasks = [
            (args.data, name, seed, args.steps)
            for name in ([args.only] if args.only else SETTINGS)
            for seed in range(max(args.seeds, BASE_SEEDS if name == "base" else 1))
            if f"{name} {seed}" not in results["runs"]
        ]
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(args.jobs, mp_context=spawn) as pool:  # notices if a worker is killed
            failed = []
            for done in as_completed([pool.submit(work, task) for task in tasks]):
                if done.exception():  # the others are kept
                    failed.append(done.exception())
                    continue
                key, result = done.result()
                results["runs"][key] = result
                write_json(path, results)
                print(f"{key}: {json.dumps(result)}", file=sys.stderr, flush=True)
        if failed:
            raise failed[0]
        draw(results, args.out / "ablations.png")
    except (BrokenProcessPool, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print_table(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
