"""Checkpoints: the key map, both ways with transformers, and every way in which a file can be bad."""

import os
import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from align_minimal import AlignConfig, AlignModel, AlignTextModel, AlignVisionModel
from align_minimal.checkpoint import KEY_MAP, hugging_face_key
from tests.reference.parity import OLD, assert_alive, assert_close, healthy, transformers

live = pytest.mark.skipif(transformers is None, reason="transformers is not installed")
TEXT = dict(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
VISION = dict(width_coefficient=0.25, depth_coefficient=0.3, depth_divisor=4, hidden_dim=80, image_size=32)
VISION |= dict(strides=[1, 2, 1, 2, 1, 1, 1])  # 4×4 at the end: BatchNorm needs more than one pixel
CONFIG = dict(text_config=TEXT | dict(max_position_embeddings=16), vision_config=VISION, projection_dim=80)
IDS = torch.tensor([[2, 7, 5], [2, 9, 3]])
SAMPLE = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
PIXELS = SAMPLE[:2]


def build(seed=0):
    return healthy(AlignModel(AlignConfig(**CONFIG)), seed=seed, sample=SAMPLE).eval()


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path)
    return tmp_path


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS, pixel_values=PIXELS).logits_per_text


def assert_same(one, other):
    """The same tensors, bit by bit. (Not the results: mapped weights are aligned otherwise.)"""
    one, other = one.state_dict(), other.state_dict()
    assert list(one) == list(other)
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]), name


def weights(folder):
    return folder / "model.safetensors"


def rewrite(folder, change):
    """Apply `change` to the dictionary of tensors in the folder's file."""
    tensors = load_file(weights(folder))
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    change(tensors)
    save_file(tensors, weights(folder), metadata={"format": "pt"})


# The key map


def align_base_keys() -> set[str]:
    """The 1,394 keys of kakaobrain/align-base, spelled without our key map."""

    def affine(*names):
        return [f"{name}.{end}" for name in names for end in ("weight", "bias")]

    def norm(name):
        return affine(name) + [
            f"{name}.{end}" for end in ("running_mean", "running_var", "num_batches_tracked")
        ]

    keys = [f"text_model.embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type")]
    keys += [
        "temperature",
        *affine("text_model.embeddings.LayerNorm", "text_model.pooler.dense", "text_projection"),
    ]
    for n in range(12):
        parts = [f"attention.self.{name}" for name in ("query", "key", "value")]
        parts += ["attention.output.dense", "attention.output.LayerNorm"]
        parts += ["intermediate.dense", "output.dense", "output.LayerNorm"]
        keys += affine(*(f"text_model.encoder.layer.{n}.{part}" for part in parts))
    stem = "vision_model.embeddings."
    keys += [stem + "convolution.weight", *norm(stem + "batchnorm")]
    for n in range(55):
        block = f"vision_model.encoder.blocks.{n}."
        if n >= 4:  # the first stage does not expand
            keys += [block + "expansion.expand_conv.weight", *norm(block + "expansion.expand_bn")]
        keys += [
            block + "depthwise_conv.depthwise_conv.weight",
            *norm(block + "depthwise_conv.depthwise_norm"),
        ]
        keys += affine(block + "squeeze_excite.reduce", block + "squeeze_excite.expand")
        keys += [block + "projection.project_conv.weight", *norm(block + "projection.project_bn")]
    return set(keys)


def test_our_names_map_one_to_one_onto_the_keys_of_align_base():
    with torch.device("meta"):
        names = list(AlignModel(AlignConfig.preset("b7_base")).state_dict())
    keys = [hugging_face_key(name) for name in names]
    assert len(names) == len(set(keys)) == 1394
    assert set(keys) == align_base_keys()


def test_every_row_of_the_key_map_is_needed():
    config = AlignConfig(**CONFIG)
    config.text_config.position_embedding_type = "relative_key"
    with torch.device("meta"):
        names = list(AlignModel(config).state_dict())
    for ours, _ in KEY_MAP:
        assert any(ours in name for name in names), ours


