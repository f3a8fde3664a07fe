"""Weights files: read into tensors without running code, compared with what a model expects, and written.

A file is `model.safetensors`, or a `pytorch_model.bin` (a pickle) that holds tensors and nothing else.
"""

from __future__ import annotations

import math
import pickle
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, load_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .values import plain


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor in a weights file, by its key there; the pages are mapped from disk, not copied.

    Raises ValueError naming the file if it is cut or broken, or if a pickle holds anything but tensors
    (PyTorch's restricted unpickler reads it: code in it is never run), and naming the key of a tensor that is
    not plain numbers in the file.

    >>> from align_minimal.support.hub import find_file
    >>> read_tensors(find_file("emoji", "model.safetensors"))["text_projection.weight"].shape
    torch.Size([160, 128])
    """
    try:
        tensors = read_safetensors(path) if path.suffix == ".safetensors" else _unpickle(path)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path}: holds more than tensors, or is broken; refused without running it"
        ) from None
    except Exception as error:  # what a pickle of arbitrary bytes raises in PyTorch has no common base
        reason = plain((str(error) or type(error).__name__).splitlines()[0], most=200)
        raise ValueError(f"{path}: broken or incomplete weights ({reason})") from None
    named = isinstance(tensors, dict) and all(isinstance(key, str) for key in tensors)
    if not named or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise ValueError(f"{path}: expected a dictionary of tensors")
    for key, tensor in tensors.items():
        if (problem := _not_plain(tensor)) is not None:
            raise ValueError(f"{path}: {plain(key)} is {problem}")
    return tensors


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, mapped from disk; copied where the name is not UTF-8: safetensors refuses that.

    >>> read_safetensors(Path("weights/emoji/model.safetensors"))["temperature"].shape
    torch.Size([])
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return load(path.read_bytes())
    return load_file(path)


def _unpickle(path: Path) -> Any:
    packed = zipfile.is_zipfile(path)
    if packed:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                raise ValueError("it claims to hold more bytes than it has")
    with warnings.catch_warnings():  # about pickle protocols, on files that are refused below
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=packed)


def _not_plain(tensor: Tensor) -> str | None:
    """What a tensor out of a pickle is, if it is not numbers in the file, side by side or in strides."""
    if tensor.is_meta:
        return "a meta tensor, without numbers"
    if tensor.layout != torch.strided or tensor.is_nested:
        return f"a tensor of layout {tensor.layout}, not dense"
    if tensor.is_quantized:
        return f"a quantized tensor ({tensor.dtype})"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"said to be {tuple(tensor.shape)}, which is more numbers than the file holds"
    return None


def check_keys(
    path: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor], optional: Iterable[str] = ()
) -> None:
    """ValueError naming the file and the keys that are missing, unexpected, or of another shape or type.

    `optional` are endings of keys that may be in the file and are not expected.

    >>> check_keys(Path("model.safetensors"), {}, {"temperature": torch.ones(())})
    Traceback (most recent call last):
    ValueError: model.safetensors: 1 tensors missing: temperature
    """
    missing = [key for key in expected if key not in found]
    extra = [plain(key) for key in found if key not in expected and not key.endswith(tuple(optional))]
    both = [(key, found[key], tensor) for key, tensor in expected.items() if key in found]
    wrong = [
        f"{key} is {tuple(ours.shape)} where the configuration says {tuple(tensor.shape)}"
        for key, ours, tensor in both
        if ours.shape != tensor.shape
    ]
    types = [
        f"{key} is {ours.dtype}"
        for key, ours, tensor in both
        if ours.is_floating_point() != tensor.is_floating_point()
    ]
    problems = (("missing", missing), ("not expected", extra), ("of another shape", wrong))
    problems += (("of another type", types),)
    said = [f"{len(keys)} tensors {what}: {first_few(keys)}" for what, keys in problems if keys]
    if said:
        raise ValueError(f"{path}: " + "; ".join(said))


def check_numbers(path: Path, key: str, tensor: Tensor) -> Tensor:
    """The tensor; ValueError naming file and key if its numbers are none that a trained model can have.

    >>> check_numbers(Path("model.safetensors"), "temperature", torch.tensor(-0.5))
    Traceback (most recent call last):
    ValueError: model.safetensors: temperature must be above 0, not -0.5
    """
    # A sum is quick, and finite only if every number is. (It may overflow; then look at each.) numpy's, as
    # PyTorch's takes ten times as long on a busy machine, where its threads wait for one another.
    with np.errstate(all="ignore"):
        total = tensor.detach().numpy().sum()
    if not np.isfinite(total) and not tensor.isfinite().all():
        raise ValueError(f"{path}: {key} must be finite, but holds {tensor[~tensor.isfinite()][0].item()}")
    if key == "temperature" and not tensor > 0:
        raise ValueError(f"{path}: {key} must be above 0, not {tensor.item():g}")
    if key.endswith("running_var") and tensor.min() < 0:
        raise ValueError(f"{path}: {key} must not be below 0, but holds {tensor.min().item():g}")
    return tensor


def check_depth(path: Path, tensors: Mapping[str, Tensor], config: Any) -> None:
    """ValueError if a file holds far too few tensors for the layers of `config`, before one is built.

    A layer of BERT or a block of EfficientNet has at least 16 tensors. A file with a quarter of them passes,
    and so do 100 layers: `check_keys` will say which tensors are missing.

    >>> from align_minimal import AlignTextConfig
    >>> check_depth(Path("model.safetensors"), {}, AlignTextConfig(num_hidden_layers=10**9))
    Traceback (most recent call last):
    ValueError: model.safetensors: 0 tensors are too few for the 1000000000 layers that config.json says
    """
    layers = 0
    for part in (config, getattr(config, "text_config", None), getattr(config, "vision_config", None)):
        layers += getattr(part, "num_hidden_layers", 0)
        depth = getattr(part, "depth_coefficient", 0)
        layers += sum(math.ceil(depth * repeats) for repeats in getattr(part, "num_block_repeats", ()))
    if layers > 100 and len(tensors) < 4 * layers:
        raise ValueError(
            f"{path}: {len(tensors)} tensors are too few for the {layers} layers that config.json says"
        )


@contextmanager
def without_weights(weights: Path, tensors: Mapping[str, Tensor], config: Any) -> Iterator[None]:
    """Inside it, models are built without memory and without time for weights that are about to be replaced.

    Before, the depth of `config` is compared with the `tensors` of the file `weights`. An error while the
    model is built is a ValueError that names the configuration's file, which lies beside it.

    >>> with without_weights(Path("model.safetensors"), {}, None):
    ...     torch.nn.Linear(10**6, 10**6).weight.device
    device(type='meta')
    """
    check_depth(weights, tensors, config)
    path = weights.with_name("config.json")
    try:
        with torch.device("meta"), SkipInit():
            yield
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {error}") from None
    except (RuntimeError, MemoryError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: sizes that no model can have ({reason})") from None


def first_few(names: list[str], count: int = 3) -> str:
    """A list as a person reads it: the first few, and how many more.

    >>> first_few(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors as a safetensors file wants them: contiguous, and no two in the same memory.

    >>> one = torch.ones(2, 3)
    >>> a, b = separate({"a": one, "b": one}).values()
    >>> a.data_ptr() == b.data_ptr()
    False
    """
    result: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        result[name] = tensor.clone() if tensor.data_ptr() in seen else tensor.contiguous()
        seen.add(tensor.data_ptr())
    return result


class SkipInit(TorchFunctionMode):
    """Inside it, torch.nn.init leaves tensors as they are. (On the meta device one normal_ costs seconds.)

    >>> with SkipInit():
    ...     torch.nn.init.normal_(torch.zeros(3))
    tensor([0., 0., 0.])
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))
