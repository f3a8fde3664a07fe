"""The READMEs keep their promises: links, tables, commands and Python blocks are what they say."""

import ast
import configparser
import re
import shlex
from pathlib import Path

import pytest

from align_minimal.commands.flags import build_parser
from tests.lab.mutations import MUTATIONS

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("align_minimal", "notebooks", "tests", "weights")
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (*ROOT.glob("*.md"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.md")))
    if "kakaobrain" not in path.parts  # a checkpoint that a user put there may bring its own
)
TEXT = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
README, PACKAGE = TEXT["README.md"], TEXT["align_minimal/README.md"]
PATH = ["config", "wordpiece", "tokenizer", "image_processor", "processor", "efficientnet", "bert"]
PATH += ["contrastive", "model", "checkpoint"]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def section(page: str, heading: str) -> str:
    return page.split(f"\n## {heading}")[1].split("\n## ")[0]


def links(page: str) -> list[tuple[Path, str]]:
    """(file, anchor) of each link to a place in the project."""
    found = re.findall(r"\]\(([^)\s#]*)(?:#([^)\s]*))?\)", FENCED.sub("", TEXT[page]))
    local = [(target, anchor) for target, anchor in found if "://" not in target]
    return [((ROOT / page).parent / target if target else ROOT / page, anchor) for target, anchor in local]


def anchors(path: Path) -> set[str]:
    """The anchors that the headings of a Markdown file get: lower case, no punctuation, - for a space."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def definitions(path: Path) -> set[str]:
    """The names of the functions and classes in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


# ---- README itself


def test_readme_takes_two_screens():
    assert len(README.encode()) <= 9000


def test_readme_begins_with_a_sentence_a_picture_and_two_blocks_of_commands():
    title, sentence, picture, first, second = README.split("\n\n")[:5]
    assert title.startswith("# ") and "\n" not in sentence and sentence.endswith(".")
    assert re.fullmatch(r"!\[.{40,}\]\(\S+\.png\)", picture)
    assert first.startswith("```bash\n") and second.startswith("```bash\n")


@pytest.mark.parametrize("number", [0, 1])
def test_the_first_two_bash_blocks_hold_commands_only(number):
    block = re.findall(r"^```bash\n(.*?)^```", README, re.MULTILINE | re.DOTALL)[number]
    assert all(re.match(r"(pip|align-minimal|pytest)\b", line) for line in block.splitlines())


def test_the_reading_path_is_the_ten_files_at_the_top_of_the_package_in_an_order_that_can_be_read():
    listed = re.findall(r"\(align_minimal/(\w+)\.py\)", section(README, "The reading path"))
    there = {path.stem for path in (ROOT / "align_minimal").glob("*.py")} - {"__init__", "__main__"}
    assert listed == PATH and set(listed) == there
    for i, name in enumerate(PATH):  # checkpoint's key map speaks of all layers, though they import it
        tree = ast.parse((ROOT / "align_minimal" / f"{name}.py").read_text(encoding="utf-8"))
        used = {n.module for n in tree.body if isinstance(n, ast.ImportFrom) and n.level == 1 and n.module}
        assert (used & set(PATH)) - {"checkpoint"} <= set(PATH[:i]), name


# ---- all of them


@pytest.mark.parametrize("page", PAGES)
def test_every_linked_file_and_anchor_exists(page):
    for path, anchor in links(page):
        assert path.exists(), f"{page}: no {path}"
        assert not anchor or anchor in anchors(path), f"{page}: {path.name} has no #{anchor}"


def test_every_page_is_reached_from_readme_and_leads_back():
    def reached(start: str) -> set[str]:
        seen, ahead = set(), [start]
        while ahead:
            page = ahead.pop()
            seen.add(page)
            paths = [path.resolve() for path, _ in links(page)]
            paths = [path / "README.md" if path.is_dir() else path for path in paths]
            ahead += {str(path.relative_to(ROOT)) for path in paths if path.suffix == ".md"} - seen
        return seen

    assert len(PAGES) > 10 and reached("README.md") == set(PAGES)
    signs = [page for page in PAGES if page.endswith("README.md") and not page.startswith("weights/")]
    assert [page for page in signs if "README.md" not in reached(page)] == []


@pytest.mark.parametrize("room", ["training", "using"])
def test_the_sign_at_a_room_s_door_lists_its_files(room):
    files = {path.name for path in (ROOT / "align_minimal" / room).glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"\]\((\w+\.py)\)", TEXT[f"align_minimal/{room}/README.md"])) == files


def test_the_notebooks_readme_lists_every_notebook():
    there = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
    assert sorted(re.findall(r"\]\((\w+\.ipynb)\)", TEXT["notebooks/README.md"])) == there


def test_every_deviation_names_a_test_that_exists():
    table = section(PACKAGE, "Who does what")
    named = re.findall(r"`(\w+/test_\w+\.py)::(test_\w+)`", table)
    rows = [line for line in table.splitlines() if line.startswith("| ") and line.count("|") == 7]
    assert len(named) == len(rows) - 2 >= 30  # all but the heading and its rule
    for file, test in named:
        assert test in definitions(ROOT / "tests" / file), f"{file} has no {test}"


