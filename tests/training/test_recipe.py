"""Defaults follow the length of the run, and what it cannot reach is said before it starts."""

import json
import time
import warnings

import pytest
import torch

from align_minimal import AlignConfig, AlignModel
from align_minimal.support.hub import find_file, weights_folder
from align_minimal.support.outputs import Batch
from align_minimal.training import command, loop
from align_minimal.training.batches import batches_in
from align_minimal.training.build import new_optimizer
from align_minimal.training.dataset import Pairs
from align_minimal.training.lamb import Lamb
from align_minimal.training.loop import steps_of
from align_minimal.training.options import PAPER, SHORT, TrainOptions, resolve
from align_minimal.training.step import cannot_reach, learning_rate, split
from tests.training.tiny_training import metrics, newest, write_config, write_pairs
from tests.using.test_cli import run

CHOICES = ("batch_size", "optimizer", "lr", "weight_decay")


def chosen(steps: int, **given) -> dict:
    options = resolve(TrainOptions(data=[], out="run", **given), steps)
    return {name: getattr(options, name) for name in CHOICES}


def test_the_recipes_are_those_that_the_documents_state():
    assert dict(batch_size=256, optimizer="lamb", lr=1e-3, weight_decay=1e-5) == PAPER
    assert dict(batch_size=64, optimizer="adamw", lr=1e-3, weight_decay=0.05) == SHORT


def test_the_optimizers_have_their_usual_moments():
    model = AlignModel(AlignConfig.preset("emoji"))
    found = {}
    for name in ("lamb", "adamw"):
        options = TrainOptions(data=[], out="run", optimizer=name, lr=0.5, weight_decay=0.25)
        found[name] = new_optimizer(options, model)
        assert {group["lr"] for group in found[name].param_groups} == {0.5}
        assert {group["weight_decay"] for group in found[name].param_groups} == {0.25, 0.0}
    assert [found[name].defaults["betas"] for name in found] == [(0.9, 0.999), (0.9, 0.98)]
    assert [found[name].defaults["eps"] for name in found] == [1e-6, 1e-8]
    assert Lamb([model.temperature]).defaults["weight_decay"] == 1e-5


def test_a_short_run_takes_adamw_and_small_batches_and_a_long_one_the_paper_s():
    assert chosen(9_999) == SHORT and chosen(10_000) == PAPER
    assert chosen(30, recipe="paper") == PAPER
    assert chosen(30, lr=0.5, batch_size=7) == SHORT | {"lr": 0.5, "batch_size": 7}
    assert chosen(30, optimizer="lamb") == PAPER | {"batch_size": SHORT["batch_size"]}
    assert chosen(30, init="emoji")["lr"] == 1e-4


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "draw_curves", lambda run: None)
    write_pairs(tmp_path / "data")
    write_config(tmp_path / "config.json")
    return tmp_path


def train(capsys, folder, *more):
    out = folder / "out"
    status, _, err = run(
        capsys, "train", folder / "data", "--out", out, "--config", folder / "config.json", *more
    )
    assert status == 0, err
    return err, json.loads((newest(out) / "training.json").read_text())["options"]


@pytest.mark.filterwarnings("ignore:.*for want of pairs that differ")
@pytest.mark.parametrize("batch_size, steps", [(None, 10), (24, 10), (2, 120)])
def test_how_long_a_run_is_is_counted_in_its_own_batches(folder, monkeypatch, batch_size, steps):
    """24 pairs, 10 epochs. Without --batch-size it is the paper's recipe that is asked about: 256 a batch."""
    given = TrainOptions(data=[folder / "data"], out="run", init="emoji", batch_size=batch_size)
    for enough, optimizer in ((steps, "lamb"), (steps + 1, "adamw")):
        monkeypatch.setattr("align_minimal.training.options.ENOUGH", enough)
        assert command.prepare_data(given)[0].optimizer == optimizer


def test_the_recipe_is_what_the_run_trains_with(folder, capsys):
    _, options = train(capsys, folder, "--epochs", 3)
    assert {name: options[name] for name in CHOICES} == SHORT
    assert len(metrics(folder / "out")) == 3  # 24 pairs: a batch of all, three times


