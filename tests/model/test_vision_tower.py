"""The whole image tower: values and gradients, in eval and train mode, every pooling, activation and padding.

Golden numbers of transformers 4.37.2, and live ones of whichever version is installed.
"""

import pytest
import torch

from align_minimal import AlignConfig, AlignVisionConfig, AlignVisionModel
from align_minimal.checkpoint import hugging_face_key
from tests.reference.parity import (
    CASES,
    GRADIENTS,
    VALUES,
    assert_alive,
    assert_close,
    assert_gradients_close,
    assert_gradients_like_golden,
    copy_to_hugging_face,
    gradients,
    healthy,
    pixels,
    tensors,
    tower,
)

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
ACTIVATIONS = ("relu", "gelu", "gelu_new", "silu", "swish", "mish")
SMALL = dict(width_coefficient=0.25, depth_coefficient=0.3, strides=[1, 2, 2, 2, 1, 1, 1])  # 43×50 → 2×3
OPTIONS = {
    "emoji": vars(AlignConfig.preset("emoji").vision_config),
    "max": SMALL | dict(pooling_type="max"),
    "centered_padding": SMALL | dict(depthwise_padding=[1, 2]),
    "kernels_of_1": SMALL | dict(kernel_sizes=[1] * 7, depthwise_padding=[2]),  # block 1 is padded unevenly
    "gray": SMALL | dict(num_channels=1),
    "other_coefficients": dict(
        width_coefficient=0.3,
        depth_divisor=4,
        depth_coefficient=0.5,
        squeeze_expansion_ratio=0.5,
        batch_norm_eps=0.1,
    ),
} | {act: SMALL | dict(hidden_act=act) for act in ACTIVATIONS}


@DTYPES
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("case", CASES)
def test_tower_equals_hugging_face_in_values_and_gradients(case, mode, dtype):
    """In training BatchNorm takes the batch's own statistics, and gradients go through them."""
    model, x, expected = tower(case, dtype).train(mode == "train"), pixels(case, dtype), tensors(case, mode)
    out = model(x)
    for name in ("last_hidden_state", "pooler_output"):
        assert_alive(expected[name], name)
        assert_close(out[name], expected[name], VALUES[dtype], name)
    sum((probe * out[name]).sum() for name, probe in tensors(case, "probe", dtype).items()).backward()
    assert_close(x.grad, expected["grad_input"], GRADIENTS[dtype], "gradient of the pixels")
    assert_gradients_like_golden(model, case, mode, dtype)


@pytest.mark.parametrize("case", CASES)
def test_hidden_states_are_the_stem_s_output_and_every_block_s(case):
    hidden = tower(case)(pixels(case), output_hidden_states=True).hidden_states
    expected = tensors(case, "eval/hidden")
    assert len(hidden) == len(expected) == 5
    for i, h in enumerate(hidden):
        assert_close(h, expected[str(i)], 1e-10, f"hidden state {i}")


@pytest.mark.parametrize("name", ["relu", "gelu_new", "mish"])
def test_every_activation_equals_hugging_face(name):
    """swish and gelu are the golden towers' own."""
    x, expected = pixels("vision_mean"), tensors("vision_mean", f"activation/{name}")
    out = tower("vision_mean", hidden_act=name)(x).pooler_output
    assert_close(out, expected["pooler_output"], 1e-10, name)
    (out * tensors("vision_mean", "probe")["pooler_output"]).sum().backward()
    assert_close(x.grad, expected["grad_input"], 1e-10, f"{name}, gradient of the pixels")


def test_selu_and_a_callable_work_where_hugging_face_has_no_selu():
    x = pixels("vision_mean")
    by_name = tower("vision_mean", hidden_act="selu")(x).pooler_output
    by_callable = tower("vision_mean", hidden_act=torch.nn.functional.selu)(x).pooler_output
    assert torch.equal(by_name, by_callable)
    assert not torch.allclose(by_name, tower("vision_mean", hidden_act="relu")(x).pooler_output)


@pytest.mark.parametrize(
    "options",
    [
        dict(in_channels=[64, 16, 24, 40, 80, 112, 192]),
        dict(squeeze_expansion_ratio=0.4),
        dict(squeeze_expansion_ratio=0.01),
        dict(depth_divisor=12, width_coefficient=0.7),
    ],
    ids=str,
)
def test_live_transformers_has_tensors_of_the_same_shapes(options):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = AlignVisionConfig(**dict(width_coefficient=1.0, depth_coefficient=1.0) | options)
    with torch.device("meta"):
        ours = AlignVisionModel(config).state_dict()
        theirs = transformers.AlignVisionModel(transformers.AlignVisionConfig(**config.to_dict()))
    shapes = {hugging_face_key(name): tensor.shape for name, tensor in ours.items()}
    assert shapes == {name: tensor.shape for name, tensor in theirs.state_dict().items()}


@DTYPES
@pytest.mark.parametrize("options", OPTIONS)
def test_live_transformers_agrees_in_values_and_gradients(options, dtype):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = AlignVisionConfig(**OPTIONS[options])
    torch.manual_seed(0)
    x = torch.randn(2, config.num_channels, 43, 50, dtype=dtype)
    sample = torch.randn(12, config.num_channels, 43, 50, dtype=dtype)
    ours = healthy(AlignVisionModel(config).to(dtype), sample=sample).eval()
    theirs = transformers.AlignVisionModel(transformers.AlignVisionConfig(**config.to_dict()))
    copy_to_hugging_face(ours, theirs)
    a, b = ours(x), theirs(pixel_values=x)
    for name in ("last_hidden_state", "pooler_output"):
        assert_alive(b[name], name)
        assert_close(a[name], b[name], VALUES[dtype], name)
    probe = torch.randn_like(a.pooler_output)
    (a.pooler_output * probe).sum().backward()
    (b.pooler_output * probe).sum().backward()
    assert_gradients_close(gradients(ours, hugging_face_key), gradients(theirs), GRADIENTS[dtype])
