"""Load and save weights: `model.safetensors` (or tensors from a `pytorch_model.bin`), and the key map.

On disk the keys are always Hugging Face's; KEY_MAP is all that lies between theirs and ours.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn as nn
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .support.hub import find_file, write_atomically

# Ours → theirs, applied as substrings, top to bottom. What no row matches is spelled alike on both sides.
KEY_MAP = (
    ("stem.conv.", "embeddings.convolution."),
    ("stem.bn.", "embeddings.batchnorm."),
    ("blocks.", "encoder.blocks."),
    (".expand.conv.", ".expansion.expand_conv."),
    (".expand.bn.", ".expansion.expand_bn."),
    (".depthwise.conv.", ".depthwise_conv.depthwise_conv."),
    (".depthwise.bn.", ".depthwise_conv.depthwise_norm."),
    (".project.conv.", ".projection.project_conv."),
    (".project.bn.", ".projection.project_bn."),
    ("embeddings.word.", "embeddings.word_embeddings."),
    ("embeddings.position.", "embeddings.position_embeddings."),
    ("embeddings.token_type.", "embeddings.token_type_embeddings."),
    ("embeddings.norm.", "embeddings.LayerNorm."),
    ("layers.", "encoder.layer."),
    (".attention.query.", ".attention.self.query."),
    (".attention.key.", ".attention.self.key."),
    (".attention.value.", ".attention.self.value."),
    (".attention.distance.", ".attention.self.distance_embedding."),
    (".attention.output.", ".attention.output.dense."),
    (".attention_norm.", ".attention.output.LayerNorm."),
    (".feed_forward.up.", ".intermediate.dense."),
    (".feed_forward.down.", ".output.dense."),
    (".feed_forward_norm.", ".output.LayerNorm."),
    ("pooler.", "pooler.dense."),
)


def hugging_face_key(name: str) -> str:
    """The key in Hugging Face's state dict of the parameter or buffer called `name` here.

    >>> hugging_face_key("vision_model.blocks.3.expand.conv.weight")
    'vision_model.encoder.blocks.3.expansion.expand_conv.weight'
    >>> hugging_face_key("text_projection.bias")
    'text_projection.bias'
    """
    for ours, theirs in KEY_MAP:
        name = name.replace(ours, theirs)
    return name


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor in a weights file, by its key there; the pages are mapped from disk, not copied.

    Raises ValueError naming the file if it is cut or broken, or if a pickle holds anything but tensors
    (PyTorch's restricted unpickler reads it: code in it is never run).

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


def first_few(names: list[str], count: int = 3) -> str:
    """A list as a person reads it: the first few, and how many more.

    >>> first_few(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def load_weights(model: nn.Module, path: Path, prefix: str = "") -> None:
    """Put the file's tensors into `model` in place of its own (which may be on the meta device), as float32.

    `prefix` names the part of a full ALIGN checkpoint that `model` is; keys outside it are left alone.
    Raises ValueError naming the file and the keys that are missing, unexpected or of another shape.

    >>> projection = nn.Linear(128, 160, device="meta")
    >>> load_weights(projection, find_file("emoji", "model.safetensors"), prefix="text_projection.")
    >>> projection.weight.shape, projection.weight.device
    (torch.Size([160, 128]), device(type='cpu'))
    """
    tensors = read_tensors(path)
    if any(key.startswith(prefix) for key in tensors):
        tensors = {key[len(prefix) :]: t for key, t in tensors.items() if key.startswith(prefix)}
    expected = {hugging_face_key(name): (name, t) for name, t in model.state_dict().items()}
    optional = ("embeddings.position_ids",)  # old files carry 0, 1, 2, …: not a weight
    if getattr(model, "pooler", "none") is None:
        optional += ("pooler.dense.weight", "pooler.dense.bias")
    missing = [key for key in expected if key not in tensors]
    extra = [key for key in tensors if key not in expected and not key.endswith(optional)]
    wrong = [
        f"{key} is {tuple(tensors[key].shape)} where the configuration says {tuple(t.shape)}"
        for key, (_, t) in expected.items()
        if key in tensors and tensors[key].shape != t.shape
    ]
    problems = (("missing", missing), ("not expected", extra), ("of another shape", wrong))
    found = [f"{len(keys)} tensors {what}: {first_few(keys)}" for what, keys in problems if keys]
    if found:
        raise ValueError(f"{path}: " + "; ".join(found))
    state = {}
    for key, (name, t) in expected.items():
        tensor = tensors.pop(key)
        state[name] = tensor.float() if t.is_floating_point() else tensor
    model.load_state_dict(state, assign=True)


class SkipInit(TorchFunctionMode):
    """Inside it, torch.nn.init leaves tensors as they are. (On the meta device one normal_ costs seconds.)

    >>> with SkipInit():
    ...     nn.init.normal_(torch.zeros(3))
    tensor([0., 0., 0.])
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


class PretrainedModel(nn.Module):
    """An nn.Module with a configuration, that loads from and saves to a checkpoint folder.

    >>> from align_minimal import AlignModel
    >>> model = AlignModel.from_pretrained("emoji")
    >>> isinstance(model, PretrainedModel), model.config.projection_dim, model.training
    (True, 160, False)
    """

    config_class: ClassVar[type]
    prefix: ClassVar[str] = ""  # of this module's keys inside a full ALIGN checkpoint

    def __init__(self, config):
        super().__init__()
        if not isinstance(config, self.config_class):
            raise TypeError(
                f"{type(self).__name__} takes {self.config_class.__name__}, not {type(config).__name__}"
            )
        self.config = config

    @classmethod
    def from_pretrained(cls, dir_or_name: str | Path, **kwargs):
        """Load from a folder or hub name: in eval mode, float32, on the CPU. `kwargs` go to the constructor.

        A tower loads from its own checkpoint or out of a full ALIGN's. The weights stay mapped from the
        file until they are changed, so they are never in memory twice.
        Raises FileNotFoundError (with what to put where) or ValueError (naming file and keys).
        """
        config = cls.config_class.from_pretrained(dir_or_name)
        path = find_file(dir_or_name, "model.safetensors", "pytorch_model.bin")
        with torch.device("meta"), SkipInit():  # no memory for weights about to be replaced, and no time
            model = cls(config, **kwargs)
        load_weights(model, path, cls.prefix)
        return model.eval()

    def save_pretrained(self, directory: str | Path) -> None:
        """Write `model.safetensors` and `config.json` into `directory`, each atomically."""
        tensors: dict[str, Tensor] = {}
        stored = set()
        for name, tensor in self.state_dict().items():  # safetensors wants neither strides nor sharing
            shared = tensor.data_ptr() in stored
            stored.add(tensor.data_ptr())
            tensors[hugging_face_key(name)] = tensor.clone() if shared else tensor.contiguous()

        def write(temporary: Path) -> None:
            save_file(tensors, temporary, metadata={"format": "pt"})
            # Only now, and before the rename: a failed save leaves both old files as they were.
            self.config.save_pretrained(directory)

        write_atomically(Path(directory) / "model.safetensors", write)
