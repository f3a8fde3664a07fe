"""The starter files in notebooks/exercises: the package's signatures and docstrings, its bodies left out.

python -m tests.lab.starters --write      # write them anew, after the package has changed
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections import defaultdict
from collections.abc import Sequence

from .break_it import ROOT
from .layers import BLOCKS, file_of

FOLDER = ROOT / "notebooks" / "exercises"
VISION_PARTS = ["BatchNorm", "ConvNorm", "SqueezeExcite", "DropConnect", "MBConv"]
VISION_WHOLE = ["round_filters", "block_specs", "AlignVisionModel"]
TEXT = ["BertEmbeddings", "SelfAttention", "additive_mask", "FeedForward", "BertLayer", "layer_head_masks"]
TEXT += ["AlignTextModel"]
PIXELS = ["to_rgb", "grey_to_bytes", "to_rgb_array", "resize", "center_crop", "EfficientNetImageProcessor"]
WORDS = ["lower", "clean", "split_words", "wordpiece", "merge", "best_pair", "learn_pieces", "truncate"]
WORDS += ["BertTokenizer"]
MODEL = [*VISION_WHOLE[:2], *VISION_PARTS, "AlignVisionModel", *TEXT, "contrastive_loss", "AlignModel"]
# The number is that of the notebook that explains it.
EXERCISES: dict[str, tuple[str, list[str]]] = {
    "01_wordpieces.py": ("Text to wordpieces and ids (ALIGN, section 5; BERT)", WORDS),
    "02_pixels.py": ("Pictures to pixels (section 5)", [*PIXELS, "AlignProcessor"]),
    "03_mbconv.py": ("The parts of EfficientNet's block (section 4.1)", VISION_PARTS),
    "04_efficientnet.py": ("The image tower (section 4.1)", VISION_WHOLE),
    "05_bert.py": ("The text tower (section 4.1)", TEXT),
    "06_loss.py": ("The loss (equations 1 and 2)", ["contrastive_loss"]),
    "07_align.py": ("Where the towers meet (figure 1)", ["AlignModel"]),
    "08_training.py": ("LAMB (section 5)", ["trust_ratio", "Lamb", "parameter_groups"]),
    "09_whole_model.py": ("The whole model, of your own parts alone", MODEL),
}


def lines_of(source: str, first: int, last: int) -> str:
    return "\n".join(source.split("\n")[first - 1 : last]) + "\n"


def first_line(node: ast.AST) -> int:
    return min([node.lineno, *(d.lineno for d in node.decorator_list)])


def outline(source: str, node: ast.FunctionDef | ast.ClassDef) -> str:
    """The node's signature and docstring; of a class its attributes and public methods too."""
    first, *rest = node.body
    documented = ast.get_docstring(node) is not None
    text = lines_of(source, first_line(node), first.end_lineno if documented else first.lineno - 1)
    if isinstance(node, ast.FunctionDef):
        return text + " " * (node.col_offset + 4) + "raise NotImplementedError\n"
    before = first
    for part in rest if documented else node.body:
        if not isinstance(part, ast.FunctionDef):
            gap = "" if isinstance(before, (ast.Assign, ast.AnnAssign)) else "\n"
            text += gap + lines_of(source, part.lineno, part.end_lineno)
        elif part.name == "for_inference":
            continue  # the fast path is no exercise
        elif "overload" in map(ast.unparse, part.decorator_list):
            text += "\n" + lines_of(source, first_line(part), part.end_lineno)  # no body to write
        elif not part.name.startswith("_") or part.name.endswith("__"):
            text += "\n" + outline(source, part)
        before = part
    return text


