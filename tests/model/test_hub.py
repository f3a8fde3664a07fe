"""Where files come from: the hub through a local stand-in, its cache, no network, and `weights/`.

huggingface_hub reads its environment at import, so most of these run in an interpreter of their own. There,
hub.py is imported by itself, which spares it torch.
"""

import json
import os
import subprocess
import sys
import textwrap
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import align_minimal.support.hub
from align_minimal.support.hub import find_file, write_atomically

FILES = {"config.json": b'{"a": 1}', "pytorch_model.bin": b"w" * 100_000}


def python(code, home, **environment):
    """Run `code` in a fresh interpreter with hub.py on its path."""
    package = str(Path(align_minimal.support.hub.__file__).parent)
    inherited = {k: v for k, v in os.environ.items() if not k.upper().startswith("HF_")}
    settings = dict(NO_PROXY="127.0.0.1", no_proxy="127.0.0.1")
    settings |= dict(HF_HOME=str(home), PYTHONPATH=package, HF_HUB_OFFLINE="0", HF_HUB_DISABLE_XET="1")
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=inherited | settings | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


class Hub(BaseHTTPRequestHandler):
    """As much of huggingface.co as a download asks for: one repository, `me/tiny`."""

    def do_GET(self):
        name = self.path.split("?")[0].rsplit("/", 1)[-1]
        if self.path.startswith("/api/models/me/tiny"):
            siblings = [{"rfilename": filename} for filename in FILES]
            body = json.dumps({"id": "me/tiny", "sha": "0" * 40, "siblings": siblings}).encode()
        elif self.path.startswith("/me/tiny/resolve/") and name in FILES:
            body = FILES[name]
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(200)
        headers = {"Content-Length": len(body), "ETag": f'"{name}"', "X-Repo-Commit": "0" * 40}
        for key, value in headers.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


ASK = """
    import sys, time
    import huggingface_hub
    from hub import find_file
    start = time.time()
    try:
        print(find_file("{name}", {files}).read_bytes()[:9])
    except FileNotFoundError as error:
        print(error)
    assert time.time() - start < 4, f"{{time.time() - start:.0f}} s"
"""


def ask(home, *files, name="me/tiny", **environment):
    done = python(ASK.format(name=name, files=", ".join(map(repr, files))), home, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    return done.stdout.strip(), done.stderr


def test_a_name_that_no_repository_can_have_is_named(tmp_path):
    for name in ("run--1", "mein-modèle", "run-", "x" * 120):
        code = f"from hub import find_file; find_file({name!r}, 'config.json')"
        done = python(code, tmp_path, PYTHONIOENCODING="utf-8")
        assert f"Unreachable: {name}: no such folder" in done.stderr


def test_the_folders_that_surround_a_checkout_are_no_name_of_a_model(monkeypatch):
    monkeypatch.chdir(align_minimal.support.hub.weights_folder() / "emoji")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_file(".", "config.json").samefile("config.json")
        assert find_file("../emoji", "config.json").samefile("config.json")
        with pytest.raises(FileNotFoundError, match="in this folder"):
            find_file("..", "config.json")


@pytest.mark.parametrize(
    "how", [dict(HF_ENDPOINT="http://127.0.0.1:9"), dict(HF_HUB_OFFLINE="1")], ids=["no network", "offline"]
)
def test_a_hub_name_offline_fails_at_once_and_says_what_to_put_where(how, tmp_path):
    said, noise = ask(tmp_path, "config.json", name="someone/no-such-align", **how)
    assert noise == "" and said.startswith("someone/no-such-align: ")
    for wanted in (
        "config.json, model.safetensors, vocab.txt, preprocessor_config.json",
        "huggingface.co/someone/no-such-align",
        os.path.join("weights", "someone", "no-such-align"),
    ):
        assert wanted in said


def test_a_file_is_fetched_with_a_progress_bar_and_afterwards_found_in_the_cache_offline(hub, tmp_path):
    names = ("model.safetensors", "pytorch_model.bin")  # the first of them that the hub has
    said, noise = ask(tmp_path, *names, HF_ENDPOINT=hub, TQDM_POSITION="-1")  # −1: a bar without a terminal
    assert said == repr(FILES["pytorch_model.bin"][:9])
    assert "pytorch_model.bin: 100%" in noise
    assert ask(tmp_path, *names, HF_HUB_OFFLINE="1") == (said, "")


def test_what_the_hub_does_not_have_is_named(hub, tmp_path):
    said, _ = ask(tmp_path, "model.safetensors", "x.bin", HF_ENDPOINT=hub)
    assert said == "me/tiny: the hub's repository has no model.safetensors or x.bin"


def test_an_unknown_repository_is_named(hub, tmp_path):
    said, _ = ask(tmp_path, "config.json", name="me/other", HF_ENDPOINT=hub)
    assert said.startswith("me/other: no such folder, and not to be had from the hub (RepositoryNotFound")


def test_a_name_is_looked_up_as_a_folder_and_under_weights_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("align_minimal.support.hub.weights_folder", lambda: tmp_path / "weights")
    monkeypatch.setattr("align_minimal.support.hub._fetch", lambda *_: pytest.fail("asked the hub"))
    monkeypatch.chdir(tmp_path)
    shipped, local = tmp_path / "weights" / "someone" / "tiny", tmp_path / "someone" / "tiny"
    shipped.mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"tiny: no config\.json in this folder"):
        find_file("someone/tiny", "config.json")
    (shipped / "config.json").write_text("{}")
    assert find_file("someone/tiny", "config.json") == shipped / "config.json"
    local.mkdir(parents=True)
    (local / "config.json").write_text("{}")
    assert find_file("someone/tiny", "config.json").resolve() == local / "config.json"


@pytest.mark.parametrize("name", ["no/such/folder", "/nowhere", "../up", "", "a b", "-x"])
def test_what_cannot_be_a_hub_name_is_no_such_folder(name, monkeypatch):
    monkeypatch.setattr("align_minimal.support.hub._fetch", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(FileNotFoundError, match=r"no such folder|in this folder"):
        find_file(name, "config.json")


def test_a_failing_write_leaves_the_old_file_and_no_temporary(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    write_atomically(path, lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
