"""How the shipped checkpoint is made: the steps of weights/prepare_emoji.py and weights/train_emoji.py."""

import argparse
import io
import json
import random
import sys
import types
from concurrent.futures import Future

import pytest
import torch
from PIL import Image

from align_minimal import AlignConfig, AlignModel, AlignProcessor
from weights import ablations, emoji_pairs, evaluate_emoji, prepare_emoji, train_emoji


@pytest.fixture
def model():
    torch.manual_seed(0)
    return AlignModel(AlignConfig.preset("emoji")).eval()


# ---- the data ----------------------------------------------------------------------------------------------


def test_other_languages_name_the_same_concepts_with_or_without_the_selector():
    concepts = {"2764": {}, "1f34e": {}, "1f468-200d-1f33e": {}}
    annotations = {
        "❤": {"default": ["Herz", "Liebe"], "tts": ["rotes Herz"]},
        "👨‍🌾": {"default": ["Bauer"], "tts": ["Bauer"]},
        "🍏": {"tts": ["grüner Apfel"]},  # no concept of ours
        "🍎": {"default": ["Obst"]},  # no name
    }
    files = {"package/annotations/de/annotations.json": {"annotations": {"annotations": annotations}}}
    prepare_emoji.add_languages(concepts, [files])
    assert concepts["2764"]["world"] == {"de": {"name": "rotes Herz", "keywords": ["Herz", "Liebe"]}}
    assert concepts["1f468-200d-1f33e"]["world"]["de"]["name"] == "Bauer"
    assert concepts["1f34e"]["world"] == {}


def test_a_numbered_icon_stands_for_its_name_but_a_keycap_for_its_own_digit_only():
    icons = {name: {"body": name} for name in ("glasses-1", "glasses-2", "glass", "glass-1", "keycap-1")}
    concepts = {name: {"name": name, "names": []} for name in ("glasses", "glass", "keycap: #", "keycap: 1")}
    found = prepare_emoji.find_icons({"package/icons.json": {"icons": icons}}, concepts)
    bodies = {concept: svg.split(">")[1].split("<")[0] for concept, svg in found.items()}
    assert bodies == {"glasses": "glasses-1", "glass": "glass", "keycap: 1": "keycap-1"}


def test_a_language_has_the_name_first_and_most_often():
    words = {
        "world": {"de": {"name": "Apfel", "keywords": ["Obst", "rot"]}, "fr": {"name": "a", "keywords": []}}
    }
    texts = prepare_emoji.world_captions(words, random.Random(0))
    assert texts["de"][:3] == ["Apfel"] * 3 and set(texts["de"][3].split(", ")) <= {"Obst", "rot"}
    assert texts["fr"] == ["a"] * 3


@pytest.fixture
def svgs(monkeypatch):
    """In place of resvg: a square of the width asked for."""

    def square(svg_string: str, width: int) -> bytes:
        file = io.BytesIO()
        Image.new("RGBA", (width, width), "red").save(file, "png")
        return file.getvalue()

    monkeypatch.setitem(sys.modules, "resvg_py", types.SimpleNamespace(svg_to_bytes=square))


def test_a_drawing_of_another_size_is_drawn_again(tmp_path, monkeypatch, svgs):
    path = tmp_path / "a.png"
    for side in (96, 144):
        monkeypatch.setattr(prepare_emoji, "SIDE", side)
        prepare_emoji.draw(("<svg/>", path))
        assert Image.open(path).size == (side, side)
    drawn = path.stat().st_mtime_ns
    prepare_emoji.draw(("<svg/>", path))
    assert path.stat().st_mtime_ns == drawn