def test_the_paper_s_recipe_is_one_flag_away(folder, capsys):
    err, options = train(capsys, folder, "--recipe", "paper", "--steps", 2)
    assert {name: options[name] for name in CHOICES} == PAPER
    assert "2 steps of LAMB at 0.001 move each weight by at most" in err and "too little to learn" in err


def test_what_is_said_of_the_way_is_the_sum_of_the_rates():
    options = resolve(TrainOptions(data=[], out="run", recipe="paper"), 31)
    way = sum(learning_rate(step, 31, 3, 1e-3) for step in range(1, 32))
    (said,) = cannot_reach(options, 31, 3, 1)
    assert f"at most {way:.2g} of its norm" in said
    assert cannot_reach(options, 2000, 200, 1) == []
    for steps, warmup in ((7, 0), (7, 7), (5, 9), (41, 38)):
        way = sum(learning_rate(step, steps, warmup, 1e-3) for step in range(1, steps + 1))
        assert f"at most {way:.2g} of its norm" in cannot_reach(options, steps, warmup, 1)[0]
    start = time.perf_counter()
    assert cannot_reach(options, 10**12, 10**11, 1) == [] and time.perf_counter() - start < 1
    assert cannot_reach(resolve(TrainOptions(data=[], out="run"), 234), 234, 23, 1) == []
    assert cannot_reach(resolve(TrainOptions(data=[], out="run", init="x"), 3), 3, 1, 1) == []


def test_a_batch_norm_of_single_pictures_is_said():
    for more, world, single in (
        (dict(chunk=1), 1, True),
        (dict(batch_size=2), 2, True),
        (dict(chunk=2), 1, False),
    ):
        options = resolve(TrainOptions(data=[], out="run", **more), 234)
        said = cannot_reach(options, 234, 23, world)
        assert ["BatchNorm sees one picture" in each for each in said] == [True] * single


@pytest.mark.parametrize(
    "pairs, chunk, sizes", [(256, 85, [64] * 4), (7, 3, [3, 2, 2]), (7, None, [7]), (2, 5, [2])]
)
def test_a_batch_is_cut_into_equal_parts(pairs, chunk, sizes):
    batch = Batch(input_ids=torch.arange(pairs)[:, None], names=["x"] * pairs)
    parts = [part.input_ids for part in split(batch, chunk)]
    assert [len(part) for part in parts] == sizes and torch.equal(torch.cat(parts), batch.input_ids)


def test_a_new_model_takes_2_000_steps_where_10_epochs_are_fewer(folder, monkeypatch):
    """After 10 epochs of 500 pictures it knew nothing. What is asked for is done; tuning is short."""
    pairs, at_least = Pairs([folder / "data"]), dict(data=[], out="run")  # 24 pairs
    assert steps_of(TrainOptions(**at_least), pairs, 8) == 2000
    assert steps_of(TrainOptions(**at_least, init="emoji"), pairs, 8) == 30
    assert steps_of(TrainOptions(**at_least, epochs=4), pairs, 8) == 12
    assert steps_of(TrainOptions(**at_least, steps=5), pairs, 8) == 5
    monkeypatch.setattr(loop, "LEAST", 20)
    assert steps_of(TrainOptions(**at_least), pairs, 8) == 30


def test_epochs_are_as_many_batches_as_show_each_pair_so_often(folder):
    pairs = Pairs([folder / "data"])  # 24
    assert [batches_in(pairs, size, 0, 30) for size in (24, 16, 10, 7)] == [30, 45, 72, 102]
    assert batches_in(pairs, 100, 0, 30) == 30  # a smaller batch, of all there is, each epoch


def test_a_local_folder_of_a_shipped_model_s_name_is_not_taken_in_silence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "emoji").mkdir()
    (tmp_path / "emoji" / "config.json").write_text("{}")
    with pytest.warns(UserWarning, match="emoji: the folder here, not the model of that name that ships"):
        assert find_file("emoji", "config.json").resolve() == tmp_path / "emoji" / "config.json"
    monkeypatch.chdir(weights_folder())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find_file("emoji", "config.json")  # one and the same: nothing to say
