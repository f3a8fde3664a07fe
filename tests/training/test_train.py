"""Training: what is computed, and that a run cut short and resumed ends in the bits of a whole one."""

import json
import math
import os
import signal
import sys
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError

from align_minimal import AlignModel, AlignProcessor, contrastive_loss
from align_minimal.__main__ import main
from align_minimal.commands.flags import parse
from align_minimal.training import command, loop, run_folder
from align_minimal.training.build import new_model
from align_minimal.training.dataset import Pairs
from align_minimal.training.lamb import parameter_groups
from align_minimal.training.options import TrainOptions
from align_minimal.training.run_folder import checkpoints
from align_minimal.training.step import learning_rate, loss_floor, reason
from tests.training.tiny_training import (
    TEXTS,
    metrics,
    newest,
    same_bits,
    start,
    write_config,
    write_pairs,
)
from tests.using.test_cli import run


class Killed(BaseException):
    """Passes every handler, as a kill would."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    write_pairs(folder / "data")
    write_config(folder / "config.json")
    return folder


@pytest.fixture(autouse=True)
def no_curves(request, monkeypatch):
    """Drawing takes longer than the training here; one test draws."""
    if "curves" not in request.node.name:
        monkeypatch.setattr(command, "draw_curves", lambda run: None)


def arguments(folder: Path, out: Path, *more) -> list[str]:
    argv = ["train", folder / "data", "--out", out, "--config", folder / "config.json"]
    argv += ["--steps", 6, "--batch-size", 8, "--save-every", 2, "--recipe", "paper", *more]
    return [str(a) for a in argv]


@pytest.fixture(scope="module")
def whole(folder) -> Path:
    """A run that nothing interrupts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "draw_curves", lambda run: None)
        assert main(arguments(folder, folder / "whole")) == 0
    return folder / "whole"


def at_step(monkeypatch, step: int, action) -> None:
    """Call `action` just before that step is learnt."""
    learn = loop.Trainer.learn

    def learn_or_act(self, batch):
        if self.step + 1 == step:
            action()
        return learn(self, batch)

    monkeypatch.setattr(loop.Trainer, "learn", learn_or_act)


def kill_at(monkeypatch, step: int, argv: list[str]) -> None:
    def kill():
        raise Killed

    with monkeypatch.context() as patch:
        at_step(patch, step, kill)
        with pytest.raises(Killed):
            main(argv)


# ---- pieces ------------------------------------------------------------------------------------------------


def test_a_short_run_forgets_where_batch_norm_s_averages_started(folder):
    options = TrainOptions(data=[], out=folder, config=folder / "config.json")
    for steps, momentum in ((500, 0.96), (1999, 0.98999), (2000, 0.99), (100_000, 0.99)):
        model, _ = new_model(options, Pairs([folder / "data"]), steps)
        assert model.config.vision_config.batch_norm_momentum == pytest.approx(momentum, abs=1e-5)
        assert model.vision_model.stem.bn.momentum == pytest.approx(1 - momentum, abs=1e-5)
        assert momentum**steps < 2e-9  # what is left of the start


def test_fewer_pairs_than_processes_are_refused(tmp_path, monkeypatch):
    data = write_pairs(tmp_path / "data", TEXTS[:1])
    options = TrainOptions(data=[data], out=tmp_path / "out", batch_size=8)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="data: batches of 1, less than a pair for each process"):
        command.prepare_data(options)


def test_no_step_carries_the_temperature_past_0(folder, tmp_path, monkeypatch):
    class Plunge(torch.optim.SGD):
        @torch.no_grad()
        def step(self):
            for group in self.param_groups:
                if group["name"] == "temperature":
                    group["params"][0].sub_(1)

    make = lambda options, model: Plunge(parameter_groups(model, 0.0), lr=1.0)  # noqa: E731
    monkeypatch.setattr(loop, "new_optimizer", make)
    assert main(arguments(folder, tmp_path / "out")) == 0
    assert [row["temperature"] for row in metrics(tmp_path / "out")] == pytest.approx([1e-3] * 6)


@pytest.mark.parametrize(
    "steps, warmup, expected",
    [
        (4, 0, [1, 0.75, 0.5, 0.25]),
        (4, 1, [1, 0.75, 0.5, 0.25]),
        (5, 2, [0.5, 1, 0.75, 0.5, 0.25]),
        (3, 3, [1 / 3, 2 / 3, 1]),
        (2, 4, [0.25, 0.5]),
    ],
)
def test_the_rate_rises_to_its_peak_and_falls_to_zero_after_the_last_step(steps, warmup, expected):
    rates = [2 * e for e in expected]
    got = [learning_rate(s, steps, warmup, peak=2.0) for s in range(1, steps + 1)]
    if warmup == 0 or warmup >= steps:
        assert got == pytest.approx(rates)
    else:
        assert got[warmup - 1] == 2.0 and got[-1] > 0
        assert got == pytest.approx(rates[:warmup] + falling(steps, warmup))