def test_a_damaged_package_is_named_in_one_line(tmp_path, capsys):
    (tmp_path / ".packages").mkdir()
    (tmp_path / ".packages" / "emojibase-data-17.0.0.tgz").write_bytes(b"no archive")
    assert prepare_emoji.main([str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "emojibase-data-17.0.0.tgz: damaged" in err


def test_a_model_that_gives_nan_has_no_recall_and_few_pictures_have_fewer_labels():
    with pytest.raises(ValueError, match="not a finite number"):
        evaluate_emoji.recall(torch.full((20, 20), torch.nan))
    assert evaluate_emoji.among_ten(torch.eye(4)) == evaluate_emoji.among_ten(torch.eye(9)) == 1.0
    assert evaluate_emoji.among_ten(1 - torch.eye(4)) == 0.0


def test_noise_loses_shared_texts_and_rare_words():
    sets = {
        "a": ["apple-outline", "apple-fill", "fill-apple", "zyzzyva-fill", "apple"],
        "b": ["fill-apple"] * 10 + ["fill-outline", "outline-fill-apple"],
    }
    kept = prepare_emoji.filter_noise(sets)
    assert kept == {
        "a": ["apple-outline", "apple-fill", "apple"],
        "b": ["fill-outline", "outline-fill-apple"],
    }


def test_relatives_of_a_designer_are_held_out_together(tmp_path):
    for name in prepare_emoji.TRAINING:
        (tmp_path / name).mkdir()
        line = {"file_name": f"{name}.png", "text": ["a"], "world": {}, "concept": "a", "mirror": True}
        (tmp_path / name / "metadata.jsonl").write_text(json.dumps(line) + "\n")
    options = dict(data=tmp_path, sets=None, languages=[], halve=[], noise=None, small=False)

    def learnt_from(held_out):
        pairs, _ = emoji_pairs.read_pairs(argparse.Namespace(hold_out=held_out, **options))
        return {pair.image.stem for pair in pairs}

    everything = set(prepare_emoji.TRAINING) - set(prepare_emoji.ONE_COLOUR)
    assert learnt_from(None) == everything
    assert learnt_from("twemoji") == everything - {"twemoji"}
    assert learnt_from("fluent-shaded") == everything - {"fluent", "fluent-shaded"}


def test_noto_is_in_no_set_that_is_learnt_from():
    packages = [*prepare_emoji.TRAINING.values(), *prepare_emoji.NOISE.values()]
    assert [package for package in packages if "/noto" in package] == []


def test_a_halved_language_is_missing_for_half_of_the_concepts_and_no_other_is(tmp_path):
    concepts = [f"{i:x}" for i in range(400)]
    lines = [
        {
            "file_name": f"{c}.png",
            "text": ["en"],
            "world": {"es": ["es"], "de": ["de"]},
            "concept": c,
            "mirror": True,
        }
        for c in concepts
    ]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pairs = emoji_pairs.read_set(tmp_path, ["es", "de"], halve=["es"])
    with_es = {pair.concept for pair in pairs if "es" in pair.texts}
    assert with_es == {c for c in concepts if emoji_pairs.first_half(c)} and 150 < len(with_es) < 250
    assert all(pair.texts[0] == "en" and "de" in pair.texts for pair in pairs)


# ---- the training ------------------------------------------------------------------------------------------


def test_cheap_strides_change_neither_numbers_nor_gradients(model):
    model.float()
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for p in model.vision_model.parameters():  # away from the start, where all is numerically zero
        p.data.mul_(10)
    found = []
    for _ in range(2):
        model.zero_grad()
        out = model.vision_model.train()(pixels).pooler_output
        out.square().sum().backward()
        found.append((out.detach(), model.vision_model.stem.conv.weight.grad.clone()))
        strided = [m for m in model.modules() if getattr(m, "stride", None) == (2, 2) and m.groups > 1]
        assert len(strided) == (3 if len(found) == 1 else 0)
        train_emoji.make_strides_cheap(model)
    for before, after in zip(*found, strict=True):
        assert before.norm() > 1e-3
        assert torch.allclose(before, after, rtol=1e-4, atol=1e-5 * before.abs().max().item())


def test_a_distortion_of_strength_0_is_the_picture_over_white():
    rgba = torch.zeros(2, 4, 64, 64, dtype=torch.uint8)
    rgba[:, 0, 16:48, 16:48] = rgba[:, 3, 16:48, 16:48] = 255  # a red square on nothing
    flip = torch.zeros(2, dtype=torch.bool)
    plain = emoji_pairs.distort(rgba, 64, flip, 0.0, torch.Generator().manual_seed(0))
    assert torch.allclose(plain[0, :, 32, 32], torch.tensor([1.0, -1.0, -1.0]), atol=1e-5)
    assert torch.allclose(plain[0, :, 2, 2], torch.ones(3), atol=1e-5)
    assert torch.equal(plain[0], plain[1])
    strong = emoji_pairs.distort(rgba, 64, flip, 1.0, torch.Generator().manual_seed(0))
    assert not torch.allclose(strong[0], strong[1], atol=0.1)
    assert strong.amin() >= -1 and strong.amax() <= 1


def red_squares(count):
    """On nothing, red, green, blue times alpha, and alpha: (count, 4, 64, 64), and that none is mirrored."""
    rgba = torch.zeros(count, 4, 64, 64, dtype=torch.uint8)
    rgba[:, 0, 16:48, 16:48] = rgba[:, 3, 16:48, 16:48] = 255
    return rgba, torch.zeros(count, dtype=torch.bool)


def distorted(count, strength, **hand):
    rgba, flip = red_squares(count)
    return emoji_pairs.distort(rgba, 64, flip, strength, torch.Generator().manual_seed(0), **hand)


def test_another_hand_of_strength_0_is_the_picture_too():
    hand = {"bend": 0.15, "turn": torch.ones(3, dtype=torch.bool)}
    assert torch.allclose(distorted(3, 0.0, **hand), distorted(3, 0.0), atol=1e-3)
    assert not torch.allclose(distorted(3, 1.0, **hand), distorted(3, 1.0), atol=0.1)


def test_bending_moves_what_is_drawn_and_keeps_its_colours():
    bent, same_draws = distorted(8, 0.3, bend=1.0), distorted(8, 0.3, bend=1e-9)
    assert (bent - same_draws).abs().mean() > 0.02
    rgba, flip = red_squares(1)
    rgba[:] = torch.tensor([255, 0, 0, 255], dtype=torch.uint8)[:, None, None]  # red everywhere
    centre = emoji_pairs.distort(rgba, 64, flip, 1e-3, torch.Generator().manual_seed(0), bend=100.0)
    assert torch.allclose(centre[0, :, 24:40, 24:40], torch.tensor([1.0, -1, -1])[:, None, None], atol=0.01)


def test_hues_turn_where_they_may_and_light_falls_on_all():
    none, all_of_them = torch.zeros(16, dtype=torch.bool), torch.ones(16, dtype=torch.bool)
    half = torch.arange(16) < 8
    kept, turned, mixed = (distorted(16, 1.0, turn=turn) for turn in (none, all_of_them, half))
    assert torch.equal(mixed, torch.where(half[:, None, None, None], turned, kept))
    changed = (turned - kept).abs().amax((1, 2, 3)) > 0.05
    assert 4 <= changed.sum() <= 12  # half of them, at strength 1
    inside = [x[:, 0, 26:38, 26:38].flatten(1).std(1) for x in (kept, distorted(16, 1.0))]
    assert inside[0].max() > 0.05 and inside[1].max() < 1e-3  # light falls on one colour


def test_a_third_of_a_turn_makes_red_green_and_leaves_greys():
    red, grey = torch.tensor([1.0, 0, 0]), torch.full((3,), 0.4)
    rgb = torch.stack([red, grey, red])[:, :, None, None]
    turned = emoji_pairs.turn_hues(rgb, torch.tensor([2 / 3, 2 / 3, 4 / 3]) * torch.pi)[:, :, 0, 0]
    green, blue = torch.tensor([0, 1.0, 0]), torch.tensor([0, 0, 1.0])
    assert torch.allclose(turned, torch.stack([green, grey, blue]), atol=1e-6)


def test_a_picture_that_is_named_by_its_colour_keeps_it():
    named = ["red apple", "black cat", "green heart", "hundred points", "bored face", "apple"]
    assert [bool(train_emoji.COLOURS.search(name)) for name in named] == [True] * 3 + [False] * 3


def schedule(**options):
    training = train_emoji.Training.__new__(train_emoji.Training)
    training.args = argparse.Namespace(steps=1500, texts_first=500, rate=1.0, **options)
    rates = {}
    for training.step in range(1500):
        rates[training.step + 1] = training.rate()
    return rates


def test_the_rate_rises_twice_and_falls_in_the_tail_only():
    rates = schedule()
    assert rates[50] == pytest.approx(0.5) and rates[100] == rates[500] == 1.0
    assert rates[550] == pytest.approx(0.5) and rates[600] == rates[1200] == 1.0
    assert rates[1351] == pytest.approx(0.5) and rates[1500] == pytest.approx(1 / 300)


@pytest.fixture
def drawings(tmp_path, monkeypatch):
    """Two sets of forty drawings each, in place of the ten that are fetched."""
    monkeypatch.setattr(prepare_emoji, "main", lambda argv: 0)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)  # or later tests would have them, too
    monkeypatch.setattr(prepare_emoji, "TRAINING", {"one": "", "two": ""})
    monkeypatch.setattr(train_emoji, "SAVE_EVERY", 2)
    monkeypatch.setattr(ablations, "CONCEPTS", 1.0)
    noise = random.Random(0)
    for name in ("one", "two"):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        lines = []
        for i, word in enumerate(f"{letter}{vowel}t" for letter in "bcdfghkl" for vowel in "aeiou"):
            colour = tuple(noise.randrange(256) for _ in range(3))
            Image.new("RGBA", (40, 40), (*colour, 255)).save(folder / f"{i}.png")
            line = {"file_name": f"{i}.png", "text": [word], "world": {"de": [f"{word}el"]}, "concept": word}
            lines.append(json.dumps(line | {"mirror": True}) + "\n")
        (folder / "metadata.jsonl").write_text("".join(lines))
    return tmp_path / "data"


def train(drawings, out, *more):
    return train_emoji.main(f"{drawings} --out {out} --small --hold-out two --languages de".split() + [*more])


def test_an_interrupted_run_ends_with_the_same_bits(drawings, tmp_path, monkeypatch):
    monkeypatch.setattr(train_emoji, "measure", lambda args: {})
    assert train(drawings, tmp_path / "first", *["--freeze", "0", "--texts-first", "0", "--steps", "1"]) == 0
    options = f"--init {tmp_path / 'first'} --freeze 1 --texts-first 3 --steps 6".split()
    assert train(drawings, tmp_path / "whole", *options) == 0

    learn = train_emoji.Training.learn

    def stop_at_5(training, pairs):
        if training.step == 5:
            raise KeyboardInterrupt
        return learn(training, pairs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_emoji.Training, "learn", stop_at_5)
        train(drawings, tmp_path / "cut", *options)
    assert train(drawings, tmp_path / "cut", *options) == 0
    whole, cut = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut
    first = AlignModel.from_pretrained(tmp_path / "first").vision_model
    after = AlignModel.from_pretrained(tmp_path / "whole").vision_model
    assert torch.equal(first.blocks[0].project.conv.weight, after.blocks[0].project.conv.weight)  # frozen
    assert not torch.equal(first.blocks[1].project.conv.weight, after.blocks[1].project.conv.weight)


def test_a_run_with_larger_pictures_goes_on_from_one_with_smaller_ones(drawings, tmp_path, monkeypatch):
    monkeypatch.setattr(train_emoji, "measure", lambda args: {})
    assert (
        train_emoji.main(f"{drawings} --out {tmp_path / '32'} --small --hold-out two --steps 1".split()) == 0
    )
    options = f"--small --hold-out two --steps 3 --init {tmp_path / '32'} --side 48 --bend 0.1 --recolour"
    assert train_emoji.main([str(drawings), "--out", str(tmp_path / "48"), *options.split()]) == 0
    small, large = (AlignModel.from_pretrained(tmp_path / side) for side in ("32", "48"))
    assert (small.config.vision_config.image_size, large.config.vision_config.image_size) == (32, 48)
    processor = AlignProcessor.from_pretrained(tmp_path / "48")
    assert processor(images=Image.new("RGB", (9, 9)), return_tensors="pt").pixel_values.shape[2:] == (48, 48)
    words = [AlignProcessor.from_pretrained(tmp_path / side).tokenizer.vocab for side in ("32", "48")]
    assert words[0] == words[1]


def test_small_models_are_never_put_where_the_shipped_ones_are(drawings, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        train_emoji.main(f"{drawings} --out {tmp_path / 'run'} --small --init {tmp_path}".split())
    assert "--small: to try a setting only, with --hold-out" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_set_to_hold_out_that_is_not_there_is_an_error_before_the_training(drawings, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        train_emoji.main(f"{drawings} --out {tmp_path / 'run'} --small --hold-out tow --steps 1".split())
    assert "--hold-out tow: no such set" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_reports_every_language_and_both_halves_on_the_set_held_out(drawings, tmp_path):
    options = ["--freeze", "0", "--texts-first", "0", "--steps", "2", "--halve", "de"]
    assert train(drawings, tmp_path / "run", *options) == 0
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    halves = found["de, captions seen"]["pairs"], found["de, captions not seen"]["pairs"]
    assert found["en"]["pairs"] == found["de"]["pairs"] == sum(halves) == 40 and min(halves) > 10


def test_one_command_makes_both_checkpoints_each_run_from_the_one_before(drawings, tmp_path, monkeypatch):
    monkeypatch.setattr(train_emoji, "__file__", str(tmp_path / "weights" / "train_emoji.py"))
    changes = {"languages": ["de"], "texts_first": 1, "steps": 2}
    monkeypatch.setattr(train_emoji, "RUNS", {"english": {}, "emoji": {"seed": 1}, "emoji-world": changes})
    monkeypatch.setattr(train_emoji, "VOCABULARY", 200)
    asked = []
    monkeypatch.setattr(train_emoji, "align_minimal", lambda command: asked.append(command))
    monkeypatch.setattr(train_emoji, "start_from", lambda model, folder, tokenizer: asked.append(folder))
    first = tmp_path / "out" / "first"
    first.mkdir(parents=True)
    AlignProcessor.from_pretrained("emoji").save_pretrained(first)
    shipped = ("emoji", "emoji-world")
    for name in shipped:
        (tmp_path / "weights" / name).mkdir(parents=True)
    before = tmp_path / "weights" / "emoji" / "model.safetensors"
    before.write_bytes(b"what a running program has mapped into its memory")
    running = before.open("rb")
    parser = argparse.ArgumentParser()
    train_emoji.add_arguments(parser)
    args = parser.parse_args(f"{drawings} --out {tmp_path / 'out'} --small --steps 1 --freeze 1".split())
    assert train_emoji.make(args, parser) == 0  # `main` lets nobody have small models there
    assert asked[0][0] == "train" and asked[0][-3:] == ["--steps", "6000", "--resume"]
    assert asked[1:] == [first, tmp_path / "out" / "english", tmp_path / "out" / "emoji"]
    assert sorted(path.name for path in (tmp_path / "weights").iterdir()) == [*shipped]
    models = {name: AlignModel.from_pretrained(tmp_path / "weights" / name) for name in shipped}
    sizes = [model.config.text_config.vocab_size for model in models.values()]
    processors = [AlignProcessor.from_pretrained(tmp_path / "weights" / name) for name in shipped]
    assert running.read().endswith(b"its memory")  # it keeps the file that it has open
    running.close()
    assert sizes == [len(processor.tokenizer) for processor in processors] and sizes[0] == 4000
    assert sizes[1] < 200


def test_a_run_does_not_go_on_with_other_pictures_or_options(drawings, tmp_path, capsys):
    def run(options: str) -> int:
        return train_emoji.main(f"{drawings} --out {tmp_path / 'run'} --small {options}".split())

    assert run("--hold-out two --steps 1") == 0
    for changed in ("--hold-out one", "--hold-out two --strong 0.5", "--hold-out two --side 48"):
        assert run(f"{changed} --steps 2") == 1
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith(f"{tmp_path / 'run' / 'options.json'}: begun with ")
    assert run("--hold-out two --steps 2") == 0


def test_views_of_another_model_or_of_other_pictures_are_not_shared(drawings, tmp_path, capsys):
    def run(name: str, options: str) -> int:
        words = (
            f"{drawings} --out {tmp_path / name} --small --steps 1 --freeze 1 --views {tmp_path / 'views'}"
        )
        return train_emoji.main([*words.split(), *options.split()])

    assert run("a", "--hold-out two") == 0 and run("b", "--hold-out two --rate 0.001") == 0
    for name, options in (("c", "--hold-out one"), ("d", "--hold-out two --seed 1")):
        assert run(name, options) == 1
        assert "views.json: begun with" in capsys.readouterr().err


def test_the_designer_of_the_final_test_can_be_neither_learnt_from_nor_held_out(tmp_path, capsys):
    for flag in ("--sets", "--hold-out"):
        with pytest.raises(SystemExit):
            train_emoji.main(f"{tmp_path} --out {tmp_path / 'run'} {flag} noto".split())
        assert "noto: the designer of the final test" in capsys.readouterr().err


def test_a_mirrored_alias_is_drawn_mirrored_and_a_turned_one_is_refused():
    icons = {"prefix": "set", "icons": {"left": {"body": "<p/>"}}, "width": 32}
    icons["aliases"] = {"right": {"parent": "left", "hFlip": True}, "up": {"parent": "left", "rotate": 1}}
    assert "scale" not in prepare_emoji.as_svg(icons, "left")
    assert '<g transform="translate(32 0) scale(-1 1)"><p/></g>' in prepare_emoji.as_svg(icons, "right")
    with pytest.raises(ValueError, match=r"set: up is left turned \(rotate\)"):
        prepare_emoji.as_svg(icons, "up")


def test_an_imagefolder_of_anyone_s_is_measured_on_whole_names(tmp_path, capsys):
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "1.png", "text": "red apple"}\n')
    assert evaluate_emoji.read(tmp_path) == [(tmp_path / "1.png", "red apple", "red apple")]
    for words in (["--language", "de"], ["--unseen"]):
        assert evaluate_emoji.main([str(tmp_path), *words]) == 1
        assert f"{tmp_path}: no picture with a name" in capsys.readouterr().err
    assert evaluate_emoji.main([str(tmp_path / "metadata.jsonl")]) == 1


def test_what_stops_the_making_is_one_line(drawings, tmp_path, capsys):
    out = tmp_path / "run"
    assert (
        train_emoji.main(f"{drawings} --out {out} --small --hold-out two --init {tmp_path / 'no'}".split())
        == 1
    )
    assert str(tmp_path / "no") in capsys.readouterr().err.strip().splitlines()[-1]
    with pytest.raises(ValueError, match=r"no: no metadata\.jsonl and no metadata\.csv in it"):
        emoji_pairs.read_folder(tmp_path / "no")


def test_of_several_runs_one_that_fails_takes_no_other_with_it(tmp_path, monkeypatch, capsys):
    class Here:  # in place of processes
        def __init__(self, *given, **more):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def submit(self, work, task):
            future = Future()
            if task[2] == 0:
                future.set_exception(ValueError("the pictures of seed 0"))
            else:
                future.set_result((f"{task[1]} {task[2]}", {"loss": 0.5}))
            return future

    monkeypatch.setattr(ablations, "ProcessPoolExecutor", Here)
    assert ablations.main([str(tmp_path), "--out", str(tmp_path), "--only", "base"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "the pictures of seed 0"
    assert sorted(json.loads((tmp_path / "results.json").read_text())["runs"]) == ["base 1", "base 2"]
