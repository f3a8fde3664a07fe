"""`align-minimal trace`: the rows against independent counts."""

import itertools
import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from align_minimal import AlignConfig, AlignModel, AlignProcessor
from align_minimal.support.image_files import load_image
from align_minimal.using.trace import trace, trace_pair
from tests.using.test_cli import refused, run

SAMPLES = Path(__file__).resolve().parents[2] / "weights" / "samples"
APPLE = SAMPLES / "apple.png"


@pytest.fixture(scope="module")
def traced():
    model, processor = AlignModel.from_pretrained("emoji"), AlignProcessor.from_pretrained("emoji")
    batch = processor(text="a red apple", images=load_image(APPLE), padding=True, return_tensors="pt")
    return model, batch, trace(model, batch)


def test_multiply_adds_are_half_of_what_pytorch_s_own_counter_finds(traced):
    model, batch, rows = traced
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**batch)
    logits = 2 * rows[0].shape[0] * model.config.projection_dim  # text · image, in no layer
    assert (
        2 * sum(row.multiply_adds for row in rows if "." not in row.name)
        == counter.get_total_flops() - logits
    )


@pytest.mark.parametrize("kind", ["relative_key", "relative_key_query"])
def test_relative_positions_are_counted_too(kind):
    config = AlignConfig.preset("emoji")
    config.text_config.position_embedding_type = kind
    config.text_config.vocab_size = 30
    model = AlignModel(config).eval()
    batch = {"input_ids": torch.arange(2, 9)[None], "pixel_values": torch.rand(1, 3, 64, 64)}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**batch)
    total = sum(row.multiply_adds for row in trace(model, batch) if "." not in row.name)
    assert 2 * total == counter.get_total_flops() - 2 * config.projection_dim


def test_parameters_add_up_and_every_layer_that_took_part_has_a_row(traced):
    model, _, rows = traced
    whole = sum(row.parameters for row in rows if "." not in row.name)
    assert whole + model.temperature.numel() == sum(p.numel() for p in model.parameters())
    named = {row.name for row in rows}
    assert {name.rpartition(".")[0] for name, _ in model.named_parameters()} - {""} <= named


def test_statistics_are_those_of_the_output(traced):
    model, batch, rows = traced
    with torch.no_grad():
        out = model.vision_model(batch["pixel_values"]).last_hidden_state
    row = next(row for row in rows if row.name == "vision_model")
    assert row.shape == tuple(out.shape)
    assert row.mean == pytest.approx(out.mean().item(), rel=1e-5)
    assert row.deviation == pytest.approx(out.var(correction=0).sqrt().item(), rel=1e-5)


def test_no_hook_is_left_behind(traced):
    model, *_ = traced
    assert not any(layer._forward_hooks for layer in model.modules())


def test_a_person_reads_a_tree_and_the_pair_s_logit(capsys):
    status, out, err = run(capsys, "trace", APPLE, "a red apple", "--depth", 2)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["layer", "output", "parameters", "mult-adds", "mean", "deviation"]
    assert any(line.startswith("  layers.0 ") and "BertLayer" in line for line in lines)
    assert not any(line.startswith("    ") for line in lines)
    assert "1,482,497 parameters" in out and "[CLS] a red apple [SEP]" in out
    model, processor = AlignModel.from_pretrained("emoji"), AlignProcessor.from_pretrained("emoji")
    batch = processor(text="a red apple", images=load_image(APPLE), padding=True, return_tensors="pt")
    logit = model(**batch).logits_per_image.item()
    assert float(lines[-1].split()[-1]) == pytest.approx(logit, abs=1e-3)


def test_unless_told_otherwise_the_blocks_of_a_stage_are_one_line(capsys, traced):
    _, _, rows = traced
    lines = run(capsys, "trace", APPLE, "a red apple")[1].splitlines()
    [blocks] = [line.split() for line in lines if line.startswith("  blocks.3–4 ")]
    assert blocks[1:4] == ["2", "×", "MBConv"] and blocks[4:11] == ["1", "×", "40", "×", "6", "×", "6"]
    own = [row for row in rows if row.name in ("vision_model.blocks.3", "vision_model.blocks.4")]
    assert blocks[11] == f"{sum(row.parameters for row in own):,}"
    assert blocks[12] == f"{sum(row.multiply_adds for row in own):,}"
    assert float(blocks[14]) == pytest.approx(own[1].deviation, abs=1e-4)
    assert any(line.startswith("  layers.0–1  ") and "2 × BertLayer" in line for line in lines)
    assert not any(line.startswith("    ") for line in lines)
    # Every block is in one of the lines, and each change of shape begins another line.
    named = re.findall(r"blocks\.(\d+)(?:–(\d+))?", "\n".join(lines))
    assert [i for first, last in named for i in range(int(first), int(last or first) + 1)] == list(range(10))
    shapes = [row.shape for row in rows if re.fullmatch(r"vision_model\.blocks\.\d+", row.name)]
    assert len(named) == 1 + sum(a != b for a, b in itertools.pairwise(shapes))
    every = run(capsys, "trace", APPLE, "a red apple", "--depth", 99)[1].splitlines()
    assert len(every) == len(rows) + 4


def test_a_text_is_cut_to_the_positions_that_the_model_has(capsys):
    model, processor = AlignModel.from_pretrained("emoji"), AlignProcessor.from_pretrained("emoji")
    model.config.text_config.max_position_embeddings = 8
    trace_pair(model, processor, APPLE, "apple " * 20, depth=1)
    assert "1 × 8 × 128" in capsys.readouterr().out


def test_bad_input_is_one_line(capsys, tmp_path):
    refused(capsys, "trace", APPLE, status=2, says=["TEXT"])
    refused(capsys, "trace", APPLE, " ", status=2, says=["empty"])
    refused(capsys, "trace", APPLE, "dog", "--depth", 0, status=2, says=["--depth"])
    refused(capsys, "trace", tmp_path / "no.png", "dog", status=1, says=["no.png"])
    (tmp_path / "x.png").write_bytes(b"")
    refused(capsys, "trace", tmp_path / "x.png", "dog", status=1, says=["x.png"])