def falling(steps: int, warmup: int) -> list[float]:
    """From 2 at the end of warm-up, in equal strides that would reach 0 one step after the last."""
    return [2 * (1 - (s - warmup) / (steps - warmup + 1)) for s in range(warmup + 1, steps + 1)]


def test_no_loss_is_below_the_floor_and_a_perfect_one_is_on_it():
    pairs, smoothing = 6, 0.1
    right = 1 - smoothing + smoothing / pairs
    gap = math.log(right / (smoothing / pairs))  # the logits whose softmax is the smoothed target
    loss = contrastive_loss(torch.eye(pairs) * gap, torch.eye(pairs), 1.0, smoothing)
    assert loss.item() == pytest.approx(loss_floor(pairs, smoothing), abs=1e-6)
    assert loss_floor(1, 0.1) == loss_floor(7, 0.0) == 0


def test_of_a_worker_s_traceback_the_last_line_is_told():
    text = "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
    assert reason(ValueError(text + '  File "x.py"\nValueError: no room\n')) == "ValueError: no room"
    assert reason(MemoryError()) == "MemoryError"


# ---- learning ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer, rate", [("lamb", 0.1), ("adamw", 0.01)])
def test_it_learns_and_is_as_good_in_evaluation(capsys, tmp_path, optimizer, rate):
    """Loss falls in training mode; R@1 in evaluation mode stands on BatchNorm's running statistics."""
    data, out = write_pairs(tmp_path / "data", TEXTS[1::3]), tmp_path / "out"  # eight colours
    config = write_config(tmp_path / "config.json", dropout=0.0)
    argv = ["train", data, "--out", out, "--config", config, "--steps", 60, "--batch-size", 8, "--lr", rate]
    argv += ["--optimizer", optimizer, "--label-smoothing", 0, "--eval", data]
    status, printed, _ = run(capsys, *argv)
    assert status == 0
    losses = [row["loss"] for row in metrics(out)]
    assert sum(losses[-5:]) / 5 < 0.75 * math.log(8), losses[::6]
    recall = json.loads((out / "evaluation.json").read_text())
    assert recall["image_to_text"]["R@1"] >= 2 / 8 and recall["image_to_text"]["R@5"] > 0.85  # chance: 1/8
    assert "8 images, 8 texts" in printed and "R@1" in printed


def test_metrics_say_what_was_done_each_step_once(folder, whole):
    rows = metrics(whole)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    rates = [learning_rate(step, 6, 1, 1e-3) for step in range(1, 7)]
    assert [row["lr"] for row in rows] == rates
    assert all(row["pairs"] == 8 and row["log_n"] == pytest.approx(math.log(8)) for row in rows)
    assert all(row["floor"] == loss_floor(8, 0.1) < row["loss"] for row in rows)
    weights = AlignModel.from_pretrained(whole)
    assert rows[-1]["temperature"] == weights.temperature.item() != rows[0]["temperature"]


def test_a_temperature_that_is_held_stays_where_it_is_after_a_resume_too(folder, tmp_path, monkeypatch):
    held = arguments(folder, tmp_path / "out", "--temperature", "0.03125", "--resume", "--steps", "4")
    kill_at(monkeypatch, 4, held)
    assert main(held) == 0
    assert [row["temperature"] for row in metrics(tmp_path / "out")] == [1 / 32] * 4
    model = AlignModel.from_pretrained(tmp_path / "out")
    assert model.temperature.item() == 1 / 32 and model.temperature.requires_grad  # learnt, if tuned later


