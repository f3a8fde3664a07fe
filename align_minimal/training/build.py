"""What a run trains and how: vocabulary, image processor, model and optimizer, made as the options say."""

from __future__ import annotations

from pathlib import Path

import torch

from ..config import AlignConfig
from ..image_processor import EfficientNetImageProcessor
from ..model import AlignModel
from ..processor import AlignProcessor
from ..support.hub import read_json
from ..tokenizer import BertTokenizer
from .augment import RESIZE
from .dataset import Pairs
from .lamb import Lamb, parameter_groups
from .options import TrainOptions


def new_tokenizer(options: TrainOptions, pairs: Pairs, config: AlignConfig) -> BertTokenizer:
    """The vocabulary given, or one learnt from all the texts, as the paper's.

    >>> options = TrainOptions([], Path("run"), vocab="weights/emoji/vocab.txt")
    >>> new_tokenizer(options, Pairs([]), AlignConfig.preset("emoji")).model_max_length
    64
    """
    longest = config.text_config.max_position_embeddings
    if options.vocab:
        return BertTokenizer(Path(options.vocab), model_max_length=longest)
    texts = (text for pair in pairs.unread() for text in pair.texts)
    return BertTokenizer.train(texts, options.vocab_size or 30522, model_max_length=longest)


def one_side(size: int | list[int]) -> int:
    """The side of the square pictures that a configuration's image_size means. ValueError if none are square.

    >>> one_side(289), one_side([289, 289])
    (289, 289)
    """
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) > 1:
        raise ValueError(f"image_size={size} is not square: train takes square pictures alone (--image-size)")
    return sides.pop()


def new_image_processor(size: int, augment: str) -> EfficientNetImageProcessor:
    """For evaluation the paper's resize and central crop; drawings, which fill their frame, are not cropped.

    Pixels go to [−1, 1], as in coyo-align.

    >>> processor = new_image_processor(289, augment="paper")
    >>> processor.size, processor.crop_size
    ({'height': 346, 'width': 346}, {'height': 289, 'width': 289})
    """
    cropped = augment == "paper"
    return EfficientNetImageProcessor(
        size=round(size * RESIZE) if cropped else size,
        do_center_crop=cropped,
        crop_size=size,
        resample=2,  # bilinear
        rescale_factor=1 / 127.5,
        rescale_offset=True,
        do_normalize=False,
        include_top=False,
    )


def resize_input(image_processor: EfficientNetImageProcessor, side: int) -> None:
    """Let it give pictures of `side` × `side` pixels, cropped as before or not.

    >>> processor = new_image_processor(289, augment="paper")
    >>> resize_input(processor, 64)
    >>> processor.size["height"], processor.crop_size["height"]
    (77, 64)
    """
    resized = round(side * RESIZE) if image_processor.do_center_crop else side
    image_processor.size = {"height": resized, "width": resized}
    image_processor.crop_size = {"height": side, "width": side}


def freeze(model: AlignModel, tower: str | None) -> None:
    """Let this tower ("image" or "text") stay as it is: no gradients, and no dropout or batch statistics.

    >>> model = AlignModel.from_pretrained("emoji").train()
    >>> freeze(model, "image")
    >>> model.vision_model.training, any(p.requires_grad for p in model.vision_model.parameters())
    (False, False)
    """
    frozen = {"image": [model.vision_model], "text": [model.text_model, model.text_projection]}
    for module in frozen.get(tower, []):
        module.eval().requires_grad_(False)


def new_model(options: TrainOptions, pairs: Pairs, steps: int) -> tuple[AlignModel, AlignProcessor]:
    """A model from --init, --config or --preset, and the processor that goes with it.

    >>> model, processor = new_model(TrainOptions([], Path("run"), init="emoji"), Pairs([]), steps=100)
    >>> model.config.projection_dim
    160
    """
    if options.init:
        model, processor = (
            AlignModel.from_pretrained(options.init),
            AlignProcessor.from_pretrained(options.init),
        )
        if options.image_size:
            model.config.vision_config.image_size = options.image_size
            resize_input(processor.image_processor, options.image_size)
        images = processor.image_processor
        one_side([*(images.crop_size if images.do_center_crop else images.size).values()])
        return model, processor
    if options.config:
        try:
            config = AlignConfig.from_dict(read_json(Path(options.config)))
            one_side(options.image_size or config.vision_config.image_size)  # before a vocabulary is learnt
        except (TypeError, ValueError) as error:
            message = str(error).removeprefix(f"{Path(options.config)}: ")
            raise ValueError(f"{options.config}: {message}") from None
    else:
        config = AlignConfig.preset(options.preset)
    tokenizer = new_tokenizer(options, pairs, config)
    config.text_config.vocab_size = len(tokenizer)
    config.text_config.pad_token_id = tokenizer.pad_token_id  # whose embedding stays as it is
    # BatchNorm's running averages start at 0 and 1. A run too short to forget that (0.99^500 is still 0.7 %,
    # and the true variances are far less) would be at chance in evaluation: here e^-20 of the start is left.
    vision = config.vision_config
    vision.image_size = options.image_size or vision.image_size
    vision.batch_norm_momentum = min(vision.batch_norm_momentum, max(0.0, 1 - 20 / steps))
    image_processor = new_image_processor(one_side(vision.image_size), options.augment)
    torch.manual_seed(options.seed)
    return AlignModel(config), AlignProcessor(image_processor, tokenizer)


def new_optimizer(options: TrainOptions, model: AlignModel) -> torch.optim.Optimizer:
    """LAMB or AdamW over `parameter_groups`, at the rate and decay of the flags.

    >>> options = TrainOptions([], Path("run"), optimizer="lamb", lr=1e-3, weight_decay=1e-5)
    >>> [group["name"] for group in new_optimizer(options, AlignModel.from_pretrained("emoji")).param_groups]
    ['weights', 'batch_norm', 'temperature']
    """
    groups = parameter_groups(model, options.weight_decay)
    if options.optimizer == "lamb":
        return Lamb(groups, lr=options.lr)
    return torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.98), fused=True)
