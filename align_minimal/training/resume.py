"""What must stay the same for a resumed run to be the same run, and what is said where it does not."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from pathlib import Path

from .dataset import Pairs
from .options import TrainOptions

# These may change in silence: what they decide (the number of steps, the rates) is compared itself.
FREE = ("out", "resume", "save_every", "keep", "workers", "eval", "eval_every", "epochs", "recipe")
# These describe the model with which a run began, and a checkpoint brings its own.
BEGUN = ("preset", "config", "init", "vocab", "vocab_size", "image_size")
BEGUN += ("contents of config", "contents of vocab")
# Where one of these has changed, the order of the pairs is another.
ORDER = ("seed", "batch_size", "filter", "data", "contents of data")


def lasting(options: TrainOptions, pairs: Pairs, **more) -> dict:
    """The options that a checkpoint keeps, and digests of the files behind them.

    >>> options = TrainOptions(data=["photos"], out=Path("run"), seed=3)
    >>> content = lasting(options, Pairs([]), steps=100)
    >>> content["seed"], content["steps"], "out" in content
    (3, 100, False)
    """
    content = {k: v for k, v in dataclasses.asdict(options).items() if k not in FREE} | more
    content["contents of data"] = pairs.seen.hexdigest()
    for name in ("config", "vocab"):
        path = getattr(options, name)
        if path and Path(path).is_file():
            content[f"contents of {name}"] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return content


def check_same_run(before: dict, now: dict, out: Path) -> None:
    """ValueError for what a run cannot change half-way: the parameters that are learnt, and by what.

    >>> check_same_run({"optimizer": "lamb"}, {"optimizer": "adamw"}, Path("run"))
    Traceback (most recent call last):
    ValueError: run: was trained with --optimizer lamb, and must go on with it
    """
    for name in ("optimizer", "freeze"):
        if name in before and before[name] != now[name]:
            raise ValueError(f"{out}: was trained {with_flag(name, before[name])}, and must go on with it")
    if "temperature" in before and (before["temperature"] is None) != (now["temperature"] is None):
        held = before["temperature"] is not None
        is_now = f"--temperature {before['temperature']}" if held else "a temperature that is learnt"
        raise ValueError(f"{out}: was trained with {is_now}, and must go on with it")


def with_flag(name: str, value: object) -> str:
    """
    >>> with_flag("freeze", None), with_flag("batch_size", 8)
    ('without --freeze', 'with --batch-size 8')
    """
    flag = f"--{name.replace('_', '-')}"
    return f"without {flag}" if value in (None, False) else f"with {flag} {value}"


def warn_of_changes(before: dict, now: dict) -> bool:
    """Say what has changed since the checkpoint. → is the order of the pairs still the same?

    >>> warn_of_changes({"seed": 0, "lr": 0.1}, {"seed": 0, "lr": 0.1})
    True
    """
    changed = [name for name in now if before.get(name, now[name]) != now[name]]
    for name in changed:
        if name in BEGUN and not name.startswith("contents"):
            then = with_flag(name, before[name])
            message = f"resuming {with_flag(name, now[name])} has no effect: the run began {then}"
        elif name == "contents of data":
            message = "resuming with data that have changed: a new epoch begins"
        elif name.startswith("contents of"):
            message = f"resuming with other {name} has no effect: the run keeps what it began with"
        else:
            message = f"resuming with {name} {now[name]}, which was {before[name]}"
        warnings.warn(message, stacklevel=2)
    return not set(changed) & set(ORDER)
