"""Training by the paper's recipe (ALIGN, section 5), from pairs on disk to a checkpoint.

    align-minimal train DATA --out RUN
    torchrun --nproc_per_node 2 -m align_minimal.train DATA --out RUN

Both towers from scratch, the contrastive loss over the whole global batch, LAMB, warm-up and linear decay.
Everything random in a step is drawn from the seed, the step and the rank, so a resumed run repeats a whole
one bit for bit: the weights, the optimizer's moments and the step's number are all there is to save.
But: the batch, the rates and the length are what the flags say; the paper's are 16,384 pairs, 1e-3 after
10,000 steps of warm-up, and 1.2 million steps.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import random
import re
import shutil
import signal
import sys
import time
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from .checkpoint import read_tensors
from .config import PRESETS, AlignConfig
from .contrastive import contrastive_loss
from .data import AUGMENTATIONS, RESIZE, BatchStream, Pairs, Prepare, batches, epoch_batches
from .hub import read_json, write_atomically, write_json
from .image_processor import EfficientNetImageProcessor
from .lamb import Lamb, parameter_groups
from .large_batch import backward_in_chunks
from .model import AlignModel
from .outputs import Batch
from .processor import AlignProcessor
from .retrieval import evaluate, print_recall
from .tokenizer import BertTokenizer

# ---- flags -------------------------------------------------------------------------------------------------


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def at_least_zero(text: str) -> float:
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 up")
    return number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "data",
        nargs="+",
        metavar="DATA",
        help="folders with metadata.jsonl or .csv, or WebDataset tar shards",
    )
    add("--out", type=Path, required=True, metavar="DIR", help="the run: checkpoint, curves, metrics.jsonl")
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--preset", default="emoji", choices=PRESETS, help="the model's size (default: emoji)")
    model.add_argument("--config", metavar="FILE", help="a config.json instead of a preset")
    model.add_argument("--init", metavar="DIR_OR_NAME", help="fine-tune this checkpoint, with its vocabulary")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=positive, help="how many batches to learn from")
    length.add_argument("--epochs", type=positive, help="or how many times to see each pair (default: 10)")
    add("--batch-size", type=positive, default=256, help="pairs a step, over all processes (default: 256)")
    add("--chunk", type=positive, help="pairs in memory at a time, for a batch of any size (default: all)")
    add("--tile", type=positive, help="side of the blocks in which the loss is computed (default: one block)")
    add("--optimizer", choices=("lamb", "adamw"), default="lamb", help="the paper's LAMB (default), or AdamW")
    add("--lr", type=at_least_zero, default=1e-3, help="the highest learning rate (default: 1e-3)")
    add("--warmup", type=int, help="steps up to it (default: a tenth of them, at most 10,000)")
    add("--weight-decay", type=at_least_zero, default=1e-5, help="not for BatchNorm (default: 1e-5)")
    add("--label-smoothing", type=float, default=0.1, help="share of the target given to all (default: 0.1)")
    add(
        "--precision", choices=("float32", "bf16"), default="float32", help="of the towers (default: float32)"
    )
    add("--device", default="cpu", help="cpu, cuda or mps (default: cpu)")
    add("--workers", type=int, default=0, help="processes that decode pictures (default: 0, this one does)")
    add("--seed", type=int, default=0, help="of everything random (default: 0)")
    add("--save-every", type=positive, default=500, metavar="STEPS", help="checkpoints in between (500)")
    add("--keep", type=positive, default=3, metavar="K", help="how many of them to keep (default: 3)")
    add("--resume", action="store_true", help="go on from the newest whole checkpoint in --out")
    vocab = parser.add_mutually_exclusive_group()
    vocab.add_argument("--vocab-size", type=positive, default=30522, help="pieces to learn at most (30522)")
    vocab.add_argument("--vocab", metavar="FILE", help="a vocab.txt instead of learning one from the texts")
    add(
        "--augment",
        choices=AUGMENTATIONS,
        default="paper",
        help="random crops (default), or more, for drawings",
    )
    add("--flip", action="store_true", help="mirror half of the pictures")
    add("--filter", action="store_true", help="drop images and texts as the paper does, and say how many")
    add("--eval", nargs="+", metavar="DATA", help="measure R@K on these pairs at the end")


def check_arguments(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Usage errors that argparse does not see."""
    if not 0 <= args.label_smoothing < 1:
        parser.error(f"--label-smoothing {args.label_smoothing} is not in [0, 1)")
    if args.workers < 0 or (args.warmup is not None and args.warmup < 0):
        parser.error("--workers and --warmup must be at least 0")
    if args.init and args.vocab:
        parser.error("--vocab: the vocabulary comes with --init")


