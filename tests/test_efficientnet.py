"""The image tower, part by part, against Hugging Face: golden (4.37.2) and, where installed, live."""

import json
import re

import pytest
import torch

from align_minimal import AlignConfig, AlignVisionConfig, AlignVisionModel
from align_minimal.checkpoint import hugging_face_key
from align_minimal.efficientnet import (
    BatchNorm,
    ConvNorm,
    DropConnect,
    MBConv,
    SqueezeExcite,
    block_specs,
    round_filters,
)
from tests.parity import (
    GRADIENTS,
    VALUES,
    assert_alive,
    assert_close,
    copy_to_hugging_face,
    golden,
    gradients,
    healthy,
)

CASES = {name: golden(name) for name in ("vision_mean", "vision_max_padded")}
PARTS = [
    (case, name.removesuffix("/probe"))
    for case, arrays in CASES.items()
    for name in arrays
    if name.endswith("/probe")
]
OUR_PART = {  # the reference's name for a part → ours
    "embeddings": "stem",
    "expansion": "expand",
    "depthwise_conv": "depthwise",
    "squeeze_excite": "squeeze_excite",
    "projection": "project",
}
B7_SIDES_AT_289 = [144] * 5 + [72] * 7 + [36] * 7 + [18] * 20 + [9] * 17  # the stem, then 55 blocks


def tower(case: str, dtype=torch.float64, **options) -> AlignVisionModel:
    """Our tower with the golden file's configuration and weights."""
    arrays = CASES[case]
    model = AlignVisionModel(AlignVisionConfig(**json.loads(str(arrays["config"])) | options)).to(dtype)
    state = {name: arrays[f"weight/{hugging_face_key(name)}"] for name in model.state_dict()}
    model.load_state_dict({name: torch.from_numpy(x) for name, x in state.items()})
    return model.eval()


