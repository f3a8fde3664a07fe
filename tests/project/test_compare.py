"""The layer debugger finds what is wrong, where it is wrong, and nothing where all is right."""

import pytest
import torch

from align_minimal import AlignModel, AlignProcessor
from align_minimal.support.image_files import load_image
from tests.lab import compare
from tests.reference.parity import transformers

pytestmark = pytest.mark.skipif(transformers is None, reason="transformers is not installed")


@pytest.fixture(scope="module")
def batch():
    processor = AlignProcessor.from_pretrained("emoji")
    return processor(text="a red apple", images=load_image(compare.APPLE), padding=True, return_tensors="pt")


@pytest.fixture(scope="module")
def theirs():
    return compare.load_theirs("emoji")


def lines_of(ours, theirs, batch):
    theirs.zero_grad()
    return compare.compare(ours, theirs, batch)


def test_all_layers_of_the_shipped_checkpoint_agree_and_are_in_the_committed_table(theirs, batch, tmp_path):
    lines = lines_of(AlignModel.from_pretrained("emoji"), theirs, batch)
    assert {line.verdict for line in lines} == {"OK"} and compare.culprit(lines) is None
    with_parameters = {name.rpartition(".")[0] for name, _ in theirs.named_parameters()} - {""}
    assert with_parameters <= {line.theirs for line in lines}
    whole = AlignProcessor.from_pretrained("emoji")
    lines = lines_of(
        AlignModel.from_pretrained("emoji"),
        theirs,
        whole(text="a red apple", images=load_image(compare.APPLE), return_tensors="pt"),
    )
    compare.write_table(lines, tmp_path / "parity_table.md", "emoji")
    committed = compare.Path(compare.__file__).with_name("parity_table.md")
    assert (tmp_path / "parity_table.md").read_text() == committed.read_text()


def broken_gate(model):
    gate = model.vision_model.blocks[3].squeeze_excite.expand
    gate.register_forward_hook(lambda layer, inputs, output: output + 0.5)


def broken_gradient(model):
    norm = model.text_model.layers[0].attention_norm
    norm.register_full_backward_hook(lambda layer, inputs, outputs: (inputs[0] * 1.5,))


def broken_shape(model):
    model.vision_model.blocks[2].register_forward_hook(lambda layer, inputs, output: output[..., 1:])


@pytest.mark.parametrize(
    ("break_it", "where", "verdict"),
    [
        (broken_gate, "vision_model.blocks.3.squeeze_excite.expand", "DIFF"),
        (broken_gradient, "text_model.layers.0.attention.output", "DIFF"),
        (broken_shape, "vision_model.blocks.2", "SHAPE (1, 24, 12, 12)"),
    ],
)
def test_the_layer_that_is_broken_is_the_one_marked(theirs, batch, capsys, break_it, where, verdict):
    model = AlignModel.from_pretrained("emoji")
    break_it(model)
    lines = lines_of(model, theirs, batch)
    found = compare.culprit(lines)
    assert (found.name, found.verdict) == (where, verdict)
    compare.print_lines(lines)
    [marked] = [line for line in capsys.readouterr().out.splitlines() if "look here" in line]
    assert marked.split()[0] == where


def test_nan_is_a_difference(theirs, batch):
    model = AlignModel.from_pretrained("emoji")
    with torch.no_grad():
        model.text_projection.bias.fill_(torch.nan)
    assert compare.culprit(lines_of(model, theirs, batch)).name == "text_projection"


def judged(ours=1.0, gradient=1.0, their_gradient=1.0):
    """A layer whose output and gradient are these numbers here, and 1 in Hugging Face's model."""
    mine, other = torch.full((2,), ours), torch.ones(2)
    mine.grad = None if gradient is None else torch.full((2,), gradient)
    other.grad = None if their_gradient is None else torch.full((2,), their_gradient)
    return compare.judge("ours", "theirs", mine, other)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(ours=torch.nan, gradient=None, their_gradient=None),  # each alone, as one hides the other
        dict(gradient=torch.nan),
        dict(their_gradient=torch.nan),
        dict(gradient=None),
        dict(their_gradient=None),
        dict(ours=1.001),
        dict(gradient=1.01),
    ],
)
def test_a_wrong_output_and_a_wrong_gradient_are_differences_each_by_itself(wrong):
    assert judged().verdict == judged(gradient=None, their_gradient=None).verdict == "OK"
    assert judged(**wrong).verdict == "DIFF"


def test_the_first_output_that_is_nan_is_to_blame_and_not_the_last_gradient():
    lines = [judged(), judged(ours=torch.nan), judged(gradient=2.0)]
    assert compare.culprit(lines) is lines[1]
    assert compare.culprit(lines[::2]) is lines[2]


def test_a_layer_that_only_they_have_is_missing(theirs, batch):
    model = AlignModel.from_pretrained("emoji")
    model.vision_model.blocks[9].squeeze_excite = torch.nn.Identity()
    verdicts = {line.theirs: line.verdict for line in lines_of(model, theirs, batch)}
    assert verdicts["vision_model.encoder.blocks.9.squeeze_excite.reduce"] == "MISSING"


def test_a_checkpoint_that_is_not_there_is_one_line(capsys):
    assert compare.main(["no/such/folder"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "no/such/folder" in err
