"""Which notebook sees a mistake? Each one of mutations.py, in a copy, against the notebooks' own assertions.

    python -m tests.lab.seen                    all of them, and whether unseen.py tells the truth
    python -m tests.lab.seen --quick            without the notebooks that train, and the mistakes for them
    python -m tests.lab.seen sigma-multiplied   the cell in which a reader would stumble over this one

First every notebook runs unbroken, and the lines of the package that it runs are noted. Then each mistake
meets the notebooks that run its line, the likeliest first, until a cell fails. The cells run without Jupyter,
one process for each notebook; exercises, solutions and sliders are left out. Works where processes fork: on
Linux and macOS.

Exit status 0: each mistake is either seen or listed in unseen.py; 1: one is neither, or both.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import json
import os
import re
import resource
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from .break_it import ROOT, mutate, run_processes
from .mutations import MUTATIONS, Mutation
from .unseen import UNSEEN

SLOW = ("08_training", "10_noisy_data")  # a minute each: only for mistakes that concern training
LEFT_OUT = {"exercise", "slider"}  # tags of cells


# ---- one notebook, in one process --------------------------------------------------------------------------


def cells(notebook: Path) -> list[tuple[int, str]]:
    """(number, code) of the cells that run."""
    found = enumerate(json.loads(notebook.read_text(encoding="utf-8"))["cells"])
    code = [(i, cell) for i, cell in found if cell["cell_type"] == "code"]
    return [(i, "".join(c["source"])) for i, c in code if not LEFT_OUT & set(c["metadata"].get("tags", []))]


def play(notebook: Path) -> str:
    """Run the cells, in this process and in this folder: "", or the cell that failed, and its error."""
    names = {"__name__": "__main__", "display": lambda *_: None}
    for number, code in cells(notebook):
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                exec(compile(code, f"{notebook.name}, cell {number}", "exec"), names)
        except BaseException as error:  # whatever it is, the reader sees it
            told = str(error).strip().split("\n")[0][:90]
            return f"{notebook.stem}, cell {number}: {type(error).__name__}{told and ': '}{told}"
    return ""


class Watch:
    """Notes which lines of a package run: {"model.py": {31, 32, …}, …}."""

    def __init__(self, package: Path):
        self.package = f"{package}{os.sep}"
        self.lines: dict[str, set[int]] = {}
        self.missing: dict[CodeType, set[int]] = {}  # lines that have not run yet

    def __call__(self, frame: FrameType, event: str, argument: Any):
        file = frame.f_code.co_filename
        if not file.startswith(self.package):
            return None
        lines = self.lines.setdefault(Path(file[len(self.package) :]).as_posix(), set())
        missing = self.missing.setdefault(frame.f_code, {line for *_, line in frame.f_code.co_lines()})
        if not missing - {None}:  # nothing new here: do not slow it down
            return None

        def step(frame: FrameType, event: str, argument: Any):
            lines.add(frame.f_lineno)
            missing.discard(frame.f_lineno)
            return step

        return step(frame, event, argument)


def copy(root: Path, to: Path) -> Path:
    """A copy of the project's package and notebooks; the rest, which nothing changes, is linked."""
    skip = shutil.ignore_patterns("*.pyc", "exercises")
    for name in ("align_minimal", "notebooks"):
        shutil.copytree(root / name, to / name, ignore=skip)
    for name in ("weights", "tests"):
        (to / name).symlink_to((root / name).resolve())
    return to