def find_part(model: AlignVisionModel, theirs: str) -> torch.nn.Module:
    *path, last = theirs.replace("encoder.", "").split(".")
    return model.get_submodule(".".join([*path, OUR_PART.get(last, last)]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("case", "part"), PARTS)
def test_part_equals_the_reference_in_values_and_gradients(case, part, dtype):
    """The stem, each part of MBConv, and each kind of block, at inputs with odd sides."""
    arrays = {k.removeprefix(f"{part}/"): v for k, v in CASES[case].items() if k.startswith(f"{part}/")}
    module = find_part(tower(case, dtype), part)
    x = torch.from_numpy(arrays["input"]).to(dtype).requires_grad_()
    output = module(x)
    if "residual" in arrays and find_part(tower(case), part.removesuffix(".projection")).residual:
        output = output + torch.from_numpy(arrays["residual"]).to(dtype)  # theirs adds it in this part
    expected = torch.from_numpy(arrays["output"])
    assert_alive(expected)
    assert_close(output, expected, VALUES[dtype], part)
    (output * torch.from_numpy(arrays["probe"]).to(dtype)).sum().backward()
    assert_close(x.grad, torch.from_numpy(arrays["grad_input"]), GRADIENTS[dtype], f"{part}, input")
    for name, gradient in gradients(module).items():
        key = hugging_face_key(f"{our_name(part)}.{name}").removeprefix(f"{part}.")
        assert_close(gradient, torch.from_numpy(arrays[f"grad/{key}"]), GRADIENTS[dtype], f"{part}, {key}")


def our_name(part: str) -> str:
    *path, last = part.replace("encoder.", "").split(".")
    return ".".join([*path, OUR_PART.get(last, last)])


@pytest.mark.parametrize("case", CASES)
def test_tower_equals_the_reference_hidden_states_and_pooling_included(case):
    arrays = CASES[case]
    out = tower(case)(torch.from_numpy(arrays["pixels"]), output_hidden_states=True)
    for name in ("last_hidden_state", "pooler_output"):
        assert_alive(out[name], name)
        assert_close(out[name], torch.from_numpy(arrays[name]), 1e-10, name)
    assert len(out.hidden_states) == 5  # the stem and four blocks
    for i, hidden in enumerate(out.hidden_states):
        assert_close(hidden, torch.from_numpy(arrays[f"hidden/{i}"]), 1e-10, f"hidden state {i}")


@pytest.mark.parametrize("name", ["relu", "gelu_new", "silu", "mish"])
def test_every_activation_equals_the_reference(name):
    out = tower("vision_mean", hidden_act=name)(torch.from_numpy(CASES["vision_mean"]["pixels"]))
    expected = torch.from_numpy(CASES["vision_mean"][f"activation/{name}"])
    assert_close(out.pooler_output, expected, 1e-10, name)


def test_selu_and_a_callable_work_where_the_reference_has_no_selu():
    pixels = torch.from_numpy(CASES["vision_mean"]["pixels"])
    by_name = tower("vision_mean", hidden_act="selu")(pixels).pooler_output
    by_callable = tower("vision_mean", hidden_act=torch.nn.functional.selu)(pixels).pooler_output
    assert torch.equal(by_name, by_callable)
    assert not torch.allclose(by_name, tower("vision_mean", hidden_act="relu")(pixels).pooler_output)


@pytest.mark.parametrize("case", CASES)
def test_training_mode_equals_the_reference_without_drop(case):
    out = tower(case).train()(torch.from_numpy(CASES[case]["pixels"]))
    assert_close(out.pooler_output, torch.from_numpy(CASES[case]["train/pooler_output"]), 1e-10)


# ---- the architecture


def test_filters_round_to_the_divisor_but_never_lose_over_a_tenth():
    config = AlignVisionConfig(width_coefficient=1.0)
    rounded = {c: round_filters(c, config) for c in (1, 11, 16, 18, 20, 320)}
    # 11 → 8 would lose 27%, hence 16; 18 → 16 would lose 11.1%, hence 24.
    assert rounded == {1: 8, 11: 16, 16: 16, 18: 24, 20: 24, 320: 320}


def test_b7_has_the_blocks_of_the_table():
    specs = block_specs(AlignVisionConfig())
    rows = [(s.kernel_size, s.in_channels, s.out_channels, s.stride, s.expand_ratio) for s in specs]
    firsts = [0, 4, 11, 18, 28, 38, 51]
    assert len(rows) == 55 and round_filters(32, AlignVisionConfig()) == 64
    assert [rows[i] for i in firsts] == [
        (3, 64, 32, 1, 1),
        (3, 32, 48, 2, 6),
        (5, 48, 80, 2, 6),
        (3, 80, 160, 2, 6),
        (5, 160, 224, 1, 6),
        (5, 224, 384, 2, 6),
        (3, 384, 640, 1, 6),
    ]
    for i, spec in enumerate(specs):
        assert spec.residual == (i not in firsts)
        if spec.residual:
            assert spec.stride == 1 and spec.in_channels == spec.out_channels


@pytest.mark.parametrize(
    ("width", "depth", "parameters"),
    [(1, 1, 3.60e6), (1.2, 1.4, 10.10e6), (2, 3.1, 62.14e6), (4.3, 5.3, 467.2e6)],
    ids=["B0", "B3", "B7", "L2"],
)
def test_parameter_counts_are_the_efficientnet_paper_s(width, depth, parameters):
    config = AlignVisionConfig(width_coefficient=width, depth_coefficient=depth)
    with torch.device("meta"):
        model = AlignVisionModel(config)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=2e-3)


def test_sides_at_289_floor_at_odd_maps():
    """TensorFlow's own SAME would give 145, 73, 37, 19, 10."""
    config = AlignVisionConfig(width_coefficient=0.1, depth_divisor=4)
    with torch.device("meta"):
        model = AlignVisionModel(config)
        hidden = [model.stem(torch.empty(1, 3, 289, 289))]
        for block in model.blocks:
            hidden.append(block(hidden[-1]))
    assert [h.shape[-1] for h in hidden] == B7_SIDES_AT_289


def test_a_small_kernel_of_ones_shows_the_padding():
    """Stride 2 on 4 pixels: (0, 1) padding sums pixels 0–2 and 2–3; centered padding 0–1 and 1–3."""
    config = AlignVisionConfig()
    for centered, expected in ((False, [3.0, 2.0]), (True, [2.0, 3.0])):
        layer = ConvNorm(1, 1, 3, config, stride=2, centered=centered)
        torch.nn.init.ones_(layer.conv.weight)
        layer.bn = torch.nn.Identity()
        out = layer(torch.ones(1, 1, 4, 4))[0, 0]
        assert torch.equal(out, torch.outer(torch.tensor(expected), torch.tensor(expected)))


def test_squeeze_width_is_a_quarter_of_the_block_s_input():
    block = MBConv(block_specs(AlignVisionConfig(width_coefficient=1.0))[4], AlignVisionConfig())
    assert block.squeeze_excite.reduce.out_channels == 16 // 4
    assert block.squeeze_excite.reduce.in_channels == 16 * 6


