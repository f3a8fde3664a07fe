"""What setup.cfg says of the package is true, and the files that it names are there."""

import ast
import configparser
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import align_minimal

ROOT = Path(__file__).resolve().parents[2]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")


def lines(section: str, key: str) -> list[str]:
    return [line for line in SETUP[section][key].splitlines() if line]


def test_the_version_is_in_one_place_and_in_the_changelog_and_the_citation():
    version = align_minimal.__version__
    assert SETUP["metadata"]["version"] == "attr: align_minimal.__version__"
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_version_is_said_without_waiting_for_pytorch():
    code = """
import sys
from align_minimal.__main__ import main
try:
    main(["--version"])
finally:
    print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"align-minimal {align_minimal.__version__}\nFalse\n"


def test_every_folder_with_modules_is_packaged():
    folders = {path.parent for path in (ROOT / "align_minimal").rglob("*.py")}
    assert set(lines("options", "packages")) == {".".join(f.relative_to(ROOT).parts) for f in folders}


def test_an_editable_install_is_a_plain_path_that_type_checkers_follow():
    """setuptools writes a path only if the root is the one entry; else a hook, which they cannot read."""
    assert lines("options", "package_dir") == ["= ."]


def test_the_licences_of_code_weights_and_samples_are_named_and_their_files_are_there():
    expression = SETUP["metadata"]["license_expression"].split(" AND ")
    assert expression == ["Apache-2.0", "CC-BY-4.0", "MIT", "CC0-1.0", "LicenseRef-Public-Domain"]
    files = lines("metadata", "license_files")
    assert len(files) == 5 and all((ROOT / file).is_file() for file in files)
    samples = (ROOT / "weights" / "samples" / "README.md").read_text(encoding="utf-8")
    assert all(word in samples for word in ("CC-BY 4.0", "MIT", "CC0", "public domain"))


def test_every_core_dependency_has_a_lowest_version_and_a_reason_in_readme():
    required = lines("options", "install_requires")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    reasons = readme.split("The dependencies: ")[1].split("\n")[0]
    for requirement in required:
        name = re.match(r"\w+(?=>=\d)", requirement)
        assert name and f"{name.group()} (" in reasons, requirement


def test_what_is_imported_is_required():
    """Packages that the modules import at their top, by their names on the index."""
    names = {"PIL": "pillow"}
    found = set()
    for path in (ROOT / "align_minimal").rglob("*.py"):
        top = ast.parse(path.read_text(encoding="utf-8")).body
        found |= {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
        found |= {node.module for node in top if isinstance(node, ast.ImportFrom) and not node.level}
    found = {module.split(".")[0] for module in found} - set(sys.stdlib_module_names)
    required = {re.match(r"\w+", line).group() for line in lines("options", "install_requires")}
    assert {names.get(name, name) for name in found} <= required


def test_no_extra_is_asked_for_by_a_name_that_no_index_has():
    for path in (ROOT / "align_minimal").rglob("*.py"):
        assert "pip install 'align_minimal[" not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize("key", ["Name", "Version", "License-Expression"])
def test_what_is_installed_says_the_same(key):
    try:
        installed = metadata.metadata("align_minimal")
    except metadata.PackageNotFoundError:
        pytest.skip("align_minimal is run from its folder, not installed")
    if installed["Version"] != align_minimal.__version__ or not installed["License-Expression"]:
        pytest.skip("another version is installed")
    wanted = {"Name": "align_minimal", "Version": align_minimal.__version__}
    wanted["License-Expression"] = SETUP["metadata"]["license_expression"]
    assert installed[key] == wanted[key]


def test_the_workflow_runs_every_part_of_ci_on_every_python_that_is_promised():
    script, workflow = ROOT / ".ci" / "run", ROOT / ".github" / "workflows" / "tests.yml"
    if not workflow.exists():
        pytest.skip("the source distribution has no workflow")
    parts = re.findall(r"^(\w+)\(\) \{$", script.read_text(encoding="utf-8"), re.MULTILINE)
    helpers = {"environment"}
    text = workflow.read_text(encoding="utf-8")
    matrix = re.search(r"^ +part: \[(.+)\]$", text, re.MULTILINE).group(1).replace(",", " ").split()
    alone = re.findall(r"run: \.ci/run (\w+)$", text, re.MULTILINE)
    assert sorted([*matrix, *alone]) == sorted(set(parts) - helpers)
    pythons = re.search(r"python: \[(.+)\]", text).group(1).replace('"', "").split(", ")
    promised = [line.split(" :: ")[-1] for line in lines("metadata", "classifiers") if "Python :: 3." in line]
    assert pythons == promised


def test_the_modules_of_the_interface_are_there_without_an_import_of_their_own():
    code = "import align_minimal as a; a.checkpoint.hugging_face_key; a.wordpiece.wordpiece; a.contrastive"
    subprocess.run([sys.executable, "-c", code], check=True)
