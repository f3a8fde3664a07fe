"""What a resumed run says of changes, and what it takes for whole."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from align_minimal import AlignConfig, AlignModel, AlignProcessor, BertTokenizer, EfficientNetImageProcessor
from align_minimal.__main__ import main
from align_minimal.training import command, loop, run_folder
from align_minimal.training.options import TrainOptions
from align_minimal.training.resume import check_same_run, warn_of_changes
from align_minimal.training.run_folder import Run, checkpoints, digest
from tests.training.tiny_training import (
    TEXTS,
    metrics,
    newest,
    same_bits,
    start,
    write_config,
    write_metadata,
    write_pairs,
)
from tests.using.test_cli import run


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    monkeypatch.setattr(command, "draw_curves", lambda run: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    write_pairs(folder / "data")
    write_config(folder / "config.json", dropout=0.0)
    BertTokenizer.train(TEXTS, 60).save_pretrained(folder / "vocabulary")
    return folder


def arguments(folder: Path, out: Path, *more, steps: int = 4) -> list[str]:
    argv = ["train", folder / "data", "--out", out, "--config", folder / "config.json", "--save-every", 2]
    return [str(a) for a in (*argv, "--steps", steps, "--batch-size", 8, "--recipe", "paper", *more)]


@pytest.fixture(scope="module")
def once(folder) -> Path:
    """A run of 4 steps, for `begun` alone to copy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "draw_curves", lambda run: None)
        assert main(arguments(folder, folder / "once")) == 0
    return folder / "once"


@pytest.fixture
def begun(once, tmp_path) -> Path:
    """A run of 4 steps: a copy, for each test to damage. What was one file of two names is so again."""
    out = Path(shutil.copytree(once, tmp_path / "out"))
    for path in newest(out).iterdir():
        if (once / path.name).exists() and (once / path.name).samefile(newest(once) / path.name):
            (out / path.name).unlink()
            os.link(path, out / path.name)
    return out


# ---- what changed


GOES_ON, ANEW = (1, 2), (2, 1)  # the epoch after step 5, of three batches an epoch, and the batches of it


