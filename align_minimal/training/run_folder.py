"""The folder of a training run: checkpoints that are whole or absent, and metrics with each step once.

OUT/model.safetensors, config.json, vocab.txt, …     the newest checkpoint, ready for use
OUT/checkpoints/step-0000500/                         the same, with the optimizer's state; the last K
OUT/metrics.jsonl                                     one line a step
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..model import AlignModel
from ..processor import AlignProcessor
from ..support.hub import read_json, write_atomically, write_json
from ..support.weights_file import read_tensors


def step_of(folder: Path) -> int:
    """
    >>> step_of(Path("checkpoints/step-0000500"))
    500
    """
    return int(folder.name.removeprefix("step-"))


def checkpoints(out: Path) -> list[Path]:
    """The run's checkpoints, newest first.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as out:
    ...     for step in (500, 1000):
    ...         Path(out, "checkpoints", f"step-{step:07d}").mkdir(parents=True)
    ...     [step_of(folder) for folder in checkpoints(Path(out))]
    [1000, 500]
    """
    found = [p for p in (out / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d+", p.name)]
    return sorted(found, key=step_of, reverse=True)


MODEL_FILES = (
    "model.safetensors",
    "pytorch_model.bin",
    "config.json",
    "vocab.txt",
    "preprocessor_config.json",
)


def model_files(out: Path) -> list[str]:
    """The files of a model that stand in a folder, which training into it would replace.

    >>> model_files(Path("weights/emoji"))
    ['model.safetensors', 'config.json', 'vocab.txt', 'preprocessor_config.json']
    """
    return [name for name in MODEL_FILES if (out / name).exists()]


def save_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """`optimizer.safetensors`: each parameter's moments and step count, by "index.name".

    >>> import tempfile
    >>> w = torch.ones(2, 3, requires_grad=True)
    >>> optimizer = torch.optim.SGD([w], momentum=0.9)
    >>> w.sum().backward()
    >>> optimizer.step()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_optimizer(optimizer, Path(folder))
    ...     {key: t.shape for key, t in read_tensors(Path(folder, "optimizer.safetensors")).items()}
    {'0.momentum_buffer': torch.Size([2, 3])}
    """
    states = optimizer.state_dict()["state"]
    tensors = {f"{i}.{k}": torch.as_tensor(v) for i, state in states.items() for k, v in state.items()}
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    write_atomically(folder / "optimizer.safetensors", lambda temporary: save_file(tensors, temporary))


def load_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Put back what `save_optimizer` wrote; ValueError naming the file where it does not fit.

    >>> import tempfile
    >>> w = torch.ones(2, 3, requires_grad=True)
    >>> optimizer = torch.optim.SGD([w], momentum=0.9)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file({"0.momentum_buffer": torch.zeros(2, 3)}, Path(folder, "optimizer.safetensors"))
    ...     load_optimizer(optimizer, Path(folder))
    >>> optimizer.state[w]["momentum_buffer"].shape
    torch.Size([2, 3])
    """
    path = folder / "optimizer.safetensors"
    content = optimizer.state_dict()
    shapes = [p.shape for group in optimizer.param_groups for p in group["params"]]
    for key, tensor in read_tensors(path).items():
        index, _, name = key.partition(".")
        if not (index.isdecimal() and int(index) < len(shapes) and tensor.shape in ((), shapes[int(index)])):
            raise ValueError(f"{path}: made for another model ({key} is {tuple(tensor.shape)})")
        whole = tensor.ndim == 0 and not tensor.is_floating_point()  # a count of steps kept as an int
        content["state"].setdefault(int(index), {})[name] = tensor.item() if whole else tensor.clone()
    optimizer.load_state_dict(content)


