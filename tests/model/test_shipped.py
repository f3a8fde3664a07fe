"""The checkpoint and the samples that ship: they are small, whole, ours to give, and they work."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from align_minimal import AlignConfig, AlignModel, AlignProcessor

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"
LABELS = ["red apple", "bicycle", "dog face", "fish", "guitar", "pizza", "snail", "snowman", "cat", "rocket"]
DRAWINGS = {
    "apple.png": "red apple",
    "dog.png": "dog face",
    "guitar.png": "guitar",
    "fish.png": "fish",
    "bicycle.png": "bicycle",
    "snowman.png": "snowman",
    "pizza.png": "pizza",
    "snail.png": "snail",
}


@pytest.fixture(scope="module")
def model():
    return AlignModel.from_pretrained("emoji").eval()


@pytest.fixture(scope="module")
def processor():
    return AlignProcessor.from_pretrained("emoji")


def shipped_files():
    return [p for folder in ("emoji", "samples") for p in (WEIGHTS / folder).rglob("*") if p.is_file()]


def test_checkpoint_and_samples_take_under_12_megabytes():
    sizes = {p.name: p.stat().st_size for p in shipped_files()}
    assert {"config.json", "model.safetensors", "vocab.txt", "preprocessor_config.json"} <= set(sizes)
    assert sum(sizes.values()) < 12e6, sizes


def test_the_checkpoint_is_the_emoji_preset(model):
    preset = AlignConfig.preset("emoji")
    preset.text_config.vocab_size = model.config.text_config.vocab_size
    assert model.config == preset


def test_the_vocabulary_has_a_row_for_every_piece(model, processor):
    assert len(processor.tokenizer) == model.config.text_config.vocab_size
    assert processor.tokenizer.tokenize("a photo of a red apple") == ["a", "photo", "of", "a", "red", "apple"]


def test_the_processor_resizes_straight_to_the_size_trained_with(model, processor):
    size = model.config.vision_config.image_size
    pixels = processor(images=Image.new("RGB", (200, 100), "white"), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, size, size)
    assert (pixels == 1).all()  # white is 1, so black is −1: [0, 255] / 127.5 − 1


@pytest.mark.parametrize("name", DRAWINGS)
def test_each_drawing_is_classified_among_ten_labels_with_a_margin(model, processor, name):
    with Image.open(WEIGHTS / "samples" / name) as image:
        inputs = processor(text=LABELS, images=image, padding=True, return_tensors="pt")
    with torch.no_grad():
        probabilities = model(**inputs).logits_per_image.softmax(dim=1)[0]
    ranked = sorted(zip(probabilities.tolist(), LABELS, strict=True), reverse=True)
    assert ranked[0][1] == DRAWINGS[name], ranked[:3]
    assert ranked[0][0] > 2 * ranked[1][0], ranked[:3]


def test_every_sample_is_in_the_list_of_licences():
    text = (WEIGHTS / "samples" / "README.md").read_text(encoding="utf-8")
    pictures = [p.name for p in (WEIGHTS / "samples").iterdir() if p.suffix in (".png", ".jpg")]
    assert len(pictures) > 8
    assert [name for name in pictures if f"`{name}`" not in text] == []


def test_nothing_of_openmoji_or_noto_ships():
    pictures = [p for p in WEIGHTS.rglob("*") if p.suffix in (".png", ".jpg", ".svg", ".tgz")]
    plots = {WEIGHTS / "readme.png", WEIGHTS / "ablations" / "ablations.png"}
    allowed = plots | set((WEIGHTS / "samples").iterdir())
    users = WEIGHTS / "kakaobrain"  # what a user puts there, as the README says, ships with nothing
    assert [p for p in pictures if p not in allowed and users not in p.parents] == []
    rows = (WEIGHTS / "samples" / "README.md").read_text(encoding="utf-8").lower()
    assert "openmoji" not in rows and "noto" not in rows


def test_the_card_says_what_a_reader_must_know():
    card = (WEIGHTS / "emoji" / "README.md").read_text(encoding="utf-8")
    for word in (
        "Twemoji",
        "Fluent",
        "EmojiTwo",
        "FxEmoji",
        "OpenMoji",
        "CC-BY",
        "MIT",
        "Apache",
        "train_emoji.py",
    ):
        assert word in card, word


def test_the_model_card_counts_the_parameters_right(model):
    card = (WEIGHTS / "emoji" / "README.md").read_text(encoding="utf-8")
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in card