# ---- small pieces ------------------------------------------------------------------------------------------


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Of step 1, 2, …, `steps`: linear from 0 to `peak` over `warmup` steps, then linear to 0 after the last.

    >>> [learning_rate(step, steps=6, warmup=2, peak=1.0) for step in range(1, 7)]
    [0.5, 1.0, 0.8, 0.6, 0.4, 0.2]
    """
    if step <= warmup:
        return peak * step / warmup
    return peak * (steps - step + 1) / (steps - warmup + (warmup > 0))


def loss_floor(pairs: int, smoothing: float) -> float:
    """The least that the smoothed loss of a batch can be: the entropy of its own target, in nats.

    >>> round(loss_floor(16384, 0.1), 3), round(loss_floor(256, 0.1), 3)
    (1.295, 0.876)
    """
    wrong = smoothing / pairs
    right = 1 - smoothing + wrong
    return -sum(n * p * math.log(p) for n, p in ((1, right), (pairs - 1, wrong)) if n * p > 0)


class PairEncoder(nn.Module):
    """Both towers as one module, so that one call (and DistributedDataParallel) sees all parameters.

    pixel_values (B, 3, H, W), input_ids and attention_mask (B, T) → texts (B, D), images (B, D), both
    L2-normalized and in float32 whatever the towers' precision, and the temperature.
    """

    def __init__(self, model: AlignModel, precision: str):
        super().__init__()
        self.model, self.precision = model, precision

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        device = self.model.temperature.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.precision == "bf16"):
            image = self.model.get_image_features(batch["pixel_values"])
            text = self.model.get_text_features(batch["input_ids"], batch["attention_mask"])
        return F.normalize(text.float(), dim=-1), F.normalize(image.float(), dim=-1), self.model.temperature


def split(batch: Batch, chunk: int | None) -> list[Batch]:
    """A batch's tensors as chunks of `chunk` pairs."""
    tensors = {k: v for k, v in batch.items() if isinstance(v, Tensor)}
    size = chunk or len(batch["names"])
    parts = [t.split(size) for t in tensors.values()]
    return [Batch(**dict(zip(tensors, part, strict=True))) for part in zip(*parts, strict=True)]


def gradient_norm(model: nn.Module) -> Tensor:
    """The length of all gradients as one vector."""
    return torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()


@dataclasses.dataclass
class Processes:
    """This process among those that train together."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"

    def gather(self, number: float) -> list[float]:
        """Every rank's number, on every rank."""
        if self.world == 1:
            return [number]
        numbers = [torch.zeros(1, dtype=torch.float64, device=self.device) for _ in range(self.world)]
        dist.all_gather(numbers, torch.tensor([number], dtype=torch.float64, device=self.device))
        return [n.item() for n in numbers]


@contextlib.contextmanager
def processes(device: str):
    """Join the process group if torchrun started this process, and leave it at the end."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        yield Processes(device=device)
        return
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    yield Processes(dist.get_rank(), world, device)
    dist.destroy_process_group()  # not where an error ended the run: the others may still be waiting


@contextlib.contextmanager
def stop_on_signals():
    """Give a list that the first SIGINT or SIGTERM puts its number into; the second one acts as usual."""
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame) -> None:
        received.append(number)
        for each, action in before.items():
            signal.signal(each, action)

    for number in before:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, action in before.items():
            signal.signal(number, action)


def start_worker(number: int) -> None:
    """The main process decides what a signal means; and one worker's warnings are enough."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    if number > 0:
        warnings.simplefilter("ignore")


# ---- the run's files ---------------------------------------------------------------------------------------