def test_squeeze_excite_by_hand():
    """Gate = sigmoid(expand(relu(reduce(mean)))), by arithmetic on 2 channels and 1 squeezed."""
    layer = SqueezeExcite(2, 1, torch.relu)
    with torch.no_grad():
        layer.reduce.weight.copy_(torch.tensor([1.0, 2.0]).view(1, 2, 1, 1))
        layer.expand.weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
        layer.reduce.bias.fill_(0.5)
        layer.expand.bias.zero_()
    x = torch.tensor([[[[1.0, 3.0]], [[0.0, 1.0]]]])  # means 2 and 0.5 → 2 + 1 + 0.5 = 3.5
    gate = torch.sigmoid(torch.tensor([3.5, -3.5]))
    assert torch.allclose(layer(x), x * gate.view(1, 2, 1, 1))


# ---- training


def test_drop_connect_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    out = DropConnect(0.2)(torch.ones(10_000, 2, 1, 2))
    assert set(out.unique().tolist()) == {0.0, 1.25}
    assert torch.equal(out, out[:, :1, :, :1].expand_as(out))  # one draw a sample
    assert out.mean() == pytest.approx(1, abs=0.02)


def test_drop_connect_rate_grows_with_depth_and_rests_in_eval():
    rates = [spec.drop_rate for spec in block_specs(AlignVisionConfig())]
    assert rates == pytest.approx([0.2 * b / 55 for b in range(55)])
    model = tower("vision_mean", drop_connect_rate=0.9)
    pixels = torch.from_numpy(CASES["vision_mean"]["pixels"])
    assert torch.equal(model(pixels).pooler_output, model(pixels).pooler_output)
    model.train()
    seen = {round(model(pixels).pooler_output[0, 0].item(), 6) for _ in range(20)}
    assert len(seen) > 1


def test_batch_norm_momentum_means_what_keras_means():
    norm = BatchNorm(1, AlignVisionConfig(batch_norm_momentum=0.99))
    norm.running_mean.fill_(10.0)
    norm(torch.full((2, 1, 1, 1), 20.0))
    assert norm.running_mean.item() == pytest.approx(0.99 * 10 + 0.01 * 20)  # the reference: 19.9
    assert norm.eps == 0.001


def test_pooling_works_on_maps_wider_than_hidden_dim():
    """The reference's pool has a window of hidden_dim and fails beyond."""
    model = tower("vision_mean", hidden_dim=1)
    out = model(torch.from_numpy(CASES["vision_mean"]["pixels"]))
    assert_close(out.pooler_output, torch.from_numpy(CASES["vision_mean"]["pooler_output"]), 1e-10)


# ---- errors


@pytest.mark.parametrize(
    ("pixels", "error", "says"),
    [
        (None, ValueError, "pixel_values is missing"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), TypeError, "float tensor, not torch.uint8"),
        ([1.0], TypeError, "float tensor, not list"),
        (torch.zeros(3, 8, 8), ValueError, "(batch, 3, height, width), not (3, 8, 8)"),
        (torch.zeros(1, 4, 8, 8), ValueError, "not (1, 4, 8, 8)"),
        (torch.full((1, 3, 8, 8), float("nan")), ValueError, "finite, but holds nan"),
        (torch.full((1, 3, 8, 8), -float("inf")), ValueError, "finite, but holds -inf"),
    ],
)
def test_pixels_that_the_tower_cannot_take_are_refused(pixels, error, says):
    with pytest.raises(error, match=re.escape(says)):
        tower("vision_mean", torch.float32)(pixels)


# ---- live


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_live_reference_agrees_on_the_emoji_tower_in_values_and_gradients(dtype):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = AlignConfig.preset("emoji").vision_config
    torch.manual_seed(0)
    pixels = torch.randn(3, 3, 64, 64, dtype=dtype)
    ours = healthy(AlignVisionModel(config).to(dtype), sample=pixels).eval()
    theirs = transformers.AlignVisionModel(transformers.AlignVisionConfig(**config.to_dict()))
    copy_to_hugging_face(ours, theirs)
    a, b = ours(pixels).pooler_output, theirs(pixel_values=pixels).pooler_output
    assert_alive(b)
    assert_close(a, b, VALUES[dtype])
    probe = torch.randn_like(a)
    (a * probe).sum().backward()
    (b * probe).sum().backward()
    expected = gradients(theirs)
    for name, gradient in gradients(ours, hugging_face_key).items():
        assert_close(gradient, expected[name], GRADIENTS[dtype], name)
