"""`align-minimal evaluate`: R@K of a checkpoint over pairs on disk, against the definition."""

import io
import json
import tarfile
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from align_minimal import AlignConfig, AlignModel, AlignProcessor, BertTokenizer, EfficientNetImageProcessor
from align_minimal.training.dataset import Pairs
from align_minimal.using.retrieval import evaluate
from tests.reference.parity import healthy
from tests.training.tiny_training import TEXTS, write_config, write_metadata, write_pairs
from tests.using.test_cli import refused, run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = BertTokenizer.train(TEXTS, vocab_size=80)
    content = json.loads(write_config(folder / "config.json").read_text())
    content["text_config"]["vocab_size"] = len(tokenizer)
    torch.manual_seed(0)
    model = AlignModel(AlignConfig.from_dict(content))
    healthy(model, sample=torch.rand(8, 3, 16, 16)).save_pretrained(folder)
    AlignProcessor(EfficientNetImageProcessor(size=16, resample=2), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path):
    """12 images; of some, several texts: of the fourth three, two of them on lines of their own."""
    folder = write_pairs(tmp_path / "data", TEXTS[:12])
    rows = [{"file_name": f"{i}.png", "text": TEXTS[i]} for i in range(12)]
    rows[11]["text"] = [TEXTS[11], "green bar"]
    rows += [{"file_name": "3.png", "text": text} for text in ("white cyan", "a bar", TEXTS[3])]
    write_metadata(folder, rows)
    return folder


def by_definition(checkpoint, folder) -> dict:
    """Sort all scores of every query; a hit if any right candidate stands among the first K."""
    model, processor = AlignModel.from_pretrained(checkpoint), AlignProcessor.from_pretrained(checkpoint)
    texts: dict[str, list[str]] = {}
    for line in (folder / "metadata.jsonl").read_text().splitlines():
        row = json.loads(line)
        for text in [row["text"]] if isinstance(row["text"], str) else row["text"]:
            own = texts.setdefault(row["file_name"], [])
            own += [] if text in own else [text]
    flat = [(i, text) for i, own in enumerate(texts.values()) for text in own]
    with torch.no_grad():
        one = lambda **k: processor(**k, padding=True, return_tensors="pt")  # noqa: E731
        images = [
            model.get_image_features(**one(images=Image.open(folder / n).convert("RGB"))) for n in texts
        ]
        words = [model.get_text_features(**one(text=text)) for _, text in flat]
    scores = F.normalize(torch.cat(images)) @ F.normalize(torch.cat(words)).T
    ranked = scores.argsort(dim=1, descending=True)
    found = {
        f"R@{k}": [any(flat[j][0] == i for j in row[:k]) for i, row in enumerate(ranked)] for k in (1, 5, 10)
    }
    ranked = scores.T.argsort(dim=1, descending=True)
    named = {f"R@{k}": [flat[j][0] in row[:k] for j, row in enumerate(ranked)] for k in (1, 5, 10)}
    mean = lambda hits: {k: sum(h) / len(h) for k, h in hits.items()}  # noqa: E731
    return {"images": 12, "texts": len(flat), "image_to_text": mean(found), "text_to_image": mean(named)}


def test_json_has_the_documented_shape_and_the_definition_s_numbers(capsys, checkpoint, data):
    status, out, err = run(capsys, "evaluate", data, "--model", checkpoint, "--json")
    assert status == 0 and "warning" not in err
    result = json.loads(out)
    expected = by_definition(checkpoint, data)
    assert list(result) == ["model", "images", "texts", "image_to_text", "text_to_image"]
    assert result["model"] == str(checkpoint)
    assert (result["images"], result["texts"]) == (12, 15) == (expected["images"], expected["texts"])
    for way in ("image_to_text", "text_to_image"):
        assert result[way] == pytest.approx(expected[way])
    assert 0 < result["text_to_image"]["R@5"] < 1  # it says something


def test_small_batches_change_nothing(checkpoint, data):
    model, processor = AlignModel.from_pretrained(checkpoint), AlignProcessor.from_pretrained(checkpoint)
    assert evaluate(model, processor, Pairs([data]), 5) == evaluate(model, processor, Pairs([data]))


def test_the_lines_of_one_file_in_a_csv_are_one_image_with_several_texts(capsys, checkpoint, data):
    (data / "metadata.jsonl").unlink()
    (data / "metadata.csv").write_text("file_name,text\n0.png,red left\n1.png,a bar\n0.png,red thing\n")
    result = json.loads(run(capsys, "evaluate", data, "--model", checkpoint, "--json")[1])
    assert (result["images"], result["texts"]) == (2, 3)
    assert result["image_to_text"]["R@5"] == result["text_to_image"]["R@5"] == 1


