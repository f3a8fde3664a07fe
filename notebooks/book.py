"""The course and the ten files as static pages, which need no network: python notebooks/book.py OUT

The pages of the ten files have the code on the right, and what it does on the left. At each line of a
`forward` they show, on demand, what flowed through it (flow.py).

    pip install -e '.[notebooks,book]'
"""

from __future__ import annotations

import argparse
import ast
import html
import itertools
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import nbformat
from flow import TEN, Flow, shown, statements, traced
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

# ---- formulas

# What stands in the docstrings, and how it is set. A line that is indented by four is set by itself.
FORMULAS = {
    "    (1)  L_i2t = −1/B Σ_i log[ exp(x_i·y_i/σ) / Σ_j exp(x_i·y_j/σ) ]": (
        r"L_{\text{i2t}} = -\frac{1}{B} \sum_i \log \frac{\exp(x_i \cdot y_i / \sigma)}"
        r"{\sum_j \exp(x_i \cdot y_j / \sigma)} \qquad (1)"
    ),
    "    (2)  L_t2i = −1/B Σ_i log[ exp(y_i·x_i/σ) / Σ_j exp(y_i·x_j/σ) ]": (
        r"L_{\text{t2i}} = -\frac{1}{B} \sum_i \log \frac{\exp(y_i \cdot x_i / \sigma)}"
        r"{\sum_j \exp(y_i \cdot x_j / \sigma)} \qquad (2)"
    ),
    "x_i, y_i": "x_i, y_i",
    "log(1 + (B−1)/e²)": r"\log(1 + (B - 1)/e^2)",
    "log(1 + 3/e)": r"\log(1 + 3/e)",
    "ε/B": r"\varepsilon/B",
    "1 − ε": r"1 - \varepsilon",
    "    softmax(q·kᵀ/√(H/N) + mask)·v": (
        r"\operatorname{softmax}\left(\frac{q k^\top}{\sqrt{H/N}} + \text{mask}\right) v"
    ),
    "q·E[l−r] + k·E[l−r]": r"q \cdot E_{l-r} + k \cdot E_{l-r}",
    "q·E[l−r]": r"q \cdot E_{l-r}",
    "q·kᵀ": r"q k^\top",
    "running ← momentum·running + (1 − momentum)·batch": (
        r"\text{running} \leftarrow \text{momentum} \cdot \text{running}"
        r" + (1 - \text{momentum}) \cdot \text{batch}"
    ),
    "1/(1 − rate)": r"1/(1 - \text{rate})",
    "⌊H/2⌋": r"\lfloor H/2 \rfloor",
    "⌈H/2⌉": r"\lceil H/2 \rceil",
    "(x·factor − mean) / std": r"(x \cdot \text{factor} - \text{mean}) / \text{std}",
    "x/127.5 − 1": "x/127.5 - 1",
}
PLAIN = re.compile("|".join(re.escape(text) for text in sorted(FORMULAS, key=len, reverse=True)))


def set_formula(plain: str) -> str:
    """A formula of FORMULAS as MathML."""
    alone = plain.startswith("    ")
    formula = convert(FORMULAS[plain], display="block" if alone else "inline")
    return f"\n{formula}\n" if alone else formula


def with_formulas(text: str) -> str:
    """$…$ and $$…$$ as MathML; code stays as it is."""
    pattern = re.compile(r"(```.*?```|`[^`\n]*`)|\$\$(.+?)\$\$|\$([^$\n]+)\$", re.DOTALL)

    def one(found: re.Match) -> str:
        code, block, inline = found.groups()
        return code or convert((block or inline).strip(), display="block" if block else "inline")

    return pattern.sub(one, text)


# ---- the pages of the ten files


def coloured(code: str) -> str:
    return highlight(code, PythonLexer(stripnl=False), HtmlFormatter())


def set_text(docstring: str | None) -> str:
    """A docstring as HTML: its examples are code, its formulas MathML."""
    parts = re.split(r"(^>>> .*?(?=\n\n|\Z))", docstring or "", flags=re.MULTILINE | re.DOTALL)
    for i, part in enumerate(parts):  # every other one is an example
        parts[i] = (
            f"```python\n{part}\n```" if i % 2 else PLAIN.sub(lambda found: set_formula(found[0]), part)
        )
    return markdown2html("".join(parts))


def row(text: str, code: str, kind: str = "", name: str = "") -> str:
    """Text on the left, code on the right; `name` is what links and the search call it.

    A text much longer than its code stands above it, and takes the whole width.
    """
    anchor = f' id="{name}"' if name else ""
    if len(plain(text)) / 50 > code.count("\n") + 8:  # a line of the left column has some 50 letters
        kind += " wide"
    shown_code = coloured(code) if code.strip() else ""
    return f'<div class="row {kind}"{anchor}><div>{text}</div><div>{shown_code}</div></div>'


