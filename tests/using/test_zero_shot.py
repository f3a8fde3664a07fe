"""Zero-shot classification: the classifier against its definition, labels files, labelled folders."""

import json
import re
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from align_minimal import AlignModel, AlignProcessor
from align_minimal.using.zero_shot import (
    TEMPLATES,
    ZeroShotClassifier,
    read_labelled,
    read_labels,
    zero_shot_accuracy,
)
from tests.reference.parity import assert_close
from tests.using.test_cli import refused, run

SAMPLES = Path(__file__).resolve().parents[2] / "weights" / "samples"
LABELS = ["red apple", "dog", "fish", "guitar", "snail", "snowman", "bicycle"]
# Some in the wrong folder, so that top-1 and top-5 have something to tell: class → drawings.
CLASSES = {
    "apple": ["apple", "snail"],
    "dog": ["dog", "fish", "guitar"],
    "fish": ["fish"],
    "guitar": ["pizza", "bicycle"],
    "bicycle": ["bicycle", "snowman"],
}


@pytest.fixture(scope="module")
def model():
    return AlignModel.from_pretrained("emoji").eval()


@pytest.fixture(scope="module")
def processor():
    return AlignProcessor.from_pretrained("emoji")


@pytest.fixture(scope="module")
def images():
    pictures = (Image.open(SAMPLES / f"{name}.png") for name in ("apple", "dog", "bicycle"))
    return [image.resize((64, 64)) for image in pictures]