def test_a_person_reads_three_lines(capsys, checkpoint, data):
    status, out, _ = run(capsys, "evaluate", data, "--model", checkpoint)
    lines = out.splitlines()
    assert status == 0 and lines[0] == "12 images, 15 texts" and len(lines) == 3
    assert lines[1].startswith("  image to text: R@1 0.") and "R@10" in lines[2]


def test_the_bar_has_a_total(capsys, checkpoint, data):
    status, _, err = run(capsys, "evaluate", data, "--model", checkpoint)
    assert status == 0 and "pictures:   0%" in err and "| 0/15 [" in err


def write_shard(folder: Path, mode: str) -> Path:
    """The pairs of `folder` as a tar file; "w" or "w:gz"."""
    path = folder.parent / ("0.tar" if mode == "w" else "0.tar.gz")
    with tarfile.open(path, mode) as tar:
        for i, text in enumerate(TEXTS[:12]):
            for name, content in (("png", (folder / f"{i}.png").read_bytes()), ("txt", text.encode())):
                header = tarfile.TarInfo(f"{i}.{name}")
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))
    return path


def test_the_bar_has_a_total_for_plain_tar_shards_too(capsys, checkpoint, data):
    status, _, err = run(capsys, "evaluate", write_shard(data, "w"), "--model", checkpoint)
    assert status == 0 and "pictures:   0%" in err and "| 0/12 [" in err


def test_the_bar_of_compressed_shards_has_a_total_from_the_second_pass_on(capsys, checkpoint, data):
    model, processor = AlignModel.from_pretrained(checkpoint), AlignProcessor.from_pretrained(checkpoint)
    pairs = Pairs([write_shard(data, "w:gz")])
    for known in (False, True):
        evaluate(model, processor, pairs)
        err = capsys.readouterr().err
        assert "pictures: " in err and ("| 0/12 [" in err) == known


def test_an_unreadable_image_is_named_once_and_left_out(capsys, checkpoint, data):
    (data / "0.png").write_bytes((data / "0.png").read_bytes()[:70])
    (data / "3.png").unlink()
    status, out, err = run(capsys, "evaluate", data, "--model", checkpoint, "--json")
    result = json.loads(out)
    assert (status, result["images"], result["texts"]) == (0, 10, 11)
    assert err.count("warning: skipped") == 2  # though 0.png stands on three lines


def test_a_training_model_is_measured_in_eval_mode(checkpoint, data):
    model, processor = AlignModel.from_pretrained(checkpoint), AlignProcessor.from_pretrained(checkpoint)
    expected = evaluate(model, processor, Pairs([data]))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    assert evaluate(model.train(), processor, Pairs([data])) == expected
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_errors_name_the_culprit_in_one_line(capsys, checkpoint, data, tmp_path):
    model = ("--model", checkpoint)
    refused(capsys, "evaluate", *model, status=2, says=["DATA"])
    refused(capsys, "evaluate", data, *model, "--device", "toaster", status=2, says=["toaster"])
    refused(capsys, "evaluate", tmp_path / "none", *model, status=1, says=[tmp_path / "none"])
    refused(capsys, "evaluate", data, "--model", tmp_path, status=1, says=[tmp_path, "config.json"])
    (data / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a"}\n{"file_name": "1.png"}\n')
    refused(capsys, "evaluate", data, *model, status=1, says=["metadata.jsonl, line 2", "file_name"])
    (data / "metadata.jsonl").write_text("")
    refused(capsys, "evaluate", data, *model, status=1, says=["metadata.jsonl", "empty"])


def test_nothing_readable_is_an_error_that_names_a_file(capsys, checkpoint, data):
    for path in data.glob("*.png"):
        path.write_bytes(b"no picture")
    status, out, err = run(capsys, "evaluate", data, "--model", checkpoint, "--json")
    assert (status, out) == (1, "")
    assert ".png" in err.splitlines()[-1] and "Traceback" not in err


def test_as_a_function_it_warns_by_python_s_own_means(checkpoint, data):
    (data / "3.png").unlink()
    model, processor = AlignModel.from_pretrained(checkpoint), AlignProcessor.from_pretrained(checkpoint)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        evaluate(model, processor, Pairs([data]))
    assert ["3.png" in str(w.message) for w in caught] == [True]
