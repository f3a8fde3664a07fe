"""The fast path gives the clear path's numbers, for every kind of input, and leaves the model as it was."""

import copy
import functools

import pytest
import torch

from align_minimal import AlignConfig, AlignModel, AlignProcessor, AlignVisionModel
from align_minimal.efficientnet import ConvNorm
from align_minimal.support.hub import weights_folder
from align_minimal.support.image_files import load_image
from align_minimal.using import fused, inference
from align_minimal.using.inference import ServedVisionModel, fold_batch_norm
from tests.reference.parity import assert_alive, assert_close, healthy, relative_error

VOCABULARY, T = 40, 12


def make_model(**text) -> AlignModel:
    config = AlignConfig.preset("emoji")
    config.text_config.vocab_size = VOCABULARY
    for name, value in text.items():
        setattr(config.text_config, name, value)
    torch.manual_seed(0)
    return healthy(AlignModel(config), sample=torch.randn(16, 3, 64, 64)).eval()


@pytest.fixture(scope="module")
def model() -> AlignModel:
    return make_model()


@pytest.fixture(autouse=True)
def as_of_a_large_model(monkeypatch):
    monkeypatch.setattr(inference, "GROUP", 8 * 128)  # eight texts at a time
    monkeypatch.setattr(inference, "SMALL", 0)  # no gate is multiplied into weights


@pytest.fixture
def by_operators(monkeypatch):
    """As without a C compiler."""
    monkeypatch.setattr(inference, "can_be_fused", lambda tower, dtype: False)


@pytest.fixture(params=["in C", "by operators"])
def either_way(request):
    if request.param == "by operators":
        request.getfixturevalue("by_operators")
    elif fused.library() is None:
        pytest.skip("needs a C compiler")


@pytest.fixture(scope="module")
def batch() -> dict:
    """19 texts of 1 to 12 tokens, more than two groups, in no order; 5 images, an odd number."""
    draw = torch.Generator().manual_seed(1)
    lengths = torch.cat([torch.arange(1, T + 1), torch.tensor([3, 3, 7, 12, 1, 9, 2])])
    lengths = lengths[torch.randperm(len(lengths), generator=draw)]
    return {
        "input_ids": torch.randint(1, VOCABULARY, (len(lengths), T), generator=draw),
        "attention_mask": (torch.arange(T) < lengths[:, None]).long(),
        "pixel_values": torch.randn(5, 3, 64, 64, generator=draw),
    }


def text(batch: dict) -> dict:
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


@pytest.mark.usefixtures("either_way")
@torch.no_grad()
def test_features_logits_and_embeddings_are_the_model_s(model, batch):
    fast = model.for_inference()
    expected, found = model(**batch), fast(**batch)
    for name in ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds"):
        assert_alive(expected[name], name)
        assert_close(found[name], expected[name], 1e-5, name)
    vision, text_output = expected.vision_model_output, expected.text_model_output
    assert_close(found.vision_model_output.last_hidden_state, vision.last_hidden_state, 1e-5)
    assert_close(found.text_model_output.pooler_output, text_output.pooler_output, 1e-5)
    assert_close(fast.get_text_features(**text(batch)), model.get_text_features(**text(batch)), 1e-5)
    images = {"pixel_values": batch["pixel_values"]}
    assert_close(fast.get_image_features(**images), model.get_image_features(**images), 1e-5)


@torch.no_grad()
def test_what_is_not_padding_has_its_hidden_state(model, batch):
    expected = model.text_model(**text(batch)).last_hidden_state
    found = model.for_inference().text_model(**text(batch)).last_hidden_state
    assert found.shape == expected.shape
    own = batch["attention_mask"].bool()
    assert_close(found[own], expected[own], 1e-5)


@torch.no_grad()
def test_hidden_states_of_padding_are_zeros(model, batch):
    found = model.for_inference().text_model(**text(batch)).last_hidden_state
    own = batch["attention_mask"].bool()
    assert (found[~own] == 0).all() and (found[own].norm(dim=-1) > 1).all()


@torch.no_grad()
def test_padding_is_not_computed(model, batch):
    fast, rows = model.for_inference(), []
    up = fast.text_model.tower.layers[0].feed_forward.up
    up.register_forward_hook(lambda layer, given, _: rows.append(given[0][..., 0].numel()))
    fast.get_text_features(**text(batch))
    assert len(rows) == 3 and sum(rows) == batch["attention_mask"].sum()  # three groups of texts


MASKS = {
    "none": lambda mask: None,
    "padded on the left": lambda mask: mask.flip(1),
    "a hole in the middle": lambda mask: mask.index_fill(1, torch.tensor([1, 4]), 0),
    "masked throughout": lambda mask: mask.index_fill(0, torch.tensor([0, 5]), 0),
    "as floats": lambda mask: mask.float(),
    "three dimensions": lambda mask: mask[:, None, :].expand(-1, T, -1),
}