def steps(node: ast.FunctionDef, lines: list[str], name: str, flow: Flow) -> Iterator[str]:
    """The statements of a function one by one: their comments and what flowed on the left."""
    own = sorted({n.lineno for n in statements(node)} - {n.lineno for n in node.body if is_text(n)})
    starts = [first_comment(start, lines) for start in own]
    if not has_text(node):
        starts[0] = own[0]  # what is above it stands with the head
    for at, start, end in zip(own, starts, [*starts[1:], node.end_lineno + 1], strict=True):
        code = "\n".join(lines[start - 1 : end - 1])
        above = " ".join(re.findall(r"^ *# (.+)", code, re.MULTILINE))
        beside = re.findall(
            r"\S  # (?!fmt|type|noqa)([^(\n].*)", code
        )  # no shapes: the tensor's own is below
        told = "<br>".join(html.escape(text) for text in (above, *beside) if text)
        yield row(told + shown(flow.get((name, at), {})), code, "step")


def first_comment(line: int, lines: list[str]) -> int:
    """The first of the lines of comment that stand right above a line, or the line itself."""
    while lines[line - 2].lstrip().startswith("#"):
        line -= 1
    return line


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str)


def has_text(node: ast.AST) -> bool:
    return isinstance(node, (ast.ClassDef, ast.FunctionDef)) and is_text(node.body[0])


def is_stepped(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef) and any(True for _ in statements(node))


def begin_of(node: ast.AST, lines: list[str]) -> int:
    """The first line of a definition, with its decorators and the comments above it."""
    begin = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
    above = begin - 1
    while above and (not lines[above - 1].strip() or lines[above - 1].strip().startswith("#")):
        above -= 1
        begin = above + 1 if lines[above].strip() else begin
    return begin


def code_of(nodes: Sequence[ast.AST], lines: list[str]) -> str:
    return "\n".join(lines[begin_of(nodes[0], lines) - 1 : nodes[-1].end_lineno])


def of_class(node: ast.ClassDef, lines: list[str], name: str, flow: Flow) -> Iterator[str]:
    """A class: beside its docstring its head, and what follows without a text of its own."""
    body = node.body[1:] if has_text(node) else node.body
    quiet = list(itertools.takewhile(lambda n: not has_text(n) and not is_stepped(n), body))
    head = "\n".join(
        lines[begin_of(node, lines) - 1 : node.body[0].lineno - 1 if has_text(node) else node.lineno]
    )
    code = f"{head}\n{code_of(quiet, lines)}" if quiet else head
    yield row(set_text(ast.get_docstring(node)), code, name=node.name)
    plain = itertools.groupby(body[len(quiet) :], lambda n: not has_text(n) and not is_stepped(n))
    for together, nodes in plain:
        nodes = list(nodes)
        if together:
            called = next((f"{node.name}.{n.name}" for n in nodes if isinstance(n, ast.FunctionDef)), "")
            yield row("", code_of(nodes, lines), name=called)
        else:
            for child in nodes:
                yield from of_function(child, lines, name, flow, f"{node.name}.")


def of_function(node: ast.AST, lines: list[str], name: str, flow: Flow, within: str = "") -> Iterator[str]:
    """A function: its docstring beside its code; line by line, if what flowed is to be shown."""
    text, called = set_text(ast.get_docstring(node)) if has_text(node) else "", f"{within}{node.name}"
    begin = begin_of(node, lines)
    body = node.body[1:] if has_text(node) else node.body
    head = lines[begin - 1 : (node.body[0] if has_text(node) else body[0]).lineno - 1]
    if is_stepped(node):
        yield row(text, "\n".join(head), name=called)
        yield from steps(node, lines, name, flow)
    else:
        after = node.body[0].end_lineno if has_text(node) else begin - 1 + len(head)
        yield row(text, "\n".join([*head, *lines[after : node.end_lineno]]), name=called)


def page_of_file(name: str, flow: Flow) -> str:
    source = (ROOT / "align_minimal" / f"{name}.py").read_text(encoding="utf-8")
    tree, lines = ast.parse(source), source.splitlines()
    rows = [f"<h1><code>{name}.py</code></h1>{set_text(ast.get_docstring(tree))}"]
    writers = {ast.ClassDef: of_class, ast.FunctionDef: of_function}
    for write_one, nodes in itertools.groupby(tree.body[1:], lambda node: writers.get(type(node))):
        nodes = list(nodes)
        if write_one:
            rows += [part for node in nodes for part in write_one(node, lines, name, flow)]
        else:  # imports and tables stand together
            rows.append(row("", code_of(nodes, lines)))
    return "\n".join(rows)


# ---- the pages of the notebooks


def page_of_notebook(path: Path, pages: set[str]) -> str:
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = with_formulas(cell.source)
    return local_links(HTMLExporter(template_name="basic").from_notebook_node(notebook)[0], pages)


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

