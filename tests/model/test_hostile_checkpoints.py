"""Checkpoints that somebody broke on purpose: one line that names the file and what is wrong, or a model."""

import copy
import json
import random
import shutil
import signal
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from align_minimal import AlignConfig, AlignModel, AlignTextModel
from align_minimal.support.settings import CALL_OPTIONS, ONLY
from tests.model.test_checkpoint import build

KEY = "vision_model.encoder.blocks.1.projection.project_bn.running_var"


@pytest.fixture(scope="module")
def healthy_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("healthy")
    build().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(healthy_folder, tmp_path):
    return shutil.copytree(healthy_folder, tmp_path / "m")


def rewrite(folder, change, pickled=False):
    """Apply `change` to the dictionary of tensors; write it as model.safetensors or pytorch_model.bin."""
    path = folder / "model.safetensors"
    tensors = {key: tensor.clone() for key, tensor in load_file(path).items()}
    path.unlink()
    change(tensors)
    if not pickled:
        return save_file(tensors, path, metadata={"format": "pt"})
    torch.save(tensors, folder / "pytorch_model.bin")


def refusal(folder, kind=AlignModel, **overrides):
    """The error's text, which is one short printable line that starts with a path in `folder`."""
    with pytest.raises((ValueError, OSError)) as caught:
        kind.from_pretrained(folder, **overrides)
    said = str(caught.value)
    assert said.startswith(str(folder)) and said.isprintable() and len(said) < len(str(folder)) + 900, said
    return said


# Numbers in the weights


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("key", [KEY, "text_model.embeddings.word_embeddings.weight", "text_projection.bias"])
def test_weights_that_are_not_finite_are_refused_by_key(key, bad, pickled, folder):
    rewrite(folder, lambda t: t[key].view(-1)[-1].fill_(bad), pickled)
    assert f": {key} must be finite, but holds {bad}" in refusal(folder)


def test_one_flipped_bit_that_makes_nan_is_refused(folder):
    def flip(tensors):
        bits = tensors["text_projection.weight"].view(torch.int32).view(-1)
        bits[3] |= 0x7F80_0000

    rewrite(folder, flip)
    assert "text_projection.weight must be finite" in refusal(folder)


def test_large_finite_weights_are_no_reason_to_refuse(folder):
    rewrite(folder, lambda t: t["text_projection.weight"].fill_(3e38))  # whose sum is infinite
    assert AlignModel.from_pretrained(folder).text_projection.weight.max() > 2e38


@pytest.mark.parametrize("value", [0.0, -0.1, -0.0, torch.nan])
def test_a_temperature_of_0_or_below_is_refused_at_loading(value, folder):
    rewrite(folder, lambda t: t["temperature"].fill_(value))
    assert "model.safetensors: temperature must be" in refusal(folder)
    AlignTextModel.from_pretrained(folder)  # it has none


def test_a_variance_below_0_is_refused(folder):
    rewrite(folder, lambda t: t[KEY][0].fill_(-1e-3))
    assert f"{KEY} must not be below 0, but holds -0.001" in refusal(folder)


@pytest.mark.parametrize(
    ("key", "dtype"),
    [
        ("text_projection.weight", torch.int64),
        ("text_projection.weight", torch.bool),
        ("text_projection.weight", torch.complex64),
        (KEY.replace("running_var", "num_batches_tracked"), torch.float32),
    ],
)
def test_a_tensor_of_another_type_is_refused_by_key(key, dtype, folder):
    rewrite(folder, lambda t: t.update({key: t[key].to(dtype)}), pickled=True)
    assert f"1 tensors of another type: {key} is {dtype}" in refusal(folder)


def test_an_unexpected_key_cannot_forge_a_line(folder):
    rewrite(folder, lambda t: t.update({"evil\nerror: \x1b[31mforged": torch.ones(1)}))
    assert r"not expected: 'evil\nerror: \x1b[31mforged'" in refusal(folder)


# Tensors in a pickle that are not plain numbers


def quantized(x):
    return torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)


ODD = {
    "meta": (lambda x: x.to("meta"), "a meta tensor, without numbers"),
    "sparse": (lambda x: x.to_sparse(), "a tensor of layout torch.sparse_coo, not dense"),
    "compressed": (lambda x: x.to_sparse_csr(), "a tensor of layout torch.sparse_csr, not dense"),
    "quantized": (quantized, "a quantized tensor .torch.qint8."),
    "nested": (lambda x: torch.nested.nested_tensor([x, x]), "a tensor of layout|broken or incomplete"),
    "claims a terabyte": (
        lambda x: x[:1, :1].expand(10**6, 10**6),
        r"said to be \(1000000, 1000000\), which is more numbers than the file holds",
    ),
}


@pytest.mark.filterwarnings("ignore")  # nested and quantized tensors are beta, sparse CSR, too
@pytest.mark.parametrize("how", ODD)
def test_a_tensor_that_is_not_plain_numbers_is_refused_by_key(how, folder):
    make, message = ODD[how]
    key = "text_projection.weight"
    rewrite(folder, lambda t: t.update({key: make(t[key])}), pickled=True)
    said = refusal(folder)
    assert pytest.importorskip("re").search(message, said), said
    assert "pytorch_model.bin: " in said and (f": {key} is " in said or how == "nested")


def test_a_pickle_that_unpacks_to_more_than_its_file_is_refused(folder):
    rewrite(folder, lambda t: None, pickled=True)
    path = folder / "pytorch_model.bin"
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(50_000_000))
    assert "claims to hold more bytes than it has" in refusal(folder)


# Configurations


