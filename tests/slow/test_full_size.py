"""B7 + BERT-Base at 289 px against Hugging Face, and kakaobrain/align-base itself where it is present."""

import os
from pathlib import Path

import pytest
import torch
from huggingface_hub import try_to_load_from_cache
from PIL import Image

from align_minimal import AlignConfig, AlignModel, AlignProcessor
from align_minimal.checkpoint import hugging_face_key
from align_minimal.support.hub import weights_folder
from tests.reference.parity import (
    assert_alive,
    assert_close,
    assert_gradients_close,
    copy_to_hugging_face,
    gradients,
    healthy,
    relative_error,
)

ALIGN_BASE = "kakaobrain/align-base"


def full_size() -> AlignConfig:
    config = AlignConfig.preset("b7_base")
    config.temperature_init_value = 0.1
    return config


@pytest.fixture(scope="module")
def both():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.set_num_threads(2)
    torch.manual_seed(0)
    config = full_size()
    pixels = torch.randn(3, 3, 289, 289)
    ours = healthy(AlignModel(config), sample=pixels).eval()
    theirs = transformers.AlignModel(transformers.AlignConfig(**config.to_dict()))
    return ours, copy_to_hugging_face(ours, theirs), torch.randint(1, 30522, (3, 16)), pixels


def test_full_size_agrees_in_values_and_gradients(both):
    ours, theirs, ids, pixels = both
    mask = torch.ones(3, 16, dtype=torch.long)
    mask[0, 9:] = 0
    batch = dict(input_ids=ids, attention_mask=mask, pixel_values=pixels, return_loss=True)
    a, b = ours(**batch), theirs(**batch)
    for name in ("image_embeds", "text_embeds", "logits_per_image", "logits_per_text", "loss"):
        assert_close(a[name], b[name], 1e-5, name)
    for name in ("text_model_output", "vision_model_output"):
        assert_alive(b[name].last_hidden_state, name)
        assert_close(a[name].last_hidden_state, b[name].last_hidden_state, 1e-5, name)
    a.loss.backward()
    b.loss.backward()
    assert_gradients_close(gradients(ours, hugging_face_key), gradients(theirs), 1e-3)


def test_the_check_would_see_one_missing_residual_of_fifty_five(both):
    ours, _, _, pixels = both
    with torch.inference_mode():
        whole = ours.get_image_features(pixels)
        ours.vision_model.blocks[30].residual = False
        broken = ours.get_image_features(pixels)
        ours.vision_model.blocks[30].residual = True
    assert relative_error(broken, whole) > 1e-2


def test_the_full_size_image_tower_agrees_to_1e_10_in_float64(both):
    """Values and gradients. A bug shows here that float32 would pass off as rounding."""
    ours, theirs = (model.vision_model.double() for model in both[:2])  # exact: float32 numbers as float64
    ours.zero_grad()
    theirs.zero_grad()
    pixels = both[3][:1].double()
    a, b = ours(pixels).pooler_output, theirs(pixel_values=pixels).pooler_output
    assert_close(a, b, 1e-10, "pooler_output")
    probe = torch.randn_like(a)
    (a * probe).sum().backward()
    (b * probe).sum().backward()
    assert_gradients_close(gradients(ours, hugging_face_key), gradients(theirs), 1e-10)
    for model in both[:2]:
        model.float()  # as they were, for the next test


def align_base_is_here() -> bool:
    folder = weights_folder() / ALIGN_BASE
    return folder.is_dir() or isinstance(try_to_load_from_cache(ALIGN_BASE, "config.json"), str)


@pytest.mark.skipif(
    not align_base_is_here(), reason=f"{ALIGN_BASE} is neither in weights/ nor in the hub's cache"
)
@pytest.mark.skipif(
    "ALIGN_COCO_CAT" not in os.environ, reason="ALIGN_COCO_CAT does not name COCO's 000000039769.jpg"
)
def test_align_base_gives_the_published_logits():
    model, processor = AlignModel.from_pretrained(ALIGN_BASE), AlignProcessor.from_pretrained(ALIGN_BASE)
    image = Image.open(Path(os.environ["ALIGN_COCO_CAT"]))
    batch = processor(text=["a photo of a cat", "a photo of a dog"], images=image, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**batch).logits_per_image
    assert torch.allclose(logits, torch.tensor([[9.7093, 3.4679]]), atol=1e-3)
