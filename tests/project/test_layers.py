"""--layer: every block can be replaced; the package's own passes, the starter is red, mistakes are named."""

import ast
import configparser
import inspect

import pytest

from tests.lab import layers, starters
from tests.lab.break_it import ROOT
from tests.lab.layer_examples import EXAMPLES
from tests.lab.warm import python

# Not building blocks: records, checks of arguments, tables, and reading and writing of files.
OTHERS = {
    "efficientnet": {"BlockSpec"},
    "wordpiece": {"CleanTable"},
    "training.vocabulary": {"PairCounts", "learn_vocabulary"},
    "support.batching": {
        "one_text",
        "as_examples",
        "strategies",
        "token_types",
        "special_tokens",
        "padded_width",
        "lengths",
        "as_columns",
    }
    | {"as_lists", "no_tensors", "warn_of_cuts"},
    "support.rgb": {"array_to_rgb", "to_picture", "list_of_images"},
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """All blocks in one file: with the package's bodies, and with none."""
    folder, blocks = tmp_path_factory.mktemp("readers"), list(layers.BLOCKS)
    (folder / "solved.py").write_text(starters.solution(blocks), encoding="utf-8")
    (folder / "empty.py").write_text(starters.starter("empty.py", blocks, "None"), encoding="utf-8")
    return folder


def run_pytest(*arguments) -> tuple[int, str]:
    result = python("-m", "pytest", "-p", "no:cacheprovider", *arguments)
    return result.returncode, result.stdout + result.stderr


def thing(file, block):
    return layers.read_options([f"{block}={file}:{block}"])[0].thing


def test_every_public_class_and_function_of_these_files_is_a_block_or_known_not_to_be():
    found = {}
    for module in {module for module, _ in layers.BLOCKS.values()}:
        tree = ast.parse((ROOT / "align_minimal" / layers.file_of(module)).read_text(encoding="utf-8"))
        names = {n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        found[module] = {n for n in names if not n.startswith("_")} - OTHERS.get(module, set())
    blocks = {}
    for block, (module, _) in layers.BLOCKS.items():
        blocks.setdefault(module, set()).add(block)
    assert found == blocks and set(EXAMPLES) == set(layers.BLOCKS)


# ---- for every block


@pytest.mark.parametrize("block", layers.BLOCKS)
def test_the_package_s_own_block_written_into_a_reader_s_file_agrees(written, block):
    assert layers.explain(block, thing(written / "solved.py", block)) == ""


@pytest.mark.parametrize("block", layers.BLOCKS)
def test_an_empty_block_is_named_as_not_yet_written(written, block):
    assert f"{block} is not written yet" in layers.explain(block, thing(written / "empty.py", block))


@pytest.mark.parametrize("block", layers.BLOCKS)
def test_a_known_mistake_in_a_reader_s_file_is_named(written, tmp_path, block):
    """The first mistake that stands in the block, or else in what it is made of."""
    source = starters.solution([block] if block != "learn_pieces" else ["best_pair", block])
    mistake = next(m for m in layers.mistakes(block) if source.count(m.old) == 1)
    (tmp_path / "wrong.py").write_text(source.replace(mistake.old, mistake.new), encoding="utf-8")
    told = layers.explain(block, thing(tmp_path / "wrong.py", block))
    assert f"likely cause: {mistake.hint}" in told and mistake.name in told, told


# ---- through pytest itself


def test_a_wrong_block_is_red_with_numbers_and_cause_and_no_other_tests_run(written):
    source = (written / "solved.py").read_text(encoding="utf-8")
    (written / "wrong.py").write_text(source.replace("torch.sigmoid(", "F.hardsigmoid("), encoding="utf-8")
    status, output = run_pytest(
        "--layer", f"SqueezeExcite={written / 'wrong.py'}:SqueezeExcite", "tests", "-k", "squeeze"
    )
    assert status == 1
    for part in (
        "forward: output",
        "expected tensor(",
        "got      tensor(",
        "max difference 1.",
        "relative 1.",
    ):
        assert part in output
    assert "likely cause: the gate is a sigmoid; the hard one is MobileNetV3's" in output
    assert "Traceback" not in output and "test_bert" not in output


def test_a_plain_loss_without_checks_or_tiles_passes(tmp_path):
    (tmp_path / "plain.py").write_text(PLAIN, encoding="utf-8")
    status, output = run_pytest("--layer", f"contrastive_loss={tmp_path / 'plain.py'}:loss", "tests")
    assert status == 0, output


# ---- a file that is written in part


def partly_written(folder, *written):
    """The exercises of notebook 03, with these blocks written and the others not."""
    _, blocks = starters.EXERCISES["03_mbconv.py"]
    source, solved = starters.starter("mine.py", blocks, "mine"), ast.parse(starters.solution(blocks))
    nodes = [n for n in solved.body if getattr(n, "name", "") in written]
    tree = ast.parse(source)
    tree.body = [n for n in tree.body if getattr(n, "name", "") not in written] + nodes
    (folder / "mine.py").write_text(ast.unparse(tree), encoding="utf-8")
    return folder / "mine.py"


def test_of_a_file_with_one_block_written_that_one_is_marked_and_the_others_fall_back_and_are_named(tmp_path):
    status, output = run_pytest("--layer", partly_written(tmp_path, "MBConv"), "tests", "-k", "drop_connect")
    assert status == 0, output
    left = "not written yet, so the package's own stood in: BatchNorm, ConvNorm, SqueezeExcite, DropConnect"
    assert left in output


def test_a_wrong_block_among_unwritten_ones_is_red_and_they_are_named(tmp_path):
    path = partly_written(tmp_path, "SqueezeExcite")
    path.write_text(
        path.read_text(encoding="utf-8").replace("self.activation(", "torch.relu("), encoding="utf-8"
    )
    status, output = run_pytest("--layer", path, "tests", "-k", "squeeze")
    assert status == 1 and "the mistake 'squeeze-excite-with-relu' gives exactly" in output, output
    assert "stood in: BatchNorm, ConvNorm, DropConnect, MBConv" in output


def test_a_block_that_is_asked_for_by_name_and_not_written_is_red(tmp_path):
    path = partly_written(tmp_path, "MBConv")
    status, output = run_pytest("--layer", f"SqueezeExcite={path}:SqueezeExcite", "tests", "-k", "squeeze")
    assert status == 1 and "SqueezeExcite is not written yet (NotImplementedError)" in output, output


def test_a_file_with_nothing_written_is_an_error_in_one_line(written):
    with pytest.raises(pytest.UsageError, match=r"empty.py: none of its blocks is written yet"):
        layers.read_options([str(written / "empty.py")])


def test_layer_and_break_it_work_from_the_notebooks_folder(tmp_path):
    source = starters.solution(["SqueezeExcite"]).replace("self.activation(", "torch.relu(")
    (tmp_path / "mine.py").write_text(source, encoding="utf-8")
    pytest_here = ("pytest", "-p", "no:cacheprovider")
    commands = {
        (*pytest_here, f"--layer={tmp_path / 'mine.py'}", "-k", "squeeze_excite"): 1,
        (
            *pytest_here,
            "--layer",
            f"SqueezeExcite={tmp_path / 'mine.py'}:SqueezeExcite",
            "-k",
            "squeeze_excite",
        ): 1,
        (*pytest_here, "--layers"): 0,
        ("tests.lab.break_it", "sigma-multiplied"): 0,  # a plain path, as an editable install puts it there
    }
    for command, status in commands.items():
        done = python("-m", *command, cwd=ROOT / "notebooks", env={"PYTHONDONTWRITEBYTECODE": "1"})
        assert done.returncode == status, done.stdout + done.stderr
        assert status == 0 or "likely cause: the activation between the two" in done.stdout, done.stdout


def test_the_notebooks_extra_brings_what_the_grader_and_the_comparison_import():
    extras = read_configuration()["notebooks"]
    assert {"pytest", "hypothesis", "transformers>=4.37.2"} <= set(extras)


def read_configuration() -> dict[str, list[str]]:
    """The extras of setup.cfg."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return {name: value.split("\n") for name, value in parser["options.extras_require"].items()}


# ---- mistakes that have a diagnosis

RELU = ("SqueezeExcite", "self.activation(self.reduce(gate))", "torch.relu(self.reduce(gate))")
TWICE = (RELU[0], RELU[1], "self.activation(self.activation(self.reduce(gate)))")
OTHERS_ALONE = """
import torch

def loss(text_embeds, image_embeds, temperature, label_smoothing=0.1):
    logits, n = text_embeds @ image_embeds.T / temperature, len(text_embeds)
    one = torch.eye(n, dtype=logits.dtype)
    target = one * (1 - label_smoothing) + (1 - one) * label_smoothing / (n - 1)
    losses = [-(target * z.log_softmax(1)).sum(1).mean() for z in (logits, logits.T)]
    return sum(losses) / 2
"""


@pytest.mark.parametrize(
    ("change", "mistake"),
    [(RELU, "squeeze-excite-with-relu"), (TWICE, "squeeze-excite-activates-twice")],
    ids=["relu", "twice"],
)
def test_a_wrong_activation_in_squeeze_excite_is_named(tmp_path, change, mistake):
    block, old, new = change
    source = starters.solution([block])
    assert source.count(old) == 1
    (tmp_path / "mine.py").write_text(source.replace(old, new), encoding="utf-8")
    assert f"the mistake '{mistake}' gives exactly" in layers.explain(
        block, thing(tmp_path / "mine.py", block)
    )


def test_smoothing_spread_over_the_wrong_ones_alone_is_named(tmp_path):
    (tmp_path / "mine.py").write_text(OTHERS_ALONE, encoding="utf-8")
    (replacement,) = layers.read_options([f"contrastive_loss={tmp_path / 'mine.py'}:loss"])
    told = layers.explain("contrastive_loss", replacement.thing)
    assert "the mistake 'smoothing-over-the-wrong-ones-alone' gives exactly" in told, told


@pytest.mark.parametrize("limit", ["> 101", ">= MAX_WORD"])
def test_the_example_of_wordpiece_sees_a_wrong_limit_of_length(tmp_path, limit):
    source = starters.solution(["wordpiece"])
    assert source.count("> MAX_WORD") == 1
    (tmp_path / "mine.py").write_text(source.replace("> MAX_WORD", limit), encoding="utf-8")
    assert "forward: 'yyy" in layers.explain("wordpiece", thing(tmp_path / "mine.py", "wordpiece"))


# ---- what the message says

PLAIN = """
import torch
from torch.nn.functional import cross_entropy as ce

def loss(text_embeds, image_embeds, temperature, label_smoothing=0.1):
    s, i = text_embeds @ image_embeds.T / temperature, torch.arange(len(text_embeds))
    return (ce(s, i, label_smoothing=label_smoothing) + ce(s.T, i, label_smoothing=label_smoothing)) / 2
"""


READERS = """
import torch
from align_minimal.efficientnet import DropConnect, SqueezeExcite

class Detached(SqueezeExcite):
    def forward(self, x):
        return super().forward(x.detach()) + x - x.detach()

class OtherNames(SqueezeExcite):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.fc1 = self.reduce
        del self.reduce

    def forward(self, x):
        return x

class Failing(SqueezeExcite):
    def forward(self, x):
        return x @ x

class Unlike(SqueezeExcite):
    def forward(self, x):
        return 3 * x

def a_function(x):
    return x
"""


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Detached", ["backward: gradient of the input", "the values agree: look for detach()"]),
        (
            "OtherNames",
            ["must be these\n  expected {'expand.bias': (2,)", "'reduce.weight': (1, 2, 1,", "fc1"],
        ),
        ("Failing", ["reader.py, line 20: RuntimeError: "]),
        ("Unlike", ["forward: output", "what often goes wrong here:\n  - the squeeze is the mean"]),
    ],
)
def test_what_is_wrong_is_said(tmp_path, name, says):
    (tmp_path / "reader.py").write_text(READERS, encoding="utf-8")
    (replacement,) = layers.read_options([f"SqueezeExcite={tmp_path / 'reader.py'}:{name}"])
    told = layers.explain("SqueezeExcite", replacement.thing)
    assert all(part in told for part in says), told


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("SqueezeExcit={}/reader.py:Unlike", "no block 'SqueezeExcit'; did you mean SqueezeExcite?"),
        ("SqueezeExcite={}/none.py:Unlike", "none.py: no such file"),
        ("SqueezeExcite={}/reader.py:Unlik", "reader.py defines no Unlik; did you mean Unlike?"),
        ("SqueezeExcite={}/reader.py", "expected SqueezeExcite=FILE:NAME"),
        ("SqueezeExcite={}/reader.py:a_function", "SqueezeExcite is a class"),
        ("SqueezeExcite={}/broken.py:X", "broken.py, line 2: ModuleNotFoundError: No module named 'nowhere'"),
        ("SqueezeExcite={}/cut.py:X", "cut.py, line 1: SyntaxError: "),
        ("{}/reader.py", "defines no building block"),
    ],
)
def test_a_wrong_option_is_an_error_in_one_line(tmp_path, option, says):
    for name, text in (("reader", READERS), ("broken", "\nimport nowhere\n"), ("cut", "def f(:")):
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    with pytest.raises(pytest.UsageError) as caught:
        layers.read_options([option.format(tmp_path)])
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_layers_lists_every_block_with_signature_docstring_and_tests():
    listing = layers.listing()
    for block in layers.BLOCKS:
        assert f"\n{block}(" in f"\n{listing}"
        assert inspect.getdoc(layers.original(block)).split("\n")[0] in listing
    assert "model/test_contrastive.py::" in listing


# ---- the starter files


def outline(source: str) -> list[tuple[str, str, str]]:
    """Name, arguments and the docstring's first line of every class, function and method."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            arguments = ast.dump(node.args if isinstance(node, ast.FunctionDef) else ast.Tuple(node.bases))
            found.append((node.name, arguments, (ast.get_docstring(node) or "").split("\n")[0]))
    return found


@pytest.mark.parametrize("file", starters.EXERCISES)
def test_a_starter_file_has_the_package_s_signatures_and_docstrings(file):
    title, blocks = starters.EXERCISES[file]
    text = (starters.FOLDER / file).read_text(encoding="utf-8")
    assert outline(text) == outline(starters.starter(file, blocks, title)), (
        "run python -m tests.lab.starters --write"
    )
    assert "raise NotImplementedError" in text
    assert all(f"--layer {b}=notebooks/exercises/{file}:{b}" in text for b in blocks)


@pytest.mark.parametrize(("arguments", "status"), [([], 2), (["--help"], 0), (["--white"], 2)])
def test_only_write_overwrites_the_starter_files(tmp_path, monkeypatch, arguments, status):
    monkeypatch.setattr(starters, "FOLDER", tmp_path)
    with pytest.raises(SystemExit) as caught:
        starters.main(arguments)
    assert caught.value.code == status and list(tmp_path.iterdir()) == []
    starters.main(["--write"])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(starters.EXERCISES)


def test_the_exercises_have_every_block_and_the_readme_every_file():
    in_exercises = {b for name, (_, blocks) in starters.EXERCISES.items() if name[:2] != "09" for b in blocks}
    assert in_exercises == set(layers.BLOCKS)
    readme = (starters.FOLDER / "README.md").read_text(encoding="utf-8")
    assert sorted(p.name for p in starters.FOLDER.glob("*.py")) == sorted(starters.EXERCISES)
    assert all(f"`{file}`" in readme for file in starters.EXERCISES)
