"""Training by the paper's recipe (ALIGN, section 5): step after step, and any of them may be the last.

Both towers from scratch, the contrastive loss over the whole global batch, LAMB, warm-up and linear decay.
Everything random in a step is drawn from the seed, the step and the rank, so a resumed run repeats a whole
one bit for bit: weights, the optimizer's moments, the step's number and the place in the data are saved.
Differs from the paper: the batch, the rates and the length are what the options say; the paper's are 16,384
pairs, 1e-3 after 10,000 steps of warm-up, and 1.2 million steps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import random
import sys
import time
import warnings
from collections.abc import Iterator

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from ..contrastive import contrastive_loss
from ..model import AlignModel
from ..processor import AlignProcessor
from ..support.hub import write_json
from ..support.outputs import Batch
from ..using.retrieval import evaluate, longest_text
from .batches import BatchStream, Position, Prepare, batches_in
from .build import freeze, new_model, new_optimizer
from .dataset import Pairs
from .large_batch import backward_in_chunks
from .options import EPOCHS, LEAST, TrainOptions
from .processes import Processes
from .resume import BEGUN, check_same_run, lasting, warn_of_changes
from .run_folder import Run, checkpoints, load_optimizer
from .step import PairEncoder, cannot_reach, gradient_norm, learning_rate, loss_floor, reason, split

# The progress bar, wide and narrow; and what it says of a step, the most important first.
BARS = (
    "{percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
    "{n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
)
TOLD = ("loss {loss:.3f}", " (log N {log_n:.2f}, floor {floor:.2f})", ", temperature {temperature:.4f}")
TOLD += (", lr {lr:.1e}", ", {pairs_per_second:.0f} pairs/s")


def tell(bar: tqdm, row: dict) -> None:
    """Say on the bar what a step gave: as many parts as its line holds whole.

    >>> bar = tqdm(total=9, ncols=45, file=open("/dev/null", "w"), bar_format=BARS[0])
    >>> tell(bar, dict(loss=1.5, log_n=4.16, floor=0.73, temperature=0.07, lr=1e-3, pairs_per_second=99))
    >>> bar.postfix
    'loss 1.500'
    """
    known, parts = bar.format_dict, [part.format(**row) for part in TOLD]
    for bar.bar_format in BARS:
        alone = bar.format_meter(**known | {"postfix": None, "ncols": None, "bar_format": bar.bar_format})
        room = (known["ncols"] or 1000) - len(alone) - len(", ") - len("00:00")  # the times grow
        if room >= len(parts[0]):
            break
    while len(parts) > 1 and len("".join(parts)) > room:
        parts.pop()
    bar.set_postfix_str("".join(parts), refresh=False)


def steps_of(options: TrainOptions, pairs: Pairs, batch_size: int) -> int:
    """How many steps were asked for. If none were: 10 epochs, and from nothing at least 2,000 steps.

    500 pictures need as many: 10 epochs of them are 80 steps, after which a new model is still near chance.

    >>> steps_of(TrainOptions([], "run", steps=7), Pairs([]), 64)
    7
    """
    if options.steps:
        return options.steps
    steps = batches_in(pairs, batch_size, options.seed, options.epochs or EPOCHS)
    return steps if options.epochs or options.init else max(steps, LEAST)


class Trainer:
    """A run of training, step by step; `group` says which share of each batch is this process's.

    >>> from pathlib import Path
    >>> options = TrainOptions(data=[], out=Path("run"), steps=500, batch_size=8)
    >>> trainer = Trainer(options, Processes(), Pairs([]))
    >>> trainer.step, trainer.steps, trainer.warmup
    (0, 500, 50)
    """

    PATIENCE = 1000  # batches in a row of which some process can read nothing

    def __init__(
        self, options: TrainOptions, group: Processes, pairs: Pairs, evaluation: Pairs | None = None
    ):
        self.options, self.group, self.pairs, self.evaluation = options, group, pairs, evaluation
        self.run = Run(options.out, options.keep)
        self.step = self.drawn = 0  # steps done; batches taken, more where whole batches were unreadable
        self.position = Position()  # of the next batch
        self.saved = 0  # the step of the newest checkpoint
        self.begun: dict = {}  # of a resumed run: what its model was made from
        self.unusable = 0
        self.unreadable: dict[str, None] = {}  # messages, each once
        self.steps = steps_of(options, pairs, options.batch_size)
        self.warmup = min(10_000, max(1, self.steps // 10)) if options.warmup is None else options.warmup

    def lasting(self) -> dict:
        """What must stay the same for a resumed run to be the same run."""
        more = {"steps": self.steps, "warmup": self.warmup, "processes": self.group.world}
        return lasting(self.options, self.pairs, **more)

    def begin(self) -> None:
        """Make the model, or resume from the newest checkpoint: all processes from the same one."""
        out = self.options.out
        if not (self.options.resume and self.resume()):
            if checkpoints(out):
                raise ValueError(f"{out}: none of its checkpoints can be read; give another --out")
            self.install(*new_model(self.options, self.pairs, self.steps))
        steps = sorted({int(step) for step, _ in self.group.gather(self.step, self.drawn)})
        if len(steps) > 1:
            raise ValueError(f"{out}: processes would go on from steps {steps}; all must see the same --out")

    def resume(self) -> bool:
        """Go on from the newest whole checkpoint, after a warning for each newer one that is broken."""
        for folder in checkpoints(self.options.out):
            try:
                training, model, processor = self.run.load(folder)
            except (OSError, ValueError) as error:
                warnings.warn(f"passed over: {error}", stacklevel=2)
                continue
            check_same_run(training["options"], self.lasting(), self.options.out)
            self.install(model, processor)
            try:
                load_optimizer(self.optimizer, folder)
            except (OSError, ValueError) as error:
                warnings.warn(f"passed over: {error}", stacklevel=2)
                continue
            self.begun = {k: v for k, v in training["options"].items() if k in BEGUN}
            self.step = self.saved = training["step"]
            self.drawn, self.position = training["drawn"], Position.read(training["position"])
            with warnings.catch_warnings():
                if self.group.rank > 0:
                    warnings.simplefilter("ignore")
                if not warn_of_changes(training["options"], self.lasting()):
                    self.position = Position(self.position.epoch + 1)
            return True
        return False

    def install(self, model: AlignModel, processor: AlignProcessor) -> None:
        """Make ready to learn: what is held or frozen, the optimizer, the encoder that all ranks share."""
        self.model, self.processor = model, processor
        for t in itertools.chain(model.parameters(), model.buffers()):
            # Away from a file's pages: how a matrix lies in memory can decide the order of its sums.
            t.data = t.data.clone()
        if self.options.temperature:
            nn.init.constant_(model.temperature, self.options.temperature).requires_grad_(False)
        # What takes no part in ALIGN has no gradient, for which processes would wait, and no moments to save.
        if model.text_model.pooler is not None:
            model.text_model.pooler.requires_grad_(False)
        if not model.text_model.embeddings.absolute:
            model.text_model.embeddings.position.requires_grad_(False)
        self.to_training()
        self.optimizer = new_optimizer(self.options, model)
        self.encoder = PairEncoder(model, self.options.precision)
        if self.group.world > 1:
            self.encoder = DistributedDataParallel(self.encoder)

    def to_training(self) -> None:
        self.model.to(self.group.device).train()
        freeze(self.model, self.options.freeze)

    def announce(self) -> None:
        """Say where it starts, and put the run's files in order."""
        if self.step:
            print(f"resuming at step {self.step}", file=sys.stderr)
        elif self.options.resume:
            warnings.warn(f"{self.options.out}: no checkpoint to resume from, starting afresh", stacklevel=2)
        if self.step >= self.steps:
            warnings.warn(f"nothing to do: {self.step} steps of {self.steps} are done", stacklevel=2)
        elif self.warmup > self.steps:
            warnings.warn(
                f"a warm-up of {self.warmup} steps, longer than the {self.steps} there are: "
                "--lr is never reached",
                stacklevel=2,
            )
        for message in cannot_reach(self.options, self.steps, self.warmup, self.group.world):
            warnings.warn(message, stacklevel=2)
        self.run.tidy(self.step)
        if self.step:  # a kill may have come between the checkpoint and its copy at the top
            self.run.publish(self.step)

    def batches(self) -> Iterator[Batch]:
        """This process's share of batch after batch, prepared; ValueError in one line if a worker fails."""
        options = self.options
        prepare = Prepare(
            self.processor.image_processor,
            self.processor.tokenizer,
            max_tokens=longest_text(self.model.config),
            augmentation=options.augment,
            flip=options.flip,
            cache_bytes=2**30 // max(1, options.workers),
        )
        share = (self.group.rank, self.group.world, options.workers)
        where = dict(position=self.position, drawn=self.drawn)
        self.stream = BatchStream(self.pairs, prepare, options.batch_size, options.seed, *share, **where)
        try:
            yield from self.stream
        except Exception as error:  # whatever a worker raised, or that it is gone
            raise ValueError(f"step {self.step + 1}: {reason(error)}") from error

    def meet(self, batch: Batch, received: list[int]) -> tuple[int, int]:
        """The one exchange of a step: how many pairs the ranks have, and the signal that one received.

        0 pairs if a rank has none: then no rank learns from this batch.
        """
        for message in batch["unreadable"]:
            if message not in self.unreadable:
                warnings.warn(f"skipped: {message}", stacklevel=2)
                self.unreadable[message] = None
        ranks = self.group.gather(len(batch["names"]), received[0] if received else 0)
        counts, signals = zip(*ranks, strict=True)
        usable = min(counts) > 0
        self.unusable = 0 if usable else self.unusable + 1
        if self.unusable == self.PATIENCE:
            raise ValueError(
                f"{self.pairs.label}: of {self.unusable:,} batches in a row nothing could be read"
            )
        return int(sum(counts)) * usable, int(max(signals))

    def loss(self, text: Tensor, image: Tensor, temperature: Tensor) -> Tensor:
        together = self.group.world > 1
        return contrastive_loss(
            text, image, temperature, self.options.label_smoothing, self.options.tile, together
        )

    def one_pass(self) -> bool:
        """Does every rank's share fit one chunk? From the flags alone, so that all ranks say the same."""
        return self.options.chunk is None or self.options.chunk >= -(
            -self.options.batch_size // self.group.world
        )

    def learn(self, batch: Batch) -> dict:
        """One step. Returns what metrics.jsonl says of it; ValueError if loss or gradient is not finite."""
        rate = learning_rate(self.step + 1, self.steps, self.warmup, self.options.lr)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate
        torch.manual_seed(random.Random(f"{self.options.seed} {self.step} {self.group.rank}").getrandbits(63))
        self.optimizer.zero_grad()
        try:
            chunks = split(batch.to(self.group.device), self.options.chunk)
            loss = backward_in_chunks(self.encoder, chunks, self.loss, self.one_pass()).item()
        except (RuntimeError, ValueError) as error:  # no memory left, another process gone, σ not a number
            batch = "" if "worker" in reason(error) else f"; the batch was {batch['names'][0]}, …"
            raise ValueError(f"step {self.step + 1}: {reason(error)}{batch}") from error
        norm = gradient_norm(self.model).item()
        if not math.isfinite(loss + norm):
            raise ValueError(f"step {self.step + 1}: {self.describe_failure(loss, norm, batch)}")
        self.optimizer.step()
        if self.model.temperature.requires_grad:  # no clamp in the paper; but its steps cannot carry σ past 0
            with torch.no_grad():
                self.model.temperature.clamp_(min=1e-3)
        self.step += 1
        temperature = self.model.temperature.item()
        return {
            "step": self.step,
            "loss": loss,
            "temperature": temperature,
            "lr": rate,
            "gradient_norm": norm,
        }

    def describe_failure(self, loss: float, norm: float, batch: Batch) -> str:
        """What is not finite, and on which batch, written to a file too."""
        what, value = ("gradient", norm) if math.isfinite(loss) else ("loss", loss)
        names, path = self.group.gather_lists(batch["names"]), self.options.out / "failed_batch.json"
        if self.group.rank == 0:
            write_json(path, {"step": self.step + 1, "names": names})
        again = "resuming meets it again, unless you give a lower --lr, a longer --warmup or another --seed"
        return f"the {what} is {value}; the batch ({names[0]}, …) is listed in {path}; {again}"

    def save(self) -> None:
        """A checkpoint, before which no process goes on; ValueError if weights are no longer finite."""
        if not all(p.isfinite().all() for p in self.model.parameters()):
            raise ValueError(f"step {self.step}: weights are no longer finite, so they are not saved")
        if self.group.rank == 0:
            self.write()
        self.saved = self.step
        self.group.wait()

    def write(self) -> None:
        training = {"step": self.step, "drawn": self.drawn, "options": self.lasting() | self.begun}
        training["position"] = dataclasses.asdict(self.position)
        self.run.save(self.model, self.processor, self.optimizer, training)

    def measure(self) -> None:
        """R@K on the pairs of --eval, and the model kept in OUT/best if it is the best so far."""
        if self.group.rank == 0:
            try:
                self.keep_best(evaluate(self.model, self.processor, self.evaluation))
            except Exception:  # its pictures are gone, say: the steps since the last checkpoint must not be
                if self.saved < self.step:
                    self.write()
                raise
        self.to_training()
        self.group.wait()

    def keep_best(self, result: dict) -> None:
        about = {"step": self.step, "measured_on": self.evaluation.seen.hexdigest()}
        self.run.keep_best(self.model, self.processor, about | result)

    def train(self, received: list[int]) -> int:
        """All steps that are left, or fewer if `received` holds a signal's number: that is returned, or 0."""
        first, stop, before = self.group.rank == 0, 0, time.perf_counter()
        bar = tqdm(
            total=self.steps,
            initial=min(self.step, self.steps),
            disable=not first,
            dynamic_ncols=True,
            bar_format=BARS[0],
        )
        with bar, contextlib.closing(self.batches()) as prepared:
            for batch in prepared if self.step < self.steps else ():
                pairs, stop = self.meet(batch, received)
                if stop and self.step:
                    break
                self.drawn, self.position = self.stream.drawn, self.stream.position
                if not pairs:
                    continue
                row = self.learn(batch)
                now = time.perf_counter()
                row |= {"log_n": math.log(pairs), "floor": loss_floor(pairs, self.options.label_smoothing)}
                row |= {"pairs": pairs, "pairs_per_second": pairs / (now - before)}
                before = now
                if first:
                    self.run.log(row)
                tell(bar, row)
                bar.update()
                if self.step == self.steps or self.step % self.options.save_every == 0:
                    self.save()
                if self.step == self.steps:
                    break
                if self.options.eval_every and self.step % self.options.eval_every == 0:
                    self.measure()
        if self.saved < self.step:
            self.save()
        ((signals,),) = [zip(*self.group.gather(received[0] if received else 0), strict=True)]
        self.unreadable = dict.fromkeys(self.group.gather_lists(list(self.unreadable)))
        self.encoder = None  # DistributedDataParallel goes before its process group
        return stop or int(max(signals))