FRAME = """<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>
<meta name=viewport content="width=device-width, initial-scale=1"><link rel=stylesheet href="book.css">
<nav><a href="index.html">ALIGN, the book</a><span>{around}</span>
<input type=search placeholder="search: MBConv, temperature, …" aria-label="search"></nav>
<ul id=found></ul>{contents}<main>{body}</main><footer>{around}</footer>
<script src="search.js"></script></html>
"""


def plain(page: str) -> str:
    """The words of a page; pictures, formulas and styles are none."""
    text = re.sub(r"<(style|script|math).*?</\1>", " ", page, flags=re.DOTALL)
    text = re.sub(r"<[^>]+>", " ", re.sub(r"</?span[^>]*>", "", text))  # spans colour the parts of a word
    return " ".join(html.unescape(text).replace("¶", " ").split())


def sections(body: str) -> list[tuple[str, str, str]]:
    """(anchor, what it is called, its text) of the headings of a notebook, or of the definitions of a file.

    What stands before the first has no anchor and no name.
    """
    pattern = r'<h[2-4] id="([^"]+)"[^>]*>(.*?)</h[2-4]>|<div class="row [^"]*" id="([^"]+)"'
    found = list(re.finditer(pattern, body, re.DOTALL))
    starts = [0, *(one.start() for one in found), len(body)]
    names = [("", ""), *((one[1] or one[3], plain(one[2] or one[3])) for one in found)]
    return [(*name, plain(body[a:b])) for name, (a, b) in zip(names, itertools.pairwise(starts), strict=True)]


def contents_of(body: str) -> str:
    links = [
        f'<li><a href="#{anchor}">{html.escape(name)}</a>' for anchor, name, _ in sections(body) if anchor
    ]
    return f"<details class=contents><summary>On this page</summary><ul>{''.join(links)}</ul></details>"


def index_of(titles: Mapping[str, str]) -> str:
    """The first page: the notebooks with what one knows at their end, the files with what they hold."""
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    told = {
        f"{stem}.html": what
        for stem, what in re.findall(r"^\| \[.*?\]\((\w+)\.ipynb\) \| (.*?) \|", readme, re.M)
    }
    for name in TEN:
        tree = ast.parse((ROOT / "align_minimal" / f"{name}.py").read_text(encoding="utf-8"))
        told[f"{name}.html"] = ast.get_docstring(tree).splitlines()[0]

    def listed(urls: list[str]) -> str:
        links = (
            f'<li><a href="{url}">{html.escape(titles[url])}</a><br>{html.escape(told[url])}' for url in urls
        )
        return f"<ul class=pages>{''.join(links)}</ul>"

    files = [f"{name}.html" for name in TEN]
    course = [url for url in titles if url not in files]
    example = '<a href="efficientnet.html#MBConv.forward">MBConv</a>'
    return f"""<h1>ALIGN, the book</h1>
<p>A picture and a text become one number. The course explains how, part by part; the ten files are the model
itself, with the code on the right and what it does on the left. Open a line of a <code>forward</code>, as
of {example}, to see what flowed through it when the model looked at an apple and read “a red apple”.</p>
<h2>The course</h2>{listed(course)}<h2>The ten files, in reading order</h2>{listed(files)}"""


def around(url: str, titles: Mapping[str, str]) -> str:
    """Links to the page before and the page after."""
    urls = list(titles)
    at = urls.index(url)
    before = [f'<a href="{u}">← {html.escape(titles[u])}</a>' for u in urls[max(at - 1, 0) : at]]
    after = [f'<a href="{u}">{html.escape(titles[u])} →</a>' for u in urls[at + 1 : at + 2]]
    return " ".join(before + after)


def write(out: Path) -> None:
    """Write every page, the style, and the index of the search into the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    notebooks, flow = sorted(HERE.glob("*.ipynb")), traced()
    pages = {f"{path.stem}.html" for path in notebooks} | {f"{name}.html" for name in TEN}
    bodies = {f"{path.stem}.html": page_of_notebook(path, pages) for path in notebooks}
    bodies |= {f"{name}.html": page_of_file(name, flow) for name in TEN}
    titles = {
        url: plain(re.search(r"<h1[^>]*>(.*?)</h1>", body, re.DOTALL)[1]) for url, body in bodies.items()
    }
    entries = []
    for url, body in bodies.items():
        page = FRAME.format(
            title=html.escape(titles[url]), body=body, around=around(url, titles), contents=contents_of(body)
        )
        (out / url).write_text(page, encoding="utf-8")
        for anchor, name, text in sections(body):
            where = {"url": f"{url}#{anchor}" if anchor else url, "page": titles[url], "name": name}
            entries.append(where | {"text": text.lower()})
    index = FRAME.format(title="ALIGN, the book", body=index_of(titles), around="", contents="")
    (out / "index.html").write_text(index, encoding="utf-8")
    search = (HERE / "book.js").read_text(encoding="utf-8")
    found = f"const ENTRIES = {json.dumps(entries, ensure_ascii=False)};\n"
    (out / "search.js").write_text(found + search, encoding="utf-8")
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
