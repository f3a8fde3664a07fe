"""The text tower's embeddings, against golden numbers of transformers 4.37.2."""

import pytest
import torch

from align_minimal import AlignTextConfig, AlignTextModel
from tests.reference.parity import PRECISIONS, Golden, assert_close

CASES = ("plain", "token_types", "positions", "embeds")


@pytest.fixture(scope="module")
def golden():
    return Golden("bert_absolute")


def embed(golden, case, dtype):
    inputs = golden.part(f"{case}/input", dtype)
    inputs.pop("attention_mask", None)  # the embeddings do not see it
    model = golden.fill(AlignTextModel(AlignTextConfig(**golden.config)), dtype)
    return model.embeddings(**inputs)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("case", CASES)
def test_embeddings_are_those_of_hugging_face(golden, case, dtype):
    expected = golden.part(f"{case}/output")["hidden_states.0"]
    assert_close(embed(golden, case, dtype), expected, PRECISIONS[dtype][0], case)


def test_token_types_and_positions_change_the_embeddings(golden):
    plain = embed(golden, "plain", torch.float64)
    for case in ("token_types", "positions"):
        assert (embed(golden, case, torch.float64) - plain).norm() > 0.1 * plain.norm()


def test_default_positions_count_from_zero_and_default_types_are_zero(golden):
    embeddings = golden.fill(AlignTextModel(AlignTextConfig(**golden.config))).embeddings
    ids = golden.part("plain/input")["input_ids"]
    spelled_out = embeddings(ids, torch.zeros_like(ids), torch.arange(5)[None])
    assert torch.equal(embeddings(ids), spelled_out)


def test_relative_positions_leave_the_absolute_ones_out():
    golden = Golden("bert_relative_key")
    expected = golden.part("plain/output")["hidden_states.0"]
    assert_close(embed(golden, "plain", torch.float64), expected, 1e-10, "relative_key")
    model = golden.fill(AlignTextModel(AlignTextConfig(**golden.config)))
    ids = torch.tensor([[5, 5, 5]])
    assert torch.equal(model.embeddings(ids)[0, 0], model.embeddings(ids)[0, 2])


def test_padding_row_starts_at_zero_and_gets_no_gradient():
    torch.manual_seed(0)
    model = AlignTextModel(AlignTextConfig(vocab_size=9, hidden_size=8, num_attention_heads=2))
    assert model.embeddings.word.weight[0].eq(0).all()
    assert model.embeddings.word.weight[1:].ne(0).all()
    (model.embeddings(torch.tensor([[4, 0, 0]])) * torch.randn(8)).sum().backward()
    assert model.embeddings.word.weight.grad[0].eq(0).all()
    assert model.embeddings.word.weight.grad[4].norm() > 0
