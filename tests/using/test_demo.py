"""The demo: what its page answers, and how its command starts or refuses. A stand-in plays gradio."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
from PIL import Image

from align_minimal import AlignModel, AlignProcessor
from align_minimal.__main__ import main
from align_minimal.commands import commands, demo
from align_minimal.commands.demo import check_address, make_classify, make_demo, split_labels
from align_minimal.support.hub import weights_folder

SAMPLES = weights_folder() / "samples"


@pytest.fixture(scope="module")
def emoji() -> tuple[AlignModel, AlignProcessor]:
    return AlignModel.from_pretrained("emoji"), AlignProcessor.from_pretrained("emoji")


@pytest.fixture
def environment(monkeypatch) -> dict[str, str]:
    """os.environ, put back after the test: the demo tells gradio things through it."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    return os.environ


@pytest.fixture
def gradio(monkeypatch, environment):
    """A stand-in that notes what it is asked for; its wait is over at once."""
    stand_in = MagicMock()
    stand_in.Blocks.return_value.queue.return_value.launch.return_value = (None, "http://here/", None)
    monkeypatch.setitem(sys.modules, "gradio", stand_in)
    return stand_in


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


# ---- what it answers ---------------------------------------------------------------------------------------


def test_labels_come_with_commas_or_a_line_each_and_count_once():
    assert split_labels(" red apple,dog\r\ncat ,, dog\n\n,a, b") == ["red apple", "dog", "cat", "a", "b"]
    assert split_labels(" ,\n , ") == [] == split_labels("")
    assert split_labels("<b>x</b>") == ["<b>x</b>"]


