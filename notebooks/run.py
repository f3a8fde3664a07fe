"""Run the notebooks, each in a fresh process, solutions of the exercises included.

    python notebooks/run.py              # all; fails on the first error in a cell, says how long each took
    python notebooks/run.py 03 06        # those whose names begin so
    python notebooks/run.py --save 03    # and keep the outputs in the file

A solution is a fenced python block inside <details> in a text cell; it runs where it stands.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError

HERE = Path(__file__).resolve().parent
SOLUTION = re.compile(r"<details>.*?```python\n(.*?)```.*?</details>", re.DOTALL)
LIMIT = 90  # seconds that a notebook may take


def with_solutions(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A copy in which each solution follows its text cell as a code cell."""
    cells = []
    for cell in notebook.cells:
        cells.append(nbformat.from_dict(cell))
        if cell.cell_type == "markdown":
            cells += [nbformat.v4.new_code_cell(code) for code in SOLUTION.findall(cell.source)]
    copy = nbformat.from_dict(notebook)
    copy.cells = cells
    return copy


def run(path: Path, save: bool) -> float:
    """Run a notebook; with `save` keep its outputs. Returns seconds. CellExecutionError if a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    whole = notebook if save else with_solutions(notebook)
    began = time.perf_counter()
    NotebookClient(whole, timeout=10 * LIMIT, resources={"metadata": {"path": str(HERE)}}).execute()
    seconds = time.perf_counter() - began
    if save:
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # times of day, different in every run
        notebook.metadata = {"kernelspec": notebook.metadata.get("kernelspec", {"name": "python3"})}
        nbformat.write(notebook, path)
    return seconds


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="how their names begin (default: all)")
    parser.add_argument("--save", action="store_true", help="keep the outputs; solutions are not run")
    args = parser.parse_args(argv)
    paths = [
        p for p in sorted(HERE.glob("*.ipynb")) if not args.names or p.name.startswith(tuple(args.names))
    ]
    if not paths:
        print(f"no notebook begins with {' or '.join(args.names)}", file=sys.stderr)
        return 1
    failed = []
    for path in paths:
        try:
            seconds = run(path, args.save)
            slow = f", over {LIMIT}" if seconds > LIMIT else ""
            print(f"{path.name}: {seconds:.0f} s{slow}", flush=True)
        except (CellExecutionError, CellTimeoutError) as error:
            failed.append(path.name)
            print(f"{path.name}: {error}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
