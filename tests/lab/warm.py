"""Programs that start within milliseconds: `python` with the slow libraries imported beforehand.

A test that starts Python waits seconds for `import torch` before its own work begins. Here a server (Python's
own "forkserver") imports the slow libraries once for all tests, and each program is forked from it.
Nothing of this project is imported in the server. Where a process's beginning or end is what a test is about
(closed streams, signals, terminals), it starts a real one.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SLOW_TO_IMPORT = ["torch", "torch._dynamo", "safetensors.torch", "huggingface_hub", "hypothesis.extra.numpy"]
SLOW_TO_IMPORT += ["transformers"]  # what is not installed is passed over


def start_method() -> str:
    """That of multiprocessing whose processes begin with the slow libraries imported, where there is one."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return "spawn"
    multiprocessing.set_forkserver_preload(SLOW_TO_IMPORT)
    return "forkserver"


def python(
    *words: str | Path,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    without: tuple[str, ...] = (),
    first: Callable[[], object] | None = None,
) -> subprocess.CompletedProcess:
    """What `python WORDS` gives: a script or -m MODULE, its arguments, and `env` added to the environment.

    `without`: modules that cannot be imported there, as if they were not installed. `first` is called there
    before the program.
    """
    context = multiprocessing.get_context(start_method())
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | dict(env or {})
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        call = [str(word) for word in words], cwd, environment, without, first, out, err
        process = context.Process(target=run, args=call)
        process.start()
        process.join()
        texts = (path.read_bytes().decode() if path.exists() else "" for path in (out, err))
        return subprocess.CompletedProcess(words, process.exitcode, *texts)


def run(
    words: list[str],
    cwd: Path,
    env: dict[str, str],
    without: tuple[str, ...],
    first: Callable[[], object] | None,
    *streams: Path,
) -> None:
    """The program, in the forked process."""
    for number, path in enumerate(streams, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.modules.update(dict.fromkeys(without))
    module = words[1] if words[0] == "-m" else None
    sys.argv = words[1:] if module else words
    start = str(cwd) if module else str(Path(words[0]).resolve().parent)
    sys.path[:0] = [start, *env["PYTHONPATH"].split(os.pathsep)]
    sys.dont_write_bytecode = bool(env.get("PYTHONDONTWRITEBYTECODE"))
    if first is not None:
        first()
    program: Callable = runpy.run_module if module else runpy.run_path
    program(module or words[0], run_name="__main__", **({"alter_sys": True} if module else {}))
