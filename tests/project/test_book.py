"""The book: its links lead somewhere, and the numbers beside the code are the model's."""

import ast
import html
import json
import re
import sys
from pathlib import Path

import pytest
import torch

for needed in ("nbconvert", "latex2mathml"):
    pytest.importorskip(needed, reason="needs the extra `book`")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "notebooks"))

import book  # noqa: E402
import flow as flows  # noqa: E402

from align_minimal import AlignModel, AlignProcessor  # noqa: E402
from align_minimal.support.image_files import load_image  # noqa: E402
from align_minimal.using.trace import trace  # noqa: E402


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("book")
    assert book.main([str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def flow():
    return flows.traced()


def line(name: str, start: str) -> tuple[str, int]:
    """The one line of a file that begins so, as the trace names it."""
    lines = (ROOT / "align_minimal" / f"{name}.py").read_text(encoding="utf-8").splitlines()
    (number,) = [i for i, text in enumerate(lines, 1) if text.strip().startswith(start)]
    return name, number


def test_the_book_has_a_page_for_each_notebook_and_each_of_the_ten_files_of_the_readme(pages):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    ten = re.findall(r"^\| \d+ \| \[`(\w+)\.py`\]", readme, re.MULTILINE)
    assert ten == flows.TEN
    wanted = {"index", *ten, *(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))}
    assert {path.stem for path in pages.glob("*.html")} == wanted


def test_every_link_of_the_book_leads_somewhere_and_nothing_is_loaded_from_a_network(pages):
    for path in pages.glob("*.html"):
        page = re.sub(r"<(script|pre).*?</\1>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        links = re.findall(r'<a\b[^>]*\bhref="([^"]*)"', page)
        assert links
        for target in links:
            file, _, anchor = target.partition("#")
            if "://" not in target:
                assert not file or (pages / file).is_file(), (path.name, target)
                there = page if not file else (pages / file).read_text(encoding="utf-8")
                assert not anchor or f'id="{anchor}"' in there, (path.name, target)
        loaded = re.findall(r'<(?:script|img|link|iframe)\b[^>]*\b(?:src|href)="([^"]*)"', page)
        assert [target[:60] for target in loaded if re.match(r"(https?:)?//", target)] == []


def test_the_traced_values_are_those_of_the_model(flow):
    model, processor = AlignModel.from_pretrained("emoji"), AlignProcessor.from_pretrained("emoji")
    image = load_image(ROOT / "weights/samples/apple.png")
    batch = processor(text="a red apple", images=image, padding=True, return_tensors="pt")
    rows = {row.name: row for row in trace(model, batch)}
    for place, value, layer in [
        (line("efficientnet", "x = self.stem("), "x", "vision_model.stem"),
        (line("efficientnet", "h = self.depthwise("), "h", "vision_model.blocks.0.depthwise"),
        (line("bert", "attended, weights ="), "attended", "text_model.layers.0.attention"),
    ]:
        x, row = next(iter(flow[place].values()))[value], rows[layer]
        assert tuple(x.shape) == row.shape
        assert [x.mean().item(), x.std(correction=0).item()] == pytest.approx([row.mean, row.deviation], 1e-4)
    with torch.inference_mode():
        out = model.eval()(**batch)
    logits = flow[line("model", "logits_per_text = ")][""]["logits_per_text"]
    assert torch.allclose(logits, out.logits_per_text, rtol=1e-5)


def test_an_mbconv_is_traced_without_and_with_its_expansion(flow, pages):
    blocks = AlignModel.from_pretrained("emoji").vision_model.blocks
    first = next(i for i, block in enumerate(blocks) if block.expand is not None)
    assert blocks[0].expand is None and first > 0
    seen = flow[line("efficientnet", "h = x if self.expand is None else")]
    assert list(seen) == ["vision_model.blocks.0", f"vision_model.blocks.{first}"]
    assert seen["vision_model.blocks.0"]["h"].shape[1] == blocks[0].depthwise.conv.in_channels
    assert seen[f"vision_model.blocks.{first}"]["h"].shape[1] == blocks[first].expand.conv.out_channels
    page = (pages / "efficientnet.html").read_text(encoding="utf-8")
    assert page.count(f", in <code>vision_model.blocks.{first}</code>") == 5  # each line of `forward`


def test_a_page_shows_shape_mean_deviation_and_maps_beside_the_line(pages, flow):
    page = (pages / "efficientnet.html").read_text(encoding="utf-8")
    x = flow[line("efficientnet", "x = self.stem(")]["vision_model"]["x"]
    told = f"<code>x</code>: 1 × 16 × 48 × 48, mean {x.double().mean():.4g}, "
    told += f"standard deviation {x.double().std(correction=0):.4g}"
    assert f'{told}<img alt="the first 8' in page


@pytest.mark.parametrize("name", flows.TEN)
def test_every_line_of_the_code_stands_on_its_page(pages, name):
    page = (pages / f"{name}.html").read_text(encoding="utf-8")
    shown = html.unescape(re.sub(r"<[^>]+>", "", page))
    source = (ROOT / "align_minimal" / f"{name}.py").read_text(encoding="utf-8")
    code = re.sub(r'(?m)^\s*r?""".*?"""$', "", source, flags=re.DOTALL)
    lines = [text.strip() for text in code.splitlines() if text.strip()]
    assert len(lines) > 20 and [text for text in lines if text not in shown] == []


def test_formulas_are_set_and_code_is_left_alone():
    assert "<math" in book.with_formulas("the sum $\\sum_i x_i$") and "$" not in book.with_formulas("$x$")
    assert book.with_formulas("`$x$`") == "`$x$`"


def docstrings() -> str:
    trees = [ast.parse(Path(path).read_text(encoding="utf-8")) for path in flows.PATHS]
    nodes = [
        n
        for tree in trees
        for n in ast.walk(tree)
        if isinstance(n, (ast.Module, ast.ClassDef, ast.FunctionDef))
    ]
    return "\n\n".join(ast.get_docstring(node) or "" for node in nodes)


@pytest.mark.parametrize("text", book.FORMULAS)
def test_a_formula_of_a_docstring_is_set_wherever_it_stands(pages, text):
    assert text in docstrings()
    mathml = html.unescape(book.set_formula(text).strip())
    found = [html.unescape(page.read_text("utf-8")) for page in pages.glob("*.html")]
    assert mathml.startswith("<math") and any(mathml in page for page in found)
    for name in flows.TEN:
        page = (pages / f"{name}.html").read_text(encoding="utf-8")
        words = re.sub(r'<div class="highlight">.*?</div>|<math.*?</math>|<[^>]+>', "", page, flags=re.DOTALL)
        words = html.unescape(words)
        assert text.strip() not in words


def test_the_first_page_links_to_every_other(pages):
    index = (pages / "index.html").read_text(encoding="utf-8")
    linked = set(re.findall(r'href="(\w+)\.html', index))
    assert linked == {path.stem for path in pages.glob("*.html")}


def entries(pages: Path) -> list[dict]:
    first = (pages / "search.js").read_text(encoding="utf-8").split("\n", 1)[0]
    return json.loads(first.removeprefix("const ENTRIES = ").removesuffix(";"))


def test_the_search_knows_every_function_class_and_heading_by_a_link_that_exists(pages):
    found = {entry["name"]: entry["url"] for entry in entries(pages)}
    assert found["MBConv.forward"] == "efficientnet.html#MBConv.forward"
    assert found["contrastive_loss"] == "contrastive.html#contrastive_loss"
    headings = set()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        headings |= set(re.findall(r"^#{2,4} ([^$`*\[\n]+)$", texts, re.MULTILINE))
    assert len(headings) > 40 and headings - set(found) == set()
    for url in found.values():
        file, _, anchor = url.partition("#")
        assert not anchor or f'id="{anchor}"' in (pages / file).read_text(encoding="utf-8")
