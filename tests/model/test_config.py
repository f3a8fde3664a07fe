"""The three configurations: every documented keyword and default, config.json both ways, presets, errors."""

import json

import pytest
import torch

from align_minimal import (
    PRESETS,
    AlignConfig,
    AlignModel,
    AlignTextConfig,
    AlignTextModel,
    AlignVisionConfig,
    AlignVisionModel,
)
from align_minimal.config import ACTIVATIONS, get_activation
from tests.reference.parity import OLD, transformers

TEXT = dict(
    vocab_size=30522,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    hidden_act="gelu",
    hidden_dropout_prob=0.1,
    attention_probs_dropout_prob=0.1,
    max_position_embeddings=512,
    type_vocab_size=2,
    initializer_range=0.02,
    layer_norm_eps=1e-12,
    pad_token_id=0,
    position_embedding_type="absolute",
    use_cache=True,
)
VISION = dict(
    num_channels=3,
    image_size=600,
    width_coefficient=2.0,
    depth_coefficient=3.1,
    depth_divisor=8,
    kernel_sizes=[3, 3, 5, 3, 5, 5, 3],
    in_channels=[32, 16, 24, 40, 80, 112, 192],
    out_channels=[16, 24, 40, 80, 112, 192, 320],
    depthwise_padding=[],
    strides=[1, 2, 2, 2, 1, 2, 1],
    num_block_repeats=[1, 2, 2, 3, 3, 4, 1],
    expand_ratios=[1, 6, 6, 6, 6, 6, 6],
    squeeze_expansion_ratio=0.25,
    hidden_act="swish",
    hidden_dim=2560,
    pooling_type="mean",
    initializer_range=0.02,
    batch_norm_eps=0.001,
    batch_norm_momentum=0.99,
    drop_connect_rate=0.2,
)
KINDS = {"AlignTextConfig": (AlignTextConfig, TEXT), "AlignVisionConfig": (AlignVisionConfig, VISION)}
live = pytest.mark.skipif(transformers is None, reason="transformers is not installed")

# Nothing at its default, so that a key that is lost on the way shows.
CUSTOM_TEXT = dict(
    vocab_size=99,
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=40,
    hidden_act="relu",
    hidden_dropout_prob=0.2,
    attention_probs_dropout_prob=0.3,
    max_position_embeddings=77,
    type_vocab_size=3,
    initializer_range=0.03,
    layer_norm_eps=1e-6,
    pad_token_id=1,
    position_embedding_type="relative_key",
    use_cache=False,
)
CUSTOM_VISION = dict(
    num_channels=4,
    image_size=64,
    width_coefficient=0.5,
    depth_coefficient=0.7,
    depth_divisor=4,
    kernel_sizes=[5, 3],
    in_channels=[16, 24],
    out_channels=[24, 48],
    depthwise_padding=[1],
    strides=[2, 1],
    num_block_repeats=[2, 3],
    expand_ratios=[2, 4],
    squeeze_expansion_ratio=0.5,
    hidden_act="gelu",
    hidden_dim=24,
    pooling_type="max",
    initializer_range=0.05,
    batch_norm_eps=0.01,
    batch_norm_momentum=0.9,
    drop_connect_rate=0.1,
)


def known(values):
    """`values` without what transformers 5 has dropped: a decoder's option."""
    return {key: value for key, value in values.items() if OLD or key != "use_cache"}


def custom():
    top = dict(projection_dim=24, temperature_init_value=0.5, initializer_range=0.04)
    return AlignConfig(text_config=dict(CUSTOM_TEXT), vision_config=dict(CUSTOM_VISION), **top)


@pytest.mark.parametrize("name", KINDS)
def test_every_documented_keyword_has_its_documented_default(name):
    kind, defaults = KINDS[name]
    assert vars(kind()) == defaults
    assert list(vars(kind())) == list(defaults)  # and its documented place


def test_the_joint_configuration_has_its_documented_defaults():
    config = AlignConfig()
    assert config.text_config == AlignTextConfig() and config.vision_config == AlignVisionConfig()
    assert (config.projection_dim, config.temperature_init_value, config.initializer_range) == (
        640,
        1.0,
        0.02,
    )


@live
@pytest.mark.parametrize("name", KINDS)
def test_defaults_are_those_of_the_installed_transformers(name):
    kind, defaults = KINDS[name]
    theirs = getattr(transformers, name)()
    dropped = () if OLD else ("position_embedding_type", "use_cache")  # transformers 5 no longer has them
    for key in defaults:
        if hasattr(theirs, key) or key not in dropped:
            value = getattr(theirs, key)
            value = list(value) if isinstance(value, tuple) else value
            assert value == getattr(kind(), key), key


