"""Training by the paper's recipe (ALIGN, section 5), from pairs on disk to a checkpoint.

    align-minimal train DATA --out RUN
    torchrun --nproc_per_node 2 -m align_minimal train DATA --out RUN

Both towers from scratch, the contrastive loss over the whole global batch, LAMB, warm-up and linear decay.
Everything random in a step is drawn from the seed, the step and the rank, so a resumed run repeats a whole
one bit for bit: the weights, the optimizer's moments and the step's number are all there is to save.
But: the batch, the rates and the length are what the flags say; the paper's are 16,384 pairs, 1e-3 after
10,000 steps of warm-up, and 1.2 million steps.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import math
import os
import random
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..config import AlignConfig
from ..contrastive import contrastive_loss
from ..image_processor import EfficientNetImageProcessor, open_image
from ..model import AlignModel
from ..processor import AlignProcessor
from ..support.hub import read_json, write_atomically, write_json
from ..support.outputs import Batch
from ..tokenizer import BertTokenizer
from ..using.retrieval import evaluate, print_recall
from .lamb import Lamb, parameter_groups
from .large_batch import backward_in_chunks
from .options import check_arguments
from .pairs import RESIZE, BatchStream, Pairs, Prepare, batches, epoch_batches
from .processes import Processes, note_signals, processes, start_worker
from .run_folder import Run, checkpoints, load_optimizer, model_files

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
    return sum(-n * p * math.log(p) for n, p in ((1, right), (pairs - 1, wrong)) if n * p > 0)


class PairEncoder(nn.Module):
    """Both towers as one module, so that one call (and DistributedDataParallel) sees all parameters.

    pixel_values (B, 3, H, W), input_ids and attention_mask (B, T) → texts (B, D), images (B, D), both
    L2-normalized and in float32 whatever the towers' precision, and the temperature.

    >>> encoder = PairEncoder(AlignModel.from_pretrained("emoji"), precision="float32")
    >>> ids = torch.ones(2, 5, dtype=torch.long)
    >>> batch = Batch(pixel_values=torch.zeros(2, 3, 64, 64), input_ids=ids, attention_mask=ids)
    >>> [tuple(output.shape) for output in encoder(batch)]
    [(2, 160), (2, 160), ()]
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
    """A batch's tensors as chunks of `chunk` pairs.

    >>> batch = Batch(input_ids=torch.zeros(5, 7), names=["a", "b", "c", "d", "e"])
    >>> [tuple(part.input_ids.shape) for part in split(batch, 2)]
    [(2, 7), (2, 7), (1, 7)]
    """
    tensors = {k: v for k, v in batch.items() if isinstance(v, Tensor)}
    size = chunk or len(batch["names"])
    parts = [t.split(size) for t in tensors.values()]
    return [Batch(**dict(zip(tensors, part, strict=True))) for part in zip(*parts, strict=True)]


def reason(error: Exception) -> str:
    """One line of it: of what a DataLoader's worker raised, which comes with a traceback, the last.

    >>> reason(RuntimeError("out of memory\\nat file.cpp, line 7"))
    'out of memory'
    """
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1] if "Original Traceback" in str(error) else lines[0]


def gradient_norm(model: nn.Module) -> Tensor:
    """The length of all gradients as one vector.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> layer(torch.tensor([3.0, 4.0])).backward()
    >>> gradient_norm(layer)
    tensor(5.)
    """
    return torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()


# ---- what is trained ---------------------------------------------------------------------------------------


def new_tokenizer(args: argparse.Namespace, pairs: Pairs, config: AlignConfig) -> BertTokenizer:
    """The vocabulary given, or one learnt from all the texts, as the paper's.

    >>> args = argparse.Namespace(vocab="weights/emoji/vocab.txt")
    >>> new_tokenizer(args, Pairs([]), AlignConfig.preset("emoji")).model_max_length
    64
    """
    longest = config.text_config.max_position_embeddings
    if args.vocab:
        return BertTokenizer(Path(args.vocab), model_max_length=longest)
    texts = (text for pair in pairs for text in pair.texts)
    return BertTokenizer.train(texts, args.vocab_size or 30522, model_max_length=longest)


