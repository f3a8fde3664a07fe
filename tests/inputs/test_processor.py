"""Texts and pictures in one call: routing, cutting, errors, files; and as the reference does it, live."""

import json
import re
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from align_minimal.config import AlignConfig
from align_minimal.image_processor import EfficientNetImageProcessor
from align_minimal.model import AlignModel
from align_minimal.processor import AlignProcessor
from align_minimal.tokenizer import BertTokenizer
from tests.reference.parity import healthy

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "cat", "dog", "##s", "."]
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
LONG = "cat " * 80


@pytest.fixture(scope="module")
def processor(tmp_path_factory) -> AlignProcessor:
    vocab = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    vocab.write_text("\n".join(VOCABULARY) + "\n")
    return AlignProcessor(EfficientNetImageProcessor(size=64, resample=2), BertTokenizer(vocab))


def test_the_documentation_s_program_runs(processor):
    """Zero-shot classification, as documented, at the size of the emoji preset."""
    model = healthy(AlignModel(AlignConfig.preset("emoji"))).eval()
    inputs = processor(images=PICTURE, text=["a photo of a cat", "a photo of a dog"], return_tensors="pt")
    assert {name: tuple(values.shape) for name, values in inputs.items()} == {
        "input_ids": (2, 64),
        "token_type_ids": (2, 64),
        "attention_mask": (2, 64),
        "pixel_values": (1, 3, 64, 64),
    }
    with torch.no_grad():
        outputs = model(**inputs)
    probabilities = outputs.logits_per_image.softmax(dim=1)
    assert probabilities.shape == (1, 2) and abs(probabilities.sum() - 1) < 1e-5
    features = model.get_image_features(**processor(images=PICTURE, return_tensors="pt"))
    assert torch.allclose(F.normalize(features), outputs.image_embeds, atol=1e-6)


def test_text_alone_and_pictures_alone_are_what_their_parts_give(processor):
    text = processor(text="a cat")
    assert sorted(text) == sorted(processor.tokenizer.model_input_names)
    assert text.input_ids[:5] == [2, 5, 8, 3, 0] and len(text.input_ids) == 64
    pixels = processor(images=[PICTURE, PICTURE], return_tensors="np")
    assert list(pixels) == ["pixel_values"]
    assert np.array_equal(
        pixels.pixel_values, processor.image_processor([PICTURE] * 2, return_tensors="np").pixel_values
    )


def test_each_option_goes_to_the_part_that_knows_it(processor):
    batch = processor(
        ["a cat"],
        PICTURE,
        padding=True,
        add_special_tokens=False,
        size=9,
        do_normalize=False,
        return_tensors="np",
    )
    assert batch.input_ids.tolist() == [[5, 8]]
    expected = processor.image_processor(PICTURE, size=9, do_normalize=False, return_tensors="np")
    assert np.array_equal(batch.pixel_values, expected.pixel_values)
    assert processor(text="a cat", size=9).input_ids[0] == 2  # a pictures' option does no harm to texts


def test_texts_too_long_are_cut_with_one_warning_that_counts_them(processor):
    with pytest.warns(UserWarning, match=r"2 of 3 texts had more than 64 tokens") as caught:
        batch = processor([LONG, "a cat", LONG], PICTURE, return_tensors="pt")
    assert len(caught) == 1 and caught[0].filename == __file__
    assert batch.input_ids.shape == (3, 64) and batch.input_ids[0, -1] == 3  # [SEP] is kept


def test_without_a_max_length_the_warning_names_the_tokenizer_s_own(processor):
    short = AlignProcessor(processor.image_processor, BertTokenizer(VOCABULARY, model_max_length=5))
    with pytest.warns(UserWarning, match="1 of 1 texts had more than 5 tokens"):
        assert len(short("cat cat cat cat", max_length=None).input_ids) == 5


@pytest.mark.parametrize("padding", ["max_length", True, False])
@pytest.mark.parametrize("tensors", [None, "pt"])
def test_a_text_is_cut_whatever_the_padding_and_one_that_just_fits_is_not(processor, padding, tensors):
    with pytest.warns(UserWarning, match=r"1 of 1 texts had more than 6 tokens"):
        ids = processor(
            "cat cat cat cat cat", padding=padding, max_length=6, return_tensors=tensors
        ).input_ids
    assert list(np.ravel(ids)) == [2, 8, 8, 8, 8, 3]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ids = processor("cat cat cat cat", padding=padding, max_length=6, return_tensors=tensors).input_ids
    assert list(np.ravel(ids)) == [2, 8, 8, 8, 8, 3]