def test_the_custom_values_leave_no_default_untested():
    for given, defaults in ((CUSTOM_TEXT, TEXT), (CUSTOM_VISION, VISION)):
        assert list(given) == list(defaults)
        assert not [key for key in given if given[key] == defaults[key]]


@pytest.mark.parametrize("make", [AlignTextConfig, AlignVisionConfig, AlignConfig, custom])
def test_configurations_survive_their_file(make, tmp_path):
    config = make()
    config.save_pretrained(tmp_path)
    assert type(config).from_pretrained(tmp_path) == config
    assert type(config).from_pretrained(str(tmp_path)) == config
    assert type(config).from_dict(config.to_dict()) == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@live
def test_transformers_reads_our_file(tmp_path):
    custom().save_pretrained(tmp_path)
    theirs = transformers.AlignConfig.from_pretrained(tmp_path)
    for part, values in (("text_config", CUSTOM_TEXT), ("vision_config", CUSTOM_VISION)):
        for key, value in known(values).items():
            found = getattr(getattr(theirs, part), key)
            assert (list(found) if isinstance(found, tuple) else found) == value, key
    assert (theirs.projection_dim, theirs.temperature_init_value) == (24, 0.5)
    assert theirs.initializer_range == 0.04
    assert type(transformers.AutoConfig.from_pretrained(tmp_path)) is transformers.AlignConfig


@live
def test_we_read_the_file_of_transformers(tmp_path):
    top = dict(projection_dim=24, temperature_init_value=0.5, initializer_range=0.04)
    parts = dict(text_config=dict(CUSTOM_TEXT), vision_config=dict(CUSTOM_VISION))
    transformers.AlignConfig(**parts, **top).save_pretrained(tmp_path)
    ours, expected = AlignConfig.from_pretrained(tmp_path), custom()
    if not OLD:
        expected.text_config.use_cache = True
    assert ours == expected


@live
@pytest.mark.parametrize("name", KINDS)
def test_a_towers_file_goes_both_ways(name, tmp_path):
    kind = KINDS[name][0]
    values = CUSTOM_TEXT if kind is AlignTextConfig else CUSTOM_VISION
    getattr(transformers, name)(**values).save_pretrained(tmp_path / "theirs")
    assert kind.from_pretrained(tmp_path / "theirs") == kind(**known(values))
    kind(**values).save_pretrained(tmp_path / "ours")
    theirs = getattr(transformers, name).from_pretrained(tmp_path / "ours")
    for key, value in known(values).items():
        assert getattr(theirs, key) == value, key


def test_a_tower_finds_its_part_in_a_full_file(tmp_path):
    custom().save_pretrained(tmp_path)
    assert AlignTextConfig.from_pretrained(tmp_path) == AlignTextConfig(**CUSTOM_TEXT)
    assert AlignVisionConfig.from_pretrained(tmp_path) == AlignVisionConfig(**CUSTOM_VISION)


def test_bookkeeping_in_a_file_is_ignored():
    bookkeeping = dict(transformers_version="4.27.0", architectures=["AlignModel"], torch_dtype="float32")
    bookkeeping |= dict(_name_or_path="", id2label={"0": "a"}, tie_word_embeddings=True)
    content = bookkeeping | dict(projection_dim=24, text_config=bookkeeping | CUSTOM_TEXT)
    config = AlignConfig.from_dict(content | dict(vision_config=bookkeeping | CUSTOM_VISION))
    assert config.text_config == AlignTextConfig(**CUSTOM_TEXT)
    assert config.vision_config == AlignVisionConfig(**CUSTOM_VISION)


def test_from_dict_leaves_its_argument_as_it_was():
    content = custom().to_dict()
    before = json.dumps(content)
    AlignConfig.from_dict(content).vision_config.strides.append(1)
    assert json.dumps(content) == before


def test_towers_join():
    text, vision = AlignTextConfig(**CUSTOM_TEXT), AlignVisionConfig(**CUSTOM_VISION)
    config = AlignConfig.from_text_vision_configs(text, vision, projection_dim=24)
    assert config.text_config == text and config.vision_config == vision and config.projection_dim == 24


def test_two_configurations_share_no_list():
    AlignVisionConfig().strides.append(9)
    assert AlignVisionConfig().strides == VISION["strides"]


# Million parameters of the image tower: the figures of paper.md, rounded as they are.
@pytest.mark.parametrize(
    ("width", "depth", "millions"), [(1.0, 1.0, 3.60), (1.2, 1.4, 10.10), (2.0, 3.1, 62.14)]
)
def test_image_towers_have_the_published_number_of_parameters(width, depth, millions):
    with torch.device("meta"):
        tower = AlignVisionModel(AlignVisionConfig(width_coefficient=width, depth_coefficient=depth))
    assert round(sum(p.numel() for p in tower.parameters()) / 1e6, 2) == millions