def test_epochs_are_counted_in_whole_batches(folder, tmp_path):
    argv = ["train", folder / "data", "--out", tmp_path / "out", "--config", folder / "config.json"]
    assert main([str(a) for a in (*argv, "--epochs", 2, "--batch-size", 10)]) == 0
    assert len(metrics(tmp_path / "out")) == 2 * (24 // 10)


def test_bf16_is_for_the_towers_and_the_loss_is_float32(folder, tmp_path, monkeypatch):
    seen = []

    def spy(text, image, temperature, *more):
        seen.append((text.dtype, image.dtype, temperature.dtype, torch.is_autocast_enabled("cpu")))
        return contrastive_loss(text, image, temperature, *more)

    inside = []
    build = AlignModel.__init__

    def build_with_spy(self, *args):
        build(self, *args)
        self.text_projection.register_forward_hook(lambda layer, given, result: inside.append(result.dtype))

    monkeypatch.setattr(loop, "contrastive_loss", spy)
    monkeypatch.setattr(AlignModel, "__init__", build_with_spy)
    assert main(arguments(folder, tmp_path / "out", "--precision", "bf16", "--steps", "2")) == 0
    assert set(seen) == {(torch.float32,) * 3 + (False,)} and set(inside) == {torch.bfloat16}
    stored = AlignModel.from_pretrained(tmp_path / "out").state_dict().values()
    assert {t.dtype for t in stored if t.is_floating_point()} == {torch.float32}


# ---- cut short and resumed ---------------------------------------------------------------------------------

WAYS = {
    "lamb, a worker": ("--workers", "1"),
    "adamw": ("--optimizer", "adamw"),
    "chunks, the last of two": ("--chunk", "3", "--tile", "2"),
}


@pytest.mark.parametrize("more", WAYS.values(), ids=WAYS)
def test_resumed_it_ends_in_the_same_bits(folder, whole, tmp_path, monkeypatch, capsys, more):
    """Killed at step 4, so that step 3 is done again. With dropout and drop-connect."""
    if "--workers" not in more:  # how many workers there are changes nothing
        whole = tmp_path / "whole"
        assert main(arguments(folder, whole, *more)) == 0
    out = tmp_path / "out"
    kill_at(monkeypatch, 4, arguments(folder, out, *more))
    assert [row["step"] for row in metrics(out)] == [1, 2, 3]
    (out / "metrics.jsonl").open("a").write('{"step": 4, "lo')
    assert main(arguments(folder, out, *more, "--resume")) == 0
    assert "resuming at step 2\n" in capsys.readouterr().err
    assert same_bits(out, whole)
    drop = lambda rows: [{k: v for k, v in r.items() if k != "pairs_per_second"} for r in rows]  # noqa: E731
    assert drop(metrics(out)) == drop(metrics(whole))


KILL = """
import os, signal, sys
from align_minimal.training import run_folder
from align_minimal.training import loop
from align_minimal.__main__ import main
write_json, learn = run_folder.write_json, loop.Trainer.learn
def while_writing(path, content):
    write_json(path, content)
    if {writing} and content.get("step") == 4:
        os.kill(os.getpid(), signal.SIGKILL)
def while_learning(self, batch):
    row = learn(self, batch)
    if not {writing} and self.step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return row
run_folder.write_json, loop.Trainer.learn = while_writing, while_learning
main(sys.argv[1:])
"""


@pytest.mark.parametrize("writing", [True, False], ids=["while a checkpoint is written", "while learning"])
def test_after_sigkill_it_ends_in_the_same_bits(folder, whole, tmp_path, writing):
    out = tmp_path / "out"
    script = KILL.format(writing=writing)
    with start([sys.executable, "-c", script, *arguments(folder, out)]) as process:
        process.communicate(timeout=200)
    assert process.returncode == -signal.SIGKILL
    left = [p.name for p in (out / "checkpoints").glob(".*")]
    assert len(left) == writing and newest(out).name == ("step-0000002" if writing else "step-0000004")
    (out / ".model.safetensors.abcd_123.tmp").write_text("cut off while it was written")
    assert main(arguments(folder, out, "--resume")) == 0
    assert same_bits(out, whole)
    assert [row["step"] for row in metrics(out)] == [1, 2, 3, 4, 5, 6]
    assert not [p for p in (*out.iterdir(), *(out / "checkpoints").iterdir()) if p.name.startswith(".")]


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_exits_and_the_rest_is_the_same_bits(
    folder, whole, tmp_path, monkeypatch, capsys, number, status
):
    out, before = tmp_path / "out", signal.getsignal(number)
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: os.kill(os.getpid(), number))
        assert main(arguments(folder, out)) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1] == f"align-minimal: stopped by {number.name}, saved step 3"
    assert newest(out).name == "step-0000003" and signal.getsignal(number) == before
    assert main(arguments(folder, out, "--resume")) == 0
    assert same_bits(out, whole)