def new_image_processor(size: int, augment: str) -> EfficientNetImageProcessor:
    """For evaluation the paper's resize and central crop; drawings, which fill their frame, are not cropped.

    Pixels go to [−1, 1], as in coyo-align.

    >>> processor = new_image_processor(289, augment="paper")
    >>> processor.size, processor.crop_size
    ({'height': 346, 'width': 346}, {'height': 289, 'width': 289})
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
    """A model from --init, --config or --preset, and the processor that goes with it.

    >>> model, processor = new_model(argparse.Namespace(init="emoji"), Pairs([]), steps=100)
    >>> model.config.projection_dim
    160
    """
    if args.init:
        return AlignModel.from_pretrained(args.init), AlignProcessor.from_pretrained(args.init)
    if args.config:
        try:
            config = AlignConfig.from_dict(read_json(Path(args.config)))
        except (TypeError, ValueError) as error:
            message = str(error).removeprefix(f"{args.config}: ")
            raise ValueError(f"{args.config}: {message}") from None
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
    """LAMB or AdamW over `parameter_groups`, at the rate and decay of the flags.

    >>> args = argparse.Namespace(optimizer="lamb", lr=1e-3, weight_decay=1e-5)
    >>> [group["name"] for group in new_optimizer(args, AlignModel.from_pretrained("emoji")).param_groups]
    ['weights', 'batch_norm', 'temperature']
    """
    groups = parameter_groups(model, args.weight_decay)
    if args.optimizer == "lamb":
        return Lamb(groups, lr=args.lr)
    return torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), fused=True)


# ---- training ----------------------------------------------------------------------------------------------


POSTFIX = (
    "loss {loss:.3f} (log N {log_n:.2f}, floor {floor:.2f}), temperature {temperature:.4f}, lr {lr:.1e}, "
    "{pairs_per_second:.0f} pairs/s"
)


class Trainer:
    """A run of training, step by step; `group` says which share of each batch is this process's.

    >>> args = argparse.Namespace(out=Path("run"), keep=2, steps=500, warmup=None)
    >>> trainer = Trainer(args, Processes(), Pairs([]))
    >>> trainer.step, trainer.steps, trainer.warmup
    (0, 500, 50)
    """

    PATIENCE = 1000  # batches in a row of which some process can read nothing

    def __init__(self, args: argparse.Namespace, group: Processes, pairs: Pairs):
        self.args, self.group, self.pairs = args, group, pairs
        self.run = Run(args.out, args.keep)
        self.step = self.drawn = 0  # steps done; batches taken, more where whole batches were unreadable
        self.unusable = 0
        self.unreadable: dict[str, None] = {}  # messages, each once
        self.steps = args.steps or (args.epochs or 10) * self.batches_an_epoch()
        self.warmup = min(10_000, max(1, self.steps // 10)) if args.warmup is None else args.warmup

    def batches_an_epoch(self) -> int:
        order = self.pairs.shuffled(random.Random(f"{self.args.seed} 0"))
        return sum(1 for _ in epoch_batches(order, self.args.batch_size))

    def options(self) -> dict:
        """What must stay the same for a resumed run to be the same run."""
        names = (
            "data filter batch_size chunk tile optimizer lr weight_decay label_smoothing precision device "
        )
        names += "seed augment flip temperature"
        chosen = {name: getattr(self.args, name) for name in names.split()}
        return chosen | {"steps": self.steps, "warmup": self.warmup, "processes": self.group.world}

    def begin(self) -> None:
        """Make the model, or take up the newest checkpoint."""
        found = self.run.newest() if self.args.resume else None
        if found:
            folder, training, self.model, self.processor = found
            self.step, self.drawn = training["step"], training["drawn"]
            self.compare_options(training["options"])
            for t in itertools.chain(self.model.parameters(), self.model.buffers()):
                # Away from the file's pages: how a matrix lies in memory can decide the order of its sums.
                t.data = t.data.clone()
        elif checkpoints(self.args.out):
            raise ValueError(f"{self.args.out}: none of its checkpoints can be read; give another --out")
        else:
            self.model, self.processor = new_model(self.args, self.pairs, self.steps)
        if self.args.temperature:
            nn.init.constant_(self.model.temperature, self.args.temperature).requires_grad_(False)
        # Its pooler takes no part in ALIGN: without a gradient it would keep the processes waiting.
        if self.model.text_model.pooler is not None:
            self.model.text_model.pooler.requires_grad_(False)
        self.model.to(self.group.device).train()
        self.optimizer = new_optimizer(self.args, self.model)
        if found:
            load_optimizer(self.optimizer, folder)
        self.encoder = PairEncoder(self.model, self.args.precision)
        if self.group.world > 1:
            self.encoder = DistributedDataParallel(self.encoder)

    def compare_options(self, before: dict) -> None:
        """Warn of what has changed since the checkpoint; ValueError for another optimizer."""
        for name, value in self.options().items():
            was = before.get(name, value)
            if was == value:
                continue
            if name == "optimizer":
                raise ValueError(
                    f"{self.args.out}: was trained with --optimizer {was}, and must go on with it"
                )
            if self.group.rank == 0:
                warnings.warn(f"resuming with {name} {value}, which was {was}", stacklevel=2)

    def announce(self) -> None:
        """Say where it starts, and put the run's files in order."""
        if self.step:
            print(f"resuming at step {self.step}", file=sys.stderr)
        elif self.args.resume:
            warnings.warn(f"{self.args.out}: no checkpoint to resume from, starting afresh", stacklevel=2)
        if self.step >= self.steps:
            warnings.warn(f"nothing to do: {self.step} steps of {self.steps} are done", stacklevel=2)
        elif self.warmup > self.steps:
            warnings.warn(
                f"a warm-up of {self.warmup} steps, longer than the {self.steps} there are: "
                "--lr is never reached",
                stacklevel=2,
            )
        self.run.tidy(self.step)
        if self.step:  # a kill may have come between the checkpoint and its copy at the top
            self.run.publish(self.model, self.processor)

    def batches(self) -> Iterator[Batch]:
        """This process's share of batch after batch, prepared; ValueError in one line if a worker fails."""
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
        loader = iter(DataLoader(stream, batch_size=None, generator=torch.Generator(), **workers))
        try:
            yield from loader
        except Exception as error:  # whatever a worker raised, or that it is gone
            raise ValueError(f"step {self.step + 1}: {reason(error)}") from error
        finally:  # its workers ignore the SIGTERM with which Python, at exit, would end them and then wait
            if self.args.workers:
                loader._shutdown_workers()

    def usable(self, batch: Batch) -> bool:
        """Name what could not be read; False, on every rank, if one of them has nothing left."""
        for message in batch["unreadable"]:
            if message not in self.unreadable:
                warnings.warn(f"skipped: {message}", stacklevel=2)
                self.unreadable[message] = None
        usable = min(self.group.gather(len(batch["names"]))) > 0
        self.unusable = 0 if usable else self.unusable + 1
        if self.unusable == self.PATIENCE:
            raise ValueError(
                f"{self.pairs.label}: of {self.unusable:,} batches in a row nothing could be read"
            )
        return usable

    def loss(self, text: Tensor, image: Tensor, temperature: Tensor) -> Tensor:
        together = self.group.world > 1
        return contrastive_loss(text, image, temperature, self.args.label_smoothing, self.args.tile, together)

    def one_pass(self) -> bool:
        """Does every rank's share fit one chunk? From the flags alone, so that all ranks say the same."""
        return self.args.chunk is None or self.args.chunk >= -(-self.args.batch_size // self.group.world)

    def learn(self, batch: Batch) -> dict:
        """One step. Returns what metrics.jsonl says of it; ValueError if loss or gradient is not finite."""
        rate = learning_rate(self.step + 1, self.steps, self.warmup, self.args.lr)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate
        torch.manual_seed(random.Random(f"{self.args.seed} {self.step} {self.group.rank}").getrandbits(63))
        self.optimizer.zero_grad()
        try:
            chunks = split(batch.to(self.group.device), self.args.chunk)
            loss = backward_in_chunks(self.encoder, chunks, self.loss, self.one_pass()).item()
        except (RuntimeError, ValueError) as error:  # no memory left, another process gone, σ not a number
            names = f"the batch was {batch['names'][0]}, …"
            raise ValueError(f"step {self.step + 1}: {reason(error)}; {names}") from error
        norm = gradient_norm(self.model).item()
        if not math.isfinite(loss + norm):
            raise ValueError(f"step {self.step + 1}: {self.describe_failure(loss, norm, batch)}")
        self.optimizer.step()
        with torch.no_grad():  # no clamp in the paper; but its steps are too small to carry σ past 0
            self.model.temperature.clamp_(min=1e-3)
        self.step += 1
        pairs = int(sum(self.group.gather(len(batch["names"]))))
        return {
            "step": self.step,
            "loss": loss,
            "log_n": math.log(pairs),
            "floor": loss_floor(pairs, self.args.label_smoothing),
            "temperature": self.model.temperature.item(),
            "lr": rate,
            "gradient_norm": norm,
            "pairs": pairs,
        }

    def describe_failure(self, loss: float, norm: float, batch: Batch) -> str:
        """What is not finite, and on which batch, written to a file too."""
        what, value = ("gradient", norm) if math.isfinite(loss) else ("loss", loss)
        names, path = self.group.gather_lists(batch["names"]), self.args.out / "failed_batch.json"
        if self.group.rank == 0:
            write_json(path, {"step": self.step + 1, "names": names})
        return f"the {what} is {value}; the batch ({names[0]}, …) is listed in {path}"

    def save(self) -> None:
        """A checkpoint, before which no process goes on; ValueError if weights are no longer finite."""
        if not all(p.isfinite().all() for p in self.model.parameters()):
            raise ValueError(f"step {self.step}: weights are no longer finite, so they are not saved")
        if self.group.rank == 0:
            training = {"step": self.step, "drawn": self.drawn, "options": self.options()}
            self.run.save(self.model, self.processor, self.optimizer, training)
        self.group.gather(0)

    def train(self, received: list[int]) -> int:
        """All steps that are left, or fewer if `received` holds a signal's number: that is returned, or 0."""
        first, stop, before = self.group.rank == 0, 0, time.perf_counter()
        bar = tqdm(
            total=self.steps,
            initial=min(self.step, self.steps),
            disable=not first,
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        )
        with bar, contextlib.closing(self.batches()) as prepared:
            for batch in prepared if self.step < self.steps else ():
                self.drawn += 1
                if not self.usable(batch):
                    continue
                row = self.learn(batch)
                now = time.perf_counter()
                row["pairs_per_second"], before = row["pairs"] / (now - before), now
                if first:
                    self.run.log(row)
                bar.set_postfix_str(POSTFIX.format(**row), refresh=False)
                bar.update()
                stop = int(max(self.group.gather(received[0] if received else 0)))
                last = stop or self.step == self.steps
                if last or self.step % self.args.save_every == 0:
                    self.save()
                if last:
                    break
        self.unreadable = dict.fromkeys(self.group.gather_lists(list(self.unreadable)))
        self.take_apart()
        return stop

    def take_apart(self) -> None:
        """Free DistributedDataParallel while its process group is still there.

        Freed after the group, its destructor waits for a thread that waits for Python's lock (PyTorch's issue
        56297).
        """
        self.encoder = None
        gc.collect()


# ---- the command -------------------------------------------------------------------------------------------


def draw_curves(run: Run) -> None:
    """`curves.png`: loss, temperature and learning rate by step; without matplotlib, a warning."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        warnings.warn("no curves.png: matplotlib is not installed", stacklevel=2)
        return
    rows = run.metrics()
    steps = [row["step"] for row in rows]
    figure = Figure(figsize=(8, 9), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True)
    for name, label in (("log_n", "log N: chance"), ("loss", "loss"), ("floor", "label smoothing's floor")):
        axes[0].plot(steps, [row[name] for row in rows], label=label, linewidth=1)
    axes[0].legend()
    axes[0].set_ylabel("loss (nats)")
    for axis, name, label in ((axes[1], "temperature", "temperature"), (axes[2], "lr", "learning rate")):
        axis.plot(steps, [row[name] for row in rows], linewidth=1, color="C1")
        axis.set_ylabel(label)
    axes[2].set_xlabel("step")
    write_atomically(run.out / "curves.png", lambda temporary: figure.savefig(temporary, format="png"))


def finish(trainer: Trainer, evaluation: Pairs | None) -> None:
    """Curves and R@K, beside the checkpoint."""
    if trainer.unreadable:
        warnings.warn(f"{len(trainer.unreadable)} images could not be read and were skipped", stacklevel=2)
    draw_curves(trainer.run)
    if evaluation is not None:
        result = evaluate(trainer.model.eval(), trainer.processor, evaluation)
        write_json(trainer.args.out / "evaluation.json", result)
        print_recall(result)


def check_out(args: argparse.Namespace) -> None:
    """Refuse to train over a model or an earlier run, or into what is no folder.

    >>> check_out(argparse.Namespace(out=Path("setup.cfg"), resume=False))
    Traceback (most recent call last):
    ValueError: setup.cfg: not a folder
    """
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"{args.out}: not a folder")
    found, files = checkpoints(args.out), model_files(args.out)
    if args.resume and not found and files:
        raise ValueError(
            f"{args.out}: holds {files[0]}, but no checkpoint to resume from; give another --out"
        )
    if not args.resume and (found or files):
        raise ValueError(f"{args.out}: holds a model already; give --resume, or another --out")


def check_readable(pairs: Pairs) -> None:
    """ValueError if not one image can be read; the first that can ends the search.

    >>> from align_minimal.training.pairs import Pair
    >>> pairs = Pairs([])
    >>> pairs.label, pairs.pairs = "photos", [Pair("photos/1.png", b"", ("a cat",))]
    >>> check_readable(pairs)
    Traceback (most recent call last):
    ValueError: photos: no image can be read; photos/1.png: an empty file
    """
    first = None
    for pair in pairs:
        try:
            open_image(pair.image, pair.name)
            return
        except (OSError, ValueError) as error:
            first = first or error
    raise ValueError(f"{pairs.label}: " + (f"no image can be read; {first}" if first else "no pairs in it"))


def prepare_data(args: argparse.Namespace) -> tuple[Pairs, Pairs | None]:
    """The pairs to learn from and to evaluate on. What is wrong is an error now, not hours later."""
    pairs = Pairs(args.data)
    evaluation = Pairs(args.eval) if args.eval else None
    if args.filter:
        report = pairs.filter()
        if os.environ.get("RANK", "0") == "0":
            counts = "; ".join(f"{count:,} {what}" for what, count in report.items())
            print(f"align-minimal: filter: {counts}", file=sys.stderr)
    for some in (pairs, evaluation):
        if some is not None:
            check_readable(some)
    first = next(batches(pairs, args.batch_size, args.seed))
    if len(first) < int(os.environ.get("WORLD_SIZE", 1)):
        raise ValueError(f"{pairs.label}: batches of {len(first)}, less than a pair for each process")
    if len(first) < args.batch_size:
        what = f"batches of {len(first)} only, for want of pairs that differ"
        warnings.warn(f"{pairs.label}: {what}", stacklevel=2)
    return pairs, evaluation


def train(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int | None:
    """The command. Returns 128 + the signal's number if one ended it."""
    check_arguments(args, parser)
    check_out(args)
    pairs, evaluation = prepare_data(args)
    try:
        with processes(args.device) as group:
            with note_signals() as received:
                trainer = Trainer(args, group, pairs)
                trainer.begin()
                if group.rank == 0:
                    trainer.announce()
                group.gather(0)
                stopped = trainer.train(received)
            if group.rank == 0 and stopped:
                name = signal.Signals(stopped).name
                print(f"align-minimal: stopped by {name}, saved step {trainer.step}", file=sys.stderr)
            elif group.rank == 0:
                finish(trainer, evaluation)
    except RuntimeError as error:  # PyTorch's: no memory left, or another process is gone
        raise ValueError(f"{args.out}: {reason(error)}") from error
    return 128 + stopped if stopped else None
