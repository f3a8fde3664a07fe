"""The three configurations of ALIGN, their presets, and the activations they can name.

Follows Hugging Face's `config.json` in every key and default (BERT-Base and EfficientNet-B7).
But: an unknown keyword is an error here, where the reference swallows it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch.nn.functional as F

from .support.settings import Settings

ACTIVATIONS: dict[str, Callable] = {
    "gelu": F.gelu,  # the exact one, x·Φ(x)
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "selu": F.selu,
    "silu": F.silu,
    "swish": F.silu,  # EfficientNet's name for the same x·sigmoid(x)
    "mish": F.mish,
}


def get_activation(name: str | Callable) -> Callable:
    """The activation called `name`, or `name` itself where it is a callable (a module, a function).

    >>> get_activation("relu").__name__
    'relu'
    """
    if callable(name):
        return name
    if name not in ACTIVATIONS:
        raise ValueError(f"hidden_act {name!r} is not one of {', '.join(ACTIVATIONS)}, nor a callable")
    return ACTIVATIONS[name]


class Config(Settings):
    """What the three configurations share: `config.json`, and the ranges of numbers.

    >>> AlignTextConfig.from_dict(AlignTextConfig(hidden_size=24).to_dict()).hidden_size
    24
    """

    filenames: ClassVar[tuple[str, ...]] = ("config.json",)
    model_type: ClassVar[str]
    part_of_align: ClassVar[str | None] = None  # the key of this configuration inside a full ALIGN's

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that `from_dict`, and transformers, read back."""
        return {"model_type": self.model_type} | super().to_dict()

    @classmethod
    def from_dict(cls, content: dict[str, Any]):
        """Build from a dictionary, also from a full ALIGN's. Keys that are no keywords here are ignored."""
        return super().from_dict(content.get(cls.part_of_align, content))

    def save_pretrained(self, directory: str | Path, **bookkeeping: str) -> None:
        """Write `directory/config.json`, atomically. ValueError if an activation is a callable."""
        for config in (self, *vars(self).values()):
            if callable(getattr(config, "hidden_act", None)):
                raise ValueError("hidden_act is a callable; only a named activation can be saved")
        super().save_pretrained(directory, **bookkeeping)

    def _check(
        self, positive: tuple[str, ...] = (), rates: tuple[str, ...] = (), reals: tuple[str, ...] = ()
    ) -> None:
        """ValueError unless fields are whole numbers from 1 up, rates in [0, 1), reals above 0."""
        for names, kinds, valid, wanted in (
            (positive, int, lambda x: x >= 1, "be a whole number of at least 1"),
            (rates, (int, float), lambda x: 0 <= x < 1, "lie in [0, 1)"),
            (reals, (int, float), lambda x: 0 < x < math.inf, "be a number above 0"),
        ):
            for name in names:
                value = getattr(self, name)
                if not isinstance(value, kinds) or isinstance(value, bool) or not valid(value):
                    raise ValueError(f"{name} must {wanted}, not {value!r}")


@dataclass
class AlignTextConfig(Config):
    """The text tower: BERT (Devlin et al. 2019). The defaults are BERT-Base, uncased.

    >>> AlignTextConfig(hidden_size=256, num_hidden_layers=4, num_attention_heads=4).intermediate_size
    3072
    """

    model_type: ClassVar[str] = "align_text_model"
    part_of_align: ClassVar[str | None] = "text_config"

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str | Callable = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    position_embedding_type: str = "absolute"  # or relative_key, relative_key_query
    use_cache: bool = True  # a decoder's option: kept in the file, used nowhere

    def __post_init__(self):
        self._check(
            positive=("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
            + ("intermediate_size", "max_position_embeddings", "type_vocab_size"),
            rates=("hidden_dropout_prob", "attention_probs_dropout_prob"),
            reals=("initializer_range", "layer_norm_eps"),
        )
        if self.pad_token_id not in range(self.vocab_size):
            raise ValueError(f"pad_token_id must lie in [0, {self.vocab_size}), not {self.pad_token_id!r}")
        get_activation(self.hidden_act)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )
        known = ("absolute", "relative_key", "relative_key_query")
        if self.position_embedding_type not in known:
            raise ValueError(
                f"position_embedding_type {self.position_embedding_type!r} is not one of {', '.join(known)}"
            )


