"""The HTML page: self-contained, and nothing in a file's name, a label or a query becomes a part of it."""

import base64
import io
import os
import re
import stat
import threading
import urllib.parse
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from align_minimal.commands import page
from align_minimal.support import hub
from tests.using.test_cli import run

# Of a folder and a file, where it takes the slash between them.
HOSTILE = [
    "<script>alert(1)<{slash}script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)' x='",
    "<{slash}title><{slash}style><{slash}figure><h1>mine",
    "&lt;b&gt; &amp; &quot; &#60;",
    "javascript:alert(1)",
    "{title} {0.__class__} {{%s}}",
    "<!-- ]]> <?php",
    "two\nlines\ttab\rreturn",
    "caf\udce9 \udcff",  # bytes that are not UTF-8, as Python shows them
    "https:{slash}{slash}example.org{slash}?a=1&b=2#c",
    "\u202egnp.exe",  # from here on from right to left
]
# What the page is made of, and which attributes each element may have.
ELEMENTS = {
    "meta": {"charset", "name", "content", "http-equiv"},
    "html": {"lang"},
    "div": {"class"},
    "img": {"src", "alt"},
    "a": {"href"},
    "i": {"style"},
    **{
        tag: set()
        for tag in ("head", "title", "style", "body", "h1", "h2", "p", "section", "figure", "span", "small")
    },
}


class Parsed(HTMLParser):
    """Elements with their attributes in order, and the texts in each kind of element."""

    def __init__(self, content: str):
        super().__init__()
        self.elements, self.texts, self.open, self.other = [], {}, [], []
        self.feed(content)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, attrs))
        self.open += [] if tag in ("meta", "img") else [tag]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.setdefault(self.open[-1] if self.open else None, []).append(data)

    def handle_comment(self, data):
        self.other.append(data)

    handle_pi = unknown_decl = handle_comment

    def attributes(self, tag: str, name: str) -> list[str]:
        return [value for t, attrs in self.elements if t == tag for n, value in attrs if n == name]


def assert_harmless(content: str) -> Parsed:
    """Only the page's own kinds of elements and attributes; no script, no address but data: and file:."""
    parsed = Parsed(content)
    assert parsed.open == [] and parsed.other == []
    for tag, attrs in parsed.elements:
        names = [name for name, _ in attrs]
        assert tag in ELEMENTS and set(names) <= ELEMENTS[tag] and len(names) == len(set(names)), (tag, attrs)
    assert all(src.startswith("data:image/jpeg;base64,") for src in parsed.attributes("img", "src"))
    assert all(re.fullmatch(r"file:///[\w/.~%-]+", href) for href in parsed.attributes("a", "href"))
    assert all(re.fullmatch(r"width: \d+\.\d%", style) for style in parsed.attributes("i", "style"))
    policy = next(dict(a)["content"] for t, a in parsed.elements if dict(a).get("http-equiv"))
    assert policy.split("; ") == ["default-src 'none'", "img-src data:", "style-src 'unsafe-inline'"]
    css = "".join(parsed.texts["style"])
    assert "url(" not in css and "@import" not in css
    return parsed


def picture(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (30, 20), colour).save(path)
    return path


def shown(name: object) -> str:
    return str(name).encode("utf-8", "backslashreplace").decode()


@pytest.fixture(params=HOSTILE, ids=range(len(HOSTILE)))
def hostile(request) -> str:
    return request.param.replace("{slash}", "/")


def build(tmp_path: Path, name: str) -> Path:
    """Both kinds of page in one, with `name` everywhere where a user can put one."""
    path = picture(tmp_path / f"{name}.png")
    results = [{"image": str(path), "labels": [{"label": name, "probability": 0.25, "logit": 1.0}]}]
    answers = [(name, [(0.5, path), (-0.1, path)]), (f"{name} again", [])]
    sections = [*page.classification(results), *page.search_results(answers, path)]
    page.write_page(tmp_path / "page.html", name, sections, about=[f"model: {name}"])
    return path


