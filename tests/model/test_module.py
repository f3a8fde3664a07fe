"""Where a model is, what its first layer is, and gradient checkpointing: the same training in less memory."""

import copy
import pickle

import pytest
import torch

from align_minimal import AlignConfig, AlignModel, AlignTextModel, AlignVisionModel
from align_minimal.support.module import statistics_kept
from tests.reference.parity import Golden, assert_close, gradients, relative_error, transformers

RATES = dict(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2)


def build(**vision):
    """The golden model in float64, in training, with dropout and drop-connect."""
    file = Golden("model")
    config = copy.deepcopy(file.config)
    config["text_config"] |= RATES
    config["vision_config"] |= dict(drop_connect_rate=0.5, num_block_repeats=[2, 3]) | vision
    torch.manual_seed(0)
    model = AlignModel(AlignConfig(**config)).double().train()
    for parameter in model.parameters():
        if parameter.ndim == 4:
            torch.nn.init.kaiming_normal_(parameter)
    return model, file.part("pairs/input")


def step(model, inputs, enable, **options):
    """A training step's loss, gradients and buffers, from the same random numbers."""
    model = copy.deepcopy(model)
    (model.gradient_checkpointing_enable if enable else model.gradient_checkpointing_disable)(**options)
    torch.manual_seed(1)
    output = model(**inputs, return_loss=True)
    output.loss.backward()
    return output.loss, gradients(model), dict(model.named_buffers()), torch.rand(1)


