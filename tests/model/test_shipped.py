"""The checkpoint and the samples that ship: they are small, whole, ours to give, and they work."""

import ast
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from align_minimal import AlignConfig, AlignModel, AlignProcessor
from align_minimal.__main__ import main

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


def test_the_checkpoint_in_twelve_languages_takes_under_12_megabytes():
    sizes = {p.name: p.stat().st_size for p in (WEIGHTS / "emoji-world").iterdir()}
    assert {"config.json", "model.safetensors", "vocab.txt", "preprocessor_config.json"} <= set(sizes)
    assert sum(sizes.values()) < 12e6, sizes


def test_both_checkpoints_are_installed_with_the_package():
    """What a wheel holds is listed in setup.py; .ci/run classifies with both from a wheel."""
    tree = ast.parse((WEIGHTS.parent / "setup.py").read_text(encoding="utf-8"))
    loop = next(node for node in ast.walk(tree) if isinstance(node, ast.For))
    assert {"emoji", "emoji-world", "samples"} == set(ast.literal_eval(loop.iter))


@pytest.mark.parametrize("name", ["emoji", "emoji-world"])
def test_the_checkpoint_is_the_emoji_preset(name):
    config, preset = AlignConfig.from_pretrained(name), AlignConfig.preset("emoji")
    preset.text_config.vocab_size = config.text_config.vocab_size
    assert preset.vision_config.image_size == 64  # the first stages of its training
    preset.vision_config.image_size = 96
    assert config == preset


@pytest.mark.parametrize("name", ["emoji", "emoji-world"])
def test_sigma_is_held_at_a_32nd(name):
    assert AlignModel.from_pretrained(name).temperature.item() == 1 / 32


QUERIES = {  # CLDR's words, but for the German plural, which it does not have
    "en": "red apple",
    "de": "rote Äpfel",
    "fr": "pomme rouge",
    "es": "manzana roja",
    "pt": "maçã vermelha",
    "it": "mela rossa",
    "ru": "красное яблоко",
    "ar": "تفاح أحمر",
    "hi": "लाल सेब",
    "zh": "红苹果",
    "ja": "赤リンゴ",
    "ko": "빨간 사과",
}


@pytest.mark.parametrize("language", QUERIES)
def test_the_apple_is_found_in_twelve_languages(language, capsys):
    search = ["search", str(WEIGHTS / "samples"), QUERIES[language], "--model", "emoji-world", "--json"]
    assert main(search) in (0, None)
    first = json.loads(capsys.readouterr().out)["results"][0]
    assert Path(first["image"]).name == "apple.png"


def test_no_language_s_name_is_unknown_to_the_vocabulary():
    tokenizer = AlignProcessor.from_pretrained("emoji-world").tokenizer
    for query in QUERIES.values():
        assert "[UNK]" not in tokenizer.tokenize(query), query
    assert tokenizer.tokenize("が") != tokenizer.tokenize("か")  # marks are letters


@pytest.mark.parametrize("name", ["emoji", "emoji-world"])
def test_transformers_gives_the_same_ids_and_logits_in_every_language(name):
    transformers = pytest.importorskip("transformers")
    folder, queries = WEIGHTS / name, list(QUERIES.values())
    model, processor = AlignModel.from_pretrained(name), AlignProcessor.from_pretrained(name)
    inputs = processor(text=queries, padding=True, return_tensors="pt")
    theirs = transformers.BertTokenizer.from_pretrained(folder)(queries, padding=True, return_tensors="pt")
    assert torch.equal(inputs["input_ids"], theirs["input_ids"])
    inputs["pixel_values"] = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(**inputs).logits_per_image
        reference = transformers.AlignModel.from_pretrained(folder).eval()(**inputs).logits_per_image
    assert logits.std() > 0.1 and (logits - reference).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["emoji", "emoji-world"])
def test_the_vocabulary_has_a_row_for_every_piece(name):
    model, processor = AlignModel.from_pretrained(name), AlignProcessor.from_pretrained(name)
    assert len(processor.tokenizer) == model.config.text_config.vocab_size
    assert processor.tokenizer.tokenize("a photo of a red apple") == ["a", "photo", "of", "a", "red", "apple"]


def test_the_processor_resizes_straight_to_the_size_trained_with(model, processor):
    size = model.config.vision_config.image_size
    pixels = processor(images=Image.new("RGB", (200, 100), "white"), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, size, size)
    assert (pixels == 1).all()  # white is 1, so black is −1: [0, 255] / 127.5 − 1


@pytest.mark.parametrize("checkpoint", ["emoji", "emoji-world"])
@pytest.mark.parametrize("name", DRAWINGS)
def test_each_drawing_is_classified_among_ten_labels_with_a_margin(checkpoint, name):
    model, processor = AlignModel.from_pretrained(checkpoint), AlignProcessor.from_pretrained(checkpoint)
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


@pytest.mark.parametrize("name", ["emoji", "emoji-world"])
def test_the_card_says_what_a_reader_must_know(name):
    card = (WEIGHTS / name / "README.md").read_text(encoding="utf-8")
    for word in (
        "Twemoji",
        "Fluent",
        "EmojiTwo",
        "FxEmoji",
        "OpenMoji",
        "EmojiOne",
        "Streamline",
        "CC-BY",
        "MIT",
        "Apache",
        "train_emoji.py",
    ):
        assert word in card, word


@pytest.mark.parametrize("name", ["emoji", "emoji-world"])
def test_the_model_card_counts_the_parameters_right(name):
    model = AlignModel.from_pretrained(name)
    card = (WEIGHTS / name / "README.md").read_text(encoding="utf-8")
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in card
