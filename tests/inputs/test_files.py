"""The files of a tokenizer and an image processor, changed at random: they load, or are refused by name."""

import copy
import json
import random
import shutil
from pathlib import Path

import pytest

from align_minimal import AlignProcessor, BertTokenizer, EfficientNetImageProcessor
from align_minimal.support.hub import weights_folder

VALUES = [None, True, 0, -1, 3, 0.5, 10**20, 10**400, -(10**20), 1e300, "", "false", "[UNK]", "x" * 2000]
VALUES += [[], {}, [1, 2, 3], [[]], {"content": 7}, {"content": "[PAD]"}, {"height": 0}, {"a": {}}]
MAP = "special_tokens_map.json"


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("vocab.txt", "tokenizer_config.json", "preprocessor_config.json", "config.json", MAP):
        shutil.copy(weights_folder() / "emoji" / name, tmp_path)
    return tmp_path


def changed(content: dict, rng: random.Random) -> dict:
    """The content with one to three of its entries, at any depth, replaced, dropped or added."""
    content = copy.deepcopy(content)
    for _ in range(rng.randint(1, 3)):
        part = content
        while (inside := [v for v in part.values() if isinstance(v, dict) and v]) and rng.random() < 0.5:
            part = rng.choice(inside)
        key = rng.choice([*part, "never_split", "padding_side", "added_tokens_decoder", "vocab"])
        if rng.random() < 0.2:
            part.pop(key, None)
        else:
            part[key] = copy.deepcopy(rng.choice(VALUES))
    return content


def torn(text: str, rng: random.Random) -> bytes:
    """The text with a stretch of its bytes cut out, or with other bytes put in."""
    content = bytearray(text.encode())
    start = rng.randrange(len(content))
    content[start : start + rng.randint(0, 40)] = rng.randbytes(rng.randint(0, 3))
    return bytes(content)


@pytest.mark.parametrize(
    "name", ["tokenizer_config.json", "tokenizer.json", "vocab.txt", "preprocessor_config.json", MAP]
)
def test_changed_files_load_or_are_refused_in_one_line_that_names_the_file(folder, name):
    """ValueError or OSError, and nothing else, whatever stands in the file."""
    (folder / "config.json").unlink()
    if name == "tokenizer.json":
        vocab = {token: i for i, token in enumerate((folder / "vocab.txt").read_text().splitlines()[:40])}
        model = {"type": "WordPiece", "vocab": vocab, "unk_token": "[UNK]"}
        (folder / name).write_text(json.dumps({"model": model, "added_tokens": [{"content": "[PAD]"}]}))
        (folder / "vocab.txt").unlink()
    text, rng, refused = (folder / name).read_text(encoding="utf-8"), random.Random(0), 0
    for _ in range(300):
        mutate = torn if name == "vocab.txt" or rng.random() < 0.3 else None
        if mutate is None:
            (folder / name).write_text(json.dumps(changed(json.loads(text), rng)))
        else:
            (folder / name).write_bytes(torn(text, rng))
        try:
            AlignProcessor.from_pretrained(folder)
        except (ValueError, OSError) as error:
            refused += 1
            assert len(str(error).splitlines()) == 1 and str(folder) in str(error), error
    assert refused > 20


@pytest.mark.parametrize("key", ["do_normalize", "do_resize", "include_top", "rescale_offset"])
def test_a_switch_of_the_image_processor_that_is_no_switch_is_named(folder, key):
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({key: "false"}))
    with pytest.raises(ValueError) as error:
        EfficientNetImageProcessor.from_pretrained(folder)
    assert str(error.value) == f"{path}: {key} must be true or false, not 'false'"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", 10**9),
        ("size", [1, 2, 3]),
        ("crop_size", {}),
        ("rescale_factor", 10**400),
        ("image_mean", 10**400),
        ("image_std", 1e300),
        ("resample", True),
    ],
)
def test_a_number_of_the_image_processor_out_of_range_is_named(folder, key, value):
    (folder / "preprocessor_config.json").write_text(json.dumps({key: value}))
    with pytest.raises(ValueError, match=rf"preprocessor_config\.json: {key} "):
        EfficientNetImageProcessor.from_pretrained(folder)


def test_overrides_go_to_the_part_that_knows_them(folder):
    processor = AlignProcessor.from_pretrained(folder, do_normalize=False, do_lower_case=False)
    assert not processor.image_processor.do_normalize and not processor.tokenizer.do_lower_case
    assert EfficientNetImageProcessor.from_pretrained(folder, size=32).size == {"height": 32, "width": 32}
    assert BertTokenizer.from_pretrained(folder, model_max_length=9).model_max_length == 9
    with pytest.raises(TypeError, match=r"AlignProcessor has no keyword 'do_normalise'; .* 'do_normalize'"):
        AlignProcessor.from_pretrained(folder, do_normalise=False)
    with pytest.raises(ValueError, match="do_normalize must be true or false, not 'no'"):
        AlignProcessor.from_pretrained(folder, do_normalize="no")