PRESET_SIZES = {"b3_mini": 10.10, "b7_base": 62.14, "l2_large": 467.2}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_with_the_published_image_towers(name):
    with torch.device("meta"):
        model = AlignModel(AlignConfig.preset(name))
    millions = sum(p.numel() for p in model.vision_model.parameters()) / 1e6
    if name in PRESET_SIZES:
        assert millions == pytest.approx(PRESET_SIZES[name], abs=0.05 if name == "l2_large" else 0.005)
    else:
        assert millions < 3


PRESET_TEXTS = {  # hidden size, layers, heads, the feed-forward's width, vocabulary, embedding
    "emoji": (128, 2, 4, 512, 30_522, 160),
    "b3_mini": (256, 4, 4, 1024, 30_522, 384),
    "b7_base": (768, 12, 12, 3072, 30_522, 640),
    "l2_large": (1024, 24, 16, 4096, 30_522, 1376),
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_text_towers(name):
    config = AlignConfig.preset(name)
    text = config.text_config
    sizes = text.hidden_size, text.num_hidden_layers, text.num_attention_heads, text.intermediate_size
    assert (*sizes, text.vocab_size, config.projection_dim) == PRESET_TEXTS[name]


def test_b7_base_is_align_base():
    with torch.device("meta"):
        model = AlignModel(AlignConfig.preset("b7_base"))
    assert sum(p.numel() for p in model.parameters()) == 172_117_841
    assert len(model.state_dict()) == 1394


def test_an_unknown_preset_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match="'b7' is not one of emoji, b3_mini, b7_base, l2_large"):
        AlignConfig.preset("b7")


@pytest.mark.parametrize(
    ("kind", "wrong", "nearest"),
    [
        (AlignTextConfig, "hiden_size", "hidden_size"),
        (AlignVisionConfig, "stride", "strides"),
        (AlignConfig, "temperature", "temperature_init_value"),
        (AlignConfig, "zzz", ""),
    ],
)
def test_an_unknown_keyword_is_a_type_error_naming_the_nearest(kind, wrong, nearest):
    with pytest.raises(
        TypeError, match=f"{kind.__name__} has no keyword '{wrong}'; the nearest is '{nearest}"
    ):
        kind(**{wrong: 1})


BAD = [
    (AlignTextConfig, dict(vocab_size=0), "vocab_size must be a whole number of at least 1, not 0"),
    (AlignTextConfig, dict(num_hidden_layers=2.5), "num_hidden_layers must be a whole number.*not 2.5"),
    (AlignTextConfig, dict(hidden_size="768"), "hidden_size must be a whole number.*not '768'"),
    (
        AlignTextConfig,
        dict(hidden_size=10, num_attention_heads=3),
        "hidden_size 10 is not a multiple of .* 3",
    ),
    (AlignTextConfig, dict(hidden_dropout_prob=1.0), r"hidden_dropout_prob must lie in \[0, 1\), not 1.0"),
    (AlignTextConfig, dict(attention_probs_dropout_prob=-1), "attention_probs_dropout_prob must lie in"),
    (AlignTextConfig, dict(hidden_act="gleu"), "hidden_act 'gleu' is not one of gelu, "),
    (AlignTextConfig, dict(hidden_act=None), "hidden_act None is not one of"),
    (
        AlignTextConfig,
        dict(position_embedding_type="rotary"),
        "position_embedding_type 'rotary' is not one of",
    ),
    (AlignTextConfig, dict(pad_token_id=30522), "pad_token_id .*30522"),
    (AlignTextConfig, dict(pad_token_id=-1), "pad_token_id .*-1"),
    (AlignTextConfig, dict(layer_norm_eps="small"), "layer_norm_eps .*'small'"),
    (AlignTextConfig, dict(initializer_range=-0.1), "initializer_range .*-0.1"),
    (AlignVisionConfig, dict(num_channels=0), "num_channels must be"),
    (AlignVisionConfig, dict(width_coefficient=0), "width_coefficient must be a number above 0, not 0"),
    (AlignVisionConfig, dict(depth_coefficient="x"), "depth_coefficient must be a number above 0, not 'x'"),
    (AlignVisionConfig, dict(strides=[1, 2, 3, 2, 1, 2, 1]), "strides must be 1 or 2, not"),
    (AlignVisionConfig, dict(strides=[1, 2]), "strides has 2 stages where kernel_sizes has 7"),
    (AlignVisionConfig, dict(expand_ratios=3), "expand_ratios must be a list"),
    (AlignVisionConfig, dict(kernel_sizes=[]), "stages"),
    (AlignVisionConfig, dict(pooling_type="avg"), "pooling_type 'avg' is not one of mean, max"),
    (AlignVisionConfig, dict(drop_connect_rate=1), r"drop_connect_rate must lie in \[0, 1\), not 1"),
    (AlignVisionConfig, dict(hidden_act="tanh"), "hidden_act 'tanh' is not one of"),
    (AlignVisionConfig, dict(batch_norm_eps=-1.0), "batch_norm_eps .*-1.0"),
    (AlignVisionConfig, dict(batch_norm_momentum=1.5), "batch_norm_momentum .*1.5"),
    (AlignVisionConfig, dict(depthwise_padding=[0.5]), "depthwise_padding .*0.5"),
    (AlignConfig, dict(projection_dim=0), "projection_dim must be"),
    (AlignConfig, dict(temperature_init_value=0), "temperature_init_value must be a number above 0, not 0"),
    (AlignConfig, dict(text_config=dict(vocab_size=-1)), "vocab_size must be"),
]


