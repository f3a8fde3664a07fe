"""The helpers of the numeric tests can fail: a comparison that always agrees would make every test green."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from align_minimal import AlignConfig, AlignModel, AlignVisionConfig, AlignVisionModel
from align_minimal.checkpoint import hugging_face_key
from tests.reference import parity
from tests.reference.parity import (
    Golden,
    assert_alive,
    assert_close,
    assert_gradients_close,
    fill_running_statistics,
    flatten,
    gradients,
    healthy,
    relative_error,
)

ONE, TWO = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])


def test_the_relative_error_is_the_norm_of_the_difference_over_the_norm_of_theirs():
    assert relative_error(TWO, ONE) == pytest.approx(0.1)
    assert relative_error(ONE, TWO) == pytest.approx(0.5 / math.hypot(3, 4.5))
    assert relative_error(ONE, ONE) == 0
    assert relative_error(torch.ones(1), torch.zeros(1)) > 1e6


@pytest.mark.parametrize(
    ("ours", "says"),
    [
        (TWO, r"output: relative error 1\.00e-01 over 1e-02 \(max difference 5\.00e-01, mean 2\.50e-01\)"),
        (torch.tensor([3.0, math.nan]), "relative error nan"),
        (ONE[:1], r"output: \(1,\), expected \(2,\)"),
    ],
)
def test_what_is_not_close_is_refused_with_its_numbers(ours, says):
    assert_close(ONE, ONE, 0)
    assert_close(TWO, ONE, 0.11)
    with pytest.raises(AssertionError, match=says):
        assert_close(ours, ONE, 1e-2, "output")


def test_nan_where_theirs_is_a_number_or_the_reverse_is_never_close():
    for ours, theirs in ((math.nan, 1.0), (1.0, math.nan), (math.nan, math.nan), (math.inf, 1.0)):
        with pytest.raises(AssertionError):
            assert_close(torch.tensor([ours]), torch.tensor([theirs]), 1e9)


@pytest.mark.parametrize(
    "dead", [torch.full((2, 50), 1e-23), torch.randn(2, 50) * 1e-23, torch.randn(1, 50).repeat(2, 1)]
)
def test_an_output_that_is_nothing_or_the_same_for_every_input_is_dead(dead):
    assert_alive(torch.randn(2, 50))
    with pytest.raises(AssertionError):
        assert_alive(dead)


def test_gradients_must_be_the_same_parameters_and_each_within_the_tolerance():
    theirs = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([1e-12])}  # b: nothing but rounding
    assert_gradients_close({"a": theirs["a"] * 1.0001, "b": torch.tensor([-2e-12])}, theirs, 1e-3)
    for wrong in (
        {"a": theirs["a"]},  # one is missing
        {"a": theirs["a"] * 1.01, "b": theirs["b"]},
        {"a": theirs["a"], "b": torch.tensor([0.1])},  # where theirs is 0
        {"a": torch.zeros(2), "b": theirs["b"]},
    ):
        with pytest.raises(AssertionError):
            assert_gradients_close(wrong, theirs, 1e-3)


def test_a_parameter_without_a_gradient_counts_as_zeros():
    layer = nn.Linear(2, 1)
    layer.weight.sum().backward()
    found = gradients(layer, str.upper)
    assert found["WEIGHT"].eq(1).all() and found["BIAS"].eq(0).all()


def test_healthy_weights_give_a_living_output_where_the_default_ones_do_not():
    torch.manual_seed(0)
    config, pixels = AlignVisionConfig(width_coefficient=0.25, depth_divisor=4), torch.randn(4, 3, 48, 48)
    tower = AlignVisionModel(config).eval()
    with pytest.raises(AssertionError), torch.no_grad():
        assert_alive(tower(pixels).pooler_output)
    with torch.no_grad():
        assert_alive(healthy(tower, sample=pixels)(pixels).pooler_output)
    reduce = torch.cat([block.squeeze_excite.reduce.weight.flatten() for block in tower.blocks[1:]])
    assert reduce.std() > 0.06  # Kaiming's, where the default's is 0.02


def test_running_statistics_become_those_of_what_reaches_the_norm():
    tower = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.BatchNorm2d(2)).eval()
    with torch.no_grad():
        fill_running_statistics(tower, 3 + 2 * torch.randn(50, 1, 4, 4))
        out = tower[:2](torch.zeros(1, 1, 1, 1))
        assert tower[3].running_mean.gt(0).all() and out.abs().max() < 3
        assert not torch.equal(tower[1].running_mean, tower[3].running_mean)


def test_every_tensor_of_an_output_has_a_name():
    x = torch.zeros(1)
    assert set(flatten({"a": x, "b": (x, x), "c": {"d": x}})) == {"a", "b.0", "b.1", "c.d"}


def test_golden_weights_that_a_model_does_not_have_are_named_and_all_are_loaded():
    golden = Golden("model")
    model = golden.fill(AlignModel(AlignConfig(**golden.config)))
    weights = golden.part("weight")
    loaded = {hugging_face_key(name): tensor for name, tensor in model.state_dict().items()}
    assert set(loaded) == set(weights) and all(torch.equal(loaded[key], weights[key]) for key in weights)
    golden.arrays["weight/one.more"] = np.zeros(1)
    with pytest.raises(AssertionError, match=r"one\.more"):
        golden.fill(AlignModel(AlignConfig(**golden.config)))


def test_a_golden_gradient_is_cut_into_the_parameters_in_their_order():
    golden = parity.CASES["vision_mean"]
    whole, stem = golden.gradients("eval"), golden.gradients("embeddings", "embeddings.")
    assert torch.equal(torch.cat([g.flatten() for g in whole.values()]), golden.part("eval")["grad"])
    assert list(stem) == [key for key in whole if key.startswith("embeddings.")] and len(stem) == 3
    assert all(whole[key].shape == golden.part("weight")[key].shape for key in whole)


@pytest.mark.parametrize("package", ["pillow", "channels_last", "channels_first", "tensor"])
def test_pixels_that_differ_by_a_bit_are_refused(package, monkeypatch):
    pytest.importorskip("transformers", reason="transformers is not installed")
    from tests.reference import pictures

    picture = np.random.default_rng(0).integers(0, 256, (9, 11, 3)).astype(np.uint8)
    options = {"resample": 2, "size": [5, 7]}
    pictures.check_agrees(picture, package, options, per_call=True)

    class OneBitOff(pictures.EfficientNetImageProcessor):
        def __call__(self, *arguments, **more):
            batch = super().__call__(*arguments, **more)
            flat = batch["pixel_values"].reshape(-1)
            flat[3] = np.nextafter(flat[3], np.float32(9))
            return batch

    monkeypatch.setattr(pictures, "EfficientNetImageProcessor", OneBitOff)
    with pytest.raises(AssertionError):
        pictures.check_agrees(picture, package, options, per_call=False)
