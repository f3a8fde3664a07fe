"""The public interface as a type checker sees it: `pyright` must find nothing, and every type as named here.

pyright (pip install -e '.[types]'; .ci/run does) reads this file; nothing runs it but `python -m compileall`.
"""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from typing_extensions import assert_type

from align_minimal import (
    AlignConfig,
    AlignModel,
    AlignProcessor,
    AlignTextConfig,
    AlignTextModel,
    AlignVisionConfig,
    AlignVisionModel,
    BertTokenizer,
    EfficientNetImageProcessor,
    contrastive_loss,
)


def configurations(folder: Path) -> AlignConfig:
    assert_type(AlignConfig.preset("b7_base"), AlignConfig)
    assert_type(AlignTextConfig(hidden_size=24).hidden_size, int)
    assert_type(AlignVisionConfig.from_pretrained(folder), AlignVisionConfig)
    config = AlignConfig.from_text_vision_configs(AlignTextConfig(), AlignVisionConfig(), projection_dim=640)
    AlignConfig(text_config={"hidden_size": 24}, vision_config=AlignVisionConfig())
    config.save_pretrained(folder)
    return config


def inputs(folder: Path, picture: Image.Image) -> None:
    tokenizer = BertTokenizer.from_pretrained(folder)
    assert_type(tokenizer, BertTokenizer)
    assert_type(tokenizer.tokenize("a cat"), list[str])
    assert_type(tokenizer.encode("a cat"), list[int])
    assert_type(tokenizer.decode([101, 102]), str)
    assert_type(tokenizer.convert_tokens_to_ids("cat"), int)
    assert_type(tokenizer.convert_tokens_to_ids(["a", "cat"]), list[int])
    assert_type(tokenizer.convert_ids_to_tokens(5), str)
    assert_type(tokenizer.convert_ids_to_tokens([5, 6]), list[str])
    assert_type(tokenizer.convert_ids_to_tokens(torch.tensor([5, 6]), skip_special_tokens=True), list[str])
    processor = AlignProcessor(EfficientNetImageProcessor(size=64), tokenizer)
    batch = processor(text=["a cat"], images=[picture], return_tensors="pt")
    batch.to("cpu")


def towers(folder: Path, ids: Tensor, pixels: Tensor) -> None:
    assert_type(AlignTextModel.from_pretrained(folder), AlignTextModel)
    text = AlignTextModel(AlignTextConfig())(ids)
    assert_type(text.last_hidden_state, Tensor)
    image = AlignVisionModel(AlignVisionConfig()).eval()(pixels)
    assert_type(image.pooler_output, Tensor)


def model(folder: Path, ids: Tensor, pixels: Tensor) -> Tensor:
    model = AlignModel.from_pretrained(folder)
    assert_type(model.for_inference(torch.bfloat16), AlignModel)
    output = model(input_ids=ids, pixel_values=pixels, return_loss=True)
    assert_type(output.logits_per_image, Tensor)
    assert_type(output.loss, Tensor | None)
    assert_type(model.get_text_features(ids), Tensor)
    assert_type(model.temperature, torch.nn.Parameter)
    return contrastive_loss(output.text_embeds, output.image_embeds, model.temperature)