def attempt(root: Path, notebook: str, mutation: Mutation | None, limit: int, report: Path) -> None:
    """Play a notebook on a copy of the project, with the mistake if one is given, and report it as JSON.

    To be called once a process. The exit status is 1 if a cell failed; the process is killed after `limit`
    seconds of work, so that an endless loop ends. Unbroken, the lines that ran are in the report.
    """
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    with tempfile.TemporaryDirectory(dir=report.parent) as folder:  # goes with it if this process is killed
        project = copy(root, Path(folder).resolve())
        if mutation is not None:
            broken = mutate(mutation, project / "align_minimal")[1]
            (project / "align_minimal" / mutation.file).write_text(broken, encoding="utf-8")
        for name in [n for n in sys.modules if n.split(".")[0] == "align_minimal"]:
            del sys.modules[name]
        os.chdir(project / "notebooks")
        sys.path[:0] = [str(project / "notebooks"), str(project)]
        os.environ["PYTHONPATH"] = str(project)  # for the programs that a notebook starts
        sys.dont_write_bytecode = True
        watch = Watch(project / "align_minimal")
        if mutation is None:
            threading.settrace(watch)
            sys.settrace(watch)
        failed = play(Path(notebook))
        sys.settrace(None)
        os.chdir(root)
    spent = sum(os.times()[:4])  # with the programs that it started
    lines = {file: sorted(found) for file, found in watch.lines.items()}
    report.write_text(json.dumps({"failed": failed, "seconds": spent, "lines": lines}), encoding="utf-8")
    sys.exit(bool(failed))


# ---- which notebooks, in which order -----------------------------------------------------------------------


@dataclass
class Unbroken:
    """What is known of a notebook after it ran on the package as it is."""

    name: str
    head: str  # its first cell, with the files that it opens
    starts_programs: bool
    seconds: float
    lines: dict[str, set[int]] = field(repr=False)

    def runs(self, file: str, places: set[int]) -> bool:
        return bool(self.lines.get(file, set()) & places)


def places(source: str, old: str) -> set[int]:
    """The lines of the statements in which `old` stands; of a compound statement, the lines of its head."""
    first = source[: source.index(old)].count("\n") + 1
    wanted = set(range(first, first + old.rstrip("\n").count("\n") + 1))
    found = set(wanted)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt):
            last = node.body[0].lineno - 1 if hasattr(node, "body") else node.end_lineno
            lines = set(range(node.lineno, max(node.lineno, last) + 1))
            found |= lines if lines & wanted else set()
    return found


def candidates(mutation: Mutation, root: Path, notebooks: Sequence[Unbroken]) -> tuple[list[Unbroken], bool]:
    """The notebooks that may see a mistake, and whether it concerns training, so that the slow ones may.

    Of the quick ones those that open its file come first, then the quickest.
    """
    training = mutation.file.startswith("training/")
    where = places(mutate(mutation, root / "align_minimal")[0], mutation.old)
    ran = [n for n in notebooks if n.runs(mutation.file, where)]
    quick = [n for n in notebooks if n.name not in SLOW and (n in ran or n.starts_programs)]
    slow = [n for n in notebooks if n.name in SLOW and (n in ran or (training and n.starts_programs))]
    concerns_training = training or not [n for n in ran if n.name not in SLOW]
    quick.sort(key=lambda n: (f"/{mutation.file})" not in n.head, n.seconds))
    return quick + (slow if concerns_training else []), concerns_training


# ---- all of them -------------------------------------------------------------------------------------------


def reports(root: Path, work: Sequence[tuple[str, Mutation | None, int]], jobs: int) -> Iterator[tuple]:
    """(notebook, mistake, report) of each attempt (notebook, mistake, limit), as they end."""
    with tempfile.TemporaryDirectory() as folder:
        tasks = [(root, *task, Path(folder) / f"{i}.json") for i, task in enumerate(work)]
        for (_, notebook, mutation, limit, report), status in run_processes(attempt, tasks, jobs, imports=()):
            if report.exists():
                yield notebook, mutation, json.loads(report.read_text(encoding="utf-8"))
            elif status < 0:  # killed
                end = f"{Path(notebook).stem}: no end in {limit} s of work"
                yield notebook, mutation, {"failed": end, "seconds": limit}
            else:  # not the notebook failed, but what runs it: that must not count as seen
                raise RuntimeError(f"{notebook} did not run (status {status})")


