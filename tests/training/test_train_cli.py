"""`align-minimal train`: usage, bad input, choices of model and vocabulary; and under torchrun."""

import gc
import json
import math
import multiprocessing
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from align_minimal import AlignModel, AlignProcessor, BertTokenizer, contrastive_loss
from align_minimal.__main__ import main
from align_minimal.support.hub import weights_folder
from align_minimal.training import command, loop, run_folder
from align_minimal.training.batches import BatchStream, Prepare
from align_minimal.training.build import new_model
from align_minimal.training.dataset import Pairs
from align_minimal.training.loop import Trainer
from align_minimal.training.options import TrainOptions
from align_minimal.training.processes import Processes, ctypes, keep_freed_memory, processes
from align_minimal.training.run_folder import checkpoints, model_files
from align_minimal.training.step import PairEncoder
from tests.lab import warm
from tests.training.tiny_training import (
    TEXTS,
    metrics,
    newest,
    program,
    start,
    write_config,
    write_metadata,
    write_pairs,
)
from tests.using.test_cli import refused, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("a folder, größer")
    write_pairs(folder / "data")
    write_config(folder / "config.json", dropout=0.0)
    return folder


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    monkeypatch.setattr(command, "draw_curves", lambda run: None)


def arguments(folder: Path, out: Path, *more, config: bool = True) -> list[str]:
    argv = [
        "train",
        folder / "data",
        "--out",
        out,
        "--steps",
        2,
        "--batch-size",
        8,
        "--recipe",
        "paper",
        *more,
    ]
    return [str(a) for a in (*argv, *(("--config", folder / "config.json") if config else ()))]