@pytest.mark.parametrize("change", [dict(num_hidden_layers=10**9), dict(depth_coefficient=1e9)])
def test_a_billion_layers_are_compared_with_the_file_and_not_built(change, folder, timed):
    content = json.loads((folder / "config.json").read_text())
    part = "text_config" if "num_hidden_layers" in change else "vision_config"
    content[part] |= change
    (folder / "config.json").write_text(json.dumps(content))
    assert "tensors are too few for the " in refusal(folder)
    rewrite(folder, lambda t: None, pickled=True)
    assert "pytorch_model.bin: " in refusal(folder)


def test_a_width_that_does_not_fit_names_the_file(folder):
    content = json.loads((folder / "config.json").read_text()) | dict(projection_dim=17)
    (folder / "config.json").write_text(json.dumps(content))
    assert refusal(folder).startswith(f"{folder / 'config.json'}: projection_dim 17 must equal the image")


def test_sizes_beyond_any_memory_name_the_file(folder):
    content = json.loads((folder / "config.json").read_text())
    content["vision_config"]["kernel_sizes"] = [10**9] * 7
    (folder / "config.json").write_text(json.dumps(content))
    assert "config.json: sizes that no model can have" in refusal(folder)


@pytest.mark.parametrize("name", CALL_OPTIONS | ONLY)
@pytest.mark.parametrize("place", ["text_config", "vision_config", "whole"])
def test_an_option_of_hugging_faces_configurations_is_refused_and_not_ignored(name, place, folder):
    default = (CALL_OPTIONS | ONLY)[name]
    content = json.loads((folder / "config.json").read_text())
    part = content if place == "whole" else content[place]
    part[name] = default
    (folder / "config.json").write_text(json.dumps(content))
    model = AlignModel.from_pretrained(folder)  # as transformers 4 writes them, all of them
    part[name] = {"0": [1]} if name == "pruned_heads" else not default
    (folder / "config.json").write_text(json.dumps(content))
    assert f"config.json: {name}=" in refusal(folder)
    config = model.config if place == "whole" else getattr(model.config, place)
    with pytest.raises(
        ValueError, match=f"^{name}=.* is not (read from|supported in) {type(config).__name__}"
    ):
        setattr(config, name, part[name])
    setattr(config, name, default)


# Fuzzing


@pytest.fixture
def timed():
    """The test fails after a minute: nothing that a file says may take long."""

    def stop(*_):
        raise TimeoutError("took over a minute")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


HOSTILE = [
    None,
    True,
    False,
    -1,
    0,
    1,
    3,
    10**9,
    10**20,
    10**50,
    -(10**30),
    0.5,
    1e-320,
    1e300,
    1e999,
    "",
    "x",
]
HOSTILE += [
    "\ud800",
    "\x1b[2J\n",
    [],
    {},
    [1] * 50_000,
    [[[]]],
    {"a": {}},
    "y" * 10_000,
    [True],
    [1e9],
    "NaN",
]


def places(content, path=()):
    """The path of each value in a JSON document."""
    entries = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in entries:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*path, key))


def mutated_json(rng, content):
    """The document with a value or two replaced or removed; sometimes its bytes are changed, too."""
    content = copy.deepcopy(content)
    for _ in range(rng.randint(1, 2)):
        *path, last = rng.choice(list(places(content)))
        inner = content
        for key in path:
            inner = inner[key]
        if rng.random() < 0.1:
            del inner[last]
        else:
            inner[last] = rng.choice(HOSTILE)
    data = json.dumps(content).encode("utf-8", "surrogatepass")
    return mutated_bytes(rng, data) if rng.random() < 0.3 else data


def mutated_bytes(rng, data, most=None):
    """The bytes with some changed, cut out, doubled or cut off, most of them early in the file."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(min(len(data), most or len(data)))
        how = rng.random()
        if how < 0.7:
            data[start] ^= 1 << rng.randrange(8)
        elif how < 0.8:
            del data[start : start + rng.randint(1, 9)]
        elif how < 0.9:
            data[start:start] = data[start : start + rng.randint(1, 99)]
        else:
            data[start:] = b"" if rng.random() < 0.3 else data[start:]
    return bytes(data) or b" "


def outcome(folder):
    """None if the folder loads; else the error, which must be one line naming a file in it."""
    try:
        AlignModel.from_pretrained(folder)
        return None
    except (ValueError, OSError) as error:
        said = str(error)
        assert not isinstance(error, TimeoutError), said
        assert said.startswith(str(folder)) and said.isprintable() and len(said) < 2000, said[:3000]
        return said


def test_no_config_json_gives_anything_but_a_model_or_one_line(folder, timed):
    rng, said = random.Random(0), []
    path = folder / "config.json"
    content = json.loads(path.read_text())
    for _ in range(400):
        path.write_bytes(mutated_json(rng, content))
        said.append(outcome(folder))
    assert AlignConfig.from_dict(content) and len(set(said)) > 100 and 5 < said.count(None) < 200


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_no_pickle_gives_anything_but_a_model_or_one_line(new, folder, timed):
    rng, said = random.Random(1), []
    tensors = load_file(folder / "model.safetensors")
    path = folder / "pytorch_model.bin"
    torch.save(tensors, path, _use_new_zipfile_serialization=new)
    data = path.read_bytes()
    (folder / "model.safetensors").unlink()
    for _ in range(200):
        path.unlink()  # tensors may be mapped from it
        path.write_bytes(mutated_bytes(rng, data, most=12_000))
        said.append(outcome(folder))
    assert len(set(said)) > 20


def test_no_safetensors_file_gives_anything_but_a_model_or_one_line(folder, timed):
    rng, said = random.Random(2), []
    path = folder / "model.safetensors"
    data = path.read_bytes()
    for _ in range(200):
        path.unlink()
        path.write_bytes(mutated_bytes(rng, data, most=8_000))
        said.append(outcome(folder))
    assert len(set(said)) > 20