# Both ways


def test_a_model_survives_its_folder(model, folder):
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    twin = AlignModel.from_pretrained(folder)
    assert not twin.training and twin.config == model.config
    assert all(p.requires_grad for p in twin.parameters())
    assert_same(model, twin)
    assert_alive(model.text_projection.weight)
    assert_close(logits(twin), logits(model), 1e-6, "logits")


def test_a_saved_file_says_that_it_is_pytorch_s(folder):
    """transformers 4.37.2 cannot read a file that does not."""
    with safe_open(weights(folder), "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_loaded_model_trains(folder):
    twin = AlignModel.from_pretrained(folder).train()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    before = twin.text_projection.weight.clone()
    twin(IDS, PIXELS, return_loss=True).loss.backward()
    optimizer.step()
    assert not torch.equal(before, twin.text_projection.weight)
    assert torch.equal(load_file(weights(folder))["text_projection.weight"], before)  # the file is as it was


@live
def test_transformers_loads_ours_with_no_missing_and_no_unexpected_key(model, folder):
    theirs, info = transformers.AlignModel.from_pretrained(folder, output_loading_info=True)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not list(info[what]), what
    assert_close(logits(model), logits(theirs.eval()), 1e-5, "logits")


@live
@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_we_load_what_transformers_saves(format, model, folder, tmp_path):
    theirs = transformers.AlignModel.from_pretrained(folder).eval()
    out = tmp_path / "theirs"
    theirs.save_pretrained(out)
    if format == "bin":  # what `safe_serialization=False` wrote until transformers 5
        weights(out).unlink()
        torch.save(theirs.state_dict(), out / "pytorch_model.bin")
    assert_close(logits(AlignModel.from_pretrained(out)), logits(theirs), 1e-5, "logits")


@live
@pytest.mark.skipif(not OLD, reason="transformers 5 loads towers otherwise")
@pytest.mark.parametrize("kind", [AlignTextModel, AlignVisionModel])
def test_a_tower_saved_here_loads_in_transformers(kind, folder, tmp_path):
    ours = kind.from_pretrained(folder)
    ours.save_pretrained(tmp_path / "tower")
    theirs, info = getattr(transformers, kind.__name__).from_pretrained(
        tmp_path / "tower", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    given = IDS if kind is AlignTextModel else PIXELS
    with torch.no_grad():
        assert_close(ours(given)[0], theirs.eval()(given)[0], 1e-5, kind.__name__)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pytorch_model_bin_loads_zipped_or_in_the_old_format(legacy, model, folder):
    tensors = load_file(weights(folder))
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    weights(folder).unlink()
    assert_same(AlignModel.from_pretrained(folder), model)


def test_safetensors_come_before_a_bin(model, folder):
    (folder / "pytorch_model.bin").write_bytes(b"not read")
    assert_same(AlignModel.from_pretrained(folder), model)


def test_the_position_ids_of_old_files_are_ignored(model, folder):
    rewrite(folder, lambda t: t.update({"text_model.embeddings.position_ids": torch.arange(16)[None]}))
    assert_same(AlignModel.from_pretrained(folder), model)
    assert_same(AlignTextModel.from_pretrained(folder), model.text_model)


@pytest.mark.parametrize("alone", [False, True])
def test_towers_load_out_of_a_full_checkpoint_and_from_their_own(alone, model, folder, tmp_path):
    for kind, tower, given in (
        (AlignTextModel, model.text_model, IDS),
        (AlignVisionModel, model.vision_model, PIXELS),
    ):
        source = folder
        if alone:
            source = tmp_path / kind.__name__
            tower.save_pretrained(source)
        with torch.no_grad():
            loaded = kind.from_pretrained(source)
            assert_same(loaded, tower)
            assert_close(loaded(given)[0], tower(given)[0], 1e-6, kind.__name__)


def test_a_text_tower_without_pooler_loads_from_a_file_with_one(model, folder):
    tower = AlignTextModel.from_pretrained(folder, add_pooling_layer=False)
    assert tower.pooler is None
    assert_close(tower(IDS)[0], model.text_model(IDS)[0], 1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_precision_come_back_as_float32(dtype, model, folder):
    rewrite(folder, lambda t: t.update({k: v.to(dtype) for k, v in t.items() if v.is_floating_point()}))
    twin = AlignModel.from_pretrained(folder)
    assert {p.dtype for p in twin.parameters()} == {torch.float32}
    assert twin.vision_model.stem.bn.num_batches_tracked.dtype == torch.int64
    expected = model.text_projection.weight.to(dtype).float()
    assert torch.equal(twin.text_projection.weight, expected)


# Bad files


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["zip", "legacy", "plain pickle", "beside tensors"])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(how, folder, tmp_path):
    weights(folder).unlink()
    path, crater = folder / "pytorch_model.bin", tmp_path / "crater"
    if how == "plain pickle":
        path.write_bytes(pickle.dumps(Bomb(crater)))
    else:
        content = (
            {"temperature": torch.ones(()), "x": Bomb(crater)} if how == "beside tensors" else Bomb(crater)
        )
        torch.save(content, path, _use_new_zipfile_serialization=how != "legacy")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: holds more than tensors, .*refused") as caught:
        AlignModel.from_pretrained(folder)
    assert not crater.exists() and "\n" not in str(caught.value)
    pickle.loads(pickle.dumps(Bomb(crater)))  # the proof that it would have
    assert crater.exists()


@pytest.mark.parametrize(
    "content", [[torch.ones(2)], {"temperature": 1.0}, torch.ones(2), {1: torch.ones(2)}]
)
def test_a_bin_with_anything_but_named_tensors_is_refused(content, folder):
    weights(folder).unlink()
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: expected a dictionary of tensors"):
        AlignModel.from_pretrained(folder)


@pytest.mark.parametrize("format", ["safetensors", "bin", "legacy bin"])
@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.5, 0.999])
def test_cut_weights_are_named(format, share, folder):
    path = weights(folder)
    if format != "safetensors":
        tensors = load_file(path)
        path.unlink()
        path = folder / "pytorch_model.bin"
        torch.save(tensors, path, _use_new_zipfile_serialization=format == "bin")
    content = path.read_bytes()
    path.unlink()  # tensors may be mapped from it
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=path.name) as caught:
        AlignModel.from_pretrained(folder)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_rubbish_instead_of_weights_is_named(folder):
    for name in ("model.safetensors", "pytorch_model.bin"):
        weights(folder).unlink(missing_ok=True)
        (folder / name).write_bytes(b"<html>not found</html>" * 9)
        with pytest.raises(ValueError, match=name):
            AlignModel.from_pretrained(folder)


