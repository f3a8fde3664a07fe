"""Self-attention: masks of both ranks, head masks, the three position types. Golden numbers of 4.37.2."""

import pytest
import torch

from align_minimal import AlignTextConfig, AlignTextModel
from align_minimal.bert import additive_mask, layer_head_masks
from tests.reference.parity import PRECISIONS, Golden, assert_close

KINDS = ("absolute", "relative_key", "relative_key_query")
CASES = [("absolute", case) for case in ("plain", "mask_2d", "mask_3d", "masked_row", "head_mask_1d")]
CASES += [(kind, case) for kind in KINDS for case in ("plain", "mask_2d", "head_mask_2d")][1:]


@pytest.fixture(scope="module")
def files():
    return {kind: Golden(f"bert_{kind}") for kind in KINDS}


def attend(golden, case, dtype=torch.float64):
    """The first layer's attention on what entered it in Hugging Face: its result and its weights."""
    model = golden.fill(AlignTextModel(AlignTextConfig(**golden.config)), dtype)
    inputs = golden.part(f"{case}/input", dtype)
    mask = inputs.get("attention_mask")
    mask = None if mask is None else additive_mask(mask, dtype)
    heads = layer_head_masks(inputs.get("head_mask"), model.config)[0]
    x = golden.part(f"{case}/output", dtype)["hidden_states.0"]
    return model.layers[0].attention(x, mask, heads)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(("kind", "case"), CASES)
def test_attention_is_that_of_hugging_face(files, kind, case, dtype):
    expected = files[kind].part(f"{case}/output")
    output, weights = attend(files[kind], case, dtype)
    limit = PRECISIONS[dtype][0]
    assert_close(weights, expected["attentions.0"], limit, "weights")
    assert_close(output, expected["attention"], limit, "output")


def test_masked_tokens_get_no_weight(files):
    _, weights = attend(files["absolute"], "mask_2d")
    assert weights[1, :, :, 3:].eq(0).all() and weights[1, :, :, :3].gt(0).all()


def test_a_3d_mask_says_who_sees_whom(files):
    _, weights = attend(files["absolute"], "mask_3d")
    future = torch.ones(5, 5, dtype=torch.bool).triu(1)
    assert weights[:, :, future].eq(0).all() and weights[:, :, ~future].gt(0).all()


def test_a_row_masked_throughout_attends_evenly(files):
    for dtype in PRECISIONS:
        _, weights = attend(files["absolute"], "masked_row", dtype)
        assert torch.equal(weights[1], torch.full_like(weights[1], 0.2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_no_mask_is_infinite_in_half_precision(dtype):
    mask = additive_mask(torch.tensor([[1, 0], [0, 0]]), dtype)
    assert mask.dtype == dtype and mask.isfinite().all()
    assert mask[0, 0, 0].tolist() == [0, torch.finfo(dtype).min] and mask[1].softmax(-1).eq(0.5).all()


def test_relative_positions_depend_on_the_distance_alone(files):
    file = files["relative_key_query"]
    model = file.fill(AlignTextModel(AlignTextConfig(**file.config)))
    same = torch.randn(1, 1, 1, 4, dtype=torch.float64).expand(1, 2, 6, 4)  # one vector at six places
    scores = model.layers[0].attention.relative_scores(same, same)[0, 0]
    for offset in range(-5, 6):
        diagonal = scores.diagonal(offset)
        assert torch.allclose(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-12)
    assert len({round(scores.diagonal(o)[0].item(), 9) for o in range(-5, 6)}) == 11


@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 2, 2), (1, 2)])
def test_a_head_mask_of_another_shape_is_named(shape):
    config = AlignTextConfig(vocab_size=9, hidden_size=8, num_attention_heads=2, num_hidden_layers=3)
    with pytest.raises(ValueError, match=r"head_mask must be \(2,\) or \(3, 2\), not"):
        AlignTextModel(config)(torch.tensor([[1, 2]]), head_mask=torch.ones(shape))