def test_a_hostile_name_is_shown_as_it_is_and_changes_nothing_else(tmp_path, hostile):
    build(tmp_path / "plain", "apple")
    path = build(tmp_path / "hostile", hostile)
    content = (tmp_path / "hostile" / "page.html").read_bytes()
    parsed = assert_harmless(content.decode("utf-8"))
    plain = assert_harmless((tmp_path / "plain" / "page.html").read_text(encoding="utf-8"))
    assert [tag for tag, _ in parsed.elements] == [tag for tag, _ in plain.elements]

    def read(tag: str) -> str:
        return "|".join(parsed.texts[tag])

    assert read("title") == read("h1") == shown(hostile)
    assert read("p") == f"model: {shown(hostile)}"
    assert read("h2") == f"asked with|{shown(hostile)}|{shown(hostile)} again"
    assert parsed.texts["small"] == [shown(path).removesuffix(shown(path.name))] * 4
    assert parsed.texts["a"] == [shown(path.name)] * 4
    assert shown(hostile) in parsed.texts["span"]
    assert set(parsed.attributes("img", "alt")) == {shown(path.name)}
    for link in parsed.attributes("a", "href"):  # leads to the file itself, whatever its bytes
        assert urllib.parse.unquote_to_bytes(link.removeprefix("file://")) == os.fsencode(path.resolve())


