"""The command line: what it prints, where, and how it fails. In-process but for the two subprocess tests."""

import csv
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from align_minimal import AlignConfig, AlignModel, AlignProcessor, BertTokenizer, EfficientNetImageProcessor
from align_minimal.__main__ import main
from align_minimal.using.zero_shot import TEMPLATES
from tests.reference.parity import healthy

LABELS = ["apple", "dog", "bicycle"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A small random checkpoint: how it answers does not matter here, that it answers does."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = BertTokenizer.train(["a photo of an apple", "a dog on a bicycle"] * 3, vocab_size=60)
    preset = AlignConfig.preset("emoji").to_dict()
    preset["text_config"]["vocab_size"] = len(tokenizer)
    torch.manual_seed(0)
    model = AlignModel(AlignConfig.from_dict(preset))
    healthy(model, sample=4 * torch.rand(8, 3, 64, 64) - 2).save_pretrained(folder)  # pixels as processed
    size = {"height": 64, "width": 64}
    AlignProcessor(EfficientNetImageProcessor(size=size, resample=2), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, color in (("b.png", "red"), ("a.jpg", "blue"), ("c.webp", "white")):
        Image.new("RGB", (40, 30), color).save(folder / name)
    (folder / "notes.txt").write_text("not a picture, and not named like one")
    return folder


def run(capsys, *argv) -> tuple[int, str, str]:
    try:
        status = main([str(a) for a in argv])
    except SystemExit as error:  # argparse's way out
        status = error.code
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.parametrize("command", ["classify", "evaluate --zero-shot", "search"])
def test_commands_compute_with_the_fast_towers(capsys, checkpoint, pictures, monkeypatch, command):
    served, for_inference = [], AlignModel.for_inference
    monkeypatch.setattr(AlignModel, "for_inference", lambda m, *a: served.append(m) or for_inference(m, *a))
    (pictures.parent / "labels.txt").write_text("apple\ndog\n")
    for name in ("apple", "dog"):
        shutil.copytree(pictures, pictures.parent / "sorted" / name)
    argv = {
        "classify": ["classify", pictures, "--labels", *LABELS],
        "search": ["search", pictures, "a dog"],
        "evaluate --zero-shot": [
            "evaluate",
            pictures.parent / "sorted",
            "--zero-shot",
            pictures.parent / "labels.txt",
        ],
    }[command]
    assert run(capsys, *argv, "--model", checkpoint)[0] in (0, None) and len(served) == 1


def refused(capsys, *argv, status: int, says: list[str]) -> None:
    """The contract of every error: this status, nothing on stdout, one line that names the culprit."""
    got, out, err = run(capsys, *argv)
    assert got == status, err
    assert out == ""
    assert err.count("\n") == 1 and "Traceback" not in err
    for words in says:
        assert str(words) in err


def test_json_holds_every_picture_in_order_with_probabilities_highest_first(capsys, checkpoint, pictures):
    named = pictures / "c.webp"
    argv = ["classify", named, pictures, "--labels", *LABELS, "--model", checkpoint, "--json"]
    status, out, err = run(capsys, *argv)
    assert status == 0 and err == ""
    document = json.loads(out)
    assert document["model"] == str(checkpoint)
    names = [Path(r["image"]).name for r in document["results"]]
    assert names == ["c.webp", "a.jpg", "b.png", "c.webp"]
    for result in document["results"]:
        p = [entry["probability"] for entry in result["labels"]]
        assert sorted(entry["label"] for entry in result["labels"]) == sorted(LABELS)
        assert p == sorted(p, reverse=True) and sum(p) == pytest.approx(1, abs=1e-5)
        logits = torch.tensor([entry["logit"] for entry in result["labels"]])
        assert torch.allclose(logits.softmax(0), torch.tensor(p), atol=1e-6)


def test_the_numbers_are_the_model_s_own_logits(capsys, checkpoint, pictures):
    image = pictures / "a.jpg"
    argv = ["classify", image, "--labels", *LABELS, "--model", checkpoint, "--json"]
    entries = json.loads(run(capsys, *argv)[1])["results"][0]["labels"]
    processor = AlignProcessor.from_pretrained(checkpoint)
    batch = processor(text=LABELS, images=Image.open(image), return_tensors="pt")
    logits = AlignModel.from_pretrained(checkpoint)(**batch).logits_per_image[0]
    expected = dict(zip(LABELS, logits.tolist(), strict=True))
    for entry in entries:
        assert entry["logit"] == pytest.approx(expected[entry["label"]], rel=1e-4)


def test_templates_average_normalized_embeddings(capsys, checkpoint, pictures):
    templates = ["a photo of a {}", "{} on a {}"]
    argv = ["classify", pictures / "b.png", "--labels", "dog", "apple", "--model", checkpoint, "--json"]
    argv += ["--template", templates[0], "--template", templates[1]]
    entries = json.loads(run(capsys, *argv)[1])["results"][0]["labels"]
    model, processor = AlignModel.from_pretrained(checkpoint), AlignProcessor.from_pretrained(checkpoint)
    batch = processor(
        text=["a photo of a dog", "dog on a dog"],
        images=Image.open(pictures / "b.png"),
        return_tensors="pt",
    )
    out = model(**batch)
    mean = out.text_embeds.mean(0)
    expected = (out.image_embeds @ (mean / mean.norm()) / model.temperature).item()
    assert next(e["logit"] for e in entries if e["label"] == "dog") == pytest.approx(expected, rel=1e-4)


def test_table_shows_the_label_as_given_with_percent_and_bar(capsys, checkpoint, pictures):
    status, out, err = run(
        capsys, "classify", pictures / "b.png", "--labels", "Äpfel & Birnen", "--model", checkpoint
    )
    assert (status, err) == (0, "")
    assert out == f"{pictures / 'b.png'}\n  Äpfel & Birnen  100.0%  {'█' * 30}\n"


def results(capsys, *argv) -> list[dict]:
    status, out, err = run(capsys, "classify", *argv, "--json")
    assert status == 0, err
    return json.loads(out)["results"]


def test_labels_may_stand_in_a_file_a_line_each(capsys, checkpoint, pictures, tmp_path):
    file = tmp_path / "labels.txt"
    file.write_bytes(b"\xef\xbb\xbfapple\r\n\r\nn02084071\tdog\r\nbicycle")  # of a class its label counts
    model = ["--model", checkpoint]
    expected = results(capsys, pictures, "--labels", *LABELS, *model)
    assert results(capsys, pictures, "--labels-file", file, *model) == expected
    assert sorted(entry["label"] for entry in expected[0]["labels"]) == sorted(LABELS)


def test_a_bad_labels_file_is_named_with_its_line(capsys, checkpoint, pictures, tmp_path):
    file = tmp_path / "labels.txt"
    argv = ["classify", pictures, "--model", checkpoint, "--labels-file"]
    for content, says in {
        b"dog\ncat\ndog\n": ["line 3", "'dog'", "twice"],
        b"dog\n\t\xe9": ["line 2", "UTF-8"],
        b"dog\t": ["line 1", "no label"],
        b"\n": ["no labels"],
    }.items():
        file.write_bytes(content)
        refused(capsys, *argv, file, status=1, says=[file, *says])
    refused(capsys, *argv, tmp_path / "none", status=1, says=[tmp_path / "none"])
    refused(capsys, *argv, tmp_path, status=1, says=[tmp_path, "folder"])
    refused(capsys, *argv, file, "--labels", "dog", status=2, says=["--labels-file", "--labels"])


def test_top_shows_the_likeliest_with_their_probabilities_among_all(capsys, checkpoint, pictures):
    argv = [pictures, "--labels", *LABELS, "--model", checkpoint]
    everything = results(capsys, *argv)
    for top in (1, 2, 3, 9):
        expected = [{"image": r["image"], "labels": r["labels"][:top]} for r in everything]
        assert results(capsys, *argv, "--top", top) == expected
    assert 0 < everything[0]["labels"][0]["probability"] < 1
    for value in ("0", "-1", "many"):
        refused(capsys, "classify", *argv, "--top", value, status=2, says=["--top", value])


def test_csv_holds_what_json_does_whatever_names_and_labels_are_made_of(capsys, checkpoint, pictures):
    for i, name in enumerate(['a,b;"c".png', "two\nlines.png", "carriage\rreturn.png", " spaces ,.png"]):
        Image.new("RGB", (20, 20), (0, 60 * i, 0)).save(pictures / name)
    labels = ["dog, cat", 'a "dog"', "dog\napple", "dog\rbicycle", "1.5"]
    argv = [pictures, "--labels", *labels, "--model", checkpoint]
    status, out, err = run(capsys, "classify", *argv, "--csv")
    assert (status, err) == (0, "")
    header, *rows = csv.reader(io.StringIO(out, newline=""), strict=True)
    assert header == ["image", "label", "probability", "logit"]
    expected = [
        (result["image"], e["label"], e["probability"], e["logit"])
        for result in results(capsys, *argv)
        for e in result["labels"]
    ]
    assert [(image, label, float(p), float(x)) for image, label, p, x in rows] == expected
    assert len(rows) == 7 * len(labels)


def test_a_name_that_is_not_utf_8_is_no_reason_to_fail(capsys, checkpoint, pictures, tmp_path):
    Image.new("RGB", (20, 20)).save(os.fsencode(pictures) + b"/caf\xe9.png")
    argv = ["classify", pictures, "--labels", "dog", "--model", checkpoint, "--html", tmp_path / "page.html"]
    status, out, err = run(capsys, *argv)
    assert (status, err) == (0, "")
    assert "caf\\udce9.png" in out and "caf\\udce9.png" in (tmp_path / "page.html").read_text(
        encoding="utf-8"
    )


def test_ensemble_is_the_shipped_templates(capsys, checkpoint, pictures):
    argv = [pictures, "--labels", *LABELS, "--model", checkpoint]
    given = [part for template in TEMPLATES for part in ("--template", template)]
    expected = results(capsys, *argv, *given)
    assert results(capsys, *argv, "--ensemble") == expected != results(capsys, *argv)
    argv = ["classify", *argv, "--ensemble", "--template", "a {}"]
    refused(capsys, *argv, status=2, says=["--ensemble", "--template"])


def test_html_comes_beside_the_answer_and_holds_every_picture(capsys, checkpoint, pictures, tmp_path):
    argv = ["classify", pictures, "--labels", *LABELS, "--model", checkpoint]
    for form in ([], ["--json"], ["--csv"]):
        path = tmp_path / f"page{len(form and form[0])}.html"
        assert run(capsys, *argv, *form, "--html", path) == run(capsys, *argv, *form)
        content = path.read_text(encoding="utf-8")
        assert content.count("<img ") == 3 and all(f">{x}</span>" in content for x in LABELS)


def test_of_the_forms_of_output_only_one_is_had(capsys, checkpoint, pictures):
    argv = ["classify", pictures, "--labels", *LABELS, "--model", checkpoint, "--csv", "--json"]
    refused(capsys, *argv, status=2, says=["--json", "--csv"])


def test_several_broken_pictures_in_a_folder_are_named_each_and_counted(capsys, checkpoint, pictures):
    (pictures / "empty.png").write_bytes(b"")
    (pictures / "deep").mkdir()
    (pictures / "deep" / "text.jpg").write_text("no picture")
    argv = ["classify", pictures, "--labels", *LABELS, "--model", checkpoint, "--json"]
    status, out, err = run(capsys, *argv)
    assert status == 0 and len(json.loads(out)["results"]) == 3
    lines = err.splitlines()
    assert len(lines) == 3 and all(line.startswith("align-minimal: warning: ") for line in lines)
    assert "deep/text.jpg" in lines[0] and "empty.png" in lines[1] and "2 pictures could not" in lines[2]


def test_a_folder_with_broken_pictures_only_is_status_1(capsys, checkpoint, tmp_path):
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(b"no picture")
    page = tmp_path / "page.html"
    argv = ["classify", tmp_path, "--labels", *LABELS, "--model", checkpoint, "--html", page]
    status, out, err = run(capsys, *argv)
    assert (status, out) == (1, "") and "Traceback" not in err and not page.exists()
    assert "no picture could be read" in err.splitlines()[-1] and "0.png" in err.splitlines()[-1]


def test_progress_is_shown_for_many_pictures_and_only_on_stderr(capsys, checkpoint, tmp_path):
    for i in range(40):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i:02}.png")
    argv = ["classify", tmp_path, "--labels", *LABELS, "--model", checkpoint, "--csv"]
    status, out, err = run(capsys, *argv)
    assert status == 0 and len(out.splitlines()) == 1 + 40 * len(LABELS)
    assert "0/40" in err and "picture" not in out
    (tmp_path / "39.png").unlink(), (tmp_path / "38.png").write_bytes(b"")
    status, out, err = run(capsys, *argv)
    assert status == 0 and len(out.splitlines()) == 1 + 38 * len(LABELS)
    warning = next(line for line in err.replace("\r", "\n").splitlines() if "warning" in line)
    assert warning.startswith("align-minimal: warning: skipped") and "38.png" in warning  # not amid the bar


def test_in_a_folder_a_broken_picture_is_skipped_with_a_warning(capsys, checkpoint, pictures):
    (pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n....")
    argv = ["classify", pictures, "--labels", *LABELS, "--model", checkpoint, "--json"]
    status, out, err = run(capsys, *argv)
    assert status == 0 and len(json.loads(out)["results"]) == 3
    assert err.count("\n") == 1 and "broken.png" in err and "skipped" in err


def test_the_same_broken_picture_named_ends_the_call(capsys, checkpoint, pictures):
    broken = pictures / "broken.png"
    broken.write_bytes((pictures / "b.png").read_bytes()[:60])
    argv = ["classify", pictures / "b.png", broken, "--labels", "dog", "--model", checkpoint]
    refused(capsys, *argv, status=1, says=["broken.png"])


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n"], ids=["empty", "text", "cut"])
def test_a_file_that_is_no_picture_is_named(capsys, checkpoint, tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    argv = ["classify", tmp_path / "x.png", "--labels", "dog", "--model", checkpoint]
    refused(capsys, *argv, status=1, says=["x.png"])


def test_a_decompression_bomb_is_refused(capsys, checkpoint, tmp_path):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    argv = ["classify", tmp_path / "bomb.png", "--labels", "dog", "--model", checkpoint]
    refused(capsys, *argv, status=1, says=["bomb.png"])


def test_missing_file_and_folder_without_pictures_are_named(capsys, checkpoint, tmp_path):
    tail = ["--labels", "dog", "--model", checkpoint]
    refused(capsys, "classify", tmp_path / "none.png", *tail, status=1, says=["none.png"])
    (tmp_path / "empty").mkdir()
    refused(capsys, "classify", tmp_path / "empty", *tail, status=1, says=["empty"])


def test_bad_usage_is_status_2(capsys, checkpoint, pictures):
    image = pictures / "a.jpg"
    refused(capsys, "classify", image, status=2, says=["--labels"])
    refused(capsys, "classify", image, "--labels", "dog", "", "--model", checkpoint, status=2, says=["empty"])
    argv = ["classify", image, "--labels", "dog", "--template", "a photo", "--model", checkpoint]
    refused(capsys, *argv, status=2, says=["a photo", "{}"])
    refused(capsys, "classify", image, "--labels", "dog", "--nonsense", status=2, says=["--nonsense"])
    argv = ["classify", image, "--labels", "dog", "cat", "dog", "--model", checkpoint]
    refused(capsys, *argv, status=2, says=["'dog'", "twice"])
    refused(capsys, "juggle", status=2, says=["juggle"])
    argv = ["classify", image, "--labels", "dog", "--device", "toaster", "--model", checkpoint]
    refused(capsys, *argv, status=2, says=["toaster"])


def copy(checkpoint: Path, target: Path, without: str = "") -> Path:
    target.mkdir()
    for file in checkpoint.iterdir():
        if file.name != without:
            (target / file.name).write_bytes(file.read_bytes())
    return target


@pytest.mark.parametrize(
    "lacking", ["config.json", "model.safetensors", "vocab.txt", "preprocessor_config.json"]
)
def test_a_model_folder_that_lacks_a_file_is_named_with_it(capsys, checkpoint, pictures, tmp_path, lacking):
    model = copy(checkpoint, tmp_path / "model", without=lacking)
    argv = ["classify", pictures, "--labels", "dog", "--model", model]
    refused(capsys, *argv, status=1, says=[model, lacking])


@pytest.mark.parametrize("broken", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_a_model_folder_with_a_cut_file_is_named_with_it(capsys, checkpoint, pictures, tmp_path, broken):
    model = copy(checkpoint, tmp_path / "model")
    (model / broken).write_bytes((model / broken).read_bytes()[:-20])
    refused(
        capsys, "classify", pictures, "--labels", "dog", "--model", model, status=1, says=[model / broken]
    )


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


def test_a_pickle_that_would_run_code_is_refused(capsys, checkpoint, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = copy(checkpoint, tmp_path / "model", without="model.safetensors")
    (model / "pytorch_model.bin").write_bytes(pickle.dumps({"temperature": Evil()}, protocol=2))
    argv = ["classify", pictures, "--labels", "dog", "--model", model]
    refused(capsys, *argv, status=1, says=[model / "pytorch_model.bin"])
    assert not (tmp_path / "ran").exists()


def test_where_the_shipped_model_is_used_it_is_said_what_it_knows(capsys):
    for command in ("classify", "search", "demo"):
        assert "knows drawings" in (out := " ".join(run(capsys, command, "--help")[1].split()))
        assert "kakaobrain/align-base" in out


def test_a_missing_model_is_named(capsys, pictures, tmp_path):
    argv = ["classify", pictures, "--labels", "dog", "--model", tmp_path / "no" / "such"]
    refused(capsys, *argv, status=1, says=[tmp_path / "no" / "such"])


def test_a_hub_name_offline_says_what_to_put_where(capsys, pictures, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    argv = ["classify", pictures, "--labels", "dog", "--model", "nobody/nothing"]
    refused(capsys, *argv, status=1, says=["nobody/nothing", "model.safetensors", "vocab.txt", "weights"])


def test_python_m_and_a_closed_pipe_end_without_a_traceback(checkpoint, pictures):
    argv = [sys.executable, "-m", "align_minimal", "classify", str(pictures), "--labels", *LABELS]
    argv += ["--model", str(checkpoint)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


# ---- odd circumstances


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "DATA", "--out", "OUT", "--init", ""],
        ["train", "DATA", "--out", "OUT", "--config", ""],
        ["train", "DATA", "--out", "OUT", "--vocab", ""],
        ["classify", "DATA", "--labels", "dog", "--html", ""],
        ["classify", "DATA", "--labels", "dog", "--model", ""],
        ["search", "DATA", "dog", "--index", ""],
        ["trace", "", "dog"],
    ],
    ids=lambda argv: " ".join(argv[:1] + argv[-2:]),
)
def test_the_name_of_an_unset_variable_changes_no_task_in_silence(capsys, argv):
    refused(capsys, *argv, status=2, says=["an empty name"])


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        RuntimeError("can't start new thread"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    ],
    ids=lambda error: str(error)[-20:],
)
def test_too_little_memory_is_no_mistake_of_ours(capsys, checkpoint, pictures, monkeypatch, error):
    monkeypatch.setattr(AlignModel, "get_image_features", lambda *given, **more: (_ for _ in ()).throw(error))
    argv = ["classify", pictures, "--labels", "dog", "--model", checkpoint]
    refused(capsys, *argv, status=1, says=[f"no memory left for this ({str(error) or 'MemoryError'})"])


def test_a_picture_for_which_no_memory_is_left_is_not_called_broken(
    capsys, checkpoint, pictures, monkeypatch
):
    def full(image):
        raise MemoryError

    monkeypatch.setattr("PIL.ImageOps.exif_transpose", full)
    argv = ["classify", pictures, "--labels", "dog", "--model", checkpoint]
    refused(capsys, *argv, status=1, says=["no memory left"])


@pytest.mark.parametrize("name", ["hpu", "privateuseone", "mkldnn", "no such"])
def test_a_device_that_is_not_there_is_named_in_a_line_that_can_be_read(capsys, pictures, name):
    argv = ["classify", pictures, "--labels", "dog", "--device", name]
    refused(capsys, *argv, status=2, says=[f"--device {name}: "])
    assert len(run(capsys, *argv)[2]) < 320


def test_a_page_has_the_longest_name_there_can_be_and_a_full_device_is_named(
    capsys, checkpoint, pictures, tmp_path
):
    page = tmp_path / ("x" * 250 + ".html")
    argv = ["classify", pictures, "--labels", "dog", "--model", checkpoint, "--html"]
    assert run(capsys, *argv, page)[0] == 0 and page.stat().st_size > 1000
    status, _, err = run(capsys, *argv, "/dev/full")
    assert status == 1 and err == "align-minimal: [Errno 28] No space left on device: '/dev/full'\n"


def test_a_row_whose_only_text_is_null_is_named(capsys, checkpoint, tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "caption": null}')
    says = ["metadata.jsonl, line 1: caption must be a string or a list of strings, not None"]
    refused(capsys, "evaluate", tmp_path, "--model", checkpoint, status=1, says=says)


def test_pairs_in_a_folder_whose_name_is_not_utf_8_are_evaluated(capsys, checkpoint, tmp_path):
    folder = tmp_path / os.fsdecode(b"pairs\xff")
    folder.mkdir()
    rows = []
    for name, color in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (40, 30), color).save(folder / name)
        rows.append(json.dumps({"file_name": name, "text": None, "caption": f"a {color} apple"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    status, out, err = run(capsys, "evaluate", folder, "--model", checkpoint, "--json")
    assert (status, json.loads(out)["texts"]) == (0, 2), err


@pytest.mark.parametrize(
    "argv, says",
    [
        (("evaluate", "nosuch"), "nosuch"),
        (("search", "nosuch", "a dog"), "nosuch: no such folder"),
        (("trace", "text.png", "a dog"), "text.png"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_the_data_are_looked_at_before_a_model_is_fetched(capsys, tmp_path, monkeypatch, argv, says):
    monkeypatch.chdir(tmp_path)
    Path("text.png").write_text("no picture")
    monkeypatch.setattr(AlignModel, "from_pretrained", lambda *given: pytest.fail("the model came first"))
    refused(capsys, *argv, status=1, says=[says])