@pytest.mark.parametrize(
    "more, says, position",
    [
        (
            ["--vocab-size", 60],
            "resuming with --vocab-size 60 has no effect: the run began without --vocab-size",
            GOES_ON,
        ),
        (["--vocab", "VOCAB"], "has no effect: the run began without --vocab", GOES_ON),
        (["--image-size", 32], "resuming with --image-size 32 has no effect", GOES_ON),
        (["--label-smoothing", 0.2], "resuming with label_smoothing 0.2, which was 0.1", GOES_ON),
        (["--lr", 0.5], "resuming with lr 0.5, which was 0.001", GOES_ON),
        (["--flip"], "resuming with flip True, which was False", GOES_ON),
        (["--seed", 3], "resuming with seed 3, which was 0", ANEW),
        (["--batch-size", 6], "resuming with batch_size 6, which was 8", ANEW),
        (["--filter"], "resuming with filter True, which was False", ANEW),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_every_option_that_changed_is_told_and_another_order_begins_with_an_epoch(
    folder, begun, capsys, monkeypatch, more, says, position
):
    monkeypatch.setattr(
        command, "filter_pairs", lambda pairs: {"kept": 24}
    )  # the paper's would leave nothing
    more = [folder / "vocabulary" / "vocab.txt" if m == "VOCAB" else m for m in more]
    status, _, err = run(capsys, *arguments(folder, begun, "--resume", *more, steps=5))
    assert status == 0 and says in err and "resuming at step 4" in err
    assert len(metrics(begun)) == 5
    reached = json.loads((newest(begun) / "training.json").read_text())["position"]
    assert (reached["epoch"], reached["taken"]) == position


@pytest.mark.parametrize(
    "name, before, now, same",
    [
        ("seed", 0, 1, False),
        ("batch_size", 8, 16, False),
        ("filter", False, True, False),
        ("data", ["a"], ["b"], False),
        ("contents of data", "abc", "abd", False),
        ("lr", 0.1, 0.2, True),
        ("flip", False, True, True),
    ],
)
def test_the_order_is_another_where_what_decides_it_has_changed(name, before, now, same):
    with pytest.warns(UserWarning, match="resuming with"):
        assert warn_of_changes({name: before, "tile": 1}, {name: now, "tile": 1}) is same


@pytest.mark.parametrize(
    "name, before, now, says",
    [
        ("optimizer", "lamb", "adamw", "with --optimizer lamb"),
        ("freeze", None, "image", "without --freeze"),
        ("freeze", "image", None, "with --freeze image"),
    ],
)
def test_what_is_learnt_and_by_what_cannot_change_half_way(name, before, now, says):
    with pytest.raises(ValueError, match=f"^run: was trained {says}, and must go on with it$"):
        check_same_run({name: before}, {name: now}, Path("run"))


def test_another_preset_config_or_init_has_no_effect_and_that_is_told(folder, begun, capsys, tmp_path):
    argv = arguments(folder, begun, "--resume", steps=5)
    argv[argv.index("--config") : argv.index("--config") + 2] = ["--preset", "b3_mini"]
    status, _, err = run(capsys, *argv)
    assert (
        status == 0
        and "resuming with --preset b3_mini has no effect: the run began with --preset emoji" in err
    )
    assert "resuming without --config has no effect" in err
    write_config(folder / "config.json", dropout=0.1)
    try:
        status, _, err = run(capsys, *arguments(folder, begun, "--resume", steps=6))
    finally:
        write_config(folder / "config.json", dropout=0.0)
    assert status == 0 and "resuming with other contents of config has no effect" in err


def test_metadata_edited_in_place_is_told_and_used_from_a_new_epoch_on(folder, tmp_path, capsys):
    data = Path(shutil.copytree(folder / "data", tmp_path / "data"))
    argv = arguments(folder, tmp_path / "out")
    argv[1] = str(data)
    assert main(argv) == 0
    lines = (data / "metadata.jsonl").read_text().splitlines(keepends=True)
    (data / "metadata.jsonl").write_text("".join(lines[:20]))  # three batches an epoch before, now two
    status, _, err = run(capsys, *argv, "--resume", "--steps", 5)
    assert status == 0 and "resuming with data that have changed: a new epoch begins" in err
    position = json.loads((newest(tmp_path / "out") / "training.json").read_text())["position"]
    assert (position["epoch"], position["taken"]) == (2, 1)  # the second epoch, which had begun, is not ended


def test_nothing_is_told_where_nothing_changed(folder, begun, capsys):
    status, _, err = run(capsys, *arguments(folder, begun, "--resume", "--save-every", 1, "--keep", 1))
    assert status == 0 and "resuming with" not in err


@pytest.mark.parametrize("before, after", [((), ("--temperature", 0.05)), (("--temperature", 0.05), ())])
def test_a_temperature_cannot_be_held_or_freed_half_way(folder, tmp_path, capsys, before, after):
    out = tmp_path / "out"
    assert main(arguments(folder, out, *before)) == 0
    status, _, err = run(capsys, *arguments(folder, out, "--resume", *after))
    assert status == 1 and "temperature" in err.splitlines()[-1] and "must go on with it" in err


def test_a_temperature_below_a_thousandth_is_held_too(folder, tmp_path):
    assert main(arguments(folder, tmp_path / "out", "--temperature", "0.0005")) == 0
    assert [row["temperature"] for row in metrics(tmp_path / "out")] == pytest.approx([0.0005] * 4)


def test_after_a_loss_that_is_not_finite_the_error_says_what_to_change(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loop, "contrastive_loss", lambda *a, **k: a[0].sum() * torch.nan)
    status, _, err = run(capsys, *arguments(folder, tmp_path / "out"))
    assert status == 1 and "resuming meets it again, unless you give a lower --lr" in err


# ---- what is whole


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "optimizer.safetensors", "vocab.txt", "config.json", "preprocessor_config.json"],
)
def test_a_file_damaged_in_place_makes_the_run_resume_from_the_checkpoint_before(folder, begun, capsys, name):
    flip_a_bit(newest(begun) / name)
    status, _, err = run(capsys, *arguments(folder, begun, "--resume"))
    assert status == 0 and f"step-0000004/{name}: not the file that was saved" in err
    assert "resuming at step 2\n" in err