KEY = "text_model.encoder.layer.0.attention.self.query.weight"


def test_missing_extra_and_misshapen_tensors_are_named_by_key(folder):
    def change(tensors):
        del tensors["text_projection.bias"]
        tensors["vision_model.surprise"] = torch.ones(1)
        tensors[KEY] = torch.ones(3, 4)

    rewrite(folder, change)
    with pytest.raises(ValueError) as caught:
        AlignModel.from_pretrained(folder)
    message = str(caught.value)
    assert message.startswith(f"{weights(folder)}: ") and "\n" not in message
    assert "missing: text_projection.bias" in message
    assert "not expected: vision_model.surprise" in message
    assert f"{KEY} is (3, 4) where the configuration says (16, 16)" in message


def test_of_many_missing_tensors_the_first_few_are_named(folder):
    rewrite(folder, lambda t: [t.pop(key) for key in list(t) if key.startswith("vision_model.encoder")])
    with pytest.raises(
        ValueError, match=r"missing: (vision_model[\w.]+, ){2}vision_model[\w.]+ and \d+ more"
    ):
        AlignModel.from_pretrained(folder)


def test_a_text_checkpoint_does_not_pass_for_an_image_tower(model, tmp_path):
    model.text_model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="missing"):
        AlignVisionModel.from_pretrained(tmp_path)