@dataclass
class AlignVisionConfig(Config):
    """The image tower: EfficientNet (Tan & Le 2019). The defaults are B7; the lists are B0's seven stages.

    `in_channels` to `expand_ratios` have one entry a stage; read down a column, they are rows of the
    EfficientNet paper's table 1. `width_coefficient` and `depth_coefficient` scale channels and repeats.
    `image_size` is kept for the file: the network takes any size.

    >>> AlignVisionConfig(width_coefficient=1.0).strides
    [1, 2, 2, 2, 1, 2, 1]
    """

    model_type: ClassVar[str] = "align_vision_model"
    part_of_align: ClassVar[str | None] = "vision_config"

    num_channels: int = 3
    image_size: int = 600
    width_coefficient: float = 2.0
    depth_coefficient: float = 3.1
    depth_divisor: int = 8
    kernel_sizes: list[int] = field(default_factory=lambda: [3, 3, 5, 3, 5, 5, 3])
    in_channels: list[int] = field(default_factory=lambda: [32, 16, 24, 40, 80, 112, 192])
    out_channels: list[int] = field(default_factory=lambda: [16, 24, 40, 80, 112, 192, 320])
    depthwise_padding: list[int] = field(default_factory=list)
    strides: list[int] = field(default_factory=lambda: [1, 2, 2, 2, 1, 2, 1])
    num_block_repeats: list[int] = field(default_factory=lambda: [1, 2, 2, 3, 3, 4, 1])
    expand_ratios: list[int] = field(default_factory=lambda: [1, 6, 6, 6, 6, 6, 6])
    squeeze_expansion_ratio: float = 0.25
    hidden_act: str | Callable = "swish"
    hidden_dim: int = 2560
    pooling_type: str = "mean"  # or max
    initializer_range: float = 0.02
    batch_norm_eps: float = 0.001
    batch_norm_momentum: float = 0.99  # Keras' meaning: the share of the old running statistics that is kept
    drop_connect_rate: float = 0.2

    STAGE_LISTS: ClassVar[tuple[str, ...]] = (
        *("kernel_sizes", "in_channels", "out_channels"),
        *("strides", "num_block_repeats", "expand_ratios"),
    )

    def __post_init__(self):
        self._check(
            positive=("num_channels", "image_size", "depth_divisor", "hidden_dim"),
            rates=("drop_connect_rate", "batch_norm_momentum"),
            reals=("width_coefficient", "depth_coefficient", "squeeze_expansion_ratio")
            + ("initializer_range", "batch_norm_eps"),
        )
        get_activation(self.hidden_act)
        padded = self.depthwise_padding
        if not isinstance(padded, (list, tuple)) or not all(isinstance(i, int) and i >= 0 for i in padded):
            raise ValueError(f"depthwise_padding must be a list of block indices from 0 up, not {padded!r}")
        for name in self.STAGE_LISTS:
            values = getattr(self, name)
            if not isinstance(values, (list, tuple)) or not all(isinstance(v, int) and v > 0 for v in values):
                raise ValueError(f"{name} must be a list of whole numbers above 0, not {values!r}")
            if len(values) != len(self.kernel_sizes) or not values:
                raise ValueError(
                    f"{name} has {len(values)} stages where kernel_sizes has {len(self.kernel_sizes)}"
                )
        if set(self.strides) - {1, 2}:
            raise ValueError(f"strides must be 1 or 2, not {self.strides}")
        if self.pooling_type not in ("mean", "max"):
            raise ValueError(f"pooling_type {self.pooling_type!r} is not one of mean, max")


@dataclass
class AlignConfig(Config):
    """Both towers, the width of the shared embedding, and the temperature's start.

    >>> AlignConfig.preset("b7_base").vision_config.width_coefficient
    2.0
    >>> sorted(PRESETS)
    ['b3_mini', 'b7_base', 'emoji', 'l2_large']
    """

    model_type: ClassVar[str] = "align"

    text_config: AlignTextConfig | dict | None = None
    vision_config: AlignVisionConfig | dict | None = None
    projection_dim: int = 640
    temperature_init_value: float = 1.0
    initializer_range: float = 0.02

    def __post_init__(self):
        for name, kind in (("text_config", AlignTextConfig), ("vision_config", AlignVisionConfig)):
            value = getattr(self, name)
            if value is None or isinstance(value, dict):
                setattr(self, name, kind.from_dict(value or {}))
            elif not isinstance(value, kind):
                raise TypeError(f"{name} must be {kind.__name__}, a dict or None, not {type(value).__name__}")
        self._check(positive=("projection_dim",), reals=("temperature_init_value", "initializer_range"))

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary, the towers' configurations inside it."""
        return super().to_dict() | {
            "text_config": self.text_config.to_dict(),
            "vision_config": self.vision_config.to_dict(),
        }

    @classmethod
    def from_text_vision_configs(
        cls, text_config: AlignTextConfig, vision_config: AlignVisionConfig, **kwargs
    ) -> AlignConfig:
        """Join two towers' configurations."""
        return cls(text_config=text_config, vision_config=vision_config, **kwargs)

    @classmethod
    def preset(cls, name: str) -> AlignConfig:
        """The configuration called `name` in PRESETS; ValueError listing the names there are."""
        if name not in PRESETS:
            raise ValueError(f"preset {name!r} is not one of {', '.join(PRESETS)}")
        return cls(**PRESETS[name])


BERT_MINI = dict(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024)
BERT_LARGE = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)

# projection_dim is round_filters(320 · width): with no image projection, the image tower's own width.
PRESETS: dict[str, dict[str, Any]] = {
    # The checkpoint in weights/emoji: 64 px, a seventh of B0, stride 16 rather than 32 before the pool.
    "emoji": dict(
        text_config=dict(
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=512,
            max_position_embeddings=64,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        vision_config=dict(
            image_size=64,
            width_coefficient=0.5,
            depth_coefficient=0.5,
            kernel_sizes=[3] * 7,  # the late maps are 4×4: a 5×5 kernel sees mostly padding
            strides=[1, 2, 2, 2, 1, 1, 1],
            hidden_dim=160,
            drop_connect_rate=0.0,
        ),
        projection_dim=160,
        temperature_init_value=0.1,
    ),
    # The paper's smallest (6.2, table 9), 384 wide. The paper projects the image to 640; this layout cannot.
    "b3_mini": dict(
        text_config=BERT_MINI,
        vision_config=dict(image_size=289, width_coefficient=1.2, depth_coefficient=1.4, hidden_dim=384),
        projection_dim=384,
    ),
    # kakaobrain/align-base.
    "b7_base": dict(vision_config=dict(image_size=289, hidden_dim=640), projection_dim=640),
    # The paper's towers (section 5): EfficientNet-L2 and BERT-Large.
    "l2_large": dict(
        text_config=BERT_LARGE,
        vision_config=dict(image_size=289, width_coefficient=4.3, depth_coefficient=5.3, hidden_dim=1376),
        projection_dim=1376,
    ),
}