@pytest.fixture
def labels_file(tmp_path) -> Path:
    path = tmp_path / "labels.txt"
    path.write_text("\n".join(["apple\tred apple", *LABELS[1:]]) + "\n")
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder a class: eight drawings, some of them twice."""
    folder = tmp_path / "labelled"
    for name, drawings in CLASSES.items():
        (folder / name).mkdir(parents=True)
        for drawing in drawings:
            (folder / name / f"{drawing}.png").write_bytes((SAMPLES / f"{drawing}.png").read_bytes())
    return folder


# ---- the classifier ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("templates", [("{}",), ("a photo of a {}", "{}", "{}: the {} of {}"), TEMPLATES])
def test_logits_are_those_of_the_definition(model, processor, images, templates):
    labels = ["red apple", "dog", "äöü {} 100%"]
    classifier = ZeroShotClassifier(model, processor, labels, templates)
    rows = []
    with torch.no_grad():
        for label in labels:
            texts = [label.join(template.split("{}")) for template in templates]
            tokens = [processor(text=text, padding=False, return_tensors="pt") for text in texts]
            embeds = [model.get_text_features(**t)[0] for t in tokens]
            mean = sum(embed / embed.norm() for embed in embeds) / len(embeds)
            rows.append(mean / mean.norm())
        pixels = processor(images=images, return_tensors="pt")["pixel_values"]
        embeds = [x / x.norm() for x in model.get_image_features(pixels)]
        expected = torch.stack([torch.stack([x @ row for row in rows]) for x in embeds]) / model.temperature
    logits = classifier(images)
    assert logits.shape == (3, 3) and not logits.requires_grad
    assert_close(logits, expected, 1e-5)
    assert (logits.softmax(-1).sum(-1) - 1).abs().max() < 1e-6


def test_averaging_unnormalized_embeddings_would_be_something_else(model, processor):
    # or the test above could not tell the two apart
    with torch.no_grad():
        tokens = processor(
            text=["a photo of a dog", "dog: the dog of dog"], padding=True, return_tensors="pt"
        )
        embeds = model.get_text_features(**tokens)
    one = F.normalize(F.normalize(embeds, dim=-1).mean(0), dim=-1)
    other = F.normalize(embeds.mean(0), dim=-1)
    assert (one - other).norm() > 1e-3


def test_with_one_template_it_is_the_model_s_own_answer(model, processor, images):
    inputs = processor(text=LABELS, images=images, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits_per_image
    assert_close(ZeroShotClassifier(model, processor, LABELS)(images), expected, 1e-5)


def test_labels_and_templates_are_embedded_once_however_many_pictures_follow(processor, images):
    model, rows = AlignModel.from_pretrained("emoji").train(), []
    model.text_model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs.get("input_ids", args[0] if args else None))),
        with_kwargs=True,
    )
    classifier = ZeroShotClassifier(model, processor, LABELS, TEMPLATES)
    assert sum(rows) == len(LABELS) * len(TEMPLATES) and len(rows) == 2  # in batches of 64
    one = classifier(images[:1])
    assert_close(classifier(images)[:1], one, 1e-5)
    assert len(rows) == 2
    assert not model.training


def test_the_templates_that_ship_are_distinct_and_each_holds_the_label_once():
    assert len(set(TEMPLATES)) == len(TEMPLATES) > 10
    assert all(template.count("{}") == 1 for template in TEMPLATES)


BAD = {
    "none": ([], ["{}"], "no labels"),
    "empty": (["dog", " "], ["{}"], "label ' ' is empty"),
    "twice": (["dog", "cat", "dog"], ["{}"], "label 'dog' is there twice"),
    "no template": (["dog"], [], "no templates"),
    "no place": (["dog"], ["{}", "a photo"], "template 'a photo' has no {}"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_labels_and_templates_are_named(model, processor, name):
    labels, templates, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        ZeroShotClassifier(model, processor, labels, templates)


# ---- labels files ------------------------------------------------------------------------------------------


def test_a_labels_file_has_a_label_a_line_or_a_class_and_its_label(tmp_path):
    path = tmp_path / "labels"
    path.write_bytes(
        b"\xef\xbb\xbfdog\r\n\r\n  n07742313 \t red apple \n \t \nb\xc3\xa4r\ncat\ta\tb\n  snow man"
    )
    expected = {"dog": "dog", "n07742313": "red apple", "bär": "bär", "cat": "a\tb", "snow man": "snow man"}
    assert read_labels(path) == expected
    assert list(read_labels(path)) == list(expected)


BROKEN = {
    "same label": (b"dog\ncat\n\ndog\n", "line 4: 'dog' is there twice"),
    "two classes of one label": (b"a\tdog\nb\tdog\n", "line 2: 'b\\tdog' is there twice"),
    "one class with two labels": (b"a\tdog\na\tcat\n", "line 2: 'a\\tcat' is there twice"),
    "no label": (b"cat\ndog\t \n", "line 2: no label beside the tab"),
    "no class": (b"\tdog\n", "line 1: no class beside the tab"),
    "nothing": (b"", "no labels in it"),
    "blank": (b"\xef\xbb\xbf\n \n\t\n", "no labels in it"),
    "Latin-1": (b"dog\nc\xe9pe\n", "line 2: not UTF-8"),
    "UTF-16": ("dog".encode("utf-16"), "line 1: not UTF-8"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_labels_file_is_named_with_its_line(tmp_path, name):
    content, message = BROKEN[name]
    path = tmp_path / "labels.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_labels(path)
    assert str(path) in str(caught.value) and message in str(caught.value)


def test_a_labels_file_that_is_a_folder_or_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path))}: a folder"):
        read_labels(tmp_path)
    with pytest.raises(FileNotFoundError, match="none: no such file"):
        read_labels(tmp_path / "none")


# ---- labelled folders --------------------------------------------------------------------------------------


def brute_force(model, processor, pictures: list[tuple[Path, str]], labels=LABELS) -> dict:
    """Sort all labels for one picture after the other; count."""
    top1, top5 = {}, []
    for path, label in pictures:
        with Image.open(path) as image, torch.no_grad():
            inputs = processor(text=labels, images=image, padding=True, return_tensors="pt")
            scores = model(**inputs).logits_per_image[0].tolist()
        ranked = [name for _, name in sorted(zip(scores, labels, strict=True), reverse=True)]
        top1.setdefault(label, []).append(ranked[0] == label)
        top5.append(label in ranked[:5])
    count = len(top5)
    return {
        "images": count,
        "labels": len(labels),
        "top1": sum(map(sum, top1.values())) / count,
        "top5": sum(top5) / count,
        "per_class": {
            name: {"images": len(hits), "top1": sum(hits) / len(hits)} for name, hits in top1.items()
        },
    }


def evaluated(capsys, *argv) -> dict:
    status, out, err = run(capsys, "evaluate", *argv, "--json")
    assert status == 0, err
    return json.loads(out)


def assert_same(result: dict, expected: dict) -> None:
    result = {key: value for key, value in result.items() if key != "model"}
    assert list(result) == ["images", "labels", "top1", "top5", "per_class"]
    assert {k: v for k, v in result.items() if k != "per_class"} == pytest.approx(
        {k: v for k, v in expected.items() if k != "per_class"}
    )
    assert set(result["per_class"]) == set(expected["per_class"])
    for name, own in expected["per_class"].items():
        assert result["per_class"][name] == pytest.approx(own)


def test_a_folder_a_class_is_measured_as_by_counting(capsys, model, processor, folder, labels_file):
    (folder / "dog" / "deeper").mkdir()
    (folder / "dog" / "fish.png").rename(folder / "dog" / "deeper" / "fish.png")
    result = evaluated(capsys, folder, "--zero-shot", labels_file)
    assert Path(result["model"]).name == "emoji"
    label = {"apple": "red apple"}
    pictures = [
        (path, label.get(name, name)) for name in CLASSES for path in sorted((folder / name).rglob("*.png"))
    ]
    expected = brute_force(model, processor, pictures)
    assert_same(result, expected)
    assert expected["images"] == 10 and 0 < expected["top1"] < expected["top5"] < 1  # it says something
    assert list(result["per_class"]) == ["red apple", "dog", "fish", "guitar", "bicycle"]  # as in the file


ROWS = [("apple.png", "apple"), ("snail.png", "dog"), ("dog.png", "dog"), ("sub/fish.png", "guitar")]


def with_metadata(folder: Path, kind: str, columns: list[str]) -> Path:
    """ROWS as metadata, the class in the last of the columns; a `text` beside a `label` is no class."""
    (folder / "sub").mkdir(parents=True)
    for name, _ in ROWS:
        (folder / name).write_bytes((SAMPLES / Path(name).name).read_bytes())
    rows = [
        {"file_name": name} | dict.fromkeys(columns, "words, words") | {columns[-1]: own}
        for name, own in ROWS
    ]
    if kind == "csv":
        lines = [",".join(["file_name", *columns])]
        lines += [",".join(f'"{value}"' for value in row.values()) for row in rows]
    else:
        lines = [json.dumps(row) for row in rows]
    (folder / f"metadata.{kind}").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize("columns", [["label"], ["text"], ["text", "label"]])
def test_metadata_say_the_class_by_label_or_else_by_text(
    capsys, model, processor, tmp_path, kind, columns, labels_file
):
    folder = with_metadata(tmp_path / "data", kind, columns)
    result = evaluated(capsys, folder, "--zero-shot", labels_file)
    pictures = [(folder / name, "red apple" if own == "apple" else own) for name, own in ROWS]
    assert_same(result, brute_force(model, processor, pictures))


def test_of_several_texts_the_first_that_is_a_class_counts(tmp_path):
    folder = with_metadata(tmp_path / "data", "jsonl", ["text"])
    row = {"file_name": "dog.png", "text": ["a good boy", "dog", "fish"]}
    (folder / "metadata.jsonl").write_text(json.dumps(row))
    assert read_labelled(folder, {"fish": "fish", "dog": "a dog"}) == [(folder / "dog.png", "a dog")]


def test_several_folders_are_one_set_and_each_picture_counts_once(capsys, tmp_path, folder, labels_file):
    more = with_metadata(tmp_path / "more", "csv", ["label"])
    result = evaluated(capsys, folder, more, folder, "--zero-shot", labels_file)
    assert result["images"] == 10 + len(ROWS)
    assert result["per_class"]["dog"]["images"] == 3 + 2


def test_ensemble_averages_over_the_templates_that_ship(capsys, model, processor, folder, labels_file):
    result = evaluated(capsys, folder, "--zero-shot", labels_file, "--ensemble")
    classifier = ZeroShotClassifier(model, processor, LABELS, TEMPLATES)
    pictures = read_labelled(folder, read_labels(labels_file))
    hits = [LABELS[classifier([Image.open(path)])[0].argmax()] == label for path, label in pictures]
    assert result["top1"] == pytest.approx(sum(hits) / len(hits))


@pytest.mark.parametrize("count", [3, 7, 33])
def test_a_model_that_gives_all_labels_one_score_gets_chance(processor, folder, count):
    model = AlignModel.from_pretrained("emoji")
    torch.nn.init.zeros_(model.text_projection.weight)  # and only the bias is left
    torch.nn.init.normal_(model.text_projection.bias, generator=torch.Generator().manual_seed(0))
    labels = [f"label {i}" for i in range(count)]
    pictures = [(path, labels[i % count]) for i, path in enumerate(sorted(folder.rglob("*.png")))]
    result = zero_shot_accuracy(ZeroShotClassifier(model, processor, labels), pictures)
    assert result["top1"] == pytest.approx(1 / count)
    assert result["top5"] == pytest.approx(min(1, 5 / count))
    assert all(own["top1"] == pytest.approx(1 / count) for own in result["per_class"].values())


def test_labels_that_share_the_best_score_share_the_hit(model, processor, folder):
    labels = ["dog", "Dog", "snail"]  # the tokenizer lower-cases
    result = zero_shot_accuracy(
        ZeroShotClassifier(model, processor, labels), [(folder / "dog" / "dog.png", "dog")]
    )
    assert (result["top1"], result["top5"]) == (0.5, 1)


def test_a_model_whose_scores_are_not_numbers_is_not_measured(processor, folder):
    model = AlignModel.from_pretrained("emoji")
    torch.nn.init.constant_(model.text_projection.bias, torch.nan)
    classifier = ZeroShotClassifier(model, processor, LABELS)
    with pytest.raises(ValueError, match="not finite"):
        zero_shot_accuracy(classifier, [(folder / "dog" / "dog.png", "dog")])


def test_a_person_reads_the_totals_and_each_class_the_worst_first(capsys, folder, labels_file):
    status, out, err = run(capsys, "evaluate", folder, "--zero-shot", labels_file)
    result = evaluated(capsys, folder, "--zero-shot", labels_file)
    lines = out.splitlines()
    assert status == 0 and "warning" not in err
    assert lines[0] == "10 images, 7 labels"
    assert lines[1] == f"  top-1 {result['top1']:.3f}  top-5 {result['top5']:.3f}"
    shares = [float(line.split("%")[0].split()[-1]) for line in lines[2:]]
    assert len(shares) == 5 and shares == sorted(shares)
    assert f"  {'dog':<9}  {result['per_class']['dog']['top1']:6.1%} of 3" in lines


# ---- what is wrong with a folder ---------------------------------------------------------------------------


def test_a_class_that_is_no_label_is_named_with_a_picture_and_the_nearest_label(capsys, folder, labels_file):
    (folder / "bicycle").rename(folder / "bycicle")
    says = [folder / "bycicle" / "bicycle.png", "'bycicle'", "nearest is 'bicycle'"]
    refused(capsys, "evaluate", folder, "--zero-shot", labels_file, status=1, says=says)
    labels_file.write_text("zzz\n")
    says = [folder / "apple" / "apple.png", "'apple' is not among the labels"]
    refused(capsys, "evaluate", folder, "--zero-shot", labels_file, status=1, says=says)


def test_a_picture_in_no_class_s_folder_is_named(capsys, folder, labels_file):
    (folder / "fish" / "fish.png").rename(folder / "dog.png")  # though it is called like a class
    says = [folder / "dog.png", "no class's folder", "metadata"]
    refused(capsys, "evaluate", folder, "--zero-shot", labels_file, status=1, says=says)


def test_bad_metadata_are_named_with_their_line(capsys, tmp_path, labels_file):
    folder = with_metadata(tmp_path / "data", "jsonl", ["label"])
    path, argv = folder / "metadata.jsonl", ["evaluate", folder, "--zero-shot", labels_file]
    good = '{"file_name": "dog.png", "label": "dog"}\n'
    for row, says in {
        '{"file_name": "apple.png", "label": "aple"}': [folder / "apple.png", "'aple'", "'apple'"],
        '{"file_name": "apple.png", "label": 7}': [path, "line 2", "label must be", "7"],
        '{"file_name": "apple.png", "label": " "}': [path, "line 2", "label is empty"],
        '{"file_name": "apple.png", "class": "dog"}': [path, "line 2", "label or text", "class"],
        '{"file_name": "dog.png", "label": "fish"}': [folder / "dog.png", "two labels", "'dog'", "'fish'"],
    }.items():
        path.write_text(good + row)
        refused(capsys, *argv, status=1, says=says)


def test_unreadable_pictures_are_named_counted_and_left_out(capsys, folder, labels_file):
    (folder / "dog" / "guitar.png").write_bytes(b"")
    (folder / "fish" / "fish.png").write_bytes((SAMPLES / "fish.png").read_bytes()[:100])
    status, out, err = run(capsys, "evaluate", folder, "--zero-shot", labels_file, "--json")
    result = json.loads(out)
    assert status == 0 and result["images"] == 8 and result["per_class"]["dog"]["images"] == 2
    assert "fish" not in result["per_class"]  # of which none is left
    warned = [line for line in err.splitlines() if "warning" in line]
    assert len(warned) == 3 and "2 pictures could not" in warned[2]
    assert str(folder / "dog" / "guitar.png") in warned[0] and str(folder / "fish" / "fish.png") in warned[1]


def test_nothing_readable_is_an_error(capsys, folder, labels_file):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"no picture")
    status, out, err = run(capsys, "evaluate", folder, "--zero-shot", labels_file, "--json")
    assert (status, out) == (1, "") and "Traceback" not in err
    assert "no picture could be read" in err.splitlines()[-1] and ".png" in err.splitlines()[-1]


def test_bad_arguments_are_named(capsys, tmp_path, folder, labels_file):
    (tmp_path / "empty").mkdir()
    zero_shot = ["--zero-shot", labels_file]
    refused(capsys, "evaluate", tmp_path / "none", *zero_shot, status=1, says=[tmp_path / "none"])
    refused(capsys, "evaluate", labels_file, *zero_shot, status=1, says=[labels_file, "not a folder"])
    refused(capsys, "evaluate", tmp_path / "empty", *zero_shot, status=1, says=["empty", "no picture"])
    refused(capsys, "evaluate", folder, "--zero-shot", tmp_path / "none", status=1, says=["none"])
    refused(capsys, "evaluate", folder, "--zero-shot", "", status=1, says=["a folder, not a file of labels"])
    refused(capsys, "evaluate", folder, "--zero-shot", status=2, says=["--zero-shot"])
    refused(capsys, "evaluate", folder, "--ensemble", status=2, says=["--ensemble", "--zero-shot"])


def test_as_a_function_it_warns_by_python_s_own_means(model, processor, folder):
    (folder / "dog" / "dog.png").unlink()
    pictures = [(folder / "dog" / "dog.png", "dog"), (folder / "fish" / "fish.png", "fish")]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = zero_shot_accuracy(ZeroShotClassifier(model, processor, LABELS), pictures)
    assert result["images"] == 1 and ["dog.png" in str(w.message) for w in caught] == [True]
