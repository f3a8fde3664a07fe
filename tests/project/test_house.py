"""The package keeps its shape: imports one way, small functions, the interface as documented."""

import ast
import inspect
from pathlib import Path

import pytest

import align_minimal

PACKAGE = Path(align_minimal.__file__).parent
ORDER = [
    "support.outputs",
    "support.terminal",
    "support.module",
    "support.hub",
    "support.values",
    "support.marks",
    "support.settings",
    "support.checks",
    "support.weights_file",
    "support.rgb",
    "support.image_files",
    "support.image_options",
    "support.batching",
    "support.vocab_files",
    "config",
    "checkpoint",
    "efficientnet",
    "bert",
    "contrastive",
    "model",
    "wordpiece",
    "support.fast_wordpiece",
    "training.vocabulary",
    "tokenizer",
    "image_processor",
    "processor",
    "training.large_batch",
    "training.lamb",
    "using.pictures",
    "using.retrieval",
    "training.pairs",
    "training.shards",
    "training.dataset",
    "training.filters",
    "using.zero_shot",
    "using.search",
    "using.trace",
    "using.unpadded",
    "using.fused",
    "using.inference",
    "training.augment",
    "training.processes",
    "training.batches",
    "training.step",
    "training.options",
    "training.build",
    "training.resume",
    "training.run_folder",
    "training.loop",
    "training.command",
    "commands.flags",
    "commands.page",
    "commands.demo",
    "commands.commands",
    "__main__",
]
# Imported inside the function that offers the other path.
DISPATCH = {"contrastive": {"training.large_batch"}, "model": {"using.inference"}}
DISPATCH["tokenizer"] = {"training.vocabulary"}
ROOMS = ("commands", "support", "training", "using")
SOURCES = {
    ".".join(p.relative_to(PACKAGE).with_suffix("").parts): ast.parse(p.read_text(encoding="utf-8"))
    for p in PACKAGE.rglob("*.py")
}


def imports(tree: ast.AST, module: str) -> set[str]:
    """What a module imports: other packages by their names, ours as in ORDER."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module)
        elif isinstance(node, ast.ImportFrom):
            base = ["", *module.split(".")][: -node.level] + ([node.module] if node.module else [])
            inside = not node.module or node.module in ROOMS  # from .support import rgb
            names = [".".join([*base, *([alias.name] if inside else [])]).strip(".") for alias in node.names]
            found |= {f"ours:{name}" for name in names}
    return found


# Flags and commands show themselves by --help and in the README.
WITHOUT_AN_EXAMPLE = ("__main__", "commands.commands", "commands.flags", "training.options")
WITHOUT_AN_EXAMPLE += (
    *(
        "commands.demo.import_gradio",
        "commands.demo.make_demo",
        "commands.demo.only_uploads",
        "commands.demo.serve",
    ),  # need gradio, or run until Ctrl-C
    *(
        "training.processes.note_signals",
        "training.processes.start_worker",
    ),  # change what a signal means to the process
    *(
        f"training.command.{name}"
        for name in ("draw_curves", "name_lines", "finish", "prepare_data", "train")
    ),  # need a run, or matplotlib
)


def test_every_file_has_its_place_in_the_order():
    assert set(SOURCES) == {*ORDER, "__init__", *(f"{room}.__init__" for room in ROOMS)}


@pytest.mark.parametrize("name", ORDER)
def test_a_file_imports_only_from_files_above_it(name):
    found = imports(SOURCES[name], name)
    ours = {m.removeprefix("ours:") for m in found if m.startswith("ours:")}
    top = ast.Module([n for n in SOURCES[name].body if isinstance(n, (ast.Import, ast.ImportFrom))], [])
    dispatched = DISPATCH.get(name, set())
    assert not dispatched & {m.removeprefix("ours:") for m in imports(top, name)}
    assert ours - dispatched - {"__version__"} <= set(ORDER[: ORDER.index(name)])


def test_nothing_in_the_package_imports_transformers():
    for name, tree in SOURCES.items():
        assert not {m for m in imports(tree, name) if m.split(".")[0] in ("transformers", "tokenizers")}, name


def test_no_function_is_over_40_lines_without_its_docstring_and_signature():
    long = []
    for name, tree in SOURCES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                long += [f"{name}.{node.name}: {length}"] if length > 40 else []
    assert long == []


def test_every_public_name_has_a_docstring():
    missing = []
    for name in align_minimal.__all__:
        thing = getattr(align_minimal, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            missing += [] if thing.__doc__ else [name]
            methods = inspect.getmembers(thing, inspect.isfunction) if inspect.isclass(thing) else []
            missing += [
                f"{name}.{m}"
                for m, f in methods
                if not m.startswith("_") and f.__module__.startswith("align_minimal") and not f.__doc__
            ]
    assert missing == []


def test_every_public_class_and_function_shows_itself():
    silent = set()
    for name, tree in SOURCES.items():
        for node in tree.body:
            public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            if public and ">>>" not in (ast.get_docstring(node) or ""):
                silent.add(name if name in WITHOUT_AN_EXAMPLE else f"{name}.{node.name}")
    assert silent == set(WITHOUT_AN_EXAMPLE)  # so that none stays listed once it has an example


def test_signatures_are_the_documentation_s():
    arguments = {
        align_minimal.AlignModel.forward: "input_ids pixel_values attention_mask token_type_ids position_ids "
        "head_mask inputs_embeds return_loss output_attentions output_hidden_states return_dict",
        align_minimal.AlignTextModel.forward: "input_ids attention_mask token_type_ids position_ids "
        "head_mask inputs_embeds output_attentions output_hidden_states return_dict",
        align_minimal.AlignVisionModel.forward: "pixel_values output_hidden_states return_dict",
        align_minimal.contrastive_loss: "text_embeds image_embeds temperature label_smoothing "
        "tile distributed",
        align_minimal.AlignProcessor.__call__: "text images padding max_length return_tensors options",
    }
    for function, names in arguments.items():
        assert [n for n in inspect.signature(function).parameters if n != "self"] == names.split()
