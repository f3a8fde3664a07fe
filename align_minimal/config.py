"""The three configurations of ALIGN, their presets, and the activations that they can name.

Every key and default is that of Hugging Face's `config.json` (BERT-Base and EfficientNet-B7).
Differs from Hugging Face: an unknown keyword is an error here, and ignored there. Unknown keys of a file or
a dictionary are ignored by both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch.nn.functional as F

from .support.checks import check_align_config, check_text_config, check_vision_config
from .support.settings import Config
from .support.values import shown

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
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ValueError(f"hidden_act {shown(name)} is not one of {', '.join(ACTIVATIONS)}, nor a callable")
    return ACTIVATIONS[name]


@dataclass
class AlignTextConfig(Config):
    """The text tower: BERT (Devlin et al. 2019). The defaults are BERT-Base, uncased.

    >>> AlignTextConfig(num_hidden_layers=4).hidden_size
    768
    """

    model_type: ClassVar[str] = "align_text_model"
    part_of_align: ClassVar[str | None] = "text_config"  # its key inside a full ALIGN's config.json

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str | Callable = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2  # first or second text; ALIGN has one
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0  # whose embedding stays zero; None: no token's does
    position_embedding_type: str = "absolute"  # or relative_key, relative_key_query, which no ALIGN uses
    use_cache: bool = True  # an option of decoders: kept because it is in the file, used nowhere

    def __post_init__(self):
        check_text_config(self)
        get_activation(self.hidden_act)


# The seven stages of blocks in EfficientNet-B0 (table 1 of its paper), a row each; first the columns' names.
COLUMNS = ("kernel_sizes", "in_channels", "out_channels", "strides", "num_block_repeats", "expand_ratios")
B0_STAGES = (
    (3, 32, 16, 1, 1, 1),
    (3, 16, 24, 2, 2, 6),
    (5, 24, 40, 2, 2, 6),
    (3, 40, 80, 2, 3, 6),
    (5, 80, 112, 1, 3, 6),
    (5, 112, 192, 2, 4, 6),
    (3, 192, 320, 1, 1, 6),
)


def column(name: str) -> Callable[[], list[int]]:
    """A function that returns column `name` of B0_STAGES, in a fresh list for each configuration.

    >>> column("strides")()
    [1, 2, 2, 2, 1, 2, 1]
    """
    return lambda: [row[COLUMNS.index(name)] for row in B0_STAGES]


@dataclass
class AlignVisionConfig(Config):
    """The image tower: EfficientNet (Tan & Le 2019). The defaults are B7: B0's stages, wider and deeper.

    `width_coefficient` scales the stages' channels (round_filters in efficientnet.py), `depth_coefficient`
    their repeats, rounded up. Hugging Face's file has one list for each column of the stage table: entry i of
    each list describes stage i. `depthwise_padding` lists the blocks, counted through all stages, whose
    convolution of stride 2 is padded by k//2 on every side (in all others, by one pixel less on the left and
    top); no preset has any. `image_size` is kept because it is in the file: the network takes any size.

    >>> AlignVisionConfig(width_coefficient=1.0).strides
    [1, 2, 2, 2, 1, 2, 1]
    """

    model_type: ClassVar[str] = "align_vision_model"
    part_of_align: ClassVar[str | None] = "vision_config"

    num_channels: int = 3
    image_size: int | list[int] = 600
    width_coefficient: float = 2.0
    depth_coefficient: float = 3.1
    depth_divisor: int = 8  # Hugging Face's name: numbers of channels are multiples of it
    kernel_sizes: list[int] = field(default_factory=column("kernel_sizes"))
    in_channels: list[int] = field(default_factory=column("in_channels"))
    out_channels: list[int] = field(default_factory=column("out_channels"))
    depthwise_padding: list[int] = field(default_factory=list)
    strides: list[int] = field(default_factory=column("strides"))
    num_block_repeats: list[int] = field(default_factory=column("num_block_repeats"))
    expand_ratios: list[int] = field(default_factory=column("expand_ratios"))
    squeeze_expansion_ratio: float = 0.25
    hidden_act: str | Callable = "swish"
    hidden_dim: int = 2560  # kept because it is in the file, used nowhere: the width is round_filters(320)
    pooling_type: str = "mean"  # or max
    initializer_range: float = 0.02
    batch_norm_eps: float = 0.001
    batch_norm_momentum: float = 0.99  # Keras' meaning: the share of the old running statistics that is kept
    drop_connect_rate: float = 0.2

    def __post_init__(self):
        check_vision_config(self, COLUMNS)
        get_activation(self.hidden_act)

    def stages(self) -> list[tuple[int, ...]]:
        """The rows of the stage table, not yet scaled: kernel, in, out, stride, repeats, expand ratio."""
        return list(zip(*(getattr(self, name) for name in COLUMNS), strict=True))


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
    initializer_range: float = 0.02  # kept because it is in the file, used nowhere: each tower has its own

    def __post_init__(self):
        check_align_config(self)
        for name, kind in (("text_config", AlignTextConfig), ("vision_config", AlignVisionConfig)):
            value = getattr(self, name)
            if value is None or isinstance(value, dict):
                setattr(self, name, kind.from_dict(value or {}))
            elif not isinstance(value, kind):
                raise TypeError(f"{name} must be {kind.__name__}, a dict or None, not {type(value).__name__}")

    @classmethod
    def from_text_vision_configs(
        cls, text_config: AlignTextConfig, vision_config: AlignVisionConfig, **kwargs
    ) -> AlignConfig:
        """Join two towers' configurations; `kwargs` are AlignConfig's other keywords."""
        return cls(text_config=text_config, vision_config=vision_config, **kwargs)

    @classmethod
    def preset(cls, name: str) -> AlignConfig:
        """The configuration called `name` in PRESETS; ValueError listing the names there are."""
        if name not in PRESETS:
            raise ValueError(f"preset {name!r} is not one of {', '.join(PRESETS)}")
        return cls(**PRESETS[name])


BERT_MINI = dict(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024)
BERT_LARGE = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
B3 = dict(image_size=289, width_coefficient=1.2, depth_coefficient=1.4, hidden_dim=384)
B7 = dict(image_size=289, width_coefficient=2.0, depth_coefficient=3.1, hidden_dim=640)
L2 = dict(image_size=289, width_coefficient=4.3, depth_coefficient=5.3, hidden_dim=1376)
# The sizes of the checkpoint in weights/emoji: texts of at most 64 tokens, no dropout. Pictures had 64 px
# when its training began, and 96 px at its end. vocab_size is its own (4000): training sets that.
EMOJI_TEXT = dict(hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=512)
EMOJI_TEXT |= dict(max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
EMOJI_VISION = dict(image_size=64, width_coefficient=0.5, depth_coefficient=0.5, hidden_dim=160)
EMOJI_VISION |= dict(drop_connect_rate=0.0)
EMOJI_VISION |= dict(kernel_sizes=[3] * 7)  # the late maps are 4×4: a 5×5 kernel would see mostly padding
EMOJI_VISION |= dict(strides=[1, 2, 2, 2, 1, 1, 1])  # halved 4 times with the stem, not 5 times

# projection_dim is the image tower's own width, because that tower has no projection: 320 channels times
# width_coefficient, rounded (round_filters in efficientnet.py).
PRESETS: dict[str, dict[str, Any]] = {
    "emoji": dict(
        text_config=EMOJI_TEXT, vision_config=EMOJI_VISION, projection_dim=160, temperature_init_value=0.1
    ),
    # The smaller one of table 9 (6.2). The paper projects its image side to 640; here it stays 384 wide.
    "b3_mini": dict(text_config=BERT_MINI, vision_config=B3, projection_dim=384),
    # kakaobrain/align-base: BERT-Base and B7.
    "b7_base": dict(vision_config=B7, projection_dim=640),
    # The paper's towers (section 5), with BERT's vocabulary of 30,522 where the paper's has 100,000.
    "l2_large": dict(text_config=BERT_LARGE, vision_config=L2, projection_dim=1376),
}