@torch.no_grad()
@pytest.mark.parametrize("name", MASKS)
def test_every_kind_of_mask_gives_the_model_s_features(model, batch, name):
    inputs = {"input_ids": batch["input_ids"], "attention_mask": MASKS[name](batch["attention_mask"])}
    assert_close(model.for_inference().get_text_features(**inputs), model.get_text_features(**inputs), 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["absolute", "relative_key", "relative_key_query"])
def test_every_kind_of_position_and_all_other_inputs_too(batch, kind):
    model = make_model(position_embedding_type=kind)
    fast, B = model.for_inference(), len(batch["input_ids"])
    more = {
        "token_type_ids": (torch.arange(T) > 4).long().expand(B, T),
        "position_ids": torch.arange(T).flip(0)[None],  # one row for all
        "head_mask": torch.tensor([[1.0, 0, 1, 0.5], [1, 1, 0, 1]]),
    }
    expected = model.get_text_features(**text(batch), **more)
    assert relative_error(model.get_text_features(**text(batch)), expected) > 1e-2
    assert_close(fast.get_text_features(**text(batch), **more), expected, 1e-5)
    embeds = torch.randn(B, T, 128, generator=torch.Generator().manual_seed(2))
    inputs = {"inputs_embeds": embeds, "attention_mask": batch["attention_mask"]}
    assert_close(fast.get_text_features(**inputs), model.get_text_features(**inputs), 1e-5)


@pytest.mark.usefixtures("either_way")
@torch.no_grad()
def test_hidden_states_and_attentions_come_where_asked_for(model, batch):
    options = {"output_hidden_states": True, "output_attentions": True}
    expected, found = model(**batch, **options), model.for_inference()(**batch, **options)
    towers = (("text_model_output", "hidden_states"), ("text_model_output", "attentions"))
    for tower, name in (*towers, ("vision_model_output", "hidden_states")):
        for ours, theirs in zip(getattr(found[tower], name), getattr(expected[tower], name), strict=True):
            assert_close(ours, theirs, 1e-5, name)
    plain = model.for_inference()(**batch, return_dict=False)
    assert isinstance(plain, tuple) and len(plain) == 6


@pytest.mark.usefixtures("either_way")
@torch.no_grad()
@pytest.mark.parametrize(
    ("cache", "group", "parts"),
    [(1, 1, [1] * 5), (2**17, 3 * 128, [2, 2, 1]), (2**40, 10**9, [5])],
)
def test_however_many_go_through_at_a_time(model, batch, monkeypatch, cache, group, parts):
    for name, value in (("CACHE", cache), ("GROUP", group)):
        monkeypatch.setattr(inference, name, value)
    fast, seen = model.for_inference(), []
    block = fast.vision_model.tower.blocks[2]
    stage = next(stage for stage in fast.vision_model.stages if block in list(stage))
    stage.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    found, expected = fast(**batch), model(**batch)
    assert seen == parts
    for name in ("text_embeds", "image_embeds"):
        assert_close(found[name], expected[name], 1e-5, name)


@pytest.mark.usefixtures("by_operators")
@torch.no_grad()
def test_without_packed_weights_the_numbers_are_the_same(model, batch, monkeypatch):
    if torch.backends.mkldnn.is_available():
        block = model.for_inference().vision_model.tower.blocks[1]
        assert [layer.fused for layer in (block.expand, block.depthwise)] == ["swish", "swish"]
    # As on a machine, or for a type, without it.
    monkeypatch.setattr(inference, "known_to_onednn", lambda weight: False)
    fast = model.for_inference()
    assert fast.vision_model.tower.blocks[1].depthwise.fused is None
    assert_close(fast(**batch).image_embeds, model(**batch).image_embeds, 1e-5)
    half = model.for_inference(torch.float16)  # has none anyway
    assert_close(half(**batch).image_embeds, model(**batch).image_embeds, 2e-2)


@pytest.mark.usefixtures("by_operators")
@torch.no_grad()
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
def test_the_gate_may_be_multiplied_into_the_weights(model, batch, monkeypatch):
    monkeypatch.setattr(inference, "SMALL", 2**20)  # into all of them
    fast = model.for_inference()
    assert all(block.project.packed is None for block in fast.vision_model.tower.blocks)
    expected = model(**batch).image_embeds
    assert_close(fast(**batch).image_embeds, expected, 1e-5)
    one = {**batch, "pixel_values": batch["pixel_values"][:1]}
    assert_close(fast(**one).image_embeds, expected[:1], 1e-5)
    assert_close(model.for_inference(torch.bfloat16)(**batch).image_embeds, expected, 5e-2)


@torch.no_grad()
def test_folding_is_exact_to_float64(batch):
    vision = make_model().vision_model.double().eval()
    pixels = batch["pixel_values"].double()
    expected = vision(pixels).pooler_output
    for layer in vision.modules():
        if isinstance(layer, ConvNorm):
            fold_batch_norm(layer)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in vision.modules())
    assert_close(vision(pixels).pooler_output, expected, 1e-13)


