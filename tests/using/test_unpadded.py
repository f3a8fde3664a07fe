"""Without the padding, the text tower has the same numbers and gradients, and computes real tokens only."""

import copy

import pytest
import torch

from align_minimal import AlignTextConfig, AlignTextModel
from align_minimal.using.unpadded import encode_unpadded, real_lengths
from tests.reference.parity import assert_alive, assert_close, healthy, relative_error

B, T, V, H = 7, 9, 40, 16
LENGTHS = torch.tensor([3, 9, 1, 5, 5, 2, 7])
REAL = torch.arange(T) < LENGTHS[:, None]  # (B, T)
MASKS = {
    "longer and shorter": REAL,
    "all of one length": torch.ones(B, T),
    "cut after the longest": REAL & (torch.arange(T) < 6),
    "padded on the left": REAL.flip(1),
    "a hole in the middle": REAL.index_fill(1, torch.tensor([1, 4]), False),
    "masked throughout": REAL.index_fill(0, torch.tensor([0, 5]), False),
}


def make_tower(**config) -> AlignTextModel:
    torch.manual_seed(0)
    config |= dict(vocab_size=V, hidden_size=H, intermediate_size=24, num_attention_heads=2)
    config |= dict(num_hidden_layers=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return healthy(AlignTextModel(AlignTextConfig(**config))).double()


def draw_ids() -> torch.Tensor:
    return torch.randint(1, V, (B, T), generator=torch.Generator().manual_seed(1))


def check(tower: AlignTextModel, mask: torch.Tensor, **inputs) -> None:
    """The hidden states of all tokens up to the last 1, and the gradients of all weights through them."""
    own = mask.flip(1).cumsum(1).flip(1) > 0
    own |= ~own.any(1, keepdim=True)
    direction = torch.randn(int(own.sum()), H, dtype=torch.float64)
    clear, found = copy.deepcopy(tower).train(), tower.train()
    expected = clear(attention_mask=mask, **inputs).last_hidden_state[own]
    states = encode_unpadded(found, mask, **inputs)
    assert_alive(expected)
    assert_close(states[own], expected, 1e-12)
    assert (states[~own] == 0).all()
    ((expected * direction).sum()).backward()
    ((states[own] * direction).sum()).backward()
    for (name, ours), theirs in zip(found.named_parameters(), clear.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name  # the pooler's
        if theirs.grad is not None and theirs.grad.norm() > 1e-9:  # a key's bias changes no softmax
            assert_close(ours.grad, theirs.grad, 1e-10, name)


@pytest.mark.parametrize("name", MASKS)
def test_it_is_the_tower_in_values_and_gradients(name):
    check(make_tower(), MASKS[name].long(), input_ids=draw_ids())


@pytest.mark.parametrize("kind", ["absolute", "relative_key", "relative_key_query"])
def test_so_it_is_for_every_kind_of_position_and_all_other_inputs(kind):
    check(
        make_tower(position_embedding_type=kind),
        MASKS["a hole in the middle"].long(),
        inputs_embeds=torch.randn(B, T, H, dtype=torch.float64),
        token_type_ids=(torch.arange(T) > 4).long().expand(B, T),
        position_ids=torch.arange(T).flip(0)[None],
        head_mask=torch.tensor([[1.0, 0.5], [0, 1], [1, 1]], dtype=torch.float64),
    )


def test_lengths_end_at_the_last_1():
    for name, wanted in {"longer and shorter": LENGTHS, "padded on the left": [T] * B}.items():
        assert real_lengths(MASKS[name].long()).tolist() == list(map(int, wanted))
    assert real_lengths(MASKS["masked throughout"].float()).tolist() == [T, 9, 1, 5, 5, T, 7]


def test_only_real_tokens_are_computed():
    tower, rows = make_tower(), {}
    for layer in tower.layers.modules():
        if isinstance(layer, (torch.nn.Linear, torch.nn.LayerNorm)):
            layer.register_forward_hook(lambda layer, given, _: rows.update({layer: given[0].shape[:-1]}))
    encode_unpadded(tower, REAL.long(), draw_ids())
    assert len(rows) == 3 * 8 and set(rows.values()) == {(int(LENGTHS.sum()),)}


PLACES = {  # which nn.Dropout acts, and which branch gives nothing, so that it can act at this place alone
    "embeddings": ("embeddings", None),
    "attention weights": ("layers.2.attention", None),
    "attended": ("layers.2", "feed_forward.down"),
    "fed forward": ("layers.2", "attention.output"),
}


@torch.no_grad()
@pytest.mark.parametrize("place", PLACES)
def test_dropout_acts_at_each_of_its_four_places_and_in_training_only(place):
    dropout, silent = PLACES[place]
    tower, ids, mask = make_tower(), draw_ids(), REAL.long()
    for parameter in tower.get_submodule(f"layers.2.{silent}").parameters() if silent else []:
        parameter.zero_()
    still = encode_unpadded(tower.train(), mask, ids)
    tower.get_submodule(dropout).dropout.p = 0.3
    assert torch.equal(encode_unpadded(tower.eval(), mask, ids), still)
    assert relative_error(encode_unpadded(tower.train(), mask, ids), still) > 0.01


def test_bad_input_is_the_tower_s_own_error():
    tower, mask = make_tower(), REAL.long()
    with pytest.raises(ValueError, match="input_ids"):
        encode_unpadded(tower, mask, draw_ids().index_fill(1, torch.tensor([T - 1]), V))
    with pytest.raises(ValueError, match="attention_mask"):
        encode_unpadded(tower, mask[:, 1:], draw_ids())
