"""AlignModel: every output and gradient, golden and live, and the ways to get at them."""

import copy
import pickle

import pytest
import torch

from align_minimal import AlignConfig, AlignModel
from align_minimal.checkpoint import hugging_face_key
from tests.reference.parity import (
    OLD,
    PRECISIONS,
    Golden,
    assert_alive,
    assert_close,
    assert_gradients_close,
    flatten,
    gradients,
    relative_error,
    transformers,
)

NAMES = ["loss", "logits_per_image", "logits_per_text", "text_embeds", "image_embeds"]
NAMES += ["text_model_output", "vision_model_output"]


@pytest.fixture(scope="module")
def file():
    return Golden("model")


def build(file, dtype=torch.float64):
    return file.fill(AlignModel(AlignConfig(**copy.deepcopy(file.config))), dtype)


def objective(case, output):
    """What the gradients are of: the loss, or, where texts and images differ in number, weighed logits."""
    if case == "pairs":
        return output.loss
    return (torch.arange(6.0).view(2, 3).to(output.logits_per_text.dtype) * output.logits_per_text).sum()


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("case", ["pairs", "uneven"])
def test_every_output_and_gradient_is_that_of_hugging_face(file, case, dtype):
    model, (values, slopes) = build(file, dtype), PRECISIONS[dtype]
    options = dict(return_loss=True, output_hidden_states=True) if case == "pairs" else {}
    output = model(**file.part(f"{case}/input", dtype), **options)
    objective(case, output).backward()
    expected = file.part(f"{case}/output")
    found = flatten(output)
    assert set(found) == set(expected) - {"attention", "feed_forward"}
    for name, tensor in found.items():
        assert_close(tensor, expected[name], values, name)
    assert_gradients_close(gradients(model, hugging_face_key), file.gradients(case), slopes)


@pytest.mark.skipif(transformers is None, reason="transformers is not installed")
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_live_transformers_gives_the_same(file, dtype):
    if not OLD and dtype == torch.float64:
        pytest.skip("transformers 5 computes the softmax in float32 whatever the weights are")
    config = transformers.AlignConfig(**copy.deepcopy(file.config))
    if not OLD:
        config._attn_implementation = "eager"
    theirs, ours = file.fill(transformers.AlignModel(config), dtype, theirs=True), build(file, dtype)
    inputs = file.part("pairs/input", dtype)
    options = dict(return_loss=True, output_hidden_states=True, output_attentions=True)
    if not OLD:
        options.pop("output_attentions")
    expected, output = theirs(**inputs, **options), ours(**inputs, **options)
    assert list(output) == list(expected.keys())
    found = flatten(output)
    for name, tensor in flatten(expected).items():
        assert_close(found.pop(name), tensor, PRECISIONS[dtype][0], name)
    assert not found
    if dtype == torch.float64:
        expected.loss.backward(), output.loss.backward()
        assert_gradients_close(gradients(ours, hugging_face_key), gradients(theirs), 1e-10)


def test_the_golden_outputs_are_alive(file):
    for name in ("text_embeds", "image_embeds", "logits_per_text"):
        assert_alive(file.part("pairs/output")[name], name)


def test_outputs_come_by_attribute_key_and_index_in_the_documented_order(file):
    output = build(file)(**file.part("pairs/input"), return_loss=True)
    assert list(output) == NAMES
    for i, name in enumerate(NAMES[:5]):
        assert output[name] is output[i] is getattr(output, name)
    assert output.text_model_output.pooler_output.shape == (3, 8)
    assert output[1:3][0] is output.logits_per_image
    assert [type(v) for v in output.to_tuple()[5:]] == [tuple, tuple]


def test_without_the_loss_its_place_is_dropped(file):
    output = build(file)(**file.part("pairs/input"))
    assert output.loss is None and list(output) == NAMES[1:] and "loss" not in output
    assert output[0] is output.logits_per_image