def test_how_many_tokens_were_cut_is_told_to_who_asks(processor):
    with pytest.warns(UserWarning, match="1 of 2 texts"):
        batch = processor([LONG, "a cat"], return_num_truncated_tokens=True)
    assert batch.num_truncated_tokens == [18, 0]
    assert processor("a cat", return_num_truncated_tokens=True).num_truncated_tokens == 0
    assert "num_truncated_tokens" not in processor("a cat")


def test_who_says_truncation_is_obeyed_without_a_warning(processor):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(processor(LONG, truncation=True).input_ids) == 64
        assert len(processor(LONG, truncation=False).input_ids) == 82


@pytest.mark.parametrize(
    "arguments, options, error, message",
    [
        ((), {}, ValueError, "text and images are both None"),
        ((PICTURE, "a cat"), {}, TypeError, r"swapped: the order is \(text, images\)"),
        (([PICTURE], ["a cat"]), {}, TypeError, "swapped"),
        ((np.zeros((4, 4, 3)),), {}, TypeError, "swapped"),
        ((None, "cat.png"), {}, TypeError, "not str; open files with load_image"),
        (("a cat",), {"max_lenght": 9}, TypeError, "'max_lenght'.*'max_length'"),
        (("a cat",), {"trunc": True}, TypeError, "'trunc'.*'truncation'"),
        ((None, PICTURE), {"imagemean": 1}, TypeError, "'imagemean'.*'image_mean'"),
    ],
)
def test_what_is_wrong_with_a_call_is_said_in_one_line(processor, arguments, options, error, message):
    with pytest.raises(error, match=message) as caught:
        processor(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_ids_are_decoded_as_by_the_tokenizer(processor):
    ids = processor(["a cat", "dogs"], padding=True).input_ids
    assert processor.batch_decode(ids, skip_special_tokens=True) == ["a cat", "dogs"]
    assert processor.decode(ids[1]) == processor.tokenizer.decode(ids[1])


def test_the_inputs_names_are_the_reference_s(processor):
    assert processor.model_input_names == ["input_ids", "token_type_ids", "attention_mask", "pixel_values"]


def test_a_saved_processor_is_read_back_the_same(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} >= {
        "preprocessor_config.json",
        "vocab.txt",
        "tokenizer_config.json",
    }
    assert (
        json.loads((tmp_path / "preprocessor_config.json").read_text())["processor_class"] == "AlignProcessor"
    )
    read = AlignProcessor.from_pretrained(tmp_path)
    assert read.image_processor == processor.image_processor
    assert read(["dogs", LONG[:40]]) == processor(["dogs", LONG[:40]])


@pytest.mark.parametrize("missing", ["vocab.txt", "preprocessor_config.json"])
def test_a_folder_that_lacks_a_file_is_named_with_the_file(processor, tmp_path, missing):
    processor.save_pretrained(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(str(tmp_path))}: no {missing}"):
        AlignProcessor.from_pretrained(tmp_path)


# ---- live --------------------------------------------------------------------------------------------------


@pytest.fixture
def reference(processor, tmp_path):
    """transformers' processor, read from what is saved here."""
    transformers = pytest.importorskip("transformers", reason="the live reference needs transformers")
    processor.save_pretrained(tmp_path)
    return transformers.AlignProcessor.from_pretrained(tmp_path)


def test_transformers_reads_what_is_saved_here_and_gives_the_same(processor, reference):
    text = ["A photo of a cat.", "dogs, dogs [MASK]", ""]
    ours = processor(text=text, images=PICTURE, return_tensors="np")
    theirs = reference(text=text, images=PICTURE, return_tensors="np")
    assert set(ours) == set(theirs)
    for name in ("input_ids", "token_type_ids", "attention_mask"):
        assert np.array_equal(ours[name], theirs[name]), name
    if getattr(reference.image_processor, "backend", "pil") == "pil":  # 5.x's torchvision resizes otherwise
        assert np.array_equal(ours.pixel_values, theirs["pixel_values"])


def test_what_transformers_saves_is_read_here(processor, reference, tmp_path):
    reference.save_pretrained(tmp_path / "theirs")
    if not (tmp_path / "theirs" / "vocab.txt").exists():  # 5.x keeps the vocabulary in tokenizer.json
        reference.tokenizer.save_vocabulary(str(tmp_path / "theirs"))
    read = AlignProcessor.from_pretrained(tmp_path / "theirs")
    assert read.image_processor == processor.image_processor
    assert read("a photo of dogs.") == processor("a photo of dogs.")
