"""ALIGN (Jia et al. 2021), minimal and from scratch in PyTorch. The README says where to begin to read.

A name is imported when it is first asked for. PyTorch takes seconds from a cold disk, and so `align-minimal
--help`, a mistyped flag and Ctrl-C need not wait for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the same names, for type checkers and editors
    from .bert import AlignTextModel
    from .config import PRESETS, AlignConfig, AlignTextConfig, AlignVisionConfig
    from .contrastive import contrastive_loss
    from .efficientnet import AlignVisionModel
    from .image_processor import EfficientNetImageProcessor
    from .model import AlignModel
    from .processor import AlignProcessor
    from .processor import AlignProcessor as AutoProcessor
    from .tokenizer import BertTokenizer
    from .tokenizer import BertTokenizer as AutoTokenizer

__version__ = "0.1.0"

HOME = {  # the module of each name
    "PRESETS": "config",
    "AlignConfig": "config",
    "AlignTextConfig": "config",
    "AlignVisionConfig": "config",
    "AlignVisionModel": "efficientnet",
    "AlignTextModel": "bert",
    "contrastive_loss": "contrastive",
    "AlignModel": "model",
    "BertTokenizer": "tokenizer",
    "EfficientNetImageProcessor": "image_processor",
    "AlignProcessor": "processor",
}
ALSO = {
    "AutoProcessor": "AlignProcessor",
    "AutoTokenizer": "BertTokenizer",
}  # in the documentation's programs

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


def __getattr__(name: str):
    """Called by Python for a name that is not here yet: a class, a function, or a module of this package."""
    name_there = ALSO.get(name, name)
    if name_there in HOME:
        return getattr(import_module(f".{HOME[name_there]}", __name__), name_there)
    if name in {*HOME.values(), "checkpoint", "wordpiece"}:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
