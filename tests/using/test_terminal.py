"""The terminal: no name forges a row, and no stream, locale or signal ends in a traceback."""

import fcntl
import io
import json
import os
import re
import resource
import struct
import subprocess
import sys
import termios
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from tqdm import tqdm

from align_minimal import AlignModel, AlignProcessor
from align_minimal.commands import commands
from align_minimal.support.terminal import Messages, Output, busy, message, one_line, unicode, width
from align_minimal.training.loop import BARS, tell
from align_minimal.using.retrieval import print_recall
from align_minimal.using.trace import trace_pair
from align_minimal.using.zero_shot import ZeroShotClassifier, print_accuracy
from tests.lab.warm import python
from tests.using.test_cli import refused, run

SAMPLES = Path(__file__).resolve().parents[2] / "weights" / "samples"
FORGED = "dog\n  cat  100.0%\x1b[1A\r\x9b2K\u2028\u202egnp"
SHOWN = r"dog\n  cat  100.0%\x1b[1A\r\x9b2K\u2028\u202egnp"


def harmless(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


# ---- what is printed ---------------------------------------------------------------------------------------


def test_control_characters_are_escaped_and_letters_are_not():
    assert one_line(FORGED) == SHOWN
    for text in ("Äpfel & Birnen", "👩‍🚀", "日本語", "שלום", "caf\udce9"):
        assert one_line(text) == text
    assert message("two\nlines\x1b[2K of\tnews") == r"two lines\x1b[2K of news"


def test_neither_a_label_nor_a_file_s_name_forges_a_row_of_classify(capsys, tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / f"{FORGED}.png")
    status, out, err = run(capsys, "classify", tmp_path, "--labels", FORGED, "apple")
    assert (status, err) == (0, "") and harmless(out)
    assert out.count("\n") == 3 and out.startswith(f"{tmp_path}/{SHOWN}.png\n") and f"\n  {SHOWN} " in out


def test_nor_do_they_forge_a_warning_or_an_error(capsys, tmp_path):
    (tmp_path / f"{FORGED}.png").write_bytes(b"no picture")
    Image.new("RGB", (20, 20)).save(tmp_path / "good.png")
    status, out, err = run(capsys, "classify", tmp_path, "--labels", "apple")
    assert status == 0 and err.count("\n") == 1 and harmless(err) and r"\x1b[1A" in err
    refused(capsys, "classify", tmp_path / FORGED, "--labels", "apple", status=1, says=[r"\x1b[1A"])
    for argv in (
        ["classify", FORGED],
        ["search", tmp_path, "a", "--top", FORGED],
        ["search", "a", "--nonsense\x1b[2K"],
    ):
        status, out, err = run(capsys, *argv)
        assert (status, out, err.count("\n")) == (2, "", 1) and harmless(err)


def test_nor_the_table_of_classes_nor_trace(capsys, monkeypatch):
    result = {"images": 8, "labels": 9, "top1": 0.5, "top5": 1.0}
    print_accuracy(result | {"per_class": {FORGED: {"images": 8, "top1": 0.5}}})
    out = capsys.readouterr().out
    assert out.count("\n") == 3 and harmless(out) and SHOWN in out
    model, processor = AlignModel.from_pretrained("emoji"), AlignProcessor.from_pretrained("emoji")
    monkeypatch.setattr(processor.tokenizer, "convert_ids_to_tokens", lambda ids: [FORGED])
    trace_pair(model, processor, SAMPLES / "apple.png", "a red apple", depth=1)
    out = capsys.readouterr().out
    assert harmless(out) and SHOWN in out


def test_a_label_s_accents_survive_a_locale_without_utf_8(capsys):
    assert unicode("\udcc3\udc84pfel") == "Äpfel" == unicode("Äpfel")
    assert unicode("no \udcff utf8") == "no \udcff utf8" and unicode("\ud800") == "\ud800"
    argv = ["classify", str(SAMPLES / "apple.png"), "--labels", "Äpfel", "dog", "--json"]
    expected = json.loads(run(capsys, *argv)[1])
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    document, table = ended(start(*argv, env=env), start(*argv[:-1], env=env))
    assert document.returncode == 0 and json.loads(document.stdout) == expected
    label, _, bar = table.stdout.splitlines()[1].split()
    assert label == rb"\xc4pfel" and len(bar) > 9 and set(bar) == {ord("#")}


# ---- what fits and what is coloured ------------------------------------------------------------------------


@pytest.fixture
def terminal(monkeypatch):
    """Standard output as a terminal with colours, 40 columns wide."""
    monkeypatch.setattr(Output, "isatty", lambda self: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")


def lines_of(capsys, *argv) -> list[str]:
    status, out, err = run(capsys, *argv)
    assert (status, err) == (0, "")
    return out.splitlines()


TABLES = {
    "classify": ["classify", SAMPLES / "apple.png", "--labels", "a label " * 9, "犬" * 30, "apple"],
    "search": ["search", SAMPLES, "a very long query " * 3, "--top", 2],
    "trace": ["trace", SAMPLES / "apple.png", "a red apple"],
    "trace by layers": ["trace", SAMPLES / "apple.png", "a red apple", "--depth", 9],
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_fits_the_terminal_and_without_one_nothing_is_cut(
    capsys, terminal, monkeypatch, tmp_path, name
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if name == "search":
        run(capsys, "search", SAMPLES, "apple")  # embeds the folder, which shows a bar
    narrow = [re.sub(r"\x1b\[\d+m", "", line) for line in lines_of(capsys, *TABLES[name])]
    assert max(map(width, narrow)) <= 40 < max(map(len, narrow)) + 12
    monkeypatch.setattr(Output, "isatty", lambda self: False)
    whole = lines_of(capsys, *TABLES[name])
    assert max(map(width, whole)) > 40 and not any("…" in line or "\x1b" in line for line in whole)
    if name == "classify":
        assert narrow[1].startswith("  ") and "%  " in narrow[1]  # a bar has its place


def test_results_of_evaluate_fit_too(capsys, monkeypatch):
    monkeypatch.setattr("align_minimal.using.retrieval.columns", lambda: 40)
    monkeypatch.setattr("align_minimal.using.zero_shot.columns", lambda: 40)
    recall = {"R@1": 0.5, "R@5": 0.5, "R@10": 0.5}
    print_recall({"images": 40, "texts": 80, "image_to_text": recall, "text_to_image": recall})
    result = {"images": 8000, "labels": 9, "top1": 0.5, "top5": 1.0}
    per_class = {"dog": {"images": 8000, "top1": 0.5}, "an animal " * 9: {"images": 1, "top1": 0.25}}
    print_accuracy(result | {"per_class": per_class})
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 40 and out.count("R@10 0.500") == 2 and "of 8,000" in out


def test_colours_are_for_terminals_that_want_them(capsys, terminal, monkeypatch):
    argv = ["classify", SAMPLES / "apple.png", "--labels", "apple", "dog"]
    coloured = "\n".join(lines_of(capsys, *argv))
    assert "\x1b[1m" in coloured and "\x1b[32m" in coloured
    for variable, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as patch:
            patch.setenv(variable, value)
            assert "\n".join(lines_of(capsys, *argv)) == re.sub(r"\x1b\[\d+m", "", coloured)
    assert all(line.isprintable() for line in lines_of(capsys, *argv, "--json"))


def test_a_table_with_commas_is_exact_in_a_file_and_escaped_on_a_terminal(capsys, terminal, monkeypatch):
    argv = ["classify", SAMPLES / "apple.png", "--labels", FORGED, "--csv"]
    assert harmless("\n".join(lines_of(capsys, *argv)))
    monkeypatch.setattr(Output, "isatty", lambda self: False)
    assert FORGED in run(capsys, *argv)[1]


def test_what_takes_a_while_is_said_on_a_terminal_within_a_second(tmp_path):
    (tmp_path / "torch.py").write_text("import time\ntime.sleep(2)\nraise ValueError('no PyTorch here')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    ours, theirs = os.openpty()
    argv = [sys.executable, "-m", "align_minimal", "classify", "x.png", "--labels", "y"]
    process = subprocess.Popen(argv, stderr=theirs, env={**os.environ, "PYTHONPATH": path})
    os.close(theirs)
    first = os.read(ours, 1000)
    assert b"loading PyTorch" in first and process.poll() is None  # before it has ended
    assert process.wait(60) == 1
    rest = os.read(ours, 1000)
    assert rest.startswith(b"\r\x1b[K") and b"no PyTorch here" in rest
    os.close(ours)


@pytest.mark.parametrize(
    ("columns", "says"), [(40, "loading PyTorch"), (14, "loading …"), (0, "loading PyTorch")]
)
def test_what_is_said_meanwhile_takes_one_line_and_goes(monkeypatch, columns, says):
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    with open(theirs, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        with busy("loading PyTorch"):
            assert os.read(ours, 1000).decode() == f"\r{says} ..."
        assert os.read(ours, 1000) == b"\r\x1b[K"
    os.close(ours)


ROW = {
    "loss": 1.5274,
    "log_n": 4.16,
    "floor": 0.729,
    "temperature": 0.0712,
    "lr": 1e-3,
    "pairs_per_second": 99,
}
TOLD = "loss 1.527 (log N 4.16, floor 0.73), temperature 0.0712, lr 1.0e-03, 99 pairs/s"


@pytest.mark.parametrize("total", [9, 2000])
@pytest.mark.parametrize("columns", [40, 60, 80, 100, 140, None])
def test_the_training_bar_drops_its_least_important_part_first_and_cuts_no_number(columns, total):
    stream = io.StringIO()
    with tqdm(total=total, ncols=columns, file=stream, bar_format=BARS[0], mininterval=0) as bar:
        for _ in range(3):
            tell(bar, ROW)
            bar.update()
    lines = [line.rstrip() for line in stream.getvalue().split("\r") if "loss" in line]
    for line in lines:
        said = line.split(", ", 1)[1].removesuffix("]")
        assert line.endswith("]") and len(line) <= (columns or 1000)
        assert said.startswith("loss 1.527") and TOLD.startswith(said) and (said == TOLD) >= (columns is None)
        assert TOLD[len(said) :][:2] in ("", " (", ", ")
    assert lines and ("%|" in lines[0]) == (columns != 40)


def test_elsewhere_nothing_is_said_of_it(capsys):
    with busy("loading"):
        pass
    assert capsys.readouterr() == ("", "")


# ---- streams -----------------------------------------------------------------------------------------------


def start(*argv: str, shell: str = '"$@"', env: dict[str, str] | None = None, **more) -> subprocess.Popen:
    """A process of the command, started by a line of shell."""
    command = ["bash", "-c", shell, "bash", sys.executable, "-m", "align_minimal", *argv]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, **more)


def ended(*processes: subprocess.Popen) -> list[subprocess.CompletedProcess]:
    """Status and output of each; where there are several, they run at the same time."""
    printed = [process.communicate(timeout=120) for process in processes]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *streams)
        for process, streams in zip(processes, printed, strict=True)
    ]


MUTE = ['"$@" 2>&-', '"$@" 2>/dev/full', '"$@" <&- 2>&-']
LOST = {'"$@" >&-': b"closed", '"$@" >/dev/full': b"space"}


@pytest.fixture(scope="module")
def by_shell(tmp_path_factory) -> dict[str, subprocess.CompletedProcess]:
    """What the command says with streams closed or full: all at once, since each imports PyTorch."""
    folder = tmp_path_factory.mktemp("pictures")  # a picture, and a file that makes a warning
    Image.new("RGB", (20, 20)).save(folder / "good.png")
    (folder / "broken.png").write_bytes(b"no picture")
    lines = dict.fromkeys(MUTE, folder)
    lines |= {line: SAMPLES / "apple.png" for shell in LOST for line in (shell, f"({shell}) 2>&-")}
    argvs = {shell: ["classify", str(path), "--labels", "apple", "--json"] for shell, path in lines.items()}
    return dict(zip(argvs, ended(*(start(*argv, shell=shell) for shell, argv in argvs.items())), strict=True))


@pytest.mark.parametrize("shell", MUTE)
def test_without_a_place_for_messages_the_document_is_whole(by_shell, shell):
    process = by_shell[shell]
    assert (process.returncode, process.stderr) == (0, b"")
    assert len(json.loads(process.stdout)["results"]) == 1


@pytest.mark.parametrize(("shell", "says"), LOST.items())
def test_without_a_place_for_results_one_line_says_so(by_shell, shell, says):
    process = by_shell[shell]
    assert (process.returncode, process.stderr.count(b"\n")) == (1, 1)
    assert process.stderr.startswith(b"align-minimal: standard output: ") and says in process.stderr
    assert by_shell[f"({shell}) 2>&-"].returncode == 1


def test_messages_that_cannot_be_written_stop_nothing():
    class Full:
        def write(self, *_):
            raise OSError(28, "No space left on device")

        flush = write

    for stream in (Full(), None):
        messages = Messages(stream)
        assert messages.write("lost") == 4
        messages.flush()


def test_an_error_leaves_no_half_of_the_results(capsys, monkeypatch):
    def half(args, parser):
        print("half")
        raise ValueError("in the middle")

    monkeypatch.setitem(commands.RUN, "classify", half)
    refused(capsys, "classify", "x", "--labels", "y", status=1, says=["align-minimal: in the middle"])


STUB = """
import os, signal, time
os.kill(os.getpid(), signal.SIGINT)
time.sleep(0.01)
raise ImportError("numpy.core.multiarray failed to import")  # as compiled modules put it
"""


def test_ctrl_c_during_the_import_of_torch_is_one_line(tmp_path):
    (tmp_path / "torch.py").write_text(STUB)
    env = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    calls = ["classify", "x.png", "--labels", "y"], ["--help"], ["search", "--help"], ["search"]
    process, *others = ended(*(start(*argv, env=env) for argv in calls))
    assert (process.returncode, process.stdout) == (130, b"")
    assert process.stderr == b"align-minimal: interrupted\n"
    for process in others:  # they do without it
        assert b"usage" in process.stdout or process.returncode == 2


def test_a_full_disk_names_the_file(tmp_path):
    page, index = tmp_path / "page.html", tmp_path / "index"
    call, apple = ("-m", "align_minimal"), SAMPLES / "apple.png"
    small_files = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (600, 600))
    process = python(*call, "classify", apple, "--labels", "apple", "--html", page, first=small_files)
    assert (process.returncode, process.stdout, process.stderr.count("\n")) == (1, "", 1)
    assert str(page) in process.stderr and not page.exists()
    process = python(*call, "search", SAMPLES, "apple", "--index", index, first=small_files)
    assert (process.returncode, process.stdout, process.stderr.count("\n")) == (1, "", 1)
    assert str(index / "embeddings.safetensors") in process.stderr and not list(index.iterdir())


# ---- mistakes ----------------------------------------------------------------------------------------------


def test_what_nobody_foresaw_is_one_line_that_asks_for_a_report(capsys, monkeypatch):
    def broken(args, parser):
        assert not hasattr(args, "debug")
        raise KeyError("colour\x1b[2K")

    monkeypatch.setitem(commands.RUN, "classify", broken)
    argv = ["classify", "x", "--labels", "y"]
    refused(capsys, *argv, status=1, says=["KeyError", "colour", "please report it", "--debug"])
    status, out, err = run(capsys, *argv, "--debug")
    assert (status, out) == (1, "") and "Traceback" in err and "in broken" in err
    assert err.splitlines()[-1].startswith("align-minimal: KeyError: ")


def test_debug_shows_where_bad_data_was_found_and_keeps_the_status(capsys, tmp_path):
    status, out, err = run(capsys, "classify", tmp_path / "none.png", "--labels", "y", "--debug")
    assert (status, out) == (1, "") and "Traceback" in err
    assert err.splitlines()[-1] == f"align-minimal: {tmp_path / 'none.png'}: no such file"


def test_no_result_is_printed_that_is_not_a_number(capsys, tmp_path):
    model, processor = AlignModel.from_pretrained("emoji"), AlignProcessor.from_pretrained("emoji")
    with torch.no_grad():
        model.temperature.fill_(float("nan"))
    with pytest.raises(ValueError, match="logits are not finite: the model's weights are broken"):
        ZeroShotClassifier(model, processor, ["dog"]).logits(torch.ones(1, 160))
    with pytest.raises(ValueError, match="not a finite number"):
        commands.print_json(commands.argparse.Namespace(model="m"), results=[{"score": float("inf")}])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_trace_prints_nothing_for_a_temperature_that_is_not_above_0(capsys, temperature):
    model, processor = AlignModel.from_pretrained("emoji"), AlignProcessor.from_pretrained("emoji")
    with torch.no_grad():
        model.temperature.fill_(temperature)
    with pytest.raises(ValueError, match=f"temperature is {temperature}"):
        trace_pair(model, processor, SAMPLES / "apple.png", "a red apple")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_a_device_is_not_read(capsys, tmp_path, kind):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    path = path if kind == "pipe" else Path("/dev/zero")
    apple, says = SAMPLES / "apple.png", [f"{path}: not a file, but a device or a pipe"]
    refused(capsys, "classify", apple, "--labels-file", path, status=1, says=says)
    refused(capsys, "classify", path, "--labels", "apple", status=1, says=says)
    refused(capsys, "evaluate", SAMPLES, "--zero-shot", path, status=1, says=says)
    refused(capsys, "search", SAMPLES, "--image", path, status=1, says=says)
    refused(capsys, "trace", path, "apple", status=1, says=says)
    index = tmp_path / "index"
    index.mkdir()
    (index / "embeddings.safetensors").symlink_to(path)
    says = [f"{index / 'embeddings.safetensors'}: not written by align-minimal"]
    refused(capsys, "search", SAMPLES, "apple", "--index", index, status=1, says=says)