def saved_bytes(model, inputs):
    """What a forward pass keeps for the backward pass, parameters left out."""
    kept, parameters = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

    def note(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        output = model(**inputs, return_loss=True)
    assert output.loss.requires_grad
    return sum(size for place, size in kept.items() if place not in parameters)


def test_gradient_checkpointing_changes_no_gradient_and_draws_the_same_dropout():
    model, inputs = build()
    loss, slopes, _, drawn = step(model, inputs, False)
    again, slopes_again, _, drawn_again = step(model, inputs, True)
    assert torch.equal(loss, again) and set(slopes) == set(slopes_again)
    for name, slope in slopes.items():
        assert_close(slopes_again[name], slope, 1e-10, name)
    assert torch.equal(drawn, drawn_again)  # the generator stands where it stood
    torch.manual_seed(2)
    other = copy.deepcopy(model)(**inputs, return_loss=True).loss
    assert abs(other - loss) > 1e-6  # drop-connect or dropout did drop
    texts = [model.get_text_features(inputs["input_ids"], inputs["attention_mask"]) for _ in range(2)]
    assert relative_error(*texts) > 0.01  # dropout did


def test_gradient_checkpointing_counts_a_batch_once_in_the_running_statistics():
    model, inputs = build()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    _, _, plain, _ = step(model, inputs, False)
    _, _, checkpointed, _ = step(model, inputs, True)
    assert plain["vision_model.blocks.0.depthwise.bn.num_batches_tracked"] == 1
    assert (
        plain["vision_model.stem.bn.running_mean"] - before["vision_model.stem.bn.running_mean"]
    ).norm() > 0
    for name, buffer in plain.items():
        assert torch.equal(buffer, checkpointed[name]), name


def test_gradient_checkpointing_keeps_less_for_the_backward_pass():
    model, inputs = build()
    whole = saved_bytes(copy.deepcopy(model), inputs)
    model.gradient_checkpointing_enable()
    assert saved_bytes(copy.deepcopy(model), inputs) < 0.5 * whole
    model.gradient_checkpointing_disable()
    assert saved_bytes(model, inputs) == whole


@pytest.mark.parametrize("name", ["text_model", "vision_model"])
def test_a_tower_alone_can_be_checkpointed(name):
    model = build()[0]
    tower = getattr(model, name)
    tower.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    blocks = tower.layers if name == "text_model" else tower.blocks
    assert all("forward" in vars(block) for block in blocks)
    other = model.vision_model.blocks if name == "text_model" else model.text_model.layers
    assert not any("forward" in vars(block) for block in other)
    model.gradient_checkpointing_disable()
    assert not any("forward" in vars(block) for block in blocks)


def assert_same_as_compiled(model, inputs):
    """Loss, gradients and buffers of a step: compiled with gradient checkpointing, and neither."""
    twin = copy.deepcopy(model)
    twin.gradient_checkpointing_enable()
    torch._dynamo.reset()
    loss = torch.compile(twin, backend="aot_eager", fullgraph=True)(**inputs, return_loss=True).loss
    loss.backward()
    torch._dynamo.reset()
    expected = model(**inputs, return_loss=True).loss
    expected.backward()
    assert_close(loss, expected, 1e-12)
    for name, slope in gradients(model).items():
        assert_close(twin.get_parameter(name).grad, slope, 1e-10, name)
    for name, buffer in model.named_buffers():
        assert_close(twin.get_buffer(name), buffer, 1e-12, name)


def test_a_checkpointed_model_is_copied_saved_served_and_compiled(tmp_path):
    model, inputs = build(drop_connect_rate=0.0, num_block_repeats=[1, 2])
    model.eval()
    assert_same_as_compiled(copy.deepcopy(model), inputs)
    model.vision_model.train()
    assert_same_as_compiled(copy.deepcopy(model), inputs)
    model.eval()
    with torch.no_grad():
        expected = model(**inputs).logits_per_image
    model.gradient_checkpointing_enable()
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert twin.vision_model.blocks[0].forward.args[0] is twin.vision_model.blocks[0]
    with torch.no_grad():
        for other in (model, twin):
            assert torch.equal(other(**inputs).logits_per_image, expected)
        single = {k: x.float() if x.is_floating_point() else x for k, x in inputs.items()}
        assert_close(copy.deepcopy(model).float().for_inference()(**single).logits_per_image, expected, 1e-4)
    model.save_pretrained(tmp_path)
    assert_close(AlignModel.from_pretrained(tmp_path)(**single).logits_per_image, expected, 1e-4)


def test_attentions_and_hidden_states_come_with_gradient_checkpointing_too():
    model, inputs = build()
    model.eval()
    options = dict(output_hidden_states=True, output_attentions=True)
    expected = model(**inputs, **options).text_model_output
    model.gradient_checkpointing_enable()
    found = model(**inputs, **options).text_model_output
    for name in ("hidden_states", "attentions"):
        assert all(map(torch.equal, found[name], expected[name])) and len(found[name]) == len(expected[name])


@pytest.mark.parametrize("options", [{"use_reentrant": True}, {"preserve_rng_state": False}])
def test_another_way_of_checkpointing_is_refused(options):
    with pytest.raises(ValueError, match="only use_reentrant=False is supported"):
        build()[0].gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def test_statistics_are_updated_again_afterwards_even_after_an_error():
    norm = torch.nn.BatchNorm2d(1)
    with pytest.raises(ValueError), statistics_kept(norm):
        norm(torch.ones(2, 1, 3, 3))
        raise ValueError
    assert norm.num_batches_tracked == 0
    norm(torch.ones(2, 1, 3, 3))
    assert norm.num_batches_tracked == 1


def test_device_and_dtype_are_those_of_the_weights():
    model, _ = build()
    for part in (model, model.text_model, model.vision_model):
        assert (part.device, part.dtype) == (torch.device("cpu"), torch.float64)
    assert model.to("meta", torch.bfloat16).device.type == "meta" and model.dtype == torch.bfloat16


def test_input_embeddings_are_those_of_hugging_face():
    model, _ = build()
    assert model.get_input_embeddings() is model.text_model.embeddings.word
    assert model.text_model.get_input_embeddings() is model.text_model.embeddings.word
    assert model.vision_model.get_input_embeddings() is model.vision_model.stem.conv
    if transformers is not None:
        theirs = transformers.AlignTextModel(transformers.AlignTextConfig(vocab_size=9, num_hidden_layers=1))
        assert theirs.get_input_embeddings() is theirs.embeddings.word_embeddings


# Keywords of from_pretrained


def test_from_pretrained_takes_keywords_of_the_configuration_and_of_the_constructor(tmp_path):
    model, _ = build()
    model.save_pretrained(tmp_path)
    text = AlignTextModel.from_pretrained(
        pretrained_model_name_or_path=tmp_path, hidden_dropout_prob=0.4, add_pooling_layer=False
    )
    assert text.pooler is None and text.config.hidden_dropout_prob == 0.4
    assert text.layers[0].dropout.p == 0.4
    assert torch.equal(text.embeddings.word.weight, model.text_model.embeddings.word.weight.float())
    assert AlignVisionModel.from_pretrained(tmp_path, pooling_type="max").config.pooling_type == "max"
    assert (
        AlignModel.from_pretrained(tmp_path, temperature_init_value=0.7).config.temperature_init_value == 0.7
    )


@pytest.mark.parametrize(
    ("kind", "keyword", "nearest"),
    [(AlignModel, "projection", "projection_dim"), (AlignTextModel, "add_pooler_layer", "add_pooling_layer")],
)
def test_an_unknown_keyword_of_from_pretrained_is_named_with_the_nearest(kind, keyword, nearest):
    with pytest.raises(TypeError, match=f"has no keyword '{keyword}'; the nearest is '{nearest}'"):
        kind.from_pretrained("emoji", **{keyword: 1})


def test_keywords_that_do_not_fit_the_weights_are_named(tmp_path):
    build()[0].save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"missing: .*encoder\.layer\.2"):
        AlignTextModel.from_pretrained(tmp_path, num_hidden_layers=3)