def test_a_second_ctrl_c_ends_it_at_once_and_a_second_sigterm_does_not(folder, tmp_path, monkeypatch, capsys):
    def twice(number):
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)

    for number, status, steps in ((signal.SIGINT, 130, 2), (signal.SIGTERM, 143, 3)):
        out = tmp_path / number.name
        with monkeypatch.context() as patch:
            at_step(patch, 3, lambda n=number: twice(n))
            assert main(arguments(folder, out)) == status
        assert newest(out).name == f"step-000000{steps}" and len(metrics(out)) == steps
    assert "align-minimal: interrupted\n" in capsys.readouterr().err


BREAKS = {
    "weights cut": lambda p: os.truncate(p / "model.safetensors", 3000),
    "moments cut": lambda p: os.truncate(p / "optimizer.safetensors", 3000),
    "no vocabulary": lambda p: (p / "vocab.txt").unlink(),
    "no training.json": lambda p: (p / "training.json").unlink(),
    "bad JSON": lambda p: (p / "training.json").write_text('{"step": 6'),
    "no step": lambda p: (p / "training.json").write_text("{}"),
    "moments gone": lambda p: (p / "optimizer.safetensors").unlink(),
}


@pytest.mark.parametrize("damage", BREAKS.values(), ids=BREAKS)
def test_a_broken_newest_checkpoint_is_passed_over_with_a_warning(folder, whole, capsys, damage):
    run = run_folder.Run(whole, keep=3)
    broken = whole / "checkpoints" / "step-0000009"
    broken.mkdir()
    try:
        for file in newest(whole.parent / "whole").parent.joinpath("step-0000006").iterdir():
            (broken / file.name).write_bytes(file.read_bytes())
        damage(broken)
        with pytest.raises((OSError, ValueError), match="step-0000009"):
            run.load(broken)
        assert run.load(newest(whole).with_name("step-0000006"))[0]["step"] == 6
        assert main(arguments(folder, whole, "--resume")) == 0
        err = capsys.readouterr().err
        assert "passed over: " in err and "step-0000009" in err and "nothing to do: 6 steps" in err
    finally:
        for file in broken.iterdir():
            file.unlink()
        broken.rmdir()


def test_broken_checkpoints_do_not_push_out_whole_ones(folder, whole, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    kill_at(monkeypatch, 5, arguments(folder, out, "--keep", "1", "--save-every", "1"))
    later = out / "checkpoints" / "step-0000099"
    later.mkdir()
    kill_at(monkeypatch, 6, arguments(folder, out, "--keep", "1", "--save-every", "1", "--resume"))
    assert [p.name for p in checkpoints(out)] == ["step-0000099", "step-0000005"]
    later.rmdir()
    assert main(arguments(folder, out, "--keep", "1", "--resume")) == 0
    assert [p.name for p in checkpoints(out)] == ["step-0000006"] and same_bits(out, whole)


def test_keep_says_how_many_checkpoints_stay(whole, folder, tmp_path):
    assert [p.name for p in checkpoints(whole)] == ["step-0000006", "step-0000004", "step-0000002"]
    assert main(arguments(folder, tmp_path / "out", "--keep", "2")) == 0
    assert [p.name for p in checkpoints(tmp_path / "out")] == ["step-0000006", "step-0000004"]


def test_a_finished_run_resumed_renews_the_model_at_the_top(folder, whole, tmp_path, capsys):
    """A kill may have come between the last checkpoint and its copy; and 4 steps of 6 are nothing to do."""
    for steps in ("6", "4"):
        (whole / "model.safetensors").unlink()
        (whole / "model.safetensors").write_bytes(b"of an earlier step")
        assert main(arguments(folder, whole, "--steps", steps, "--resume")) == 0
        assert "nothing to do: 6 steps of " + steps in capsys.readouterr().err
        assert same_bits(whole, whole) and len(metrics(whole)) == 6


def test_a_checkpoint_of_another_model_or_optimizer_is_refused(folder, whole, tmp_path, capsys):
    status, out, err = run(capsys, *arguments(folder, whole, "--optimizer", "adamw", "--resume"))
    assert (status, out) == (1, "") and "--optimizer lamb" in err and "Traceback" not in err
    weight = torch.nn.Parameter(torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"optimizer\.safetensors: made for another model"):
        run_folder.load_optimizer(torch.optim.AdamW([weight]), newest(whole))


# ---- what ends a run ---------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_it_and_names_step_and_batch(folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    calls = []

    def sometimes(*args):
        calls.append(1)
        return contrastive_loss(*args) * (math.nan if len(calls) == 4 else 1)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "contrastive_loss", sometimes)
        status, printed, err = run(capsys, *arguments(folder, out))
    error = err.splitlines()[-1]
    assert (status, printed) == (1, "") and error.startswith("align-minimal: step 4: the loss is nan; ")
    failed = json.loads((out / "failed_batch.json").read_text())
    assert failed["step"] == 4 and len(failed["names"]) == 8
    assert failed["names"][0] in error and str(out / "failed_batch.json") in error
    assert newest(out).name == "step-0000002" and len(metrics(out)) == 3
    weights = AlignModel.from_pretrained(newest(out)).state_dict().values()
    assert all(t.isfinite().all() for t in weights if t.is_floating_point())


