"""Break the package on purpose: proof that the suite can fail, and exercises in reading it.

    python -m tests.lab.break_it --list             the mistakes there are
    python -m tests.lab.break_it sigma-multiplied   make one in a copy, and run the test that must go red
    python -m tests.lab.break_it --all              prove them all; and that unbroken the same tests pass

The working tree is never touched. Exit status 0: caught; 1: a test that should have gone red did not.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import io
import multiprocessing
import multiprocessing.connection
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from .mutations import MUTATIONS, Mutation
from .warm import SLOW_TO_IMPORT

ROOT = Path(__file__).resolve().parents[2]
GREEN, RED = pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED  # any other: the test did not run


def mutate(mutation: Mutation, package: Path) -> tuple[str, str]:
    """The file's source in `package`, and with the mistake. ValueError unless `old` is there once."""
    source = (package / mutation.file).read_text(encoding="utf-8")
    if source.count(mutation.old) != 1:
        raise ValueError(f"{mutation.name}: {source.count(mutation.old)} places in {mutation.file}, not one")
    return source, source.replace(mutation.old, mutation.new)


def prove(tests: Sequence[str], mutation: Mutation | None = None) -> tuple[int, str]:
    """pytest's exit status and output for `tests` on a copy of the project, with the mistake if one is given.

    To be called once a process: the copy's modules stay imported.
    """
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name in ("align_minimal", "tests"):
            shutil.copytree(ROOT / name, name, ignore=shutil.ignore_patterns("*.pyc"))
        shutil.copy(ROOT / "setup.cfg", ".")
        if mutation is not None:
            package = Path("align_minimal")
            (package / mutation.file).write_text(mutate(mutation, package)[1], encoding="utf-8")
        for name in [n for n in sys.modules if n.split(".")[0] in ("align_minimal", "tests")]:
            del sys.modules[name]
        sys.path.insert(0, folder)  # before the installed package
        sys.dont_write_bytecode = True
        with contextlib.redirect_stdout(io.StringIO()) as output:
            options = ("-x", "--tb=short", "-p", "no:cacheprovider")
            status = pytest.main([*options, *(f"tests/{test}" for test in tests)])
        imported = Path(sys.modules["align_minimal"].__file__).resolve()
        os.chdir(before)  # or Windows could not remove the folder
        assert imported.is_relative_to(Path(folder).resolve()), f"not the copy was tested, but {imported}"
    if status == RED and "\nFAILED " not in output.getvalue():  # an error before the test, in a fixture
        status = pytest.ExitCode.INTERNAL_ERROR
    return int(status), output.getvalue()


def verdict(status: int) -> str:
    return {GREEN: "NOT CAUGHT", RED: "caught"}.get(status, f"DID NOT RUN ({status})")


def show_one(mutation: Mutation) -> int:
    """The mistake as a diff, what its test says of it, and the hint."""
    name = f"align_minimal/{mutation.file}"
    lines = [text.splitlines(keepends=True) for text in mutate(mutation, ROOT / "align_minimal")]
    print("".join(difflib.unified_diff(*lines, name, f"{name}, {mutation.name}", n=1)))
    status, output = prove([mutation.test], mutation)
    errors = [line for line in output.splitlines() if line.startswith("E ")]
    print("\n".join(errors[:8]) if status == RED else output)
    print(f"\n{verdict(status)} by tests/{mutation.test}\nhint: {mutation.hint}")
    return status != RED


def prove_and_exit(tests: Sequence[str], mutation: Mutation | None) -> None:
    """`prove`, as a process of its own: its exit status is pytest's."""
    try:
        status, output = prove(tests, mutation)
    except Exception:  # Python's own exit status for it would be 1, which is pytest's for a red test
        traceback.print_exc()
        sys.exit(pytest.ExitCode.INTERNAL_ERROR)
    if mutation is None and status != GREEN:
        print(output)
    sys.exit(status)


def run_processes(
    target: Callable, work: Sequence[tuple], jobs: int, imports: Sequence[str] = SLOW_TO_IMPORT
) -> Iterator[tuple[tuple, int]]:
    """(arguments, exit status) of each `target(*arguments)`, as they end; `jobs` at a time.

    Where processes can fork, each begins with `imports`, and with nothing of this project. They are no
    Pool's, whose workers may have no children: some tests start two processes.
    """
    can_fork = "fork" in multiprocessing.get_all_start_methods()
    for name in imports if can_fork else ():
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    context = multiprocessing.get_context("fork" if can_fork else None)
    waiting, running = list(reversed(work)), {}
    while waiting or running:
        while waiting and len(running) < max(1, jobs):
            job = waiting.pop()
            process = context.Process(target=target, args=job)
            process.start()
            running[process.sentinel] = process, job
        for sentinel in multiprocessing.connection.wait(running):
            process, job = running.pop(sentinel)
            process.join()
            yield job, process.exitcode


def show_all(jobs: int) -> int:
    """Every mistake in a process of its own, and the same tests without any."""
    compiler = shutil.which("cc")  # without one, the package does not use its C
    chosen = [mutation for mutation in MUTATIONS if compiler or not mutation.file.endswith(".c")]
    unbroken = (list(dict.fromkeys(mutation.test for mutation in chosen)), None)
    caught = green = 0
    work = [unbroken, *(([m.test], m) for m in chosen)]
    for (_, mutation), status in run_processes(prove_and_exit, work, jobs):
        if mutation is None:
            green = status == GREEN
            continue
        caught += status == RED
        print(f"{verdict(status):<12}{mutation.name:<40}tests/{mutation.test}", flush=True)
    if chosen != MUTATIONS:
        print(f"{len(MUTATIONS) - len(chosen)} left out, which need a C compiler")
    print(f"{caught} of {len(chosen)} caught; unbroken, the same tests {'pass' if green else 'FAIL'}")
    return caught < len(chosen) or not green


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lab.break_it", description=__doc__.split("\n")[0])
    parser.add_argument("name", nargs="?", help="the mistake to make, of those that --list shows")
    parser.add_argument("--list", action="store_true", help="show every mistake, with its hint")
    parser.add_argument("--all", action="store_true", help="prove that every one is caught")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many at a time, with --all")
    args = parser.parse_args(argv)
    known = {mutation.name: mutation for mutation in MUTATIONS}
    if args.list:
        for mutation in MUTATIONS:
            print(f"{mutation.name:<40}{mutation.file}\n    {mutation.hint}")
        return 0
    if args.all:
        return show_all(max(1, args.jobs))
    if args.name not in known:
        near = difflib.get_close_matches(args.name or "", known, n=1)
        parser.error(f"no mistake {args.name!r}: " + (f"did you mean {near[0]}?" if near else "see --list"))
    return show_one(known[args.name])


if __name__ == "__main__":
    sys.exit(main())