def turned(picture: Image.Image, path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # show it turned by 90 degrees
    picture.rotate(90, expand=True).convert("RGB").save(path, exif=exif)


KINDS = {
    "rgba.png": lambda picture, path: picture.convert("RGBA").save(path),
    "palette.gif": lambda picture, path: picture.convert("P").save(path),
    "turned.jpg": turned,
    "deep.png": lambda picture, path: Image.fromarray(
        np.asarray(picture.convert("L")).astype(np.uint16) * 257
    ).save(path),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_answer_is_classify_s_for_every_kind_of_picture(capsys, emoji, tmp_path, name):
    path = tmp_path / name
    KINDS[name](Image.open(SAMPLES / "dog.png"), path)
    labels = ["dog", "red apple", "snail", "house"]
    assert main(["classify", str(path), "--labels", *labels, "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)["results"][0]["labels"]
    expected = {entry["label"]: entry["probability"] for entry in entries}
    assert make_classify(*emoji)(str(path), "dog, red apple\nsnail, dog, house") == pytest.approx(
        expected, abs=1e-4
    )


def test_200_labels_a_very_long_one_and_the_next_picture_s_other_labels(emoji):
    classify = make_classify(*emoji)
    many = classify(str(SAMPLES / "apple.png"), ",".join(f"thing {i}" for i in range(200)))
    assert len(many) == 200 and sum(many.values()) == pytest.approx(1, abs=1e-4)
    assert classify(str(SAMPLES / "apple.png"), "dog " * 500) == {("dog " * 500).strip(): 1}
    fewer = classify(str(SAMPLES / "snail.png"), "snail, dog")
    assert list(fewer) == ["snail", "dog"] and fewer["snail"] > 0.9


def test_what_cannot_be_classified_is_said_without_the_server_s_folders(emoji, tmp_path):
    classify = make_classify(*emoji)
    with pytest.raises(ValueError, match="picture first"):
        classify(None, "dog")
    with pytest.raises(ValueError, match="at least one label"):
        classify(str(SAMPLES / "apple.png"), " , ")
    (tmp_path / "broken.png").write_text("not a picture")
    with pytest.raises(ValueError, match=r"^broken\.png: not a picture"):
        classify(str(tmp_path / "broken.png"), "dog")


def test_in_gradio_only_uploads_are_opened_and_a_broken_one_is_a_message_without_markup(
    environment, emoji, tmp_path
):
    gradio = pytest.importorskip("gradio")
    environment["GRADIO_TEMP_DIR"] = str(tmp_path)
    page = make_demo(*emoji, note="A sentence about the model.")
    picture = next(block for block in page.blocks.values() if isinstance(block, gradio.Image))
    answer = next(fn.fn for fn in page.fns.values() if fn.api_name == "predict")
    broken = tmp_path / "<b>.png"
    broken.write_text("not a picture")
    receive = picture.preprocess
    assert receive(SimpleNamespace(path=str(broken))) == str(broken)
    for path in (None, "/etc/hosts", str(tmp_path / ".." / "x.png"), str(SAMPLES / "dog.png")):
        assert receive(SimpleNamespace(path=path)) is None  # not uploaded: nobody's to see
    assert receive(None) is None
    with pytest.raises(gradio.Error) as error:
        answer(str(broken), "dog")
    assert error.value.message == "&lt;b&gt;.png: not a picture in a known format"
    assert not error.value.print_exception
    assert answer(str(SAMPLES / "snail.png"), "dog, snail")["snail"] > 0.9


# ---- what a request may ask for ----------------------------------------------------------------------------


def test_too_many_labels_too_long_a_text_too_large_a_file_and_no_text_are_refused(emoji, tmp_path):
    classify, apple = make_classify(*emoji), str(SAMPLES / "apple.png")
    for text, says in {
        ",".join(map(str, range(1001))): "1,001 labels, more than 1,000",
        "a" * 20_001: "more than 20,000 characters",
        None: "at least one label",
    }.items():
        with pytest.raises(ValueError, match=says):
            classify(apple, text)
    large = tmp_path / "large.png"
    large.write_bytes((SAMPLES / "apple.png").read_bytes())
    os.truncate(large, demo.MAX_BYTES + 1)
    with pytest.raises(ValueError, match="over 20 MB"):
        classify(str(large), "dog")
    os.truncate(large, demo.MAX_BYTES)
    assert classify(str(large), "dog") == {"dog": 1}


def test_a_request_that_takes_too_long_is_given_up_and_stops_no_other():
    ended = threading.Event()

    def work(slow: bool) -> str:
        return str(slow and ended.wait(60))

    call = demo.in_time(work, seconds=0.5, at_once=2)
    results = []

    def slow():
        with pytest.raises(ValueError, match=r"took more than 0\.5 seconds"):
            call(True)
        results.append("given up")

    thread = threading.Thread(target=slow)
    thread.start()
    results.append(call(False))
    thread.join(30)
    ended.set()
    assert results == ["False", "given up"]


def serving(tmp_path, port: int) -> subprocess.Popen:
    """The demo as users start it, with its uploads in `tmp_path`; returns once it serves."""
    pytest.importorskip("gradio")
    env = {**os.environ, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, "-m", "align_minimal", "demo", "--port", str(port)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    assert b"Ctrl-C ends it" in process.stderr.readline()
    return process


def post(port: int, path: str, content: bytes, kind: str) -> dict:
    address = f"http://127.0.0.1:{port}/gradio_api/{path}"
    request = urllib.request.Request(address, content, {"Content-Type": kind})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        return json.load(answer)


def upload(port: int, name: str, content: bytes) -> str:
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    return post(port, "upload", head.encode() + content + b"\r\n--x--", "multipart/form-data; boundary=x")[0]


def ask(port: int, picture: dict, labels: object) -> str:
    """The events that answer a call of the page's interface."""
    event = post(port, "call/predict", json.dumps({"data": [picture, labels]}).encode(), "application/json")
    address = f"http://127.0.0.1:{port}/gradio_api/call/predict/{event['event_id']}"
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=60) as answer:
        return answer.read().decode()


def picture_of(path: str) -> dict:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_uploads_are_deleted_however_the_server_is_ended(tmp_path, free_port, number):
    process = serving(tmp_path, free_port)
    try:
        path = upload(free_port, "snail.png", (SAMPLES / "snail.png").read_bytes())
        assert os.path.exists(path) and path.startswith(str(tmp_path))
        answer = ask(free_port, picture_of(path), "dog, snail")
        assert "complete" in answer and '"label": "snail"' in answer
        assert "Type at least one label" in ask(free_port, picture_of(path), None)
    finally:
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == (143 if number == signal.SIGTERM else 0) and b"Traceback" not in err
    assert not os.path.exists(path) and not list(tmp_path.glob("align-minimal-*"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a process of its own")
def test_uploads_of_a_killed_server_are_deleted_by_the_next_start_and_a_living_one_s_are_not(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "align-minimal-notes").mkdir()  # no server's
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException), demo.uploads_folder() as folder:
            open(f"{folder}/snail.png", "wb").close()
            os.write(writing, os.fsencode(folder))
            signal.pause()
        os._exit(1)
    os.close(writing)
    try:
        theirs = os.read(reading, 1000).decode()
        with demo.uploads_folder() as ours:
            assert os.path.exists(f"{theirs}/snail.png") and ours != theirs
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            with demo.uploads_folder():
                assert not os.path.exists(theirs) and os.path.exists(ours)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    assert os.listdir(tmp_path) == ["align-minimal-notes"]


def test_a_picture_s_address_is_refused_before_any_look_up_and_so_is_a_file_that_is_too_large(
    tmp_path, free_port
):
    process = serving(tmp_path, free_port)
    try:
        with socket.create_server(("127.0.0.1", 0)) as other:
            other.settimeout(1)
            for address in (
                f"http://127.0.0.1:{other.getsockname()[1]}/x.png",
                "https://example.invalid/x.png",
            ):
                assert "not its address" in ask(free_port, picture_of(address), "dog")
            with pytest.raises(TimeoutError):
                other.accept()
        with pytest.raises(urllib.error.HTTPError, match="413"):
            upload(free_port, "large.png", bytes(demo.MAX_BYTES + 1))
        assert "error" in ask(free_port, picture_of("/etc/hosts"), "dog")
    finally:
        process.terminate()
        process.communicate(timeout=60)


# ---- how it starts -----------------------------------------------------------------------------------------


def refused(capsys, *argv: str) -> str:
    """The one line of a call that ends with status 1, or 2 for bad usage."""
    try:
        assert main(["demo", *argv]) == 1
    except SystemExit as error:
        assert error.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "Traceback" not in err
    return err


def test_without_gradio_one_line_says_what_to_install_before_the_model_is_loaded(
    capsys, monkeypatch, environment
):
    monkeypatch.setitem(sys.modules, "gradio", None)  # Python's way to say that there is none
    assert "pip install 'gradio>=6'" in refused(capsys, "--model", "no/such/folder")


def test_a_taken_port_is_named_and_no_other_is_tried(capsys, gradio, free_port):
    with socket.create_server(("127.0.0.1", free_port)):
        assert f"port {free_port} of 127.0.0.1: " in refused(capsys, "--port", str(free_port))
    gradio.Blocks.assert_not_called()
    check_address("127.0.0.1", free_port)


@pytest.mark.parametrize("port", ["0", "70000", "http"])
def test_what_is_no_port_is_bad_usage(capsys, gradio, port):
    assert "--port" in refused(capsys, "--port", port) and not gradio.Blocks.called


def test_a_host_that_is_not_this_machine_s_is_named(capsys, gradio):
    assert "192.0.2.1" in refused(capsys, "--host", "192.0.2.1")  # TEST-NET-1: nobody's


def test_a_broken_checkpoint_fails_before_anything_is_served(capsys, gradio, tmp_path, free_port):
    assert str(tmp_path) in refused(capsys, "--model", str(tmp_path), "--port", str(free_port))
    gradio.Blocks.assert_not_called()


@pytest.mark.parametrize(
    ("flags", "host"), [([], "127.0.0.1"), (["--host", "0.0.0.0"], "0.0.0.0")], ids=["default", "all"]
)
def test_it_serves_this_machine_unless_told_otherwise_and_shares_nothing(
    capsys, monkeypatch, gradio, environment, free_port, flags, host
):
    loads = []
    load = commands.load
    monkeypatch.setattr(commands, "load", lambda args: loads.append(args) or load(args))
    assert main(["demo", "--port", str(free_port), *flags]) == 0
    gradio.Blocks.return_value.queue.return_value.block_thread.assert_called_once_with()
    launch = gradio.Blocks.return_value.queue.return_value.launch.call_args.kwargs
    assert (launch["server_name"], launch["server_port"], launch["share"]) == (host, free_port, False)
    assert environment["GRADIO_ANALYTICS_ENABLED"] == "False" and environment["no_proxy"] == "*"
    assert not os.path.exists(environment["GRADIO_TEMP_DIR"])
    out, err = capsys.readouterr()
    assert (out, err.count("http://here/"), err.count("\n"), len(loads)) == ("", 1, 1, 1)