class Run:
    """A run's folder, `out`, and the number of checkpoints to keep in it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as out:
    ...     run = Run(Path(out), keep=2)
    ...     run.log({"step": 1, "loss": 2.5})
    ...     run.metrics()
    [{'step': 1, 'loss': 2.5}]
    """

    def __init__(self, out: Path, keep: int):
        self.out, self.keep, self.metrics_path = out, keep, out / "metrics.jsonl"

    def save(
        self,
        model: AlignModel,
        processor: AlignProcessor,
        optimizer: torch.optim.Optimizer,
        training: dict,
    ) -> None:
        """Write the checkpoint of training["step"] under another name, then rename it; drop the oldest.

        Raises OSError naming the folder if the disk is full; what was there before is then as it was.
        """
        step = training["step"]
        final = self.out / "checkpoints" / f"step-{step:07d}"
        temporary = final.with_name(f".{final.name}.{os.getpid()}")
        try:
            model.save_pretrained(temporary)
            processor.save_pretrained(temporary)
            save_optimizer(optimizer, temporary)
            write_json(temporary / "training.json", training)
            shutil.rmtree(final, ignore_errors=True)  # only a broken one can be in the way
            os.replace(temporary, final)
        except (OSError, SafetensorError) as error:
            raise OSError(f"{final}: could not be written ({error})") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self.publish(model, processor)
        # Not those of later steps: they were passed over as broken, and must not push out the whole ones.
        for old in [p for p in checkpoints(self.out) if step_of(p) <= step][self.keep :]:
            shutil.rmtree(old, ignore_errors=True)

    def publish(self, model: AlignModel, processor: AlignProcessor) -> None:
        """Renew the checkpoint at the top, which is for use."""
        try:
            processor.save_pretrained(self.out)
            model.save_pretrained(self.out)
        except (OSError, SafetensorError) as error:
            raise OSError(f"{self.out}: the model could not be written ({error})") from error

    def load(self, folder: Path) -> tuple[dict, AlignModel, AlignProcessor]:
        """A checkpoint's training.json, model and processor; ValueError or OSError if it is not whole."""
        training = read_json(folder / "training.json")
        numbers = [training.get(key) for key in ("step", "drawn")]
        if not all(isinstance(n, int) for n in numbers) or not isinstance(training.get("options"), dict):
            raise ValueError(f"{folder / 'training.json'}: no step, drawn and options in it")
        read_tensors(folder / "optimizer.safetensors")
        return training, AlignModel.from_pretrained(folder), AlignProcessor.from_pretrained(folder)

    def newest(self) -> tuple[Path, dict, AlignModel, AlignProcessor] | None:
        """The newest whole checkpoint, after a warning for each newer one that is broken."""
        for folder in checkpoints(self.out):
            try:
                return folder, *self.load(folder)
            except (OSError, ValueError) as error:
                warnings.warn(f"passed over: {error}", stacklevel=2)
        return None

    def tidy(self, step: int) -> None:
        """Remove what a killed process left half written, and metrics of steps that will come again."""
        for rubbish in (self.out / "checkpoints").glob(".step-*"):
            shutil.rmtree(rubbish, ignore_errors=True)
        for rubbish in self.out.glob(".*"):  # hub.write_atomically's, cut off before the rename
            if re.fullmatch(r"\.(\w+\.(safetensors|jsonl?|txt|png))\.[a-z0-9_]{8}", rubbish.name):
                rubbish.unlink(missing_ok=True)
        kept = []
        if self.metrics_path.exists():
            for line in self.metrics_path.read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):  # the last may be cut short
                    if json.loads(line)["step"] <= step:
                        kept.append(line + "\n")
        text = "".join(kept)
        write_atomically(self.metrics_path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def log(self, row: dict) -> None:
        """Add a line to metrics.jsonl; OSError naming it."""
        try:
            with open(self.metrics_path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise OSError(f"{self.metrics_path}: {error.strerror}") from error

    def metrics(self) -> list[dict]:
        """The lines of metrics.jsonl."""
        return [json.loads(line) for line in self.metrics_path.read_text(encoding="utf-8").splitlines()]
