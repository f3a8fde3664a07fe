"""Results as one HTML file that needs nothing else: it contains its thumbnails, and has no script and no link
to the network.

File names, labels and queries are data, and each is escaped where it enters the page. Should one of them
become markup all the same, the page's content policy allows nothing but its own style and pictures.
"""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Iterable
from pathlib import Path

from ..support.hub import check_own, write_atomically
from ..support.image_files import load_image

SIDE = 256  # pixels of a thumbnail's longer side
MARK = b'<meta name="generator" content="align-minimal">'  # by which a page is known as one of ours

HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="align-minimal">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --line: #8884; --bar: #2f9e77; }}
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }}
h1 {{ font-size: 1.3rem; }} h2 {{ font-size: 1.1rem; margin: 2rem 0 .75rem; }}
h1, h2, a, span {{ overflow-wrap: anywhere; white-space: pre-wrap; }}
.grid {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(12rem, 42vw), 1fr)); gap: 1rem; }}
figure {{ margin: 0; padding: .75rem; border: 1px solid var(--line); border-radius: .5rem; min-width: 0; }}
section {{ margin-top: 1.5rem; }}
p {{ margin: .25rem 0; overflow-wrap: anywhere; white-space: pre-wrap; }}
img, .missing {{ display: block; width: 100%; height: 10rem; object-fit: contain; border-radius: .25rem; }}
img {{ background: #8882; }}
@media (prefers-color-scheme: dark) {{ img {{ filter: brightness(.75); }} }}
.missing {{ background: var(--line); }}
a {{ display: block; margin: .6rem 0; color: inherit; font-size: .9em; text-decoration: none; }}
a:hover, a:focus-visible {{ text-decoration: underline; }}
small {{ display: block; opacity: .65; }}
.row {{ display: grid; grid-template-columns: 1fr auto; gap: .1rem .5rem; margin-top: .4rem; }}
span {{ font-size: .85em; }}
a + .row {{ font-weight: 600; }}
.row span + span {{ font-variant-numeric: tabular-nums; }}
.bar {{ grid-column: 1 / -1; height: .3rem; background: var(--line); border-radius: .2rem; }}
.bar i {{ display: block; height: 100%; background: var(--bar); border-radius: inherit; }}
</style>
</head>
<body>
<h1>{title}</h1>
"""


def text(value: object) -> str:
    """A value as HTML text, also inside quotation marks. Bytes of names that are not UTF-8 become \\udcxx.

    >>> text('<b> & "x"')
    '&lt;b&gt; &amp; &quot;x&quot;'
    """
    return html.escape(str(value).encode("utf-8", "backslashreplace").decode())


def thumbnail(path: Path) -> str:
    """An <img> that contains a small JPEG of the picture, or an empty frame if it cannot be read any more.

    >>> thumbnail(Path("weights/samples/cat.jpg"))[:31], thumbnail(Path("gone.png"))
    ('<img src="data:image/jpeg;base6', '<div class="missing"></div>')
    """
    try:
        image = load_image(path)
    except (OSError, ValueError):
        return '<div class="missing"></div>'
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{data}" alt="{text(path.name)}">'


def figure(path: Path, scores: Iterable[tuple[str, float, str]]) -> str:
    """A picture, its name as a link to the file, and rows of (label, length of a bar in [0, 1], value).

    >>> figure(Path("gone.png"), [("cat", 0.5, "50%")]).count('style="width: 50.0%"')
    1
    """
    rows = "".join(
        f'<div class="row"><span>{text(label)}</span><span>{text(value)}</span>'
        f'<div class="bar"><i style="width: {100 * min(max(length, 0), 1):.1f}%"></i></div></div>'
        for label, length, value in scores
    )
    folder = str(path).removesuffix(path.name)
    name = f"{f'<small>{text(folder)}</small>' if folder else ''}{text(path.name)}"
    link = text(Path(os.path.realpath(path)).as_uri())
    return f'<figure>{thumbnail(path)}<a href="{link}">{name}</a>{rows}</figure>\n'


def section(title: str, figures: Iterable[str]) -> str:
    """Figures in a grid, under a heading if there is a title.

    >>> print(section("a dog", ["<figure></figure>\\n"]), end="")
    <section><h2>a dog</h2>
    <div class="grid">
    <figure></figure>
    </div></section>
    """
    heading = f"<h2>{text(title)}</h2>\n" if title else ""
    return f'<section>{heading}<div class="grid">\n{"".join(figures)}</div></section>\n'


def check_page(path: Path) -> None:
    """OSError that names `path` if it is a folder, a file that is not a page of ours, or not to be written.

    >>> check_page(Path("weights"))
    Traceback (most recent call last):
    IsADirectoryError: weights: a folder; --html takes a file
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path}: a folder; --html takes a file")
    if not is_stream(path):
        check_own(path, MARK)
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if not folder.is_dir():
            raise NotADirectoryError(f"{path}: {folder} is not a folder")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"{path}: {folder} is not to be written to")


def is_stream(path: Path) -> bool:
    """Whether `path` is a device or a pipe. These are written to; a file is replaced.

    >>> is_stream(Path("/dev/null")), is_stream(Path("setup.cfg"))
    (True, False)
    """
    return path.exists() and not path.is_file() and not path.is_dir()


def write_page(path: Path, title: str, sections: Iterable[str], about: Iterable[str] = ()) -> None:
    """Write the page, whole or not at all. It replaces nothing but an older page; a symbolic link stays, and
    the file that it leads to is written. The lines of `about` stand under the title, and say how the results
    came about. OSError if the page cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_page(Path(folder, "page.html"), "two dogs", [section("a dog", [])] * 2)
    ...     Path(folder, "page.html").read_text(encoding="utf-8").count("<h2>a dog</h2>")
    2
    """
    lines = "".join(f"<p>{text(line)}</p>\n" for line in about)
    content = HEAD.format(title=text(title)) + lines + "".join(sections) + "</body>\n</html>\n"
    check_page(path)
    if is_stream(path):
        try:
            path.write_text(content, encoding="utf-8")
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None
    else:
        target = Path(os.path.realpath(path))
        write_atomically(target, lambda temporary: temporary.write_text(content, encoding="utf-8"))


def classification(results: list[dict]) -> list[str]:
    """The section for `classify`: each picture with its labels and a bar for each probability.

    >>> [page] = classification([{"image": "cat.png", "labels": [{"label": "cat", "probability": 0.9}]}])
    >>> page.count("<figure>"), page.count("90.0%")
    (1, 2)
    """
    figures = (
        figure(
            Path(result["image"]),
            [(e["label"], e["probability"], f"{e['probability']:.1%}") for e in result["labels"]],
        )
        for result in results
    )
    return [section("", figures)]


def search_results(answers: list[tuple[str, list[tuple[float, Path]]]], image: Path | None) -> list[str]:
    """A section for each answer (query, [(cosine, picture), …]), after the picture of the query, if any.

    >>> [page] = search_results([("a dog", [(0.31, Path("dog.png")), (0.2, Path("cat.png"))])], image=None)
    >>> page.count("<h2>"), page.count("<figure>"), page.count("0.310")
    (1, 2, 1)
    """
    asked = [section("asked with", [figure(image, [])])] if image else []
    return asked + [
        section(title, (figure(path, [("cosine", score, f"{score:.3f}")]) for score, path in hits))
        for title, hits in answers
    ]