@pytest.mark.parametrize("loss", [False, True])
def test_return_dict_false_gives_the_plain_tuple(file, loss):
    model, inputs = build(file), file.part("pairs/input")
    plain = model(**inputs, return_loss=loss, return_dict=False)
    named = model(**inputs, return_loss=loss)
    assert type(plain) is tuple and len(plain) == len(named) == 6 + loss
    for value, name in zip(plain[: 4 + loss], named, strict=False):
        assert torch.equal(value, named[name])
    assert torch.equal(plain[-2][0], named.text_model_output.last_hidden_state)
    assert torch.equal(plain[-1][1], named.vision_model_output.pooler_output)


def test_features_are_those_of_hugging_face_and_not_normalized(file):
    model, inputs = build(file), file.part("pairs/input")
    texts = model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
    images = model.get_image_features(inputs["pixel_values"])
    expected = file.part("features/output")
    assert_close(texts, expected["text"], 1e-10, "text features")
    assert_close(images, expected["image"], 1e-10, "image features")
    output = model(**inputs)
    for features, embeds in ((texts, output.text_embeds), (images, output.image_embeds)):
        norms = features.norm(dim=-1, keepdim=True)
        assert (norms - 1).abs().min() > 0.05
        assert_close(embeds, features / norms, 1e-12, "embeds")


def test_text_features_are_the_projected_cls_and_not_the_pooler(file):
    model, ids = build(file), torch.tensor([[2, 5, 3]])
    hidden = model.text_model(ids).last_hidden_state
    assert torch.equal(model.get_text_features(ids), model.text_projection(hidden[:, 0]))


@pytest.mark.parametrize("name", ["token_type_ids", "position_ids"])
def test_every_kind_of_text_input_reaches_the_text_tower(file, name):
    model, inputs = build(file), file.part("pairs/input")
    ids = inputs["input_ids"]
    other = {
        name: torch.arange(ids.shape[1]).flip(0).expand_as(ids) % (2 if name == "token_type_ids" else 64)
    }
    expected = model.project_text(model.text_model(ids, inputs["attention_mask"], **other))
    usual = model.get_text_features(ids, inputs["attention_mask"])
    assert relative_error(usual, expected) > 1e-3
    assert torch.equal(model.get_text_features(ids, inputs["attention_mask"], **other), expected)
    embeds = model(**{**inputs, **other}).text_embeds
    assert torch.equal(embeds, expected / expected.norm(dim=-1, keepdim=True))


def test_text_features_take_embeddings_in_place_of_ids(file):
    model, ids = build(file), torch.tensor([[2, 5, 3]])
    embeds = model.text_model.embeddings.word(ids)
    assert torch.equal(model.get_text_features(inputs_embeds=embeds), model.get_text_features(ids))


def test_any_number_of_texts_meets_any_number_of_images(file):
    output = build(file)(**file.part("uneven/input"))
    assert output.logits_per_text.shape == (2, 3) and output.logits_per_image.shape == (3, 2)
    assert torch.equal(output.logits_per_image, output.logits_per_text.T)


def test_the_loss_needs_as_many_texts_as_images(file):
    with pytest.raises(ValueError, match=r"not \(2, 12\) and \(3, 12\)"):
        build(file)(**file.part("uneven/input"), return_loss=True)


def test_temperature_divides_the_cosines(file):
    model, inputs = build(file), file.part("pairs/input")
    output = model(**inputs)
    cosines = output.text_embeds @ output.image_embeds.T
    assert_close(output.logits_per_text, cosines / model.temperature, 1e-12)
    with torch.no_grad():
        model.temperature.mul_(0.5)
    assert_close(model(**inputs).logits_per_text, 2 * output.logits_per_text, 1e-12)


LAST = {  # the part that gives an embedding, here and in Hugging Face's model
    "text_embeds": lambda model: model.text_projection,
    "image_embeds": lambda model: getattr(model.vision_model, "encoder", model.vision_model).blocks[-1],
}


def with_zeros(model, embeds):
    """The model, made to give zeros before these embeddings are normalized."""
    LAST[embeds](model).register_forward_hook(lambda part, given, output: 0 * output)
    return model


@pytest.mark.parametrize("embeds", LAST)
def test_an_embedding_of_zeros_is_nan_as_in_hugging_face(file, embeds):
    """An eps would give zeros, and nobody would notice that a tower is dead."""
    output = with_zeros(build(file), embeds)(**file.part("pairs/input"))
    assert [name for name in LAST if output[name].isnan().any()] == [embeds]
    assert output[embeds].isnan().all() and output.logits_per_text.isnan().all()


