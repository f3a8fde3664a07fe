"""The folder of a training run: checkpoints that are whole or absent, and metrics with each step once.

OUT/model.safetensors, config.json, vocab.txt, …     the newest checkpoint, ready for use
OUT/checkpoints/step-0000500/                         the same, with the optimizer's state; the last K
OUT/best/                                             the best on --eval so far, with its evaluation.json
OUT/metrics.jsonl                                     one line a step
OUT/run.lock                                          held by the run that writes here
"""

from __future__ import annotations

import contextlib
import hashlib
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
from ..support.hub import check_regular, read_json, write_atomically, write_json
from ..support.weights_file import read_tensors
from .batches import Position

try:
    import fcntl
except ImportError:  # Windows has none: there, two runs in one folder are not noticed
    fcntl = None


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


# What an optimizer keeps for each parameter: a count, or a moment of the parameter's shape.
STATE = {
    "Lamb": {"step": "count", "m": "moment", "v": "moment"},
    "AdamW": {"step": "count", "exp_avg": "moment", "exp_avg_sq": "moment"},
}
MODEL_FILES = (
    "model.safetensors",
    "pytorch_model.bin",
    "config.json",
    "vocab.txt",
    "preprocessor_config.json",
)
BESIDE = ("metrics.jsonl", "evaluation.json", "curves.png", "failed_batch.json")  # beside the model
BESIDE += ("tokenizer_config.json", "special_tokens_map.json")


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
    """Put back what `save_optimizer` wrote; ValueError naming the file where it does not fit or is not whole.

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
    for index, shape in enumerate(shapes):
        for name, wanted in STATE.get(type(optimizer).__name__, {}).items():
            found = content["state"].get(index, {}).get(name)
            if found is None or (wanted == "moment" and found.shape != shape):
                raise ValueError(f"{path}: not whole, or of another model (no {index}.{name} that fits)")
    optimizer.load_state_dict(content)


def digest(path: Path) -> str:
    """SHA-256 of a file's content.

    >>> digest(Path("weights/emoji/vocab.txt"))[:8]
    '16a04645'
    """
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(2**20):
            found.update(part)
    return found.hexdigest()


def place(source: Path, destination: Path) -> None:
    """Let `destination` be `source`, at once: one file of two names, or a copy where the disk has no links.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "a").write_text("whole")
    ...     place(Path(folder, "a"), Path(folder, "b"))
    ...     Path(folder, "b").read_text()
    'whole'
    """
    temporary = destination.with_name(f".{destination.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        os.replace(temporary, destination)  # of two names of one file, this removes neither
    finally:
        temporary.unlink(missing_ok=True)


def score(result: dict) -> list[float]:
    """R@1, R@5, R@10 of `evaluate`, each the mean of both ways.

    >>> score({"image_to_text": {"R@1": 0.5}, "text_to_image": {"R@1": 0.25}})
    [0.375]
    """
    ways = (result["image_to_text"], result["text_to_image"])
    return [(ways[0][k] + ways[1][k]) / 2 for k in ways[0]]


@contextlib.contextmanager
def locked(out: Path):
    """Hold OUT/run.lock; ValueError if another run does. The system frees it however a run ends, at once:
    unlike flock's, a lock of lockf is not handed on to worker processes, which may live a little longer.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as out, locked(Path(out)):
    ...     Path(out, "run.lock").exists()
    True
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "run.lock"
    check_regular(path)
    with open(path, "a") as file:
        try:
            if fcntl:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # POSIX leaves the choice between the two
            raise ValueError(f"{out}: another run is training into this folder") from None
        except OSError as error:
            reason = f"{error.strerror}, so another run into this folder would not be noticed"
            warnings.warn(f"{path}: cannot be locked ({reason})", stacklevel=3)
        yield


