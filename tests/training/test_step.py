"""What the encoder of pairs gives. Where a step on a CPU is faster with channels last in memory, it takes
them so, and computes the same."""

import pytest
import torch
import torch.nn.functional as F

from align_minimal import AlignConfig, AlignModel
from align_minimal.support.outputs import Batch
from align_minimal.training.step import PairEncoder
from tests.reference.parity import assert_close, healthy, relative_error

TEXT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}


def encoder(kernel: int, precision: str) -> PairEncoder:
    vision = {"image_size": 64, "width_coefficient": 0.5, "depth_coefficient": 0.5}
    vision["kernel_sizes"] = [3] * 6 + [kernel]
    return PairEncoder(healthy(AlignModel(AlignConfig(TEXT, vision, projection_dim=160))).train(), precision)


def batch(dtype: torch.dtype = torch.float32) -> Batch:
    ids = torch.tensor([[2, 5, 3], [2, 6, 3], [2, 7, 3], [2, 8, 3]])
    return Batch(pixel_values=torch.randn(4, 3, 64, 64, dtype=dtype), input_ids=ids, attention_mask=ids > 0)


def test_padding_has_no_part_in_a_text_s_embedding():
    encode, pairs = encoder(3, "float32").eval(), batch()
    pairs["input_ids"] = ids = torch.tensor([[2, 5, 3, 0], [2, 6, 8, 3], [2, 7, 3, 0], [2, 3, 0, 0]])
    pairs["attention_mask"] = mask = ids > 0
    text, _, _ = encode(pairs)
    with_mask, without = (F.normalize(encode.model.get_text_features(ids, m), dim=-1) for m in (mask, None))
    assert_close(text, with_mask, 1e-6, "texts")
    changed = (with_mask - without).norm(dim=-1) > 0.01
    assert changed.tolist() == [True, False, True, True]  # the second text is not padded


def test_padding_is_not_computed():
    encode, pairs, rows = encoder(3, "float32"), batch(), []
    pairs["input_ids"] = ids = torch.tensor([[2, 5, 3, 0], [2, 6, 8, 3], [2, 7, 3, 0], [2, 3, 0, 0]])
    pairs["attention_mask"] = ids > 0
    up = encode.model.text_model.layers[0].feed_forward.up
    up.register_forward_hook(lambda layer, given, _: rows.append(given[0][..., 0].numel()))
    encode(pairs)
    assert rows == [3 + 4 + 3 + 2]


def test_both_embeddings_have_length_1_which_the_features_have_not():
    encode, pairs = encoder(3, "float32").eval(), batch()
    text, image, temperature = encode(pairs)
    model = encode.model
    features = model.get_text_features(pairs["input_ids"]), model.get_image_features(pairs["pixel_values"])
    for found, feature in zip((text, image), features, strict=True):
        assert ((feature.norm(dim=-1) - 1).abs() > 0.1).all()
        assert_close(found, feature / feature.norm(dim=-1, keepdim=True), 1e-5)
    assert temperature is model.temperature


@pytest.mark.parametrize("kernel, precision, last", [(3, "float32", 1), (5, "float32", 0), (3, "bf16", 0)])
def test_channels_lie_last_in_memory_where_that_is_faster(kernel, precision, last):
    encode, layouts = encoder(kernel, precision), []
    for block in encode.model.vision_model.blocks:
        block.register_forward_hook(lambda block, given, out: layouts.append(out.stride(1) == 1))
    encode(batch())
    assert len(layouts) > 7 and layouts == [bool(last)] * len(layouts)


def test_the_layout_changes_neither_outputs_nor_gradients(monkeypatch):
    encode, pairs = encoder(3, "float32"), batch(torch.float64)
    encode.model.double()
    found = []
    for _ in range(2):
        torch.manual_seed(0)  # drop-connect and dropout alike
        text, image, _ = encode(pairs)
        parameters = list(encode.model.vision_model.parameters())
        gradients = torch.autograd.grad((image * text.roll(1, 0)).sum(), parameters)
        found.append((image, torch.cat([g.flatten() for g in gradients])))
        monkeypatch.setattr(encode, "in_layout", lambda pixels: pixels)
    for last, first in zip(*found, strict=True):
        assert first.norm() > 0.01 and relative_error(last, first) < 1e-10
