"""Training by the paper's recipe (ALIGN, section 5): step after step, and any of them may be the last.

Both towers from scratch, the contrastive loss over the whole global batch, LAMB, warm-up and linear decay.
Everything random in a step is drawn from the seed, the step and the rank, so a resumed run repeats a whole
one bit for bit: the weights, the optimizer's moments and the step's number are all there is to save.
Differs from the paper: the batch, the rates and the length are what the options say; the paper's are 16,384
pairs, 1e-3 after 10,000 steps of warm-up, and 1.2 million steps.
"""

from __future__ import annotations

import contextlib
import gc
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
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..contrastive import contrastive_loss
from ..support.hub import write_json
from ..support.outputs import Batch
from .batches import BatchStream, Prepare, epoch_batches
from .build import new_model, new_optimizer
from .dataset import Pairs
from .large_batch import backward_in_chunks
from .options import TrainOptions
from .processes import Processes, start_worker
from .run_folder import Run, checkpoints, load_optimizer
from .step import PairEncoder, gradient_norm, learning_rate, loss_floor, reason, split

POSTFIX = (
    "loss {loss:.3f} (log N {log_n:.2f}, floor {floor:.2f}), temperature {temperature:.4f}, lr {lr:.1e}, "
    "{pairs_per_second:.0f} pairs/s"
)


class Trainer:
    """A run of training, step by step; `group` says which share of each batch is this process's.

    >>> from pathlib import Path
    >>> options = TrainOptions(data=[], out=Path("run"), steps=500)
    >>> trainer = Trainer(options, Processes(), Pairs([]))
    >>> trainer.step, trainer.steps, trainer.warmup
    (0, 500, 50)
    """

    PATIENCE = 1000  # batches in a row of which some process can read nothing

    def __init__(self, options: TrainOptions, group: Processes, pairs: Pairs):
        self.options, self.group, self.pairs = options, group, pairs
        self.run = Run(options.out, options.keep)
        self.step = self.drawn = 0  # steps done; batches taken, more where whole batches were unreadable
        self.unusable = 0
        self.unreadable: dict[str, None] = {}  # messages, each once
        self.steps = options.steps or (options.epochs or 10) * self.batches_an_epoch()
        self.warmup = min(10_000, max(1, self.steps // 10)) if options.warmup is None else options.warmup

    def batches_an_epoch(self) -> int:
        order = self.pairs.shuffled(random.Random(f"{self.options.seed} 0"))
        return sum(1 for _ in epoch_batches(order, self.options.batch_size))

    def lasting(self) -> dict:
        """What must stay the same for a resumed run to be the same run."""
        names = (
            "data filter batch_size chunk tile optimizer lr weight_decay label_smoothing precision device "
        )
        names += "seed augment flip temperature"
        chosen = {name: getattr(self.options, name) for name in names.split()}
        return chosen | {"steps": self.steps, "warmup": self.warmup, "processes": self.group.world}

    def begin(self) -> None:
        """Make the model, or take up the newest checkpoint."""
        found = self.run.newest() if self.options.resume else None
        if found:
            folder, training, self.model, self.processor = found
            self.step, self.drawn = training["step"], training["drawn"]
            self.compare_options(training["options"])
            for t in itertools.chain(self.model.parameters(), self.model.buffers()):
                # Away from the file's pages: how a matrix lies in memory can decide the order of its sums.
                t.data = t.data.clone()
        elif checkpoints(self.options.out):
            raise ValueError(f"{self.options.out}: none of its checkpoints can be read; give another --out")
        else:
            self.model, self.processor = new_model(self.options, self.pairs, self.steps)
        if self.options.temperature:
            nn.init.constant_(self.model.temperature, self.options.temperature).requires_grad_(False)
        # Its pooler takes no part in ALIGN: without a gradient it would keep the processes waiting.
        if self.model.text_model.pooler is not None:
            self.model.text_model.pooler.requires_grad_(False)
        self.model.to(self.group.device).train()
        self.optimizer = new_optimizer(self.options, self.model)
        if found:
            load_optimizer(self.optimizer, folder)
        self.encoder = PairEncoder(self.model, self.options.precision)
        if self.group.world > 1:
            self.encoder = DistributedDataParallel(self.encoder)

    def compare_options(self, before: dict) -> None:
        """Warn of what has changed since the checkpoint; ValueError for another optimizer."""
        for name, value in self.lasting().items():
            was = before.get(name, value)
            if was == value:
                continue
            if name == "optimizer":
                raise ValueError(
                    f"{self.options.out}: was trained with --optimizer {was}, and must go on with it"
                )
            if self.group.rank == 0:
                warnings.warn(f"resuming with {name} {value}, which was {was}", stacklevel=2)

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
            augmentation=self.options.augment,
            flip=self.options.flip,
            cache_bytes=2**30 // max(1, self.options.workers),
        )
        share = (self.group.rank, self.group.world)
        stream = BatchStream(
            self.pairs, prepare, self.options.batch_size, self.options.seed, self.drawn, *share
        )
        workers = dict(num_workers=self.options.workers, worker_init_fn=start_worker)
        loader = iter(DataLoader(stream, batch_size=None, generator=torch.Generator(), **workers))
        try:
            yield from loader
        except Exception as error:  # whatever a worker raised, or that it is gone
            raise ValueError(f"step {self.step + 1}: {reason(error)}") from error
        finally:  # its workers ignore the SIGTERM with which Python, at exit, would end them and then wait
            if self.options.workers:
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
            "floor": loss_floor(pairs, self.options.label_smoothing),
            "temperature": self.model.temperature.item(),
            "lr": rate,
            "gradient_norm": norm,
            "pairs": pairs,
        }

    def describe_failure(self, loss: float, norm: float, batch: Batch) -> str:
        """What is not finite, and on which batch, written to a file too."""
        what, value = ("gradient", norm) if math.isfinite(loss) else ("loss", loss)
        names, path = self.group.gather_lists(batch["names"]), self.options.out / "failed_batch.json"
        if self.group.rank == 0:
            write_json(path, {"step": self.step + 1, "names": names})
        return f"the {what} is {value}; the batch ({names[0]}, …) is listed in {path}"

    def save(self) -> None:
        """A checkpoint, before which no process goes on; ValueError if weights are no longer finite."""
        if not all(p.isfinite().all() for p in self.model.parameters()):
            raise ValueError(f"step {self.step}: weights are no longer finite, so they are not saved")
        if self.group.rank == 0:
            training = {"step": self.step, "drawn": self.drawn, "options": self.lasting()}
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
                if last or self.step % self.options.save_every == 0:
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