@pytest.mark.parametrize("given", [[289, 300], (289, 300)], ids=["list", "tuple"])
def test_an_image_size_may_be_a_height_and_a_width(given, tmp_path):
    config = AlignVisionConfig(image_size=given)
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["image_size"] == [289, 300]
    assert AlignVisionConfig.from_pretrained(tmp_path) == config
    for bad in ([289], [289, 300, 3], [289, 0], [[289], 300], "289"):
        with pytest.raises(ValueError, match=r"image_size must be .*, or a list of two, not"):
            AlignVisionConfig(image_size=bad)


def test_tuples_are_the_lists_of_the_file():
    assert AlignVisionConfig(strides=(1, 2, 2, 2, 1, 2, 1)) == AlignVisionConfig()
    config = AlignVisionConfig()
    config.kernel_sizes = tuple(config.kernel_sizes)
    assert config == AlignVisionConfig()


def test_without_a_padding_token_every_embedding_starts_at_random_and_learns(tmp_path):
    config = AlignTextConfig(**CUSTOM_TEXT | dict(pad_token_id=None))
    config.save_pretrained(tmp_path)
    assert AlignTextConfig.from_pretrained(tmp_path) == config
    table = AlignTextModel(config).get_input_embeddings()
    assert table.padding_idx is None and table.weight.all()
    if transformers and not OLD:
        sizes = known(CUSTOM_TEXT | dict(pad_token_id=None))
        theirs = transformers.AlignTextModel(transformers.AlignTextConfig(**sizes)).get_input_embeddings()
        assert theirs.padding_idx is None and theirs.weight.all()


@pytest.mark.parametrize(("kind", "keywords", "message"), BAD)
def test_a_bad_value_is_named(kind, keywords, message):
    with pytest.raises(ValueError, match=message):
        kind(**keywords)