def forge(checkpoint: Path, change) -> None:
    """Change the moments, and the digest too, as another program would that wrote them."""
    path, training = checkpoint / "optimizer.safetensors", checkpoint / "training.json"
    tensors = change(load_file(path))
    path.unlink()
    save_file(tensors, path)
    content = json.loads(training.read_text())
    content["files"][path.name] = digest(path)
    training.write_text(json.dumps(content))


FORGED = {
    "a moment missing": lambda t: {k: v for k, v in t.items() if k != "3.m"},
    "no counts": lambda t: {k: v for k, v in t.items() if not k.endswith(".step")},
    "a scalar for a moment": lambda t: t | {"0.v": torch.tensor(1.0)},
    "of another model": lambda t: t | {"0.m": torch.zeros(3, 3)},
    "of more parameters": lambda t: t | {"999.m": torch.zeros(3)},
    "empty": lambda t: {},
}


@pytest.mark.parametrize("change", FORGED.values(), ids=FORGED)
def test_moments_that_do_not_fit_are_passed_over_too(folder, begun, capsys, change):
    forge(newest(begun), change)
    status, _, err = run(capsys, *arguments(folder, begun, "--resume"))
    assert status == 0 and "passed over: " in err and "optimizer.safetensors: " in err, err
    assert "resuming at step 2\n" in err and "Traceback" not in err


@pytest.mark.parametrize(
    "change",
    [
        {"drawn": 10**18},
        {"drawn": True},
        {"step": True, "drawn": True},
        {"step": -1},
        {"step": 5, "drawn": 4},
        {"position": {"epoch": 0}},
        {"position": None},
        {"files": []},
    ],
    ids=str,
)
def test_a_training_json_with_values_that_cannot_be_is_passed_over_at_once(folder, begun, capsys, change):
    path = newest(begun) / "training.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    status, _, err = run(capsys, *arguments(folder, begun, "--resume"))
    assert status == 0 and "passed over: " in err and "training.json" in err and "resuming at step 2\n" in err


def test_metrics_lines_without_their_keys_are_no_obstacle(folder, begun, capsys, monkeypatch):
    with open(begun / "metrics.jsonl", "a") as file:
        file.write('{"step": 4}\n{"loss": 1}\n[3]\n{"step": "x"}\n')
    monkeypatch.undo()
    status, _, err = run(capsys, *arguments(folder, begun, "--resume"))
    assert status == 0 and "Traceback" not in err
    command.draw_curves(loop.Run(begun, 1))


def test_a_pipe_in_the_place_of_metrics_is_refused_and_not_waited_for(folder, begun, capsys):
    (begun / "metrics.jsonl").unlink()
    os.mkfifo(begun / "metrics.jsonl")
    status, _, err = run(capsys, *arguments(folder, begun, "--resume"))
    assert status == 1 and "metrics.jsonl: not a regular file" in err


def test_a_folder_whose_name_is_not_utf_8_can_be_trained_into_and_resumed(folder, tmp_path, capsys):
    out = tmp_path / os.fsdecode(b"out\xff")
    for steps, more in ((4, ()), (6, ("--resume",))):
        status, _, err = run(capsys, *arguments(folder, out, *more, steps=steps))
        assert status == 0 and "passed over" not in err, err
    assert len(metrics(out)) == 6 and AlignModel.from_pretrained(out)


def test_what_was_not_given_is_what_the_run_began_with_however_long_it_gets(folder, tmp_path, capsys):
    """A short run takes AdamW by itself, and one of 10,000 steps LAMB."""
    argv = ["train", folder / "data", "--out", tmp_path / "out", "--config", folder / "config.json"]
    assert run(capsys, *argv, "--steps", 2, "--batch-size", 8)[0] == 0
    options = TrainOptions([folder / "data"], tmp_path / "out", resume=True, steps=10_000)
    begun = command.prepare_data(options)[0]
    assert (begun.optimizer, begun.batch_size, begun.lr) == ("adamw", 8, 1e-3)
    asked = command.prepare_data(dataclasses.replace(options, recipe="paper"))[0]
    assert asked.optimizer == "lamb"