def test_thumbnails_are_small_jpegs_within_the_page(tmp_path):
    Image.new("RGBA", (900, 450), (0, 0, 255, 128)).save(tmp_path / "a.png")
    [source] = Parsed(page.thumbnail(tmp_path / "a.png")).attributes("img", "src")
    assert source.startswith("data:image/jpeg;base64,")
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2], validate=True))) as image:
        assert image.format == "JPEG" and image.size == (page.SIDE, page.SIDE // 2)
        assert image.getpixel((50, 50)) == pytest.approx((127, 127, 255), abs=3)  # over white


def test_a_bar_is_as_long_as_its_value_and_never_leaves_its_frame(tmp_path):
    path = picture(tmp_path / "a.png")
    rows = [("a", 0.257, "25.7%"), ("b", -0.5, "-0.500"), ("c", 1.5, "1.500"), ("d", 1, "")]
    parsed = Parsed(page.figure(path, rows))
    assert parsed.attributes("i", "style") == [
        "width: 25.7%",
        "width: 0.0%",
        "width: 100.0%",
        "width: 100.0%",
    ]
    assert parsed.texts["span"] == ["a", "25.7%", "b", "-0.500", "c", "1.500", "d"]


def test_a_picture_that_vanished_leaves_an_empty_frame(tmp_path):
    gone, broken = tmp_path / "gone.png", tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    for path in (gone, broken, tmp_path):
        content = page.figure(path, [("apple", 0.5, "50%")])
        parsed = Parsed(content)
        assert parsed.attributes("img", "src") == [] and "missing" in parsed.attributes("div", "class")
        assert parsed.texts["a"] == [path.name] and "50%" in parsed.texts["span"]


def test_a_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "folder" / "page.html"
    page.write_page(path, "first", [])
    before = path.read_text(encoding="utf-8")

    def sections():
        yield "<section>"
        raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        page.write_page(path, "second", sections())
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        page.write_page(path, "third", [])
    assert path.read_text(encoding="utf-8") == before and "first" in before
    assert list(path.parent.iterdir()) == [path]


def test_classify_and_search_write_such_a_page_beside_their_answer(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, label = tmp_path / '"><script>alert(1)<', "<b>&"
    picture(folder / "script> ' onload='x.png"), picture(folder / "b.png", "blue")
    classified, found = tmp_path / "c.html", tmp_path / "s.html"
    status, out, _ = run(capsys, "classify", folder, "--labels", label, "red", "--html", classified)
    assert status == 0 and out.count("%") == 4
    parsed = assert_harmless(classified.read_text(encoding="utf-8"))
    assert len(parsed.attributes("img", "src")) == 2 and parsed.texts["span"].count(label) == 2
    model, note, labels = parsed.texts["p"]
    assert model.startswith("model: ") and model.endswith("emoji") and labels == f"labels: {label}, red"
    assert "drawings" in note and "kakaobrain/align-base" in note
    argv = [
        "search",
        folder,
        label,
        "</h2>red",
        "--image",
        folder / "b.png",
        "--minus",
        "<i>",
        "--html",
        found,
    ]
    status, out, _ = run(capsys, *argv)
    assert status == 0 and out.count(".png\n") == 4
    parsed = assert_harmless(found.read_text(encoding="utf-8"))
    assert len(parsed.attributes("img", "src")) == 5  # and the picture asked with
    assert len(parsed.texts["h2"]) == 3 and f"{label} − <i>" in parsed.texts["h2"][1]


def test_a_folder_is_no_page(capsys, tmp_path):
    path = picture(tmp_path / "a.png")
    status, out, err = run(capsys, "classify", path, "--labels", "red", "--html", tmp_path)
    assert (status, out) == (1, "") and err.count("\n") == 1
    assert f"{tmp_path}: a folder; --html takes a file" in err  # known before any picture is read


def classify_to(capsys, tmp_path: Path, target: object) -> tuple[int, str, str]:
    path = picture(tmp_path / "a.png")
    return run(capsys, "classify", path, "--labels", "red", "--html", target)


@pytest.mark.parametrize("kind", ["picture", "page of another program", "link to a picture"])
def test_what_is_no_page_of_ours_is_not_replaced(capsys, tmp_path, kind):
    path = tmp_path / "target"
    if kind == "page of another program":
        path.write_text("<!DOCTYPE html>\n<html><head><title>mine</title></head></html>")
    else:
        picture(tmp_path / "precious.png")
        path = tmp_path / "precious.png"
    before, target = path.read_bytes(), path
    if kind == "link to a picture":
        target = tmp_path / "link.html"
        target.symlink_to(path)
    status, out, err = classify_to(capsys, tmp_path, target)
    assert (status, out) == (1, "") and err.count("\n") == 1
    assert f"{target}: not written by align-minimal" in err
    assert path.read_bytes() == before and target.is_symlink() == (kind == "link to a picture")
    with pytest.raises(FileExistsError, match=target.name):  # in Python, too
        page.write_page(target, "title", [])
    assert path.read_bytes() == before


def test_a_page_of_ours_an_empty_file_and_what_a_link_leads_to_are_written_over(capsys, tmp_path):
    old, link, dangling = tmp_path / "old.html", tmp_path / "link.html", tmp_path / "dangling.html"
    old.touch()
    link.symlink_to(old)
    dangling.symlink_to(tmp_path / "new.html")
    for target in (old, old, link, dangling):
        assert classify_to(capsys, tmp_path, target)[::2] == (0, "")
    assert link.is_symlink() and dangling.is_symlink()
    assert "100.0%" in old.read_text(encoding="utf-8") == (tmp_path / "new.html").read_text(encoding="utf-8")


def test_a_device_and_a_pipe_are_written_to_and_stay(capsys, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    content = []
    reader = threading.Thread(target=lambda: content.append(pipe.read_text(encoding="utf-8")), daemon=True)
    reader.start()
    assert classify_to(capsys, tmp_path, pipe)[::2] == (0, "")
    reader.join(timeout=20)
    assert "100.0%" in content[0] and pipe.is_fifo()
    if os.geteuid() == 0:  # a device of our own: were it replaced, no other program would miss it
        device = tmp_path / "null"
        try:
            os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("no device can be made here")
        assert classify_to(capsys, tmp_path, device)[0] == 0 and device.is_char_device()


def test_a_page_that_cannot_be_written_is_an_error_before_the_work(tmp_path, monkeypatch, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(NotADirectoryError, match=r"page\.html: .*notes\.txt is not a folder"):
        page.check_page(tmp_path / "notes.txt" / "page.html")
    page.check_page(tmp_path / "new" / "folder" / "page.html")
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(PermissionError, match=r"page\.html: .* is not to be written to"):
        page.check_page(tmp_path / "new" / "page.html")


def test_a_file_that_cannot_be_begun_is_named_itself(tmp_path, monkeypatch):
    def refuse(**options):
        raise PermissionError(13, "Permission denied", f"{options['dir']}/.a.txt.x1y2")

    monkeypatch.setattr(hub.tempfile, "mkstemp", refuse)
    with pytest.raises(PermissionError, match=r"'.*/a\.txt'$"):
        hub.write_atomically(tmp_path / "a.txt", lambda temporary: None)