def test_a_sub_configuration_of_another_kind_is_a_type_error():
    with pytest.raises(
        TypeError, match="text_config must be AlignTextConfig, a dict or None, not AlignVision"
    ):
        AlignConfig(text_config=AlignVisionConfig())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"projection_dim": ', "not valid JSON"),
        ("", "not valid JSON"),
        ("[1, 2]", "expected a JSON object, found list"),
        ('{"projection_dim": "wide"}', "projection_dim must be a whole number"),
        ('{"text_config": {"hidden_act": "x"}}', "hidden_act 'x'"),
        ('{"text_config": 3}', "text_config must be"),
    ],
)
def test_a_broken_file_is_named_with_what_is_wrong(content, message, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        AlignConfig.from_pretrained(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "config.json")) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text_config": ' + "[" * 99_999 + "]" * 99_999 + "}", "nested more than 50 deep"),
        ('{"text_config": {"hidden_act": ' + "[" * 400 + "]" * 400 + "}}", "nested more than 50 deep"),
        ('{"a": ' * 60 + "1" + "}" * 60, "nested more than 50 deep"),
        ('{"projection_dim": NaN}', "not valid JSON .NaN is not a finite number"),
        ('{"temperature_init_value": -Infinity}', "-Infinity is not a finite number"),
        ('{"temperature_init_value": 1e999}', "1e999 is not a finite number"),
        ('{"projection_dim": ' + "9" * 5000 + "}", "not valid JSON"),
        ('{"projection_dim": ' + "9" * 30 + "}", "projection_dim must be at most 1000000000, not 999"),
        ('{"temperature_init_value": ' + "9" * 400 + "}", "temperature_init_value must be at most"),
        ('{"temperature_init_value": true}', "temperature_init_value must be a number above 0, not True"),
        ('{"text_config": {"pad_token_id": true}}', "pad_token_id must lie in .0, 30522., not True"),
        ('{"text_config": {"pad_token_id": 0.0}}', "pad_token_id must lie in"),
        ('{"text_config": {"use_cache": "false"}}', "use_cache must be true or false, not 'false'"),
        ('{"text_config": {"hidden_act": {}}}', "hidden_act {} is not one of"),
        ('{"text_config": {"hidden_act": ["gelu"]}}', "hidden_act .'gelu'. is not one of"),
        ('{"text_config": {"position_embedding_type": {}}}', "position_embedding_type {} is not one of"),
        (
            '{"vision_config": {"strides": [1, 2, 2, 2, 1, 2, true]}}',
            "strides must be a list of whole numbers",
        ),
        ('{"vision_config": {"strides": {"0": 1}}}', "strides must be a list of whole numbers above 0"),
        ('{"vision_config": {"pooling_type": ["mean"]}}', "pooling_type .'mean'. is not one of mean, max"),
        ('{"vision_config": {"kernel_sizes": [3, 3, 1e99]}}', "kernel_sizes must be a list of whole numbers"),
        ('{"vision_config": {"width_coefficient": 1e30}}', "width_coefficient must be at most 1000000000"),
        ('{"vision_config": {"depthwise_padding": [' + "1," * 20_000 + "1]}}", "a list of at most 10000"),
        ('{"text_config": {"hidden_act": "' + "\\n\\u001b" * 9_000 + '"}}', "hidden_act '.n.x1b"),
    ],
    ids=range(23),
)
def test_a_hostile_value_is_one_short_line_naming_file_and_key(content, message, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        AlignConfig.from_pretrained(tmp_path)
    said = str(caught.value)
    assert said.startswith(str(tmp_path / "config.json")) and said.isprintable()
    assert len(said) < len(str(tmp_path)) + 300


def test_a_tower_in_a_full_file_that_is_no_object_is_named(tmp_path):
    for content, message in (("3", "text_config must be a JSON object, not 3"), ("[]", "JSON object")):
        (tmp_path / "config.json").write_text(f'{{"text_config": {content}}}')
        with pytest.raises(ValueError, match=rf"config\.json: .*{message}"):
            AlignTextConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"text_config": null, "vocab_size": 3}')
    assert AlignTextConfig.from_pretrained(tmp_path) == AlignTextConfig()


def test_keywords_of_from_pretrained_replace_what_stands_in_the_file(tmp_path):
    custom().save_pretrained(tmp_path)
    config = AlignConfig.from_pretrained(tmp_path, projection_dim=7, text_config=dict(hidden_size=36))
    assert config.projection_dim == 7 and config.text_config == AlignTextConfig(hidden_size=36)
    assert config.vision_config == custom().vision_config and config.temperature_init_value == 0.5
    assert AlignTextConfig.from_pretrained(tmp_path, pad_token_id=3) == AlignTextConfig(
        **CUSTOM_TEXT | dict(pad_token_id=3)
    )
    assert AlignVisionConfig.from_pretrained(pretrained_model_name_or_path=tmp_path).strides == [2, 1]


def test_keywords_of_from_pretrained_are_checked_like_any_other(tmp_path):
    custom().save_pretrained(tmp_path)
    with pytest.raises(
        TypeError, match="AlignConfig has no keyword 'projection'; the nearest is 'projection_d"
    ):
        AlignConfig.from_pretrained(tmp_path, projection=7)
    with pytest.raises(ValueError, match=r"json with vocab_size replaced: vocab_size must be .*not 'many'"):
        AlignTextConfig.from_pretrained(tmp_path, vocab_size="many")


def test_bytes_that_are_not_text_are_named(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match=r"config\.json: not valid JSON"):
        AlignConfig.from_pretrained(tmp_path)


def test_a_callable_activation_works_but_is_not_saved(tmp_path):
    config = AlignTextConfig(hidden_act=torch.tanh)
    assert get_activation(config.hidden_act) is torch.tanh
    with pytest.raises(ValueError, match="hidden_act is a callable"):
        config.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


@live
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_of_transformers(name):
    from transformers.activations import ACT2FN

    if name not in ACT2FN:
        pytest.skip(f"this transformers documents {name} and lacks it")
    x = torch.linspace(-6, 6, 201, dtype=torch.float64)
    assert (get_activation(name)(x) - ACT2FN[name](x)).abs().max() < 1e-10
