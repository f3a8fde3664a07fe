"""The image tower's parts against golden numbers of transformers 4.37.2, and what the paper says of them."""

import re

import pytest
import torch

from align_minimal import AlignVisionConfig, AlignVisionModel
from align_minimal.efficientnet import (
    BatchNorm,
    ConvNorm,
    DropConnect,
    MBConv,
    SqueezeExcite,
    block_specs,
    round_filters,
)
from tests.reference.parity import (
    CASES,
    GRADIENTS,
    VALUES,
    assert_alive,
    assert_close,
    assert_gradients_like_golden,
    pixels,
    tensors,
    tower,
)

PARTS = [
    (case, name.removesuffix("/input"))
    for case, arrays in CASES.items()
    for name in arrays
    if name.endswith("/input")
]
OUR_PART = {  # Hugging Face's name for a part → ours
    "embeddings": "stem",
    "expansion": "expand",
    "depthwise_conv": "depthwise",
    "squeeze_excite": "squeeze_excite",
    "projection": "project",
}
B7_SIDES_AT_289 = [144] * 5 + [72] * 7 + [36] * 7 + [18] * 20 + [9] * 17  # the stem, then 55 blocks


def our_name(part: str) -> str:
    *path, last = part.replace("encoder.", "").split(".")
    return ".".join([*path, OUR_PART.get(last, last)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("case", "part"), PARTS)
def test_part_equals_hugging_face_in_values_and_gradients(case, part, dtype):
    """The stem, each part of MBConv, and each kind of block, at inputs with odd and even sides."""
    arrays, model, name = tensors(case, part), tower(case, dtype), our_name(part)
    module = model.get_submodule(name)
    x = arrays["input"].to(dtype).requires_grad_()
    output = module(x)
    if "residual" in arrays and model.get_submodule(name.removesuffix(".project")).residual:
        output = output + arrays["residual"].to(dtype)  # theirs adds it in this part
    assert_alive(arrays["output"])
    assert_close(output, arrays["output"], VALUES[dtype], part)
    (output * arrays["probe"].to(dtype)).sum().backward()
    assert_close(x.grad, arrays["grad_input"], GRADIENTS[dtype], f"{part}, gradient of the input")
    assert_gradients_like_golden(module, case, part, dtype, ours=f"{name}.", theirs=f"{part}.")


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


def test_a_stage_s_first_block_has_no_residual_even_where_it_keeps_the_width():
    """Keras adds one there; Hugging Face does not. At width 0.25 the first two stages are 8 wide alike."""
    specs = block_specs(AlignVisionConfig(width_coefficient=0.25, depth_coefficient=1.0))
    assert (specs[0].in_channels, specs[0].out_channels, specs[0].stride) == (8, 8, 1)
    assert not specs[0].residual


@pytest.mark.parametrize(
    ("width", "depth", "parameters"),
    [(1, 1, 3_595_388), (1.2, 1.4, 10_103_336), (2, 3.1, 62_143_440), (4.3, 5.3, 467_219_796)],
    ids=["B0", "B3", "B7", "L2"],
)
def test_parameter_counts_are_the_original_s_without_the_head(width, depth, parameters):
    config = AlignVisionConfig(width_coefficient=width, depth_coefficient=depth)
    with torch.device("meta"):
        model = AlignVisionModel(config)
    assert sum(p.numel() for p in model.parameters()) == parameters


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


@pytest.mark.parametrize(("centered", "first"), [(True, 0), (False, 1)])
def test_a_kernel_of_1_at_stride_2_is_moved_by_a_pixel_unless_it_is_centered(centered, first):
    """Padding (k//2 − 1, k//2) is (−1, 0): it cuts the first row and column off. Centered padding is 0."""
    layer = ConvNorm(1, 1, 1, AlignVisionConfig(), stride=2, centered=centered)
    torch.nn.init.ones_(layer.conv.weight)
    layer.bn = torch.nn.Identity()
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert torch.equal(layer(x), x[..., first::2, first::2])


def test_squeeze_width_is_a_quarter_of_the_block_s_input():
    block = MBConv(block_specs(AlignVisionConfig(width_coefficient=1.0))[4], AlignVisionConfig())
    assert block.squeeze_excite.reduce.out_channels == 16 // 4
    assert block.squeeze_excite.reduce.in_channels == 16 * 6


@pytest.mark.parametrize(("ratio", "squeezed"), [(0.4, 9), (0.01, 1)])
def test_squeeze_width_is_rounded_down_but_never_to_0(ratio, squeezed):
    """24 · 0.4 is 9.6, and 24 · 0.01 is less than 1."""
    config = AlignVisionConfig(width_coefficient=1.0, squeeze_expansion_ratio=ratio)
    spec = block_specs(config)[6]
    assert spec.in_channels == 24
    assert MBConv(spec, config).squeeze_excite.reduce.out_channels == squeezed


def test_the_stem_is_32_wide_before_scaling_whatever_the_first_stage_takes():
    config = AlignVisionConfig(in_channels=[64, 16, 24, 40, 80, 112, 192])
    with torch.device("meta"):
        model = AlignVisionModel(config)
    assert model.stem.conv.out_channels == round_filters(32, config) == 64
    assert block_specs(config)[0].in_channels == round_filters(64, config) == 128


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


def test_squeeze_excite_applies_the_activation_it_is_given_once():
    """By arithmetic, with another activation than ReLU: the square of −1/2 is 1/4."""
    layer = SqueezeExcite(1, 1, torch.square)
    with torch.no_grad():
        layer.reduce.weight.fill_(1.0)
        layer.expand.weight.fill_(1.0)
        layer.reduce.bias.fill_(-1.5)
        layer.expand.bias.zero_()
    gate = torch.sigmoid(torch.tensor(0.25))
    assert torch.allclose(layer(torch.ones(1, 1, 2, 2)), gate.expand(1, 1, 2, 2))


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
    x = pixels("vision_mean")
    assert torch.equal(model(x).pooler_output, model(x).pooler_output)
    model.train()
    seen = {round(model(x).pooler_output[0, 0].item(), 6) for _ in range(20)}
    assert len(seen) > 1


def test_drop_connect_takes_the_branch_and_leaves_the_shortcut():
    """A dropped sample leaves the block as it came in; a kept one has its branch scaled by 1/(1 − rate)."""
    model = tower("vision_mean", drop_connect_rate=0.9)
    block = model.blocks[2]
    x = tensors("vision_mean", "encoder.blocks.2")["input"].expand(40, -1, -1, -1)
    whole = block(x)
    block.drop_connect.train()  # BatchNorm rests: its batch statistics would differ
    torch.manual_seed(0)
    change = block(x) - x
    dropped = change.flatten(1).norm(dim=1) == 0
    assert 0 < dropped.sum() < 40
    rate = 0.9 * 2 / 4
    assert_close(change[~dropped], (whole - x)[~dropped] / (1 - rate), 1e-10)


def test_batch_norm_momentum_means_what_keras_means():
    norm = BatchNorm(1, AlignVisionConfig(batch_norm_momentum=0.99))
    norm.running_mean.fill_(10.0)
    norm(torch.full((2, 1, 1, 1), 20.0))
    assert norm.running_mean.item() == pytest.approx(0.99 * 10 + 0.01 * 20)  # Hugging Face: 19.9
    assert norm.eps == 0.001


def test_pooling_works_on_maps_wider_than_hidden_dim():
    """Hugging Face's pool has a window of hidden_dim and fails beyond that."""
    out = tower("vision_mean", hidden_dim=1)(pixels("vision_mean"))
    assert_close(out.pooler_output, tensors("vision_mean", "eval")["pooler_output"], 1e-10)


# ---- errors


@pytest.mark.parametrize(
    ("bad", "error", "says"),
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
def test_pixels_that_the_tower_cannot_take_are_refused(bad, error, says):
    with pytest.raises(error, match=re.escape(says)):
        tower("vision_mean", torch.float32)(bad)