@torch.no_grad()
@pytest.mark.parametrize("act", ["gelu", "selu", "relu", torch.nn.functional.silu, torch.nn.Mish()])
def test_other_activations_and_b0_s_kernels_are_served_too(act):
    config = AlignConfig.preset("b7_base").vision_config
    config.width_coefficient = config.depth_coefficient = 0.4
    config.hidden_act = act
    torch.manual_seed(0)
    tower = healthy(AlignVisionModel(config), sample=torch.randn(8, 3, 49, 61)).eval()
    pixels = torch.randn(3, 3, 49, 61)
    expected = tower(pixels)
    found = ServedVisionModel(copy.deepcopy(tower), None)(pixels)
    assert_close(found.pooler_output, expected.pooler_output, 1e-5)
    assert_close(found.last_hidden_state, expected.last_hidden_state, 1e-5)


@pytest.mark.usefixtures("either_way")
@torch.no_grad()
def test_bfloat16_takes_float32_pixels_and_answers_in_float32(model, batch):
    fast = model.for_inference(torch.bfloat16)
    found, expected = fast(**batch), model(**batch)
    assert {t.dtype for t in (found.logits_per_text, found.text_embeds, found.image_embeds)} == {
        torch.float32
    }
    plain = copy.deepcopy(model).bfloat16()(**batch | {"pixel_values": batch["pixel_values"].bfloat16()})
    for name in ("text_embeds", "image_embeds"):
        error = relative_error(found[name], expected[name])
        assert 1e-4 < error <= 1.5 * relative_error(plain[name], expected[name])  # something is rounded
    assert fast.vision_model.tower.stem.conv.weight.dtype == torch.bfloat16
    assert fast.temperature.dtype == fast.text_projection.weight.dtype == torch.float32


@pytest.mark.usefixtures("either_way")
@torch.no_grad()
def test_bfloat16_on_the_shipped_weights_is_off_by_a_hundredth_and_no_answer_changes():
    model = AlignModel.from_pretrained("emoji")
    processor = AlignProcessor.from_pretrained("emoji")
    samples = [load_image(path) for path in sorted((weights_folder() / "samples").glob("*.png"))]
    labels = ["red apple", "bicycle", "dog face", "a fish in the sea", "guitar", "pizza", "snail", "snowman"]
    batch = processor(text=labels, images=samples, return_tensors="pt")
    expected, found = model(**batch), model.for_inference(torch.bfloat16)(**batch)
    for name in ("text_embeds", "image_embeds", "logits_per_image"):
        assert 1e-4 < relative_error(found[name], expected[name]) < 2e-2
    assert torch.equal(found.logits_per_image.argmax(1), expected.logits_per_image.argmax(1))


@pytest.mark.usefixtures("either_way")
def test_the_model_stays_as_it_was_and_can_go_on_learning(batch):
    model = make_model().train()
    before = copy.deepcopy(model.state_dict())
    fast = model.for_inference()
    assert model.training and not fast.training
    with torch.no_grad():
        fast(**batch)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model(**batch).logits_per_text.sum().backward()
    assert all(p.grad is not None for p in model.vision_model.parameters())
    served = {t.data_ptr() for t in fast.state_dict().values()}
    assert not served & {t.data_ptr() for t in model.state_dict().values()}


@pytest.mark.usefixtures("either_way")
@torch.no_grad()
def test_it_can_be_copied(model, batch):
    fast = model.for_inference()
    copied = copy.deepcopy(fast)(**batch)
    assert torch.equal(copied.logits_per_text, fast(**batch).logits_per_text)


@pytest.mark.usefixtures("either_way")
def test_after_training_it_is_the_trained_model(batch):
    model = make_model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(**batch).logits_per_text.sum().backward()
    optimizer.step()
    with torch.no_grad():
        found = model.for_inference()(**batch).logits_per_text
        assert_close(found, model.eval()(**batch).logits_per_text, 1e-5)


def test_what_it_cannot_do_it_says(model, tmp_path):
    fast = model.for_inference()
    fast.eval()
    assert fast.for_inference() is fast is fast.to("cpu").float()
    assert not fast.get_image_features(torch.rand(1, 3, 64, 64, requires_grad=True)).requires_grad
    again = functools.partial(fast.for_inference, torch.bfloat16)
    for refused in (fast.train, lambda: fast.save_pretrained(tmp_path / "saved"), again, fast.double):
        with pytest.raises(RuntimeError, match="for_inference"):
            refused()
    assert not (tmp_path / "saved").exists()
    with pytest.raises(ValueError, match=r"torch\.int8"):
        model.for_inference(torch.int8)


def test_bad_input_is_the_model_s_own_error(model, batch):
    fast = model.for_inference()
    with pytest.raises(ValueError, match="pixel_values"):
        fast.get_image_features(torch.zeros(1, 1, 64, 64))
    with pytest.raises(ValueError, match="pixel_values is missing"):
        fast.get_image_features(None)
    beyond = batch["input_ids"].clone()
    beyond[0, T - 1] = VOCABULARY  # where it is padding, too
    mask = batch["attention_mask"].index_fill(1, torch.tensor([T - 1]), 0)
    with pytest.raises(ValueError, match="input_ids"):
        fast.get_text_features(beyond, mask)
    with pytest.raises(TypeError, match="pixel_values"):
        fast.get_image_features([1, 2])
