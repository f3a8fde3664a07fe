"""Weights files: read into tensors without running code, compared with what a model expects, and written.

A file is `model.safetensors`, or a `pytorch_model.bin` (a pickle) that holds tensors and nothing else.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.overrides import TorchFunctionMode


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor in a weights file, by its key there; the pages are mapped from disk, not copied.

    Raises ValueError naming the file if it is cut or broken, or if a pickle holds anything but tensors
    (PyTorch's restricted unpickler reads it: code in it is never run).

    >>> from align_minimal.support.hub import find_file
    >>> read_tensors(find_file("emoji", "model.safetensors"))["text_projection.weight"].shape
    torch.Size([160, 128])
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():  # about pickle protocols, on files that are refused below
            warnings.simplefilter("ignore")
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path}: holds more than tensors, or is broken; refused without running it"
        ) from None
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: broken or incomplete weights ({reason})") from None
    named = isinstance(tensors, dict) and all(isinstance(key, str) for key in tensors)
    if not named or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise ValueError(f"{path}: expected a dictionary of tensors")
    return tensors


def check_keys(
    path: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor], optional: Iterable[str] = ()
) -> None:
    """ValueError naming the file and the keys that are missing, unexpected or of another shape.

    `optional` are endings of keys that may be in the file and are not expected.

    >>> check_keys(Path("model.safetensors"), {}, {"temperature": torch.ones(())})
    Traceback (most recent call last):
    ValueError: model.safetensors: 1 tensors missing: temperature
    """
    missing = [key for key in expected if key not in found]
    extra = [key for key in found if key not in expected and not key.endswith(tuple(optional))]
    wrong = [
        f"{key} is {tuple(found[key].shape)} where the configuration says {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in found and found[key].shape != tensor.shape
    ]
    problems = (("missing", missing), ("not expected", extra), ("of another shape", wrong))
    said = [f"{len(keys)} tensors {what}: {first_few(keys)}" for what, keys in problems if keys]
    if said:
        raise ValueError(f"{path}: " + "; ".join(said))


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