@pytest.mark.parametrize(
    "more, says",
    [
        (["--steps", "0"], ["--steps", "0"]),
        (["--steps", "2", "--epochs", "2"], ["--epochs"]),
        (["--batch-size", "x"], ["--batch-size", "x"]),
        (["--lr", "-1"], ["--lr", "-1"]),
        (["--lr", "nan"], ["--lr", "nan"]),
        (["--temperature", "0"], ["--temperature", "above 0"]),
        (["--temperature", "1e300"], ["--temperature", "1e300"]),
        (["--temperature", "1e-50"], ["--temperature", "1e-50"]),
        (["--seed", str(10**25)], ["--seed", str(10**25)]),
        (["--steps", str(10**400)], ["--steps", "more than"]),
        (["--workers", "1000000"], ["--workers", "1000000"]),
        (["--label-smoothing", "1"], ["--label-smoothing", "1"]),
        (["--warmup", "-1"], ["--warmup", "-1"]),
        (["--workers", "-1"], ["--workers", "-1"]),
        (["--device", "toaster"], ["--device", "toaster"]),
        (["--optimizer", "sgd"], ["sgd", "lamb"]),
        (["--init", "x", "--preset", "b3_mini"], ["--init"]),
        (["--vocab", "x", "--vocab-size", "9"], ["--vocab"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_bad_usage_is_status_2_in_one_line(capsys, folder, tmp_path, more, says):
    refused(capsys, *arguments(folder, tmp_path / "out", *more, config=False), status=2, says=says)
    assert not (tmp_path / "out").exists()


def test_the_flags_of_a_step_reach_the_parts_that_they_are_for(folder, tmp_path, monkeypatch):
    """None of these values is a default."""
    seen = {}

    def watch(name: str) -> None:
        real = getattr(loop, name)

        def spy(*given, **named):
            seen[name] = given, named
            return real(*given, **named)

        monkeypatch.setattr(loop, name, spy)

    for name in ("contrastive_loss", "split", "Prepare"):
        watch(name)
    more = "--tile 3 --chunk 4 --flip --augment drawings --label-smoothing 0.2"
    assert main(arguments(folder, tmp_path / "out", *more.split())) == 0
    assert seen["contrastive_loss"][0][3:5] == (0.2, 3)
    assert seen["split"][0][1] == 4
    assert seen["Prepare"][1]["augmentation"] == "drawings" and seen["Prepare"][1]["flip"] is True


def test_out_and_data_must_be_given_and_init_brings_its_vocabulary(capsys, folder, tmp_path):
    refused(capsys, "train", folder / "data", status=2, says=["--out"])
    refused(capsys, "train", "--out", tmp_path / "out", status=2, says=["DATA"])
    argv = ["train", folder / "data", "--out", tmp_path / "out", "--init", "x", "--vocab", "y"]
    refused(capsys, *argv, status=2, says=["--vocab", "--init"])


def test_bad_data_and_folders_are_status_1_in_one_line(capsys, folder, tmp_path):
    out = tmp_path / "out"
    argv = ("--out", out, "--steps", 2, "--config", folder / "config.json")
    refused(capsys, "train", tmp_path / "none", *argv, status=1, says=[tmp_path / "none"])
    data = write_pairs(tmp_path / "data", TEXTS[:3])
    (data / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a"}\n{"file_name": "1.p\n')
    refused(capsys, "train", data, *argv, status=1, says=["metadata.jsonl, line 2"])
    refused(capsys, "train", folder / "data", *argv, "--eval", data, status=1, says=["jsonl, line 2"])
    file = tmp_path / "file"
    file.write_text("a file")
    refused(capsys, *arguments(folder, file), status=1, says=[file, "not a folder"])
    refused(capsys, *arguments(folder, file / "out"), status=1, says=[file])
    assert not out.exists()


def test_a_folder_with_a_model_is_refused_without_resume(capsys, folder, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"precious")
    refused(capsys, *arguments(folder, tmp_path), status=1, says=[tmp_path, "--resume"])
    assert (tmp_path / "model.safetensors").read_bytes() == b"precious"


def copied_model(folder: Path, out: Path) -> Path:
    return Path(shutil.copytree(weights_folder() / "emoji", out))


def broken_run(folder: Path, out: Path) -> Path:
    assert main(arguments(folder, out, "--save-every", 1)) == 0
    for checkpoint in checkpoints(out):
        (checkpoint / "training.json").write_text("{")
    return out


def broken_run_without_a_model(folder: Path, out: Path) -> Path:
    for name in model_files(broken_run(folder, out)):
        (out / name).unlink()
    return out


def only_a_vocabulary(folder: Path, out: Path) -> Path:
    out.mkdir()
    (out / "vocab.txt").write_text("precious")
    return out


@pytest.mark.parametrize("make", [copied_model, broken_run, broken_run_without_a_model, only_a_vocabulary])
def test_without_a_checkpoint_to_resume_from_resume_destroys_nothing(capsys, folder, tmp_path, make):
    out = make(folder, tmp_path / "out")
    capsys.readouterr()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    status, printed, err = run(capsys, *arguments(folder, out, "--resume"))
    assert (status, printed) == (1, "") and "Traceback" not in err
    assert err.splitlines()[-1].startswith(f"align-minimal: {out}: ") and "another --out" in err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "content, says",
    [
        ("{", "JSON"),
        ("[]", "list"),
        ('{"vision_config": {"image_size": "16"}}', "image_size"),
        ('{"vision_config": {"image_size": [16, 24]}}', "image_size=[16, 24] is not square"),
        ('{"text_config": 3}', "text_config"),
    ],
)
def test_a_bad_config_is_named(capsys, folder, tmp_path, content, says):
    (tmp_path / "config.json").write_text(content)
    argv = arguments(folder, tmp_path / "out", "--config", tmp_path / "config.json", config=False)
    refused(capsys, *argv, status=1, says=[tmp_path / "config.json", says])


def test_a_config_is_named_once_however_its_path_is_written(capsys, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("c.json").write_text("{")
    argv = arguments(folder, tmp_path / "out", "--config", "./c.json", config=False)
    refused(capsys, *argv, status=1, says=["align-minimal: ./c.json: not valid JSON"])


def test_a_batch_too_small_for_the_processes_is_named_also_where_it_is_the_default(
    capsys, folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("WORLD_SIZE", "65")
    argv = ["train", str(folder / "data"), "--out", str(tmp_path / "out")]
    refused(capsys, *argv, status=2, says=["--batch-size 64: less than a pair for each process"])


def test_an_init_or_vocabulary_that_is_not_there_is_named(capsys, folder, tmp_path):
    none = tmp_path / "no" / "model"
    refused(capsys, *arguments(folder, tmp_path / "o", "--init", none, config=False), status=1, says=[none])
    (tmp_path / "empty").mkdir()
    argv = arguments(folder, tmp_path / "o", "--init", tmp_path / "empty", config=False)
    refused(capsys, *argv, status=1, says=[tmp_path / "empty"])
    refused(
        capsys, *arguments(folder, tmp_path / "o", "--vocab", tmp_path / "v"), status=1, says=[tmp_path / "v"]
    )


def test_unreadable_images_are_named_once_counted_and_skipped(capsys, folder, tmp_path):
    data = write_pairs(tmp_path / "data", TEXTS[:8])
    (data / "0.png").write_bytes(b"no picture")
    (data / "3.png").unlink()
    argv = ["train", data, "--out", tmp_path / "out", "--config", folder / "config.json", "--batch-size", 8]
    status, out, err = run(capsys, *argv, "--epochs", 3)
    assert (status, out) == (0, "")
    assert err.count("warning: skipped: ") == 2 and "2 images could not be read" in err
    assert [row["pairs"] for row in metrics(tmp_path / "out")] == [6, 6, 6]


def test_nothing_readable_is_an_error(capsys, folder, tmp_path):
    data = write_pairs(tmp_path / "data", TEXTS[:3])
    for path in data.glob("*.png"):
        path.write_bytes(b"no picture")
    argv = ["train", data, "--out", tmp_path / "out", "--config", folder / "config.json"]
    refused(capsys, *argv, status=1, says=[data, "no image can be read"])


def test_a_batch_larger_than_the_data_and_a_single_pair_are_trained_on_with_a_warning(
    capsys, folder, tmp_path
):
    for count in (3, 1):
        data = write_pairs(tmp_path / f"data{count}", TEXTS[:count])
        out = tmp_path / f"out{count}"
        argv = ["train", data, "--out", out, "--config", folder / "config.json", "--steps", 2, "--warmup", 5]
        argv += ["--recipe", "paper"]
        status, _, err = run(capsys, *argv)
        assert status == 0 and f"batches of {count} only" in err and "longer than the 2 there are" in err
        assert [row["pairs"] for row in metrics(out)] == [count, count]


def test_resume_with_nothing_starts_afresh_and_changed_flags_are_told(capsys, folder, tmp_path):
    out = tmp_path / "missing" / "parent" / "out"
    status, _, err = run(capsys, *arguments(folder, out, "--resume"))
    assert status == 0 and "warning" in err and "afresh" in err
    status, _, err = run(capsys, *arguments(folder, out, "--resume", "--batch-size", 6, "--steps", 3))
    assert status == 0 and "resuming at step 2\n" in err
    assert "batch_size 6, which was 8" in err and "steps 3, which was 2" in err
    assert [(row["step"], row["pairs"]) for row in metrics(out)] == [(1, 8), (2, 8), (3, 6)]


def test_a_vocabulary_is_learnt_given_or_brought_by_init(capsys, folder, tmp_path):
    learnt = tmp_path / "learnt"
    assert run(capsys, *arguments(folder, learnt, "--vocab-size", 60))[0] == 0
    expected = BertTokenizer.train(TEXTS, 60)
    assert AlignProcessor.from_pretrained(learnt).tokenizer.vocab == expected.vocab
    assert AlignModel.from_pretrained(learnt).config.text_config.vocab_size == len(expected)
    given = tmp_path / "given"
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nred\nleft\n")
    assert run(capsys, *arguments(folder, given, "--vocab", tmp_path / "vocab.txt"))[0] == 0
    assert len(AlignProcessor.from_pretrained(given).tokenizer) == 7
    tuned = tmp_path / "tuned"
    argv = arguments(folder, tuned, "--init", given, "--lr", 0, config=False)
    assert run(capsys, *argv)[0] == 0
    for name in ("vocab.txt", "preprocessor_config.json"):
        assert (tuned / name).read_bytes() == (given / name).read_bytes()
    before, after = (dict(AlignModel.from_pretrained(p).named_parameters()) for p in (given, tuned))
    assert all(torch.equal(before[name], after[name]) for name in before)  # at rate 0: it began there


@pytest.mark.parametrize("flag", ["--config", "--vocab"])
def test_a_pipe_is_refused_and_not_waited_for(capsys, folder, tmp_path, flag):
    os.mkfifo(tmp_path / "pipe")
    argv = arguments(folder, tmp_path / "out", flag, tmp_path / "pipe", config=flag != "--config")
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("waits for the pipe"))
    signal.alarm(20)
    try:
        refused(capsys, *argv, status=1, says=[tmp_path / "pipe"])
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_filter_says_what_it_drops(capsys, folder, tmp_path):
    status, out, err = run(capsys, *arguments(folder, tmp_path / "out", "--filter"))
    assert (status, out) == (1, "")  # pictures of 24 × 24 are all too small for the paper
    assert "200 pixels" in err and err.count("\n") == 1
    from PIL import Image

    data = write_pairs(tmp_path / "data", TEXTS[:6])
    rows = []
    for i in range(6):
        Image.open(data / f"{i}.png").resize((210, 210)).save(data / f"{i}.png")
        rows.append({"file_name": f"{i}.png", "text": f"a bar of {TEXTS[i]}" if i else "bar"})
    write_metadata(data, rows)
    argv = ["train", data, "--out", tmp_path / "out", "--config", folder / "config.json", "--filter"]
    status, out, err = run(capsys, *argv, "--steps", 1, "--batch-size", 5)
    assert (status, out) == (0, "") and "filter: 5 kept; 1 texts of fewer than 3" in err


def test_what_was_trained_classifies_and_evaluates(capsys, folder, tmp_path):
    out = tmp_path / "out"
    status, printed, _ = run(capsys, *arguments(folder, out, "--eval", folder / "data"))
    assert status == 0 and "24 images, 24 texts" in printed
    _, printed, _ = run(capsys, "evaluate", folder / "data", "--model", out, "--json")
    recall = json.loads(printed)
    assert {k: v for k, v in recall.items() if k != "model"} == json.loads(
        (out / "evaluation.json").read_text()
    )
    argv = ["classify", folder / "data" / "0.png", "--labels", "red", "green", "--model", out]
    assert run(capsys, *argv)[0] == 0


def test_a_worker_that_fails_ends_it_in_one_line(capsys, folder, tmp_path, monkeypatch):
    def fail(self, pairs, seed):
        raise KeyError("of a bug")

    monkeypatch.setattr(Prepare, "__call__", fail)
    status, out, err = run(capsys, *arguments(folder, tmp_path / "out", "--workers", 1))
    assert (status, out) == (1, "") and "Traceback" not in err
    assert err.splitlines()[-1].startswith("align-minimal: step 1: ") and "of a bug" in err
    assert multiprocessing.active_children() == []  # or Python would wait for it for ever


# ---- under torchrun ----------------------------------------------------------------------------------------

TWO = ("--standalone", "--nproc_per_node", "2")


def launch(argv: list[str], limit: float = 280) -> tuple[int, str, str]:
    """Exit status, stdout and stderr; a run that takes longer than `limit` seconds fails the test."""
    with start(argv) as process:
        try:
            out, err = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun ends its processes, too
            pytest.fail(f"still running after {limit:.0f} seconds: {process.communicate()[1]}")
    return process.returncode, out, err


def first_loss(folder: Path, out: Path) -> float:
    """Of the untrained model on the global batch; each process normalizes its own share (BatchNorm)."""
    options = TrainOptions(data=[], out=out, config=folder / "config.json")
    pairs = Pairs([folder / "data"])
    model, processor = new_model(options, pairs, steps=4)
    prepare = Prepare(processor.image_processor, processor.tokenizer, max_tokens=16)
    encode, shares = PairEncoder(model.train(), "float32"), []
    for rank in range(2):
        batch = next(iter(BatchStream(pairs, prepare, 9, 0, rank=rank, world=2)))
        shares.append(encode(batch)[:2])
    text, image = (torch.cat(share) for share in zip(*shares, strict=True))
    return contrastive_loss(text, image, model.temperature).item()


def test_processes_that_see_different_folders_do_not_begin(tmp_path, monkeypatch):
    """One resumes at step 4. For the other, on a machine of its own, there is nothing to resume from."""
    options = TrainOptions(data=[], out=tmp_path, steps=9, batch_size=8, resume=True)
    group = Processes()
    monkeypatch.setattr(group, "gather", lambda step, drawn: [[4, 4], [step, drawn]])
    monkeypatch.setattr(loop, "new_model", lambda *given: (None, None))
    trainer = Trainer(options, group, Pairs([]))
    monkeypatch.setattr(trainer, "install", lambda model, processor: None)
    with pytest.raises(ValueError, match=r"would go on from steps \[0, 4\]; all must see the same --out"):
        trainer.begin()


def test_two_processes_train_as_one_and_resume(folder, tmp_path):
    """9 pairs a step: 5 here, 4 there. Once started as a module, once as a program."""
    out = tmp_path / "out"
    argv = arguments(folder, out, "--steps", 4, "--batch-size", 9, "--save-every", 2)
    status, printed, err = launch(program(*argv, module="align_minimal", torchrun=TWO))
    assert (status, printed) == (0, ""), err
    assert [(row["step"], row["pairs"]) for row in metrics(out)] == [(s, 9) for s in (1, 2, 3, 4)]
    assert metrics(out)[0]["loss"] == pytest.approx(first_loss(folder, out), rel=1e-5)
    assert metrics(out)[0]["log_n"] == math.log(9)
    whole = (out / "model.safetensors").read_bytes()
    shutil.rmtree(newest(out))
    command = [sys.executable, "-m", "torch.distributed.run", *TWO, "--no-python"]
    command += [str(Path(sys.executable).parent / "align-minimal"), *argv, "--resume"]
    if not Path(command[-len(argv) - 2]).exists():
        command = program(*argv, "--resume", torchrun=TWO)
    status, printed, err = launch(command)
    assert (status, printed) == (0, "") and err.count("resuming at step 2") == 1, err
    assert (out / "model.safetensors").read_bytes() == whole
    assert [row["step"] for row in metrics(out)] == [1, 2, 3, 4]


UNEVEN = {
    "7 pairs: 2 chunks and 1": (["--batch-size", 7, "--chunk", 3], None),
    "8 pairs, one unreadable": (["--batch-size", 8, "--chunk", 3], 5),
}
SEVERAL = """
import gc, json, os, sys
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from align_minimal.__main__ import main
from align_minimal.training import command
command.draw_curves = lambda run: None
gc.disable()  # only what the package takes apart itself is gone in time
leave = dist.destroy_process_group
def leave_alone():
    assert not [thing for thing in gc.get_objects() if isinstance(thing, DistributedDataParallel)]
    leave()
dist.destroy_process_group = leave_alone
rank, runs = sys.argv[1], json.loads(sys.argv[2])
os.environ |= dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
for port, argv in runs:
    os.environ["MASTER_PORT"] = port
    if status := main(argv):
        sys.exit(status)
    print("done", flush=True)
"""


def free_ports(count: int) -> list[str]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [str(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def uneven(place: Path, more: list, broken: int | None) -> list:
    data = write_pairs(place / "data", TEXTS[:8] if broken else TEXTS[:7])
    if broken:
        (data / f"{broken}.png").write_bytes(b"no picture")
    config = write_config(place / "config.json")
    return ["train", data, "--out", place / "out", "--config", config, *more, "--steps", 3]


@pytest.fixture(scope="module")
def several(folder, tmp_path_factory) -> tuple[list, Path]:
    """Five runs, one by one in the same two processes: each one's (status, done, stderr), and their place."""
    place = tmp_path_factory.mktemp("several")
    runs = [uneven(place / name, *case) for name, case in UNEVEN.items()]
    argv = ["train", folder / "data", "--config", folder / "config.json", "--steps", 2, "--batch-size", 8]
    runs += [[*argv, "--out", place / f"again {i}"] for i in range(3)]
    ports = free_ports(len(runs))
    content = json.dumps([(port, list(map(str, argv))) for port, argv in zip(ports, runs, strict=True)])
    ranks = [start([sys.executable, "-c", SEVERAL, rank, content]) for rank in ("0", "1")]
    results = []
    for rank in ranks:
        try:
            out, err = rank.communicate(timeout=100)
        except subprocess.TimeoutExpired:
            for each in ranks:
                each.kill()
            out, err = rank.communicate()
        results.append((rank.returncode, out.count("done"), err))
    return results, place


@pytest.mark.parametrize("number, name", list(enumerate(UNEVEN, 1)), ids=UNEVEN)
def test_ranks_with_different_numbers_of_chunks_do_not_wait_for_each_other(several, number, name):
    results, place = several
    assert all(done >= number for _, done, _ in results), results
    assert [(row["step"], row["pairs"]) for row in metrics(place / name / "out")] == [(1, 7), (2, 7), (3, 7)]


def test_the_process_group_is_left_after_distributed_data_parallel_is_freed(several):
    """Freed after its group, it hung in 3 of 4 processes that trained six times."""
    results, place = several
    assert [(status, done) for status, done, _ in results] == [(0, 5), (0, 5)], results
    assert all(len(metrics(place / f"again {i}")) == 2 for i in range(3))


def test_what_lies_in_a_circle_is_freed_before_the_process_group(monkeypatch):
    class Wrapper:
        pass

    at_the_end = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "init_process_group", lambda backend: None)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: at_the_end.append(alive()))
    gc.disable()  # it would come at a time of its own
    try:
        with processes("cpu"):
            wrapper = Wrapper()
            wrapper.circle = wrapper
            alive = weakref.ref(wrapper)
            del wrapper
    finally:
        gc.enable()
    assert at_the_end == [None]


FAIL = """
import os, sys
from align_minimal.__main__ import main
from align_minimal.support.hub import weights_folder
from align_minimal.training import loop
from align_minimal.__main__ import main
learn = loop.Trainer.learn
def fail(self, batch):
    if self.group.rank == 1 and self.step == 1:
        raise ValueError("of rank one alone")
    return learn(self, batch)
loop.Trainer.learn = fail
sys.exit(main(sys.argv[1:]))
"""


def test_a_rank_that_fails_ends_the_run_with_its_error(folder, tmp_path):
    (tmp_path / "fail.py").write_text(FAIL)
    argv = arguments(folder, tmp_path / "out", "--steps", 50)
    command = [sys.executable, "-m", "torch.distributed.run", *TWO, str(tmp_path / "fail.py"), *argv]
    with start(command) as process:
        seen, since = [], None
        for line in process.stderr:
            seen.append(line)
            if "of rank one alone" in line and since is None:
                since = time.monotonic()
        process.wait(timeout=280)
    assert since is not None, "".join(seen)
    assert process.returncode != 0 and time.monotonic() - since < 30
    assert "align-minimal: process 1: of rank one alone\n" in "".join(seen)


def test_one_process_needs_no_tensor_to_wait():
    """On MPS there is no float64. A tensor on the meta device has no numbers to give back."""
    group = Processes(device="meta")
    assert group.gather(2.5, 1) == [[2.5, 1.0]]
    group.wait()


@pytest.mark.parametrize("name", run_folder.BESIDE)
def test_another_program_s_file_is_not_replaced(tmp_path, capsys, name):
    write_pairs(tmp_path / "data")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    argv = ["train", tmp_path / "data", "--out", tmp_path / "out"]
    refused(capsys, *argv, status=1, says=[name, "not replaced"])
    assert [(p.name, p.read_text()) for p in (tmp_path / "out").iterdir()] == [(name, "mine")]


@pytest.mark.parametrize(
    "argv", [["", "--out", "run"], ["data", "--out", ""], ["data", "--out", "a", "--eval", ""]]
)
def test_an_empty_name_is_not_the_current_folder(tmp_path, capsys, monkeypatch, argv):
    monkeypatch.chdir(tmp_path)
    refused(capsys, "train", *argv, status=2, says=["an empty name"])
    assert list(tmp_path.iterdir()) == []


FAULTS = """
import resource, sys, torch
from align_minimal.training.processes import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def faults(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        del [torch.ones(2**mebibytes * 2**18) for mebibytes in (3, 5, 6)][:]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(2)
print(faults(5))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries cannot be told")
def test_what_a_step_frees_is_not_mapped_anew_by_the_next(tmp_path):
    (tmp_path / "faults.py").write_text(FAULTS)
    usual, kept = (int(warm.python(tmp_path / "faults.py", how).stdout) for how in ("usual", "kept"))
    assert kept < usual / 3


def test_a_run_keeps_the_memory_that_its_steps_free_and_goes_on_where_malloc_cannot_be_told(
    folder, tmp_path, monkeypatch
):
    told = []
    monkeypatch.setattr(command, "keep_freed_memory", lambda: told.append(True))
    assert main(arguments(folder, tmp_path / "out")) == 0 and told == [True]
    for missing in (
        lambda name: object(),
        lambda name: Path("none").stat(),
    ):  # no such function; no such library
        monkeypatch.setattr(ctypes, "CDLL", missing)
        keep_freed_memory()
