"""ALIGN (Jia et al. 2021), minimal and from scratch in PyTorch. The README says where to begin to read."""

from .bert import AlignTextModel
from .config import PRESETS, AlignConfig, AlignTextConfig, AlignVisionConfig
from .contrastive import contrastive_loss
from .efficientnet import AlignVisionModel
from .image_processor import EfficientNetImageProcessor
from .model import AlignModel
from .processor import AlignProcessor
from .tokenizer import BertTokenizer

AutoProcessor, AutoTokenizer = AlignProcessor, BertTokenizer  # for the documentation's programs

__all__ = [
    "PRESETS",
    "AlignConfig",
    "AlignModel",
    "AlignProcessor",
    "AlignTextConfig",
    "AlignTextModel",
    "AlignVisionConfig",
    "AlignVisionModel",
    "AutoProcessor",
    "AutoTokenizer",
    "BertTokenizer",
    "EfficientNetImageProcessor",
    "contrastive_loss",
]