def imports(trees: dict[str, ast.Module], parts: Sequence[ast.AST], solved: bool) -> str:
    """What the package's own bodies of `parts` use: libraries, and blocks that are not in this file."""
    used = {n.id for part in parts for n in ast.walk(part) if isinstance(n, ast.Name)}
    wanted = used - {part.name for part in parts}
    plain: set[str] = set()
    members: defaultdict[str, set[str]] = defaultdict(set)
    for module, tree in trees.items():
        for node in tree.body:
            for alias in node.names if isinstance(node, (ast.Import, ast.ImportFrom)) else ():
                if (alias.asname or alias.name) in wanted and isinstance(node, ast.Import):
                    plain.add(alias.name + (f" as {alias.asname}" if alias.asname else ""))
                elif alias.name in wanted:
                    members[absolute(module, node)].add(alias.name)
            for name in wanted.intersection(defined(node)):
                if (
                    solved
                    or name in BLOCKS
                    or name in ("BlockSpec", "Pair", "Size")
                    or name.startswith("check_")
                ):
                    members[f"align_minimal.{module}"].add(name)
    lines = [(name, f"import {name}") for name in sorted(plain)]
    for module, names in sorted(members.items()):
        in_order = sorted(names, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
        line = f"from {module} import {', '.join(in_order)}"
        if len(line) > 110:  # as the formatter wraps it
            line = f"from {module} import (\n    " + ",\n    ".join(in_order) + ",\n)"
        lines.append((module, line))
    sections: defaultdict[int, list[str]] = defaultdict(list)
    for module, line in lines:
        top = re.split(r"\W", module)[0]
        sections[0 if top in sys.stdlib_module_names else 2 if top == "align_minimal" else 1].append(line)
    return "\n".join("\n".join(sections[i]) + "\n" for i in sorted(sections))


def absolute(module: str, node: ast.ImportFrom) -> str:
    """What a relative import means: ..config in training.lamb is align_minimal.config."""
    if not node.level:
        return node.module
    return ".".join([*f"align_minimal.{module}".split(".")[: -node.level], node.module])


def absolute_dispatch(source: str) -> str:
    """What a function of the reading path imports for itself, as an import that works in any file."""
    return re.sub(r"(?m)^( +from )\.(?=\w)", r"\1align_minimal.", source)


def defined(node: ast.AST) -> list[str]:
    """The names that a statement at the top of a module defines."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else []
    names = [t.elts if isinstance(t, ast.Tuple) else [t] for t in targets]
    return [t.id for several in names for t in several if isinstance(t, ast.Name)]


def starter(file: str, blocks: Sequence[str], title: str, solved: bool = False) -> str:
    """The text of an exercise; `solved`, with the package's own bodies."""
    modules = list(dict.fromkeys(BLOCKS[block][0] for block in blocks if block in BLOCKS))
    sources = {m: (ROOT / "align_minimal" / file_of(m)).read_text(encoding="utf-8") for m in modules}
    trees = {module: ast.parse(source) for module, source in sources.items()}
    nodes = {(m, n.name): n for m, tree in trees.items() for n in tree.body if hasattr(n, "name")}
    parts = [(sources[m], nodes[m, b]) for b in blocks for m in modules if (m, b) in nodes]
    written = (
        absolute_dispatch(lines_of(source, first_line(node), node.end_lineno))
        if solved
        else outline(source, node)
        for source, node in parts
    )
    path = f"notebooks/exercises/{file}"
    one_each = [f"    pytest --layer {b}={path}:{b} tests" for b in blocks]
    head = f'"""{title}.\n\nWrite the bodies; you need not use all the imports. Check them from the '
    head += "top of the repository, one by one:\n\n"
    head += (
        "\n".join(one_each) + f'\n\nor all that this file has:\n\n    pytest --layer {path} tests\n"""\n\n'
    )
    long = "E501, " if max(map(len, one_each)) > 110 else ""
    head += f"# ruff: noqa: {long}F401\nfrom __future__ import annotations\n\n"
    return head + imports(trees, [node for _, node in parts], solved) + "\n\n" + "\n\n".join(written)


def solution(blocks: Sequence[str]) -> str:
    return starter("solution.py", blocks, "The package's own blocks", solved=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.lab.starters", description=__doc__.splitlines()[0])
    help = "overwrite the files in notebooks/exercises, a reader's work in them too"
    parser.add_argument("--write", action="store_true", required=True, help=help)
    parser.parse_args(argv)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for file, (title, blocks) in EXERCISES.items():
        (FOLDER / file).write_text(starter(file, blocks, title), encoding="utf-8")


if __name__ == "__main__":
    main()