def test_a_broken_configuration_is_named(folder):
    (folder / "config.json").write_text('{"projection_dim": 80')
    with pytest.raises(ValueError, match=r"config\.json: not valid JSON"):
        AlignModel.from_pretrained(folder)


def test_a_missing_folder_or_file_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no/such/folder: no such folder"):
        AlignModel.from_pretrained("no/such/folder")
    with pytest.raises(FileNotFoundError, match="not a folder"):
        AlignModel.from_pretrained(folder / "config.json")
    weights(folder).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no model\.safetensors or pytorch_model\.bin in this folder"
    ):
        AlignModel.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no config\.json in this folder"):
        AlignModel.from_pretrained(str(folder))


# Saving


def test_a_failing_save_leaves_the_old_checkpoint_whole(model, folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def disk_full(tensors, path, **_):
        path.write_bytes(b"half of a fi")
        raise OSError(28, "No space left on device")

    other = build(seed=1)
    other.config.temperature_init_value = 0.7  # another config.json, which must not replace the old one alone
    monkeypatch.setattr("align_minimal.checkpoint.save_file", disk_full)
    with pytest.raises(OSError, match="No space left"):
        other.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    monkeypatch.undo()
    other.config.text_config.hidden_act = torch.tanh
    with pytest.raises(ValueError, match="hidden_act is a callable"):
        other.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_saving_over_a_checkpoint_that_a_model_is_mapped_from_changes_neither(model, folder):
    mapped = AlignModel.from_pretrained(folder)
    build(seed=1).save_pretrained(folder)
    assert_same(mapped, model)
    assert (logits(AlignModel.from_pretrained(folder)) - logits(model)).norm() > 0.01
    mapped.save_pretrained(folder)
    assert_same(AlignModel.from_pretrained(folder), model)


def test_saved_files_have_the_users_permissions(folder):
    mask = os.umask(0)
    os.umask(mask)
    assert all(path.stat().st_mode & 0o777 == 0o666 & ~mask for path in folder.iterdir())


def test_channels_last_and_shared_tensors_are_saved(model, tmp_path):
    twin = build().to(memory_format=torch.channels_last)
    assert not twin.vision_model.stem.conv.weight.is_contiguous()
    twin.save_pretrained(tmp_path)
    assert_same(AlignModel.from_pretrained(tmp_path), model)
    attention = twin.text_model.layers[0].attention
    attention.key = attention.query  # one tensor under two names
    twin.save_pretrained(tmp_path)
    loaded = AlignModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.text_model.layers[0].attention.key.weight, attention.query.weight)
    assert_same(loaded, twin)


def test_a_file_in_the_place_of_the_folder_is_named(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file: not a folder"):
        model.save_pretrained(tmp_path / "file")


# The real thing


def test_align_base_gives_its_published_logits():
    """The check of its model card, on the COCO picture 000000039769, where both are present."""
    from align_minimal.support.hub import weights_folder

    folder = weights_folder() / "kakaobrain" / "align-base"
    picture = folder / "000000039769.jpg"
    if not picture.is_file():
        pytest.skip(f"no {picture}: put kakaobrain/align-base and the COCO picture there to run this")
    from PIL import Image

    from align_minimal import AlignProcessor

    batch = AlignProcessor.from_pretrained(folder)(
        text=["a photo of a cat", "a photo of a dog"], images=Image.open(picture), return_tensors="pt"
    )
    with torch.no_grad():
        found = AlignModel.from_pretrained(folder)(**batch).logits_per_image
    assert (found - torch.tensor([[9.7093, 3.4679]])).abs().max() < 1e-3