def bests(out: Path) -> tuple[Path, Path]:
    """Where a run keeps its best model, and where that waits while another takes its place.

    >>> bests(Path("run"))[0].name
    'best'
    """
    return out / "best", out / ".before-best"


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
            digests = {p.name: digest(p) for p in temporary.iterdir()}
            write_json(temporary / "training.json", training | {"files": digests})
            shutil.rmtree(final, ignore_errors=True)  # only a broken one can be in the way
            os.replace(temporary, final)
        except (OSError, SafetensorError) as error:
            raise OSError(f"{final}: could not be written ({error})") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self.publish(step)
        # Not those of later steps: they were passed over as broken, and must not push out the whole ones.
        for old in [p for p in checkpoints(self.out) if step_of(p) <= step][self.keep :]:
            shutil.rmtree(old, ignore_errors=True)

    def publish(self, step: int) -> None:
        """Renew the model at the top, which is for use: the checkpoint's files, linked where possible."""
        folder = self.out / "checkpoints" / f"step-{step:07d}"
        try:
            for path in sorted(folder.iterdir()):
                if path.name not in ("training.json", "optimizer.safetensors"):
                    place(path, self.out / path.name)
        except OSError as error:
            raise OSError(f"{self.out}: the model could not be written ({error})") from error

    def load(self, folder: Path) -> tuple[dict, AlignModel, AlignProcessor]:
        """A checkpoint's training.json, model and processor; ValueError or OSError if it is not whole."""
        path = folder / "training.json"
        training = read_json(path)
        step, drawn = training.get("step"), training.get("drawn")
        if not (type(step) is type(drawn) is int and 0 <= step <= drawn < 2**53):
            raise ValueError(f"{path}: no step and drawn in it that could be")
        if not all(isinstance(training.get(name), dict) for name in ("options", "position", "files")):
            raise ValueError(f"{path}: no options, position and files in it")
        for name, expected in training["files"].items():
            if not (folder / name).is_file() or digest(folder / name) != expected:
                raise ValueError(f"{folder / name}: not the file that was saved")
        try:
            Position.read(training["position"])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return training, AlignModel.from_pretrained(folder), AlignProcessor.from_pretrained(folder)

    def keep_best(self, model: AlignModel, processor: AlignProcessor, result: dict) -> None:
        """Put the model into OUT/best if R@1 (then R@5, R@10) of both ways is higher than what is there.

        What was measured on other pairs is replaced, with a warning.
        """
        best, before = self.restore_best()
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            older = read_json(best / "evaluation.json")
            if older.get("measured_on") != result.get("measured_on"):
                warnings.warn(f"{best}: measured on other pairs than --eval's now, so replaced", stacklevel=2)
            elif type(older["step"]) is int and score(older) >= score(result):
                return
        temporary = self.out / f".best.{os.getpid()}"
        try:
            model.save_pretrained(temporary)
            processor.save_pretrained(temporary)
            write_json(temporary / "evaluation.json", result)
            if best.exists():
                os.replace(best, before)
            os.replace(temporary, best)
        except (OSError, SafetensorError) as error:
            raise OSError(f"{best}: could not be written ({error})") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            self.restore_best()

    def restore_best(self) -> tuple[Path, Path]:
        """Both of `bests`. One of the two is always whole."""
        best, before = bests(self.out)
        if before.exists() and not best.exists():
            os.replace(before, best)
        shutil.rmtree(before, ignore_errors=True)
        return best, before

    def tidy(self, step: int) -> None:
        """Remove what a killed process left half written, and metrics of steps that will come again."""
        self.restore_best()
        for rubbish in [*(self.out / "checkpoints").glob(".step-*"), *self.out.glob(".best.*")]:
            if re.fullmatch(r"\.(step-\d+|best)\.\d+", rubbish.name):
                shutil.rmtree(rubbish, ignore_errors=True)
        for name in (*MODEL_FILES, *BESIDE):  # hub.write_atomically's and place's, cut off before the rename
            for rubbish in self.out.glob(f".{name}.*.tmp"):
                rubbish.unlink(missing_ok=True)
        kept = []
        check_regular(self.metrics_path)
        if self.metrics_path.exists():
            for line in self.metrics_path.read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):  # or be cut short
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
