"""Run the notebooks, each in a fresh process, solutions of the exercises included.

    python notebooks/run.py              # all; fails on the first error in a cell, says how long each took
    python notebooks/run.py 03 06        # those whose names begin so
    python notebooks/run.py --save 03    # and keep the outputs in the file

A solution is a fenced python block inside <details> in a text cell; it runs where it stands.
Of cells tagged `answer` (they answer what the reader is asked to predict) --save folds the outputs; of cells
tagged `slider` it keeps none, for a slider lives only where the notebook runs.
"""

from __future__ import annotations

import argparse
import html
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

HERE = Path(__file__).resolve().parent
SOLUTION = re.compile(r"<details>.*?```python\n(.*?)```.*?</details>", re.DOTALL)
LIMIT = 90  # seconds beyond which a notebook is called slow; a cell that takes three times as long has failed


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


def fold(outputs: list) -> list:
    """The outputs as one, closed until the reader opens it."""
    pieces = []
    for output in outputs:
        data = output.get("data", {})
        image = next((kind for kind in data if kind.startswith("image/")), None)
        if image:
            pieces.append(f'<img alt="the figure" src="data:{image};base64,{data[image].strip()}">')
        else:
            text = html.escape("".join(data.get("text/plain", output.get("text", ""))))
            if pieces and pieces[-1].endswith("</pre>"):  # what was printed in one go may come in parts
                pieces[-1] = pieces[-1].removesuffix("</pre>") + text + "</pre>"
            else:
                pieces.append(f"<pre>{text}</pre>")
    if not pieces:
        return []
    page = f"<details><summary>What came out</summary>{''.join(pieces)}</details>"
    folded = {"text/html": page, "text/plain": "folded: run the cell to see it"}
    return [nbformat.v4.new_output("display_data", data=folded)]


def tidy(cell: nbformat.NotebookNode) -> None:
    """What is kept of a cell that has run: no times of day, no widgets, answers folded."""
    cell.metadata.pop("execution", None)
    tags = cell.metadata.get("tags", [])
    if "answer" in tags:
        cell.outputs = fold(cell.outputs)
    if "slider" in tags:
        cell.outputs = []


def run(path: Path, save: bool) -> float:
    """Run a notebook; with `save` keep its outputs. Returns seconds. CellExecutionError if a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    whole = notebook if save else with_solutions(notebook)
    began = time.perf_counter()
    NotebookClient(whole, timeout=3 * LIMIT, resources={"metadata": {"path": str(HERE)}}).execute()
    seconds = time.perf_counter() - began
    if save:
        for cell in notebook.cells:
            tidy(cell)
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
    for name in args.names:
        if not any(path.name.startswith(name) for path in paths):
            print(f"no notebook begins with {name}", file=sys.stderr)
            return 1
    failed = []
    for path in paths:
        try:
            try:
                seconds = run(path, args.save)
            except CellTimeoutError:
                # At times a kernel loses a message and waits for ever, with nothing to do.
                print(f"{path.name}: no answer from its kernel, so once more", flush=True)
                seconds = run(path, args.save)
            slow = f", over {LIMIT}" if seconds > LIMIT else ""
            print(f"{path.name}: {seconds:.0f} s{slow}", flush=True)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            failed.append(path.name)
            print(f"{path.name}: {error}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
