"""ALIGN (Jia et al. 2021), minimal and from scratch in PyTorch."""

from .bert import AlignTextModel
from .config import PRESETS, AlignConfig, AlignTextConfig, AlignVisionConfig
from .contrastive import contrastive_loss
from .efficientnet import AlignVisionModel
from .model import AlignModel
from .tokenizer import BertTokenizer

AutoTokenizer = BertTokenizer  # the names in the documentation's programs

__all__ = [
    "PRESETS",
    "AlignConfig",
    "AlignModel",
    "AlignTextConfig",
    "AlignTextModel",
    "AlignVisionConfig",
    "AlignVisionModel",
    "AutoTokenizer",
    "BertTokenizer",
    "contrastive_loss",
]