def test_pictures_that_the_filter_drops_since_are_noticed(tmp_path, capsys):
    """Their sizes stand in no metadata."""
    data = tmp_path / "data"
    write_pairs(data)
    rows = [json.loads(line) for line in (data / "metadata.jsonl").read_text().splitlines()]
    write_metadata(data, [row | {"text": f"a {row['text']} bar"} for row in rows])
    for path in data.glob("*.png"):
        Image.open(path).resize((240, 240)).save(path)
    write_config(tmp_path / "config.json")
    argv = arguments(tmp_path, tmp_path / "out", "--filter")
    assert run(capsys, *argv)[0] == 0
    assert "data that have changed" not in run(capsys, *argv, "--resume")[2]
    Image.open(data / "0.png").resize((24, 24)).save(data / "0.png")
    assert "resuming with data that have changed: a new epoch begins" in run(capsys, *argv, "--resume")[2]


# ---- two runs, and killed workers


WAIT = """
import os, sys, time
from align_minimal.__main__ import main
from align_minimal.training import loop
learn = loop.Trainer.learn
def slow(self, batch):
    os.write(1, b"learning\\n")
    time.sleep(60)
loop.Trainer.learn = slow
main(sys.argv[1:])
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_a_second_run_into_the_same_folder_is_refused_and_a_killed_one_blocks_nobody(
    folder, tmp_path, capsys, workers
):
    """A worker lives for up to five seconds longer, but does not hold the lock."""
    out = tmp_path / "out"
    with start([sys.executable, "-c", WAIT, *arguments(folder, out, "--workers", workers)]) as process:
        assert process.stdout.readline() == "learning\n"
        for more in ((), ("--resume",)):
            status, printed, err = run(capsys, *arguments(folder, out, *more))
            assert (status, printed) == (1, "")
            assert err.splitlines()[-1] == f"align-minimal: {out}: another run is training into this folder"
        process.kill()
    assert run(capsys, *arguments(folder, out))[0] == 0
    assert len(metrics(out)) == 4


def test_a_file_system_without_locks_is_said_and_trained_on(folder, tmp_path, capsys, monkeypatch):
    def refuse(file, how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(run_folder.fcntl, "lockf", refuse)
    status, _, err = run(capsys, *arguments(folder, tmp_path / "out"))
    assert status == 0 and "run.lock: cannot be locked (Function not implemented" in err


@pytest.mark.parametrize("name", ["run.lock", "checkpoints/step-0000004/training.json"])
def test_a_pipe_in_the_run_s_folder_is_not_waited_for(folder, begun, capsys, name):
    (begun / name).unlink(missing_ok=True)
    os.mkfifo(begun / name)
    status, _, err = run(capsys, *arguments(folder, begun, "--resume"))
    assert (status == 1) == (name == "run.lock") and f"{begun / name}: not a regular file" in err


KILL_WORKER = """
import multiprocessing, os, signal, sys, time
from align_minimal.__main__ import main
from align_minimal.training import loop
learn = loop.Trainer.learn
def kill(self, batch):
    if self.step == 1:
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        time.sleep(1)
    return learn(self, batch)