@pytest.mark.parametrize("rate", ["1e30", "1e39"])
def test_a_rate_that_blows_the_weights_up_ends_it_in_one_line(folder, tmp_path, capsys, rate):
    argv = arguments(folder, tmp_path / "out", "--lr", rate, "--warmup", "0", "--save-every", "1")
    status, out, err = run(capsys, *argv)
    assert (status, out) == (1, "") and "Traceback" not in err
    assert err.splitlines()[-1].startswith("align-minimal: ")


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")]
)
def test_a_full_disk_leaves_the_earlier_checkpoint_whole(folder, whole, tmp_path, monkeypatch, capsys, error):
    out, save_file, calls = tmp_path / "out", run_folder.save_file, []

    def full(tensors, path, *more):
        calls.append(1)
        if len(calls) > 1:
            Path(path).write_bytes(b"half")
            raise error
        save_file(tensors, path, *more)

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "save_file", full)
        status, printed, err = run(capsys, *arguments(folder, out))
    assert (status, printed) == (1, "")
    last = err.splitlines()[-1]
    assert last.startswith("align-minimal: ") and "step-0000004" in last and "No space left" in last
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step-0000002"]
    assert not [p for p in out.iterdir() if p.name.startswith(".")]
    assert main(arguments(folder, out, "--resume")) == 0
    assert same_bits(out, whole)


# ---- the checkpoint ----------------------------------------------------------------------------------------


def test_transformers_loads_what_was_trained_and_computes_the_same(folder, whole):
    transformers = pytest.importorskip("transformers")
    model, processor = AlignModel.from_pretrained(whole), AlignProcessor.from_pretrained(whole)
    batch = processor(text=TEXTS[:3], images=[image(folder, i) for i in range(3)], return_tensors="pt")
    theirs = transformers.AlignProcessor.from_pretrained(whole)
    again = theirs(
        text=TEXTS[:3],
        images=[image(folder, i) for i in range(3)],
        return_tensors="pt",
        max_length=16,
        padding="max_length",
        truncation=True,
    )
    reference = transformers.AlignModel.from_pretrained(whole).eval()
    batch = {k: v[:, :16] if k != "pixel_values" else v for k, v in batch.items()}
    assert torch.equal(batch["input_ids"], again["input_ids"])
    assert (batch["pixel_values"] - again["pixel_values"]).abs().max() < 2.1 / 255
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, hf = model(**batch), reference(**batch)
    assert torch.allclose(ours.logits_per_image, hf.logits_per_image, rtol=1e-4, atol=1e-4)


def image(folder: Path, i: int) -> Image.Image:
    return Image.open(folder / "data" / f"{i}.png").convert("RGB")


def test_curves_are_a_png_and_without_matplotlib_a_warning(whole, monkeypatch):
    pytest.importorskip("matplotlib")
    command.draw_curves(run_folder.Run(whole, keep=3))
    assert Image.open(whole / "curves.png").format == "PNG"
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.warns(UserWarning, match="matplotlib"):
        command.draw_curves(run_folder.Run(whole, keep=3))


# ---- help --------------------------------------------------------------------------------------------------


def test_help_explains_every_flag(capsys):
    with pytest.raises(SystemExit) as status:
        main(["train", "--help"])
    out, err = capsys.readouterr()
    assert status.value.code == 0 and err == ""
    for flag in ("--chunk", "--tile", "--resume", "--init", "--vocab", "--precision", "--eval", "--filter"):
        assert f"\n  {flag}" in out
    _, parser = parse(["train", "data", "--out", "run"])
    assert [a.dest for a in parser._actions if len((a.help or "").split()) < 2] == []


def test_the_padding_token_is_the_vocabulary_s_own(tmp_path):
    """In BERT's it is number 0; in this one that is a word, which must learn."""
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("cat\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n[PAD]\ndog\n")
    options = TrainOptions(data=[], out=tmp_path, preset="emoji", vocab=str(vocab))
    model, processor = new_model(options, Pairs([]), 2000)
    assert processor.tokenizer.pad_token_id == model.config.text_config.pad_token_id == 5
    assert model.text_model.embeddings.word.padding_idx == 5
