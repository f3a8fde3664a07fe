"""Load and save a model: its weights, `model.safetensors` or `pytorch_model.bin`, and its configuration.

On disk the keys of weights are always Hugging Face's. KEY_MAP is all that lies between their names and the
names here, which are those of the layers in bert.py and efficientnet.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from safetensors.torch import save_file
from torch import nn

from .support.checks import check_kind
from .support.hub import find_file, write_atomically
from .support.module import Module, Output
from .support.settings import own_keywords, share_out
from .support.weights_file import check_keys, check_numbers, read_tensors, separate, without_weights

# Ours → Hugging Face's. The rows replace parts of a name, one row after the other from top to bottom. A name
# that no row matches is spelled alike on both sides.
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


def load_weights(model: nn.Module, path: Path, prefix: str = "", tensors: dict | None = None) -> None:
    """Put the file's tensors into `model` in place of its own (which may be on the meta device), as float32.

    `prefix` names the part of a full ALIGN checkpoint that `model` is; keys outside that part are left alone.
    `tensors` are the file's, if they have been read. Raises ValueError naming the file and the keys that are
    missing, unexpected, of another shape or type, or not finite.

    >>> projection = nn.Linear(128, 160, device="meta")
    >>> load_weights(projection, find_file("emoji", "model.safetensors"), prefix="text_projection.")
    >>> projection.weight.shape, projection.weight.device
    (torch.Size([160, 128]), device(type='cpu'))
    """
    tensors = read_tensors(path) if tensors is None else tensors
    if any(key.startswith(prefix) for key in tensors):
        tensors = {key[len(prefix) :]: t for key, t in tensors.items() if key.startswith(prefix)}
    state = model.state_dict()
    optional = ["embeddings.position_ids"]  # old files have 0, 1, 2, … under this key: it is not a weight
    if getattr(model, "pooler", "no text tower") is None:
        optional += ["pooler.dense.weight", "pooler.dense.bias"]
    check_keys(path, tensors, {hugging_face_key(name): t for name, t in state.items()}, optional)
    for name, t in state.items():
        key = hugging_face_key(name)
        tensor = tensors.pop(key)
        state[name] = check_numbers(path, key, tensor.float() if t.is_floating_point() else tensor)
    model.load_state_dict(state, assign=True)


class PretrainedModel(Module[Output]):
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
        check_kind(type(self).__name__, config, self.config_class)
        self.config = config

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **overrides):
        """Load from a folder or hub name: in eval mode, float32, on the CPU.

        `overrides` are keywords of the configuration, which replace those in config.json, or of this class.
        A tower loads from its own checkpoint or out of a full ALIGN's. The weights stay mapped from the
        file until they are changed, so they are never in memory twice.
        Raises FileNotFoundError (saying which files to put where), ValueError (naming file and keys), or
        TypeError (for an override that is no keyword).
        """
        known = cls.config_class.keywords(), own_keywords(cls)
        settings, options = share_out(cls.__name__, overrides, *known)
        config = cls.config_class.from_pretrained(pretrained_model_name_or_path, **settings)
        path = find_file(pretrained_model_name_or_path, "model.safetensors", "pytorch_model.bin")
        tensors = read_tensors(path)
        with without_weights(path, tensors, config):  # no memory for what is replaced next
            model = cls(config, **options)
        load_weights(model, path, cls.prefix, tensors)
        return model.eval()

    def save_pretrained(self, directory: str | Path) -> None:
        """Write `model.safetensors` and `config.json` into `directory`, each atomically."""
        tensors = separate({hugging_face_key(name): t for name, t in self.state_dict().items()})

        def write(temporary: Path) -> None:
            save_file(tensors, temporary, metadata={"format": "pt"})
            # Only now, and before the rename: a failed save leaves both old files as they were.
            self.config.save_pretrained(directory)

        write_atomically(Path(directory) / "model.safetensors", write)