def test_rows_where_a_user_of_hugging_face_meets_a_difference_stand_before_those_where_there_is_none():
    table = section(PACKAGE, "Who does what")
    rows = [re.split(r"\s*\|\s*", line) for line in table.splitlines() if line.count("|") == 7][2:]
    refused = [i for i, row in enumerate(rows) if re.search("refused|Error", row[5])]
    same = [i for i, row in enumerate(rows) if row[5] in ("as Hugging Face", row[4])]
    alone = [i for i, row in enumerate(rows) if "no optimizer" in row[4] or "`train`" in row[5]]
    assert len(refused) >= 6 and len(same) >= 2 and len(alone) >= 5
    assert max(refused) < min(same) and max(same) < min(alone)


def test_every_row_of_the_paper_map_names_a_symbol_a_test_and_a_notebook_that_exist():
    rows = [line for line in section(PACKAGE, "From the paper to the code").splitlines() if line[:2] == "| "][
        2:
    ]
    assert len(rows) > 20
    for row in rows:
        assert row.count(" | ") == 3, row
        path, symbol = re.search(r"\(([\w/]+\.py)\) `(\w+)`", row).groups()
        file, test = re.search(r"`(\w+/test_\w+\.py)::(test_\w+)`", row).groups()
        assert symbol in definitions(ROOT / "align_minimal" / path), f"{path} has no {symbol}"
        assert test in definitions(ROOT / "tests" / file), f"{file} has no {test}"
        notebook = re.search(r"\.\./(notebooks/\w+\.ipynb)\)", row).group(1)
        assert (ROOT / notebook).is_file(), f"no {notebook}"


@pytest.mark.parametrize("page", ["README.md", "tests/README.md"])
def test_there_are_as_many_mistakes_as_a_page_says(page):
    (said,) = re.findall(r"over (\d+) small mistakes", TEXT[page])
    assert int(said) < len(MUTATIONS)


# What must be true once the blocks of a page have run.
AFTERWARDS = {
    "README.md": lambda names: names["probabilities"][0, 0] > 0.5,  # the apple is an apple
    "align_minimal/using/README.md": lambda names: (
        names["probabilities"][0, 0] > 0.5
        and names["path"].parent.name == "samples"
        and names["embeds"].shape == (len(names["names"]), 160)
    ),
    "weights/emoji/README.md": lambda names: names["model"].config.projection_dim == 160,
}


@pytest.mark.parametrize("page", [page for page in PAGES if "```python\n" in TEXT[page]])
def test_the_python_blocks_run_one_after_the_other(page, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names: dict = {}
    for language, block in FENCED.findall(TEXT[page]):
        if language == "python":
            exec(block, names)
    assert AFTERWARDS[page](names)


# ---- commands


def commands(page: str) -> list[str]:
    """Every command that a page shows: in blocks, in indented lines, and between backticks."""
    text, found = TEXT[page], []
    for language, block in FENCED.findall(text):
        found += block.splitlines() if language in ("", "bash") else []
    text = FENCED.sub("", text)
    found += re.findall(r"^    (\S.*)$", text, re.MULTILINE) + re.findall(r"`([^`\n]+)`", text)
    known = r"(?:\w+=\S+ )?(align-minimal|torchrun|python|pytest|pip) "
    return [command for command in found if re.match(known, command)]


def check_align_minimal(words: list[str]) -> None:
    """The parser takes it; of a command alone, only that there is one of this name."""
    parser = build_parser(words[0])[0]
    if words[1:] not in ([], ["--help"]):
        parser.parse_args(words)
    else:
        assert f"{words[0]} " in parser.format_help()


def check_python(words: list[str]) -> None:
    """The module or script exists, and each flag stands in its source."""
    module = words[0] == "-m"
    path = ROOT / (words[1].replace(".", "/") + ".py" if module else words[0])
    if module and words[1] in ("venv", "pip"):
        return
    assert path.is_file(), path
    source = path.read_text(encoding="utf-8")
    flags = [word for word in words if word.startswith("--")]
    assert [flag for flag in flags if f'"{flag}"' not in source] == []


def check_pytest(words: list[str]) -> None:
    """The tests exist; --layer and --layers are conftest's."""
    for word in words:
        path, _, name = word.partition("::")
        if path.startswith("tests"):
            assert (ROOT / path).exists(), path
            assert not name or name in definitions(ROOT / path), word
        elif word.startswith("--"):
            assert f'"{word}"' in (ROOT / "tests" / "conftest.py").read_text(encoding="utf-8"), word


def check_pip(words: list[str]) -> None:
    """The extra exists."""
    setup = configparser.ConfigParser()  # an sdist spells setup.cfg with other spaces
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    for extra in re.findall(r"\.\[(\w+)\]", " ".join(words)):
        assert extra in setup["options.extras_require"], extra


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_every_command_can_be_given(page, capsys):
    check = {"align-minimal": check_align_minimal, "python": check_python}
    check |= {"pytest": check_pytest, "pip": check_pip}
    for command in commands(page):
        for part in command.split(" && "):
            words = shlex.split(part, comments=True)
            if "=" in words[0]:
                words = words[1:]
            if words[0] == "torchrun":
                words = ["align-minimal", *words[words.index("align_minimal") + 1 :]]
            try:
                check.get(words[0], lambda words: None)(words[1:])
            except SystemExit:
                pytest.fail(f"{page}: {command}\n{capsys.readouterr().err}")