def unbroken(root: Path, jobs: int, left_out: Sequence[str] = ()) -> list[Unbroken]:
    """Every notebook on the package as it is. AssertionError if one fails."""
    paths = {p.name: p for p in sorted((root / "notebooks").glob("*.ipynb")) if p.stem not in left_out}
    order = sorted(paths, key=lambda name: Path(name).stem not in SLOW)  # the longest first
    found = []
    for notebook, _, report in reports(root, [(name, None, 900) for name in order], jobs):
        assert not report["failed"], f"unbroken, {report['failed']}"
        sources = [code for _, code in cells(paths[notebook])]
        head = "".join(json.loads(paths[notebook].read_text(encoding="utf-8"))["cells"][0]["source"])
        programs = any(re.search(r"\bsubprocess\.run\b", code) for code in sources)
        lines = {file: set(numbers) for file, numbers in report["lines"].items()}
        found.append(Unbroken(Path(notebook).stem, head, programs, report["seconds"], lines))
    return sorted(found, key=lambda n: n.name)


def hunt(
    root: Path, mutations: Sequence[Mutation], jobs: int, quick: bool = False
) -> Iterator[tuple[Mutation, str, list[str]]]:
    """(mistake, the cell that saw it or "", the notebooks that ran it), as they are known.

    With `quick` the slow notebooks are left out, and the mistakes that concern training.
    """
    notebooks = unbroken(root, jobs, SLOW if quick else ())
    print(", ".join(f"{n.name[:2]} {n.seconds:.0f} s" for n in notebooks), "of work unbroken", flush=True)
    found = {m.name: (m, *candidates(m, root, notebooks)) for m in mutations}
    queues = {name: (m, queue) for name, (m, queue, training) in found.items() if not (quick and training)}
    tried: dict[str, list[str]] = {name: [] for name in queues}
    while queues:
        for name in [name for name, (_, queue) in queues.items() if not queue]:
            yield queues.pop(name)[0], "", tried[name]
        turn = sorted(((queue.pop(0), m) for m, queue in queues.values()), key=lambda t: -t[0].seconds)
        work = [(f"{n.name}.ipynb", m, int(3 * n.seconds + 10)) for n, m in turn]
        for notebook, mutation, report in reports(root, work, jobs):
            tried[mutation.name].append(notebook[:2])
            if report["failed"]:
                del queues[mutation.name]
                yield mutation, report["failed"], tried[mutation.name]


def disagreement(name: str, where: str, listed: dict[str, str]) -> str:
    """What is wrong with the list: a mistake must be seen or listed, and not both; "" if nothing is."""
    if where:
        return "is listed in unseen.py, but a notebook sees it" if name in listed else ""
    return "" if name in listed else "no notebook sees it, and unseen.py does not say why"


def prepare() -> None:
    """What every process begins with: one thread, no window, figures that are never drawn."""
    os.environ |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    import matplotlib.pyplot as plt
    import torch

    torch.set_num_threads(1)
    plt.show = lambda *_, **__: plt.close("all")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lab.seen", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="the mistakes to make (default: all)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many at a time (at least 1)")
    parser.add_argument("--quick", action="store_true", help=f"leave out {' and '.join(SLOW)}")
    args = parser.parse_args(argv)
    known = {m.name: m for m in MUTATIONS if m.file.endswith(".py")}  # of C it is not known what runs
    for name in args.names:
        if name not in known:
            parser.error(f"no mistake {name!r} in Python: see python -m tests.lab.break_it --list")
    prepare()
    began, judged, count, wrong = time.perf_counter(), 0, 0, []
    chosen = [known[name] for name in args.names or known]
    with tempfile.TemporaryDirectory() as folder:  # what is edited meanwhile changes nothing
        for mutation, where, tried in hunt(copy(ROOT, Path(folder)), chosen, args.jobs, args.quick):
            ran = where or f"not seen by {', '.join(tried) or 'any: no notebook runs this line'}"
            print(f"{'seen' if where else 'UNSEEN':<8}{mutation.name:<40}{ran}", flush=True)
            judged, count = judged + 1, count + bool(where)
            told = disagreement(mutation.name, where, UNSEEN)
            wrong += [f"{mutation.name}: {told}"] if told else []
    print(f"{count} of {judged} are seen, in {time.perf_counter() - began:.0f} s", *wrong, sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