loop.Trainer.learn = kill
sys.exit(main(sys.argv[1:]))
"""


def test_a_worker_that_was_killed_is_called_that(folder, tmp_path):
    argv = arguments(folder, tmp_path / "out", "--workers", 1, steps=30)
    done = subprocess.run(
        [sys.executable, "-c", KILL_WORKER, *argv], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert "a worker (process " in last and "was killed from outside" in last and "the batch was" not in last


# ---- the best model, a frozen tower, another size


def test_the_best_model_is_kept_beside_the_last(folder, tmp_path, capsys, monkeypatch):
    """R@1 by step: 0.25, 0.75, 0.5; then a resumed run finds no better."""
    scores = iter([0.25, 0.75, 0.5, 0.5, 0.5])

    def measured(model, processor, pairs):
        model.eval()
        ways = {"R@1": next(scores), "R@5": 1.0, "R@10": 1.0}
        return {"images": 24, "texts": 24, "image_to_text": ways, "text_to_image": ways}

    monkeypatch.setattr(loop, "evaluate", measured)
    monkeypatch.setattr(command, "evaluate", measured)
    out, more = tmp_path / "out", ("--eval", folder / "data", "--eval-every", 2, "--keep", 9)
    status, _, err = run(capsys, *arguments(folder, out, *more, steps=6))
    assert status == 0 and f"the best model, of step 4, is in {out / 'best'}" in err
    assert json.loads((out / "best" / "evaluation.json").read_text())["step"] == 4
    same = (out / "checkpoints" / "step-0000004" / "model.safetensors").read_bytes()
    assert (out / "best" / "model.safetensors").read_bytes() == same
    assert same != (out / "model.safetensors").read_bytes()
    assert run(capsys, *arguments(folder, out, *more, "--resume", steps=6))[0] == 0
    assert json.loads((out / "best" / "evaluation.json").read_text())["step"] == 4


def test_a_best_model_measured_on_other_pairs_is_replaced_and_that_is_said(folder, tmp_path, capsys):
    """One pair is always found. That says nothing of 24."""
    one, out = write_pairs(tmp_path / "one", texts=TEXTS[:1]), tmp_path / "out"
    argv = arguments(folder, out, "--eval", one, "--eval-every", 4)
    assert run(capsys, *argv)[0] == 0
    assert json.loads((out / "best" / "evaluation.json").read_text())["image_to_text"]["R@1"] == 1.0
    more = ("--eval", folder / "data", "--eval-every", 6, "--resume")
    status, _, err = run(capsys, *arguments(folder, out, *more, steps=6))
    assert status == 0 and "best: measured on other pairs than --eval's now, so replaced" in err
    found = json.loads((out / "best" / "evaluation.json").read_text())
    assert found["step"] == 6 and found["image_to_text"]["R@1"] < 1
    status, _, err = run(capsys, *arguments(folder, out, *more, steps=6))
    assert status == 0 and "other pairs" not in err


def test_a_measurement_that_fails_loses_no_step(folder, tmp_path, capsys, monkeypatch):
    """The pictures of --eval are gone at step 3, two steps after the last checkpoint."""

    def gone(model, processor, pairs):
        raise FileNotFoundError("eval/1.png: no such file")

    monkeypatch.setattr(loop, "evaluate", gone)
    out = tmp_path / "out"
    argv = arguments(folder, out, "--eval", folder / "data", "--eval-every", 3)
    status, _, err = run(capsys, *argv)
    assert status == 1 and err.splitlines()[-1] == "align-minimal: eval/1.png: no such file"
    assert newest(out).name == "step-0000003"
    monkeypatch.undo()
    status, _, err = run(capsys, *argv, "--resume")
    assert status == 0 and "resuming at step 3" in err


@pytest.mark.parametrize("name", ["best", ".before-best"])
@pytest.mark.parametrize("more", [(), ("--resume",)], ids=["afresh", "resumed"])
def test_a_folder_of_the_user_s_that_is_called_best_is_not_replaced(folder, tmp_path, capsys, name, more):
    out = tmp_path / "out"
    (out / name).mkdir(parents=True)
    (out / name / "thesis.bin").write_text("precious")
    status, _, err = run(capsys, *arguments(folder, out, *more))
    assert (
        status == 1
        and err == f"align-minimal: {out / name}: not of a run to go on with, so it is not replaced\n"
    )
    assert [path.name for path in out.rglob("*")] == [name, "thesis.bin"]


def test_the_best_of_an_older_run_is_not_taken_for_this_one_s(folder, begun, capsys):
    """Its checkpoints and model were deleted, and a new run begins. One that goes on may have been killed."""
    shutil.move(newest(begun), begun / "best")
    shutil.rmtree(begun / "checkpoints")
    for path in run_folder.model_files(begun):
        (begun / path).unlink()
    status, _, err = run(capsys, *arguments(folder, begun))
    assert status == 1 and "best: not of a run to go on with" in err
    assert run(capsys, *arguments(folder, begun, "--resume"))[0] == 0


def test_hidden_files_of_the_user_s_stay(folder, begun, capsys):
    files = [begun / name for name in (".config.json.original", ".notes.txt.20240101", ".photo.png.download")]
    for path in files:
        path.write_text("precious")
    folders = [begun / name for name in (".best.old", "checkpoints/.step-notes")]
    for path in folders:
        path.mkdir()
    assert run(capsys, *arguments(folder, begun, "--resume"))[0] == 0
    assert all(path.exists() for path in files + folders)


@pytest.mark.parametrize("made", ["from a file", "relative"])
def test_other_models_resume_to_the_same_bits(folder, tmp_path, monkeypatch, made):
    whole, out = tmp_path / "whole", tmp_path / "out"
    install, addresses = loop.Trainer.install, []

    def spy(trainer, *given):
        install(trainer, *given)
        addresses.extend(t.data_ptr() for t in trainer.model.parameters())

    monkeypatch.setattr(loop.Trainer, "install", spy)
    argv = arguments(folder, whole, "--keep", 9)
    if made == "relative":  # whose table of absolute ones takes no part
        content = json.loads((folder / "config.json").read_text())
        content["text_config"]["position_embedding_type"] = "relative_key_query"
        path = argv[argv.index("--config") + 1] = str(tmp_path / "relative.json")
        Path(path).write_text(json.dumps(content))
    else:  # of real size: the sums of small matrices have one order alone
        tokenizer = BertTokenizer.from_pretrained(folder / "vocabulary")
        config = AlignConfig.preset("emoji")
        config.text_config.vocab_size = len(tokenizer)
        torch.manual_seed(0)
        AlignModel(config).save_pretrained(tmp_path / "model")
        AlignProcessor(EfficientNetImageProcessor(size=96), tokenizer).save_pretrained(tmp_path / "model")
        place = argv.index("--config")
        argv[place : place + 2] = ["--init", str(tmp_path / "model")]
    assert main(argv) == 0
    shutil.copytree(whole, out)
    shutil.rmtree(newest(out))  # as if it had been killed at step 3
    argv[argv.index(str(whole))] = str(out)
    assert main([*argv, "--resume"]) == 0
    assert [row["step"] for row in metrics(out)] == [1, 2, 3, 4] and same_bits(out, whole)
    assert addresses and not any(address % 64 for address in addresses)  # not a file's pages


def test_what_was_measured_at_the_last_step_is_measured_once(folder, begun, tmp_path, monkeypatch):
    measured, evaluate = [], loop.evaluate

    def count(*given):
        measured.append(given)
        return evaluate(*given)

    monkeypatch.setattr(loop, "evaluate", count)
    monkeypatch.setattr(command, "evaluate", count)
    out = tmp_path / "measured"
    assert main(arguments(folder, out, "--eval", folder / "data", "--eval-every", 2)) == 0
    assert len(measured) == 2 and (out / "evaluation.json").exists() and (out / "best").exists()


@pytest.mark.parametrize("cropped", [True, False])
def test_pictures_that_are_not_square_are_refused_from_init_too(folder, begun, tmp_path, capsys, cropped):
    model = Path(shutil.copytree(begun, tmp_path / "model"))
    content = json.loads((model / "preprocessor_config.json").read_text())
    wide = {"height": 16, "width": 24}
    content |= {"do_center_crop": cropped, "crop_size" if cropped else "size": wide}
    (model / "preprocessor_config.json").write_text(json.dumps(content))
    argv = arguments(folder, tmp_path / "tuned", "--init", model)
    del argv[argv.index("--config") : argv.index("--config") + 2]
    status, _, err = run(capsys, *argv)
    assert status == 1 and "[16, 24] is not square" in err and "Traceback" not in err
    assert run(capsys, *argv, "--image-size", 16)[0] == 0


def test_measuring_on_the_way_changes_nothing_of_what_is_learnt(folder, begun, tmp_path):
    out = tmp_path / "measured"
    assert main(arguments(folder, out, "--eval", folder / "data", "--eval-every", 1)) == 0
    assert (out / "model.safetensors").read_bytes() == (begun / "model.safetensors").read_bytes()


@pytest.mark.parametrize("tower, other", [("image", "text"), ("text", "image")])
def test_a_frozen_tower_keeps_every_bit_and_the_other_learns(folder, begun, tmp_path, tower, other):
    argv = arguments(folder, tmp_path / "tuned", "--init", begun, "--freeze", tower)
    del argv[argv.index("--config") : argv.index("--config") + 2]
    assert main(argv) == 0
    before, after = (AlignModel.from_pretrained(p).state_dict() for p in (begun, tmp_path / "tuned"))
    of = {"image": ("vision_model",), "text": ("text_model", "text_projection")}
    frozen = [name for name in before if name.startswith(of[tower])]
    assert frozen and all(torch.equal(before[name], after[name]) for name in frozen)
    learnt = [n for n in before if n.startswith(of[other]) and "pooler" not in n]
    assert any(not torch.equal(before[name], after[name]) for name in learnt)


def test_freezing_or_measuring_nothing_is_bad_usage(folder, tmp_path, capsys):
    for more, says in ((("--freeze", "image"), "--init"), (("--eval-every", 2), "--eval")):
        with pytest.raises(SystemExit) as status:
            main(arguments(folder, tmp_path / "o", *more))
        assert status.value.code == 2 and says in capsys.readouterr().err


def test_the_pictures_side_can_be_chosen_for_a_new_model_and_a_tuned_one(folder, begun, tmp_path):
    from align_minimal import AlignProcessor

    assert main(arguments(folder, tmp_path / "new", "--image-size", 24)) == 0
    argv = arguments(folder, tmp_path / "tuned", "--init", begun, "--image-size", 24)
    del argv[argv.index("--config") : argv.index("--config") + 2]
    assert main(argv) == 0
    for out in ("new", "tuned"):
        processor = AlignProcessor.from_pretrained(tmp_path / out).image_processor
        assert processor.crop_size == {"height": 24, "width": 24} and processor.size["height"] == 29
        assert AlignModel.from_pretrained(tmp_path / out).config.vision_config.image_size == 24


def test_the_model_at_the_top_is_the_checkpoint_s_own_file(once, begun):
    assert (once / "model.safetensors").samefile(newest(once) / "model.safetensors")
    assert (begun / "model.safetensors").samefile(newest(begun) / "model.safetensors")
    shutil.rmtree(newest(begun))
    AlignModel.from_pretrained(begun)
    assert len(checkpoints(begun)) == 1


def test_a_signal_before_the_first_step_of_a_resumed_run_saves_nothing_anew(
    folder, begun, capsys, monkeypatch
):
    meet = loop.Trainer.meet

    def signalled(self, batch, received):
        os.kill(os.getpid(), signal.SIGTERM)
        return meet(self, batch, received)

    monkeypatch.setattr(loop.Trainer, "meet", signalled)
    status, _, err = run(capsys, *arguments(folder, begun, "--resume", steps=9))
    assert status == 143 and "stopped by SIGTERM, saved step 4" in err and len(metrics(begun)) == 4


def test_a_run_that_was_copied_without_its_lock_resumes(folder, begun, capsys):
    (begun / "run.lock").unlink()
    (begun / "evaluation.json").write_text("{}")
    assert run(capsys, *arguments(folder, begun, "--resume"))[0] == 0


def test_a_best_model_that_was_moved_aside_comes_back(tmp_path):
    """Killed between two renames: the old one waits, the new one is half known."""
    run, aside = Run(tmp_path, keep=1), tmp_path / ".before-best"
    for rubbish in (aside, tmp_path / ".best.123"):
        rubbish.mkdir()
        (rubbish / "evaluation.json").write_text(rubbish.name)
    run.tidy(0)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["best"]
    assert (tmp_path / "best" / "evaluation.json").read_text() == ".before-best"


def test_a_best_model_that_cannot_be_put_in_place_leaves_the_one_before(tmp_path, monkeypatch):
    model, processor = AlignModel.from_pretrained("emoji"), AlignProcessor.from_pretrained("emoji")
    run, score = Run(tmp_path, keep=1), dict.fromkeys(("R@1", "R@5", "R@10"), 0.5)
    low, high = ({"image_to_text": {k: v * s for k, v in score.items()}} for s in (1, 2))
    low["text_to_image"], high["text_to_image"] = low["image_to_text"], high["image_to_text"]
    run.keep_best(model, processor, low)
    replace = os.replace

    def refuse(source, target):
        if Path(source).name.startswith(".best."):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(run_folder.os, "replace", refuse)
    with pytest.raises(OSError, match="best: could not be written"):
        run.keep_best(model, processor, high)
    assert [p.name for p in tmp_path.iterdir()] == ["best"]
    assert json.loads((tmp_path / "best" / "evaluation.json").read_text()) == low
    monkeypatch.setattr(run_folder.os, "replace", replace)
    run.keep_best(model, processor, high)
    assert json.loads((tmp_path / "best" / "evaluation.json").read_text()) == high
    assert [p.name for p in tmp_path.iterdir()] == ["best"]