@pytest.mark.skipif(transformers is None, reason="transformers is not installed")
@pytest.mark.parametrize("embeds", LAST)
def test_transformers_gives_nan_for_an_embedding_of_zeros_too(file, embeds):
    theirs = transformers.AlignModel(transformers.AlignConfig(**copy.deepcopy(file.config)))
    theirs = with_zeros(file.fill(theirs, torch.float32, theirs=True), embeds)
    assert theirs(**file.part("pairs/input", torch.float32))[embeds].isnan().all()


def test_hidden_states_and_attentions_come_where_asked_for(file):
    output = build(file)(**file.part("pairs/input"), output_hidden_states=True, output_attentions=True)
    assert len(output.text_model_output.hidden_states) == 3
    assert len(output.text_model_output.attentions) == 2
    assert len(output.vision_model_output.hidden_states) == 4  # the stem and three blocks
    plain = build(file)(**file.part("pairs/input"))
    assert plain.text_model_output.hidden_states is plain.vision_model_output.hidden_states is None


def test_outputs_survive_pickle_and_deepcopy(file):
    with torch.no_grad():
        output = build(file)(**file.part("uneven/input"))
    for twin in (copy.deepcopy(output), pickle.loads(pickle.dumps(output))):
        assert type(twin) is type(output) and list(twin) == list(output) and twin.loss is None
        assert torch.equal(twin.logits_per_image, output.logits_per_image)
        assert torch.equal(twin[0], output[0])
        assert torch.equal(twin.text_model_output[0], output.text_model_output[0])


def test_a_projection_that_does_not_match_the_image_tower_is_named(file):
    config = AlignConfig(**copy.deepcopy(file.config) | dict(projection_dim=16))
    with pytest.raises(ValueError, match="projection_dim 16 must equal the image tower's width, 12"):
        AlignModel(config)


def test_a_configuration_of_another_kind_is_a_type_error(file):
    with pytest.raises(TypeError, match="AlignModel takes AlignConfig, not AlignTextConfig"):
        AlignModel(AlignConfig(**copy.deepcopy(file.config)).text_config)


@pytest.mark.parametrize(
    ("missing", "message"),
    [("pixel_values", "pixel_values is missing"), ("input_ids", "either input_ids or inputs_embeds")],
)
def test_a_missing_input_is_named(file, missing, message):
    inputs = file.part("pairs/input")
    del inputs[missing]
    with pytest.raises(ValueError, match=message):
        build(file)(**inputs)


def test_initial_weights_have_the_spread_that_the_config_asks_for():
    config = AlignConfig.preset("emoji")
    config.text_config.initializer_range, config.vision_config.initializer_range = 0.05, 0.5
    torch.manual_seed(0)
    model = AlignModel(config)
    text, block = model.text_model, model.vision_model.blocks[-1]
    for weight in (text.layers[0].feed_forward.up.weight, text.embeddings.word.weight[1:]):
        assert weight.std().item() == pytest.approx(0.05, rel=0.02)
    assert text.embeddings.word.weight[0].eq(0).all()  # padding
    assert block.project.conv.weight.std().item() == pytest.approx(0.5, rel=0.02)
    assert all(layer.bias.eq(0).all() for layer in (block.squeeze_excite.reduce, block.squeeze_excite.expand))


def test_initial_weights_have_the_documented_spread():
    torch.manual_seed(0)
    model = AlignModel(AlignConfig.preset("emoji"))
    assert model.text_model.layers[0].feed_forward.up.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.vision_model.blocks[-1].project.conv.weight.std().item() == pytest.approx(0.02, rel=0.02)
    bound = (6 / (128 + 160)) ** 0.5  # Xavier-uniform
    assert model.text_projection.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert model.text_projection.bias.eq(0).all()
    assert model.text_model.layers[0].attention.query.bias.eq(0).all()
    assert model.temperature.shape == () and model.temperature.item() == pytest.approx(0.1)