def checkpoints(out: Path) -> list[Path]:
    """The run's checkpoints, newest first."""
    found = [p for p in (out / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d+", p.name)]
    return sorted(found, key=lambda p: -int(p.name.removeprefix("step-")))


def save_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """`optimizer.safetensors`: each parameter's moments and step count, by "index.name"."""
    states = optimizer.state_dict()["state"]
    tensors = {f"{i}.{k}": torch.as_tensor(v) for i, state in states.items() for k, v in state.items()}
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    write_atomically(folder / "optimizer.safetensors", lambda temporary: save_file(tensors, temporary))


def load_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Put back what `save_optimizer` wrote; ValueError naming the file where it does not fit."""
    path = folder / "optimizer.safetensors"
    content = optimizer.state_dict()
    for key, tensor in read_tensors(path).items():
        index, name = key.split(".", 1)
        whole = tensor.ndim == 0 and not tensor.is_floating_point()  # a count of steps kept as an int
        content["state"].setdefault(int(index), {})[name] = tensor.item() if whole else tensor
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    shapes = {i: p.shape for i, p in enumerate(parameters)}
    for i, state in content["state"].items():
        if any(isinstance(t, Tensor) and t.ndim and t.shape != shapes.get(i) for t in state.values()):
            raise ValueError(f"{path}: made for another model")
    optimizer.load_state_dict(content)


class Run:
    """The folder of a run: `checkpoints/step-N`, each whole or absent, a checkpoint of the newest at the top,
    and `metrics.jsonl`.
    """

    def __init__(self, out: Path, keep: int):
        self.out, self.keep, self.metrics_path = out, keep, out / "metrics.jsonl"

    def save(self, step: int, drawn: int, model, processor, optimizer, options: dict) -> None:
        """Write checkpoints/step-N under another name, then rename it; drop the oldest; renew the top."""
        final = self.out / "checkpoints" / f"step-{step:07d}"
        temporary = final.with_name(f".{final.name}.{os.getpid()}")
        try:
            model.save_pretrained(temporary)
            processor.save_pretrained(temporary)
            save_optimizer(optimizer, temporary)
            write_json(temporary / "training.json", {"step": step, "drawn": drawn, "options": options})
            shutil.rmtree(final, ignore_errors=True)  # only a broken one can be in the way
            os.replace(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        processor.save_pretrained(self.out)
        model.save_pretrained(self.out)
        for old in checkpoints(self.out)[self.keep :]:
            shutil.rmtree(old, ignore_errors=True)

    def load(self, step_folder: Path):
        """A checkpoint's training.json, model and processor; ValueError or OSError if it is not whole."""
        training = read_json(step_folder / "training.json")
        if not all(isinstance(training.get(key), int) for key in ("step", "drawn")):
            raise ValueError(f"{step_folder / 'training.json'}: no step and drawn in it")
        read_tensors(step_folder / "optimizer.safetensors")
        model, processor = (
            AlignModel.from_pretrained(step_folder),
            AlignProcessor.from_pretrained(step_folder),
        )
        return training, model, processor

    def newest(self):
        """(folder, training, model, processor) of the newest whole checkpoint, or None."""
        for folder in checkpoints(self.out):
            try:
                return folder, *self.load(folder)
            except (OSError, ValueError) as error:
                warnings.warn(f"passed over: {error}", stacklevel=2)
        return None

    def cut_metrics(self, step: int) -> None:
        """Drop the lines after `step`, which will be written again, and a last line that is cut short."""
        lines = (
            self.metrics_path.read_text(encoding="utf-8").splitlines() if self.metrics_path.exists() else []
        )
        kept = []
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
        text = "".join(kept)
        write_atomically(self.metrics_path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def clean(self) -> None:
        """Remove what a killed process left half written."""
        for rubbish in (self.out / "checkpoints").glob(".step-*"):
            shutil.rmtree(rubbish, ignore_errors=True)


# ---- what is trained ---------------------------------------------------------------------------------------


def new_tokenizer(args: argparse.Namespace, pairs: Pairs, config: AlignConfig) -> BertTokenizer:
    """The vocabulary given, or one learnt from all the texts, as the paper's."""
    longest = config.text_config.max_position_embeddings
    if args.vocab:
        return BertTokenizer(Path(args.vocab), model_max_length=longest)
    texts = (text for pair in pairs for text in pair.texts)
    return BertTokenizer.train(texts, args.vocab_size, model_max_length=longest)


def new_image_processor(size: int, augment: str) -> EfficientNetImageProcessor:
    """For evaluation the paper's resize and central crop; drawings, which fill their frame, are not cropped.

    Pixels go to [−1, 1], as in coyo-align.
    """
    cropped = augment == "paper"
    return EfficientNetImageProcessor(
        size=round(size * RESIZE) if cropped else size,
        do_center_crop=cropped,
        crop_size=size,
        resample=2,  # bilinear
        rescale_factor=1 / 127.5,
        rescale_offset=True,
        do_normalize=False,
        include_top=False,
    )


def new_model(args: argparse.Namespace, pairs: Pairs, steps: int) -> tuple[AlignModel, AlignProcessor]:
    """A model from --init, --config or --preset, and the processor that goes with it."""
    if args.init:
        return AlignModel.from_pretrained(args.init), AlignProcessor.from_pretrained(args.init)
    if args.config:
        try:
            config = AlignConfig.from_dict(read_json(Path(args.config)))
        except TypeError as error:
            raise ValueError(f"{args.config}: {error}") from None
    else:
        config = AlignConfig.preset(args.preset)
    tokenizer = new_tokenizer(args, pairs, config)
    config.text_config.vocab_size = len(tokenizer)
    # BatchNorm's running averages start at 0 and 1. A run too short to forget that (0.99^500 is still 0.7 %,
    # and the true variances are far less) would be at chance in evaluation: here e^-20 of the start is left.
    vision = config.vision_config
    vision.batch_norm_momentum = min(vision.batch_norm_momentum, max(0.0, 1 - 20 / steps))
    image_processor = new_image_processor(config.vision_config.image_size, args.augment)
    torch.manual_seed(args.seed)
    return AlignModel(config), AlignProcessor(image_processor, tokenizer)


def new_optimizer(args: argparse.Namespace, model: AlignModel) -> torch.optim.Optimizer:
    groups = parameter_groups(model, args.weight_decay)
    if args.optimizer == "lamb":
        return Lamb(groups, lr=args.lr)
    return torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))


# ---- training ----------------------------------------------------------------------------------------------


class Trainer:
    """A run of training, step by step; `processes` says which share of each batch is this process's."""

    def __init__(self, args: argparse.Namespace, group: Processes, pairs: Pairs):
        self.args, self.group, self.pairs = args, group, pairs
        self.run = Run(args.out, args.keep)
        self.step = self.drawn = 0  # steps done; batches taken, more where whole batches were unreadable
        self.seen_unreadable: set[str] = set()
        self.ever_readable = False
        self.steps = args.steps or (args.epochs or 10) * max(1, self.batches_an_epoch())
        default = min(10_000, max(1, self.steps // 10))
        self.warmup = min(default if args.warmup is None else args.warmup, self.steps)

    def batches_an_epoch(self) -> int:
        order = self.pairs.shuffled(random.Random(f"{self.args.seed} 0"))
        return sum(1 for _ in epoch_batches(order, self.args.batch_size))

    def options(self) -> dict:
        """What must stay the same for a resumed run to be the same run."""
        names = (
            "data batch_size chunk tile optimizer lr weight_decay label_smoothing precision seed augment flip"
        )
        chosen = {name: getattr(self.args, name) for name in names.split()}
        return chosen | {"steps": self.steps, "warmup": self.warmup, "processes": self.group.world}

    def begin(self) -> None:
        """Make the model, or take up the newest checkpoint."""
        found = self.run.newest() if self.args.resume else None
        if found:
            folder, training, self.model, self.processor = found
            self.step, self.drawn = training["step"], training["drawn"]
            for name, value in self.options().items():
                if training.get("options", {}).get(name, value) != value:
                    was = training["options"][name]
                    warnings.warn(f"resuming with {name} {value}, which was {was}", stacklevel=2)
        else:
            self.model, self.processor = new_model(self.args, self.pairs, self.steps)
        # Its pooler takes no part in ALIGN: without a gradient it would keep the processes waiting.
        self.model.text_model.requires_grad_(True)
        if self.model.text_model.pooler is not None:
            self.model.text_model.pooler.requires_grad_(False)
        self.model.to(self.group.device).train()
        self.optimizer = new_optimizer(self.args, self.model)
        if found:
            load_optimizer(self.optimizer, folder)
        self.encoder = PairEncoder(self.model, self.args.precision)
        if self.group.world > 1:
            self.encoder = DistributedDataParallel(self.encoder)

    def announce(self) -> None:
        """Say where it starts, and put the run's files in order."""
        if self.step:
            print(f"resuming at step {self.step}", file=sys.stderr)
        elif self.args.resume:
            warnings.warn(f"{self.args.out}: no checkpoint to resume from, starting afresh", stacklevel=2)
        self.run.clean()
        self.run.cut_metrics(self.step)

    def loader(self) -> DataLoader:
        text = self.model.config.text_config
        prepare = Prepare(
            self.processor.image_processor,
            self.processor.tokenizer,
            max_tokens=min(64, text.max_position_embeddings),
            augmentation=self.args.augment,
            flip=self.args.flip,
            cache_bytes=2**30 // max(1, self.args.workers),
        )
        share = (self.group.rank, self.group.world)
        stream = BatchStream(self.pairs, prepare, self.args.batch_size, self.args.seed, self.drawn, *share)
        workers = dict(num_workers=self.args.workers, worker_init_fn=start_worker)
        return DataLoader(stream, batch_size=None, generator=torch.Generator(), **workers)

    def usable(self, batch: Batch) -> bool:
        """Name what could not be read; False, on every rank, if one of them has nothing left."""
        for message in batch["unreadable"]:
            if message not in self.seen_unreadable:
                warnings.warn(f"skipped: {message}", stacklevel=2)
            elif not self.ever_readable:  # met again: that was all there is
                raise ValueError(f"{self.pairs.label}: none of its images can be read")
            self.seen_unreadable.add(message)
        self.ever_readable |= bool(batch["names"])
        return min(self.group.gather(len(batch["names"]))) > 0

    def learn(self, batch: Batch) -> dict:
        """One step. Returns what metrics.jsonl says of it; ValueError if loss or gradient is not finite."""
        args, began = self.args, time.perf_counter()
        rate = learning_rate(self.step + 1, self.steps, self.warmup, args.lr)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate
        torch.manual_seed(random.Random(f"{args.seed} {self.step} {self.group.rank}").getrandbits(63))

        def loss_of(text: Tensor, image: Tensor, temperature: Tensor) -> Tensor:
            together = self.group.world > 1
            return contrastive_loss(text, image, temperature, args.label_smoothing, args.tile, together)

        self.optimizer.zero_grad()
        chunks = split(batch.to(self.group.device), args.chunk)
        loss = backward_in_chunks(self.encoder, chunks, loss_of).item()
        norm = gradient_norm(self.model).item()
        if not math.isfinite(loss + norm):
            raise ValueError(f"step {self.step + 1}: {self.describe_failure(loss, norm, batch)}")
        self.optimizer.step()
        with torch.no_grad():  # no clamp in the paper; but its steps are too small to carry σ past 0
            self.model.temperature.clamp_(min=1e-3)
        self.step += 1
        pairs = sum(self.group.gather(len(batch["names"])))
        return {
            "step": self.step,
            "loss": loss,
            "log_n": math.log(pairs),
            "floor": loss_floor(int(pairs), args.label_smoothing),
            "temperature": self.model.temperature.item(),
            "lr": rate,
            "gradient_norm": norm,
            "pairs": int(pairs),
            "pairs_per_second": pairs / (time.perf_counter() - began),
        }

    def describe_failure(self, loss: float, norm: float, batch: Batch) -> str:
        what = "the loss" if not math.isfinite(loss) else "the gradient"
        path = self.args.out / "failed_batch.json"
        if self.group.rank == 0:
            write_json(path, {"step": self.step + 1, "names": batch["names"]})
        value = norm if math.isfinite(loss) else loss
        return f"{what} is {value}; the batch ({batch['names'][0]}, …) is listed in {path}"

    def save(self) -> None:
        if self.group.rank == 0:
            self.run.save(self.step, self.drawn, self.model, self.processor, self.optimizer, self.options())
        self.group.gather(0)  # nobody goes on before it is written

    def train(self, received: list[int]) -> None:
        """All steps that are left; `received` holds a signal's number once it is time to stop."""
        first = self.group.rank == 0
        bar = tqdm(total=self.steps, initial=self.step, unit="step", disable=not first, dynamic_ncols=True)
        saved = self.step
        with bar, contextlib.ExitStack() as files:
            metrics = (
                files.enter_context(open(self.run.metrics_path, "a", encoding="utf-8")) if first else None
            )
            for batch in self.loader():
                if self.step == self.steps:
                    break
                self.drawn += 1
                if not self.usable(batch):
                    continue
                row = self.learn(batch)
                if first:
                    print(json.dumps(row), file=metrics, flush=True)
                bar.update()
                bar.set_postfix_str(
                    "loss {loss:.3f} (log N {log_n:.2f}, floor {floor:.2f}), temperature {temperature:.4f}, "
                    "lr {lr:.1e}, {pairs_per_second:.0f} pairs/s".format(**row)
                )
                stop = max(self.group.gather(len(received))) > 0
                if stop or self.step % self.args.save_every == 0 or self.step == self.steps:
                    self.save()
                    saved = self.step
                if stop or self.step == self.steps:
                    break
        if saved != self.step or not self.step:
            self.save()


def draw_curves(run: Run) -> None:
    """`curves.png`: loss, temperature and learning rate by step; without matplotlib, a warning."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        warnings.warn("no curves.png: matplotlib is not installed", stacklevel=2)
        return
    rows = [json.loads(line) for line in run.metrics_path.read_text(encoding="utf-8").splitlines()]
    steps = [row["step"] for row in rows]
    figure = Figure(figsize=(8, 9), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True)
    for name, label in (("log_n", "log N: chance"), ("loss", "loss"), ("floor", "label smoothing's floor")):
        axes[0].plot(steps, [row[name] for row in rows], label=label, linewidth=1)
    axes[0].legend()
    for axis, name in zip(axes, ("loss", "temperature", "lr"), strict=True):
        axis.plot(steps, [row[name] for row in rows], linewidth=1, color="C1")
        axis.set_ylabel({"loss": "loss (nats)", "lr": "learning rate"}.get(name, name))
    axes[2].set_xlabel("step")
    write_atomically(run.out / "curves.png", lambda temporary: figure.savefig(temporary, format="png"))


def finish(trainer: Trainer, evaluation: Pairs | None) -> None:
    """Curves and R@K, beside the checkpoint."""
    draw_curves(trainer.run)
    unreadable = len(trainer.seen_unreadable)
    if unreadable:
        warnings.warn(f"{unreadable} images could not be read", stacklevel=2)
    if evaluation is not None:
        result = evaluate(trainer.model.eval(), trainer.processor, evaluation)
        write_json(trainer.args.out / "evaluation.json", result)
        print_recall(result)


def check_out(args: argparse.Namespace) -> None:
    """Refuse to train over an earlier run, or into what is no folder."""
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"{args.out}: not a folder")
    if not args.resume and (checkpoints(args.out) or (args.out / "model.safetensors").exists()):
        raise ValueError(f"{args.out}: holds a model already; give --resume, or another --out")


def run_train(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int | None:
    """The command. Returns 128 + the signal's number if one ended it."""
    check_arguments(args, parser)
    check_out(args)
    pairs = Pairs(args.data)
    evaluation = Pairs(args.eval) if args.eval else None
    if args.filter:
        report = pairs.filter()
        print("filter: " + "; ".join(f"{count:,} {what}" for what, count in report.items()), file=sys.stderr)
    some = next(batches(pairs, args.batch_size, args.seed))  # an error now, if there is nothing to learn from
    if len(some) < args.batch_size:
        warnings.warn(
            f"{pairs.label}: batches of {len(some)} only, there are no more that differ", stacklevel=2
        )
    with processes(args.device) as group, stop_on_signals() as received:
        trainer = Trainer(args, group, pairs)
        trainer.begin()
        if group.rank == 0:
            trainer.announce()
        group.gather(0)
        try:
            trainer.train(received)
        except RuntimeError as error:  # no memory left, or another process is gone
            raise ValueError(f"step {trainer.step + 1}: {str(error).splitlines()[0]}") from error
        if received:
            print(
                f"stopped by {signal.Signals(received[0]).name}, saved step {trainer.step}", file=sys.stderr
            )
            return 128 + received[0]
        if group.rank == 0:
            finish(trainer, evaluation)
    return None


if __name__ == "__main__":  # so that torchrun can start it
    from .__main__ import main

    sys.exit(main(["train", *sys.argv[1:]]))
