"""The package keeps its shape: imports one way, small functions, the interface as documented."""

import ast
import inspect
from pathlib import Path

import pytest

import align_minimal

PACKAGE = Path(align_minimal.__file__).parent
ORDER = (
    "outputs hub config checkpoint efficientnet bert contrastive model wordpiece tokenizer image_processor"
)
ORDER = [
    *ORDER.split(),
    "inference",
    "processor",
    "large_batch",
    "lamb",
    "pictures",
    "retrieval",
    "data",
    "zero_shot",
    "search",
    "page",
    "trace",
    "demo",
    "run_folder",
    "processes",
    "train_options",
    "train",
    "commands",
    "__main__",
]
# Imported inside the function that offers the other path; for torchrun, which starts train.py as a program.
DISPATCH = {"contrastive": {"large_batch"}, "model": {"inference"}, "train": {"__main__"}}
SOURCES = {p.stem: ast.parse(p.read_text(encoding="utf-8")) for p in PACKAGE.glob("*.py")}


def imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            found |= {name} if node.module else {f".{alias.name}" for alias in node.names}
    return found


# Flags and commands show themselves by --help and in the README.
WITHOUT_AN_EXAMPLE = ("__main__", "commands", "train_options")
WITHOUT_AN_EXAMPLE += (
    *("demo.import_gradio", "demo.make_demo", "demo.serve"),  # need gradio, or run until Ctrl-C
    *("processes.note_signals", "processes.start_worker"),  # change what a signal means to the process
    *("train.draw_curves", "train.finish", "train.prepare_data", "train.train"),  # need a run, or its data
)


def test_every_file_has_its_place_in_the_order():
    assert set(SOURCES) == {*ORDER, "__init__"}


@pytest.mark.parametrize("name", ORDER)
def test_a_file_imports_only_from_files_above_it(name):
    ours = {m.removeprefix(".") for m in imports(SOURCES[name]) if m.startswith(".")}
    dispatched = DISPATCH.get(name, set())
    assert not dispatched & {node.module for node in SOURCES[name].body if isinstance(node, ast.ImportFrom)}
    assert ours - dispatched <= set(ORDER[: ORDER.index(name)])


def test_nothing_in_the_package_imports_transformers():
    for name, tree in SOURCES.items():
        assert not {m for m in imports(tree) if m.split(".")[0] in ("transformers", "tokenizers")}, name


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
