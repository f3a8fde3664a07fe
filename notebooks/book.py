"""The course and the ten files as static pages, which need no network: python notebooks/book.py OUT

The pages of the ten files have the code on the right, and what it does on the left. At each line of a
`forward` they show, on demand, what flowed through it when the checkpoint "emoji" looked at the apple and
read "a red apple".

    pip install -e '.[notebooks,book]'
"""

from __future__ import annotations

import argparse
import ast
import base64
import html
import io
import itertools
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import nbformat
import numpy as np
import torch
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from PIL import Image
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from torch import Tensor

from align_minimal import AlignModel, AlignProcessor
from align_minimal.support.image_files import load_image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TEN = ["config", "wordpiece", "tokenizer", "image_processor", "processor"]
TEN += ["efficientnet", "bert", "contrastive", "model", "checkpoint"]
PATHS = {str(ROOT / "align_minimal" / f"{name}.py"): name for name in TEN}
Flow = dict[tuple[str, int], list[tuple[str, Tensor]]]  # (file, first line of a statement) → what it gave

# ---- what flowed through the lines


def statements(tree: ast.AST) -> Iterator[ast.stmt]:
    """The statements of every function that is shown line by line: `forward`, and the loss."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in ("forward", "contrastive_loss"):
            yield from (n for n in ast.walk(node) if isinstance(n, ast.stmt) and n is not node)


def tensors(name: str, value: Any) -> list[tuple[str, Tensor]]:
    """The tensors in a value, by name: of a tuple or an output each one."""
    if isinstance(value, Tensor):
        return [(name, value)]
    if isinstance(value, (tuple, list)):
        return [pair for i, part in enumerate(value) for pair in tensors(f"{name}[{i}]", part)]
    named = value.items() if isinstance(value, Mapping) else ()
    return [pair for key, part in named for pair in tensors(f"{name}.{key}", part)]


class Tracer:
    """Notes, where a function runs for the first time, what each of its lines gave."""

    def __init__(self):
        self.flow: Flow = {}
        self.seen: set[Any] = set()
        self.lines: dict[tuple[str, int], int] = {}  # each line of a statement → its first
        for path, name in PATHS.items():
            tree = ast.parse(Path(path).read_text(encoding="utf-8"))
            for statement in sorted(statements(tree), key=lambda s: s.lineno):  # the inner ones come later
                for line in range(statement.lineno, statement.end_lineno + 1):
                    self.lines[name, line] = statement.lineno

    def __call__(self, frame: FrameType, event: str, argument: Any):
        code = frame.f_code
        name = PATHS.get(code.co_filename)
        if name is None or code.co_name not in ("forward", "contrastive_loss") or code in self.seen:
            return None
        self.seen.add(code)
        before, at = dict(frame.f_locals), None

        def step(frame: FrameType, event: str, argument: Any):
            nonlocal before, at
            now = dict(frame.f_locals)
            if at is not None and (name, at) in self.lines:
                found = [p for k, v in now.items() if v is not before.get(k) for p in tensors(k, v)]
                if event == "return":
                    found += tensors("result", argument)
                known = self.flow.setdefault((name, self.lines[name, at]), [])
                known += [(k, v.clone()) for k, v in found if k not in dict(known)]
            before, at = now, frame.f_lineno
            return step

        return step


@torch.inference_mode()
def traced() -> Flow:
    """What the lines gave when the shipped checkpoint looked at the apple and read "a red apple"."""
    model, processor = (c.from_pretrained(str(ROOT / "weights/emoji")) for c in (AlignModel, AlignProcessor))
    image = load_image(ROOT / "weights/samples/apple.png")
    batch = processor(text="a red apple", images=image, padding=True, return_tensors="pt")
    tracer, before = Tracer(), sys.gettrace()
    sys.settrace(tracer)
    try:
        model.eval()(**batch, return_loss=True)
    finally:
        sys.settrace(before)
    return tracer.flow


def thumbnail(x: Tensor) -> str:
    """The first eight maps of (1, C, H, W), or heads of (1, N, T, T), side by side, dark is low; else ""."""
    if x.ndim != 4 or x.shape[0] != 1 or min(x.shape[2:]) < 2 or not x.is_floating_point():
        return ""
    maps = x[0, :8].float()
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    grey = ((maps - low) / (high - low).clamp(min=1e-9) * 255).byte().numpy()
    tiles = np.concatenate([np.pad(tile, 1, constant_values=255) for tile in grey], axis=1)
    file = io.BytesIO()
    Image.fromarray(tiles).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="the first {len(grey)}, side by side" src="data:image/png;base64,{data}">'


def shown(found: list[tuple[str, Tensor]]) -> str:
    """Shape, mean and standard deviation of each tensor, folded."""
    lines = []
    for name, x in found:
        size = " × ".join(map(str, x.shape)) or "one number"
        mean, deviation = x.double().mean().item(), x.double().std(correction=0).item()
        numbers = f"mean {mean:.4g}, standard deviation {deviation:.4g}"
        lines.append(f"<div class=flow><code>{name}</code>: {size}, {numbers}{thumbnail(x)}</div>")
    return f"<details><summary>what flowed here</summary>{''.join(lines)}</details>" if lines else ""


# ---- the pages of the ten files


def coloured(code: str) -> str:
    return highlight(code, PythonLexer(stripnl=False), HtmlFormatter())


def set_text(docstring: str | None) -> str:
    """A docstring as HTML; its examples are code."""
    fenced = re.sub(r"^>>> .*?(?=\n\n|\Z)", r"```python\n\g<0>\n```", docstring or "", flags=re.M | re.S)
    return markdown2html(fenced)


def row(text: str, code: str, kind: str = "") -> str:
    return (
        f'<div class="row {kind}"><div>{text}</div><div>{coloured(code) if code.strip() else ""}</div></div>'
    )


def steps(node: ast.FunctionDef, lines: list[str], name: str, flow: Flow) -> Iterator[str]:
    """The statements of a function one by one: their comments and what flowed on the left."""
    starts = sorted({n.lineno for n in statements(node)} - {n.lineno for n in node.body if is_text(n)})
    for start, end in zip(starts, [*starts[1:], node.end_lineno + 1], strict=True):
        code = "\n".join(lines[start - 1 : end - 1])
        told = " ".join(html.escape(c) for c in re.findall(r"(?:^|\s)# (?!fmt|type|noqa)(.+)", code))
        yield row(told + shown(flow.get((name, start), [])), code, "step")


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str)


def begin_of(node: ast.AST, lines: list[str]) -> int:
    """The first line of a definition, with its decorators and the comments above it."""
    begin = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
    above = begin - 1
    while above and (not lines[above - 1].strip() or lines[above - 1].strip().startswith("#")):
        above -= 1
        begin = above + 1 if lines[above].strip() else begin
    return begin


def definition(node: ast.AST, lines: list[str], name: str, flow: Flow) -> Iterator[str]:
    """A class, function or other statement: its docstring beside its head, then what is in it."""
    begin = begin_of(node, lines)
    has_text = isinstance(node, (ast.ClassDef, ast.FunctionDef)) and is_text(node.body[0])
    text = set_text(ast.get_docstring(node)) if has_text else ""
    if has_text:
        head = "\n".join(lines[begin - 1 : node.body[0].lineno - 1])
        rest = node.body[1:]
    else:
        head, rest = "", getattr(node, "body", [])
    if isinstance(node, ast.ClassDef):
        yield row(text, head or "\n".join(lines[begin - 1 : node.lineno]))
        for child in rest:
            yield from definition(child, lines, name, flow)
    elif isinstance(node, ast.FunctionDef) and any(True for _ in statements(node)):
        first = rest[0].lineno if rest else node.end_lineno + 1
        yield row(text, head or "\n".join(lines[begin - 1 : first - 1]))
        yield from steps(node, lines, name, flow)
    else:
        after = node.body[0].end_lineno if has_text else begin - 1
        body = lines[after : node.end_lineno]
        yield row(text, "\n".join([head, *body] if head else body))


def page_of_file(name: str, flow: Flow) -> str:
    source = (ROOT / "align_minimal" / f"{name}.py").read_text(encoding="utf-8")
    tree, lines = ast.parse(source), source.splitlines()
    rows = [f"<h1><code>{name}.py</code></h1>{set_text(ast.get_docstring(tree))}"]
    for plain, nodes in itertools.groupby(tree.body[1:], lambda n: not hasattr(n, "body")):
        nodes = list(nodes)
        if plain:  # imports and tables stand together
            end = nodes[-1].end_lineno
            begin = begin_of(nodes[0], lines)
            rows.append(row("", "\n".join(lines[begin - 1 : end])))
        else:
            rows += [part for node in nodes for part in definition(node, lines, name, flow)]
    return "\n".join(rows)


# ---- the pages of the notebooks


def with_formulas(text: str) -> str:
    """$…$ and $$…$$ as MathML; code stays as it is."""
    pattern = re.compile(r"(```.*?```|`[^`\n]*`)|\$\$(.+?)\$\$|\$([^$\n]+)\$", re.DOTALL)

    def one(found: re.Match) -> str:
        code, block, inline = found.groups()
        return code or convert((block or inline).strip(), display="block" if block else "inline")

    return pattern.sub(one, text)


def page_of_notebook(path: Path) -> str:
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = with_formulas(cell.source)
    return HTMLExporter(template_name="basic").from_notebook_node(notebook)[0]


def local_links(page: str, pages: set[str]) -> str:
    """Links to what has a page lead there; of others (files that the book does not show) the text stays."""

    def one(found: re.Match) -> str:
        target, rest, text = found.groups()
        if "://" in target or target.startswith("#"):
            return found[0]
        name = re.sub(r"\.(ipynb|py)$", ".html", target.rpartition("/")[2])
        ours = target in {f"../align_minimal/{n}.py" for n in TEN} or target.endswith(".ipynb")
        return f'<a href="{name}"{rest}>{text}</a>' if ours and name in pages else text

    return re.sub(r'<a href="([^"]*)"([^>]*)>(.*?)</a>', one, page, flags=re.DOTALL)


# ---- the book

SEARCH = """
const box = document.querySelector("nav input"), list = document.querySelector("#found");
box.addEventListener("input", () => {
  const words = box.value.toLowerCase().split(/\\s+/).filter(Boolean);
  const fit = words.length ? PAGES.filter(p => words.every(w => p.text.includes(w))) : [];
  list.replaceChildren(...fit.map(p => {
    const item = document.createElement("li"), link = document.createElement("a");
    link.href = p.url; link.textContent = p.title; item.append(link);
    const at = p.text.indexOf(words[0]);
    item.append(" … " + p.text.slice(Math.max(0, at - 50), at + 70) + " …");
    return item;
  }));
});
"""
FRAME = """<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>
<meta name=viewport content="width=device-width, initial-scale=1"><link rel=stylesheet href="book.css">
<nav><a href="index.html">ALIGN, the book</a>
<input type=search placeholder="search" aria-label="search"></nav>
<ul id=found></ul><main>{body}</main><script src="search.js"></script></html>
"""


def write(out: Path) -> None:
    """Write every page, the style, and the index of the search into the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    notebooks, flow = sorted(HERE.glob("*.ipynb")), traced()
    bodies = {f"{path.stem}.html": page_of_notebook(path) for path in notebooks}
    bodies |= {f"{name}.html": page_of_file(name, flow) for name in TEN}
    titles = {url: re.search(r"<h1[^>]*>(.*?)(<a|</h1>)", body)[1] for url, body in bodies.items()}
    titles = {url: html.unescape(re.sub("<[^>]+>", "", title)) for url, title in titles.items()}
    links = [f'<li><a href="{url}">{html.escape(title)}</a>' for url, title in titles.items()]
    count = len(notebooks)
    index = f"<h1>ALIGN</h1><h2>The course</h2><ul>{''.join(links[:count])}</ul>"
    index += f"<h2>The ten files, in reading order</h2><ol>{''.join(links[count:])}</ol>"
    titles, bodies = {"index.html": "ALIGN, the book"} | titles, {"index.html": index} | bodies
    found = []
    for url, body in bodies.items():
        page = FRAME.format(title=html.escape(titles[url]), body=local_links(body, set(bodies)))
        (out / url).write_text(page, encoding="utf-8")
        text = html.unescape(re.sub(r"<(style|script).*?</\1>|<[^>]+>", " ", body, flags=re.DOTALL))
        found.append({"url": url, "title": titles[url], "text": " ".join(text.lower().split())})
    pages = f"const PAGES = {json.dumps(found, ensure_ascii=False)};\n"
    (out / "search.js").write_text(pages + SEARCH, encoding="utf-8")
    light = HtmlFormatter(style="default").get_style_defs(".highlight")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    css = (HERE / "book.css").read_text(encoding="utf-8")
    css = f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n{css}"
    (out / "book.css").write_text(css, encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="the folder to write into")
    args = parser.parse_args(argv)
    write(args.out)
    print(f"open {args.out / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
