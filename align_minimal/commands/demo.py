"""Zero-shot classification in the browser: drop a picture, type labels, see a bar for each label.

    pip install 'gradio>=6'
    align-minimal demo

The library gradio serves the page, to this machine only, unless --host says otherwise. Nothing is sent
anywhere else, and uploaded pictures are deleted when the server ends (if it is killed, by the next start).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import html
import io
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from ..model import AlignModel
from ..processor import AlignProcessor
from ..support.hub import weights_folder
from ..support.image_files import open_image
from ..support.rgb import to_rgb
from ..using.zero_shot import ZeroShotClassifier

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

EXAMPLE_LABELS = "red apple, bicycle, cat, cup of coffee, dog, fish, guitar, pizza, rocket, snail, snowman"

# What one request may ask for. Requests of several users are answered side by side, by threads.
MAX_BYTES, MAX_LABELS, MAX_CHARACTERS = 20 * 2**20, 1000, 20_000
SECONDS, AT_ONCE, WAITING = 30, 4, 64

# A folder for uploads, and the file in it that its server holds: the system lets go when the server ends.
UPLOADS, HELD = "align-minimal-", "held-by-its-server"

# The project's green, #2f9e77, and its lighter and darker shades.
GREEN = ("#edf8f4", "#d3efe4", "#a8dfca", "#78cbac", "#4db48f", "#2f9e77")
GREEN += ("#278362", "#20694f", "#19513d", "#123b2d", "#0b261d")


CSS = """
h2, dt { overflow-wrap: anywhere; min-width: 0 } /* a long label leaves room for its number */
.dark img { filter: brightness(.75) } /* a white background does not glare */
"""


def split_labels(text: str) -> list[str]:
    """Labels as people type them, with commas between them or a line each. Repeated ones count once.

    >>> split_labels("red apple, dog,\\n cat, dog")
    ['red apple', 'dog', 'cat']
    """
    parts = (part.strip() for part in text.replace("\n", ",").split(","))
    return list(dict.fromkeys(part for part in parts if part))


def check_request(picture: str | None, text: str | None) -> list[str]:
    """The labels, or ValueError for a request that lacks something, or asks for too much.

    >>> check_request("weights/samples/dog.png", "dog, cat")
    ['dog', 'cat']
    """
    if picture is None:
        raise ValueError("Choose a picture first.")
    if os.path.getsize(picture) > MAX_BYTES:
        raise ValueError(f"The picture's file is over {MAX_BYTES / 2**20:.0f} MB.")
    if isinstance(text, str) and len(text) > MAX_CHARACTERS:
        raise ValueError(f"The labels have more than {MAX_CHARACTERS:,} characters.")
    labels = split_labels(text) if isinstance(text, str) else []
    if not labels:
        raise ValueError("Type at least one label.")
    if len(labels) > MAX_LABELS:
        raise ValueError(f"There are {len(labels):,} labels, more than {MAX_LABELS:,}.")
    return labels


def import_gradio():
    """gradio, set to report and to record nothing. ModuleNotFoundError says what to install."""
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_RUN_HISTORY="False")
    try:
        import gradio
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ModuleNotFoundError("demo needs gradio: pip install 'gradio>=6'") from None
    return gradio


def check_address(host: str, port: int) -> None:
    """OSError that names host and port, unless a server could listen there now.

    >>> check_address("127.0.0.1", 0)  # port 0 means any free port
    """
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        reason = error.strerror.partition(" (")[0].lower()
        raise OSError(f"port {port} of {host}: {reason}; --port and --host choose another") from None


def make_classify(model: AlignModel, processor: AlignProcessor) -> Callable:
    """Returns a function: classify(file, labels as typed) → {label: probability}. It raises ValueError, or
    OSError, for a picture that cannot be read and for what `check_request` refuses.

    >>> model, processor = AlignModel.from_pretrained("emoji"), AlignProcessor.from_pretrained("emoji")
    >>> probabilities = make_classify(model, processor)("weights/samples/apple.png", "dog, red apple")
    >>> max(probabilities, key=probabilities.get)
    'red apple'
    """

    @functools.lru_cache(maxsize=AT_ONCE)
    def classifier(labels: tuple[str, ...]) -> ZeroShotClassifier:
        return ZeroShotClassifier(model, processor, labels)

    def classify(picture: str | None, text: str | None) -> dict[str, float]:
        labels = check_request(picture, text)
        image = to_rgb(open_image(picture, Path(picture).name))
        logits = classifier(tuple(labels))([image])[0]  # (K,)
        return dict(zip(labels, logits.softmax(-1).tolist(), strict=True))

    return classify


def in_time(function: Callable, seconds: float = SECONDS, at_once: int = AT_ONCE) -> Callable:
    """The function, called by one of a few threads. ValueError for a call that takes longer. It goes on in
    its thread, and ends because its input is bounded.

    >>> in_time(max)(2, 3)
    3
    """
    pool = concurrent.futures.ThreadPoolExecutor(at_once)

    def call(*inputs):
        future = pool.submit(function, *inputs)
        try:
            return future.result(seconds)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise ValueError(f"This took more than {seconds:g} seconds, and was given up.") from None

    return call


def make_demo(model: AlignModel, processor: AlignProcessor, note: str = ""):
    """The page, a gradio.Blocks. `note` is a sentence about the model. ModuleNotFoundError without gradio."""
    gradio = import_gradio()
    classify = in_time(make_classify(model, processor))

    def answer(picture: str | None, text: str | None) -> dict[str, float]:
        try:
            return classify(picture, text)
        except (OSError, ValueError) as error:
            message = html.escape(str(error))  # gradio shows it as HTML, and it can contain the file's name
            raise gradio.Error(message, print_exception=False) from None

    def changed(picture: str | None, text: str | None):
        """The answer at once, when a picture has arrived; until then the button waits."""
        button = gradio.Button(interactive=picture is not None)
        return (answer(picture, text) if picture else None), button

    page = gradio.Blocks(title="ALIGN, zero-shot", analytics_enabled=False, delete_cache=(600, 3600))
    with page:
        gradio.Markdown(
            "# ALIGN, zero-shot\nWhich of these labels fits the picture? Labels can be anything you can say."
            + (f"\n\n{note}" if note else "")
        )
        with gradio.Row():
            with gradio.Column():
                picture = gradio.Image(
                    type="filepath", sources=["upload", "clipboard"], height=320, label="Picture"
                )
                only_uploads(picture, gradio)
                about = "Labels, with commas between them or a line each"
                labels = gradio.Textbox(EXAMPLE_LABELS, lines=3, max_length=MAX_CHARACTERS, label=about)
                button = gradio.Button("Classify", variant="primary", interactive=False)
            result = gradio.Label(num_top_classes=20, label="What it shows")
        samples = sorted(p for p in (weights_folder() / "samples").iterdir() if p.suffix in (".jpg", ".png"))
        gradio.Examples([[str(p)] for p in samples], [picture], examples_per_page=len(samples))
        limits = {"concurrency_limit": AT_ONCE}
        picture.change(changed, [picture, labels], [result, button], api_name=False, **limits)
        gradio.on(
            [button.click, labels.submit], answer, [picture, labels], result, api_name="predict", **limits
        )
    return page


def only_uploads(picture, gradio) -> None:
    """Let a gradio.Image take uploaded files as they are, and nothing else."""

    def uploaded(upload) -> str | None:
        """The uploaded file itself (gradio would decode it in its own way), and no other file."""
        folder = Path(picture.GRADIO_CACHE).resolve()
        if upload and upload.path and Path(upload.path).resolve().is_relative_to(folder):
            return upload.path
        return None

    move = picture.async_move_resource_to_block_cache

    async def no_address(path: str | Path | None):
        """Refuse an address, which gradio would look up and fetch."""
        if "://" in str(path):
            raise gradio.Error("Upload the picture itself, not its address.", print_exception=False)
        return await move(path)

    picture.preprocess, picture.async_move_resource_to_block_cache = uploaded, no_address


@contextlib.contextmanager
def uploads_folder() -> Iterator[str]:
    """A folder for the uploaded pictures, deleted in the end; those of servers that were killed go first.

    >>> with uploads_folder() as folder:
    ...     os.path.isdir(folder)
    True
    """
    remove_leftovers(Path(tempfile.gettempdir()))
    with (
        tempfile.TemporaryDirectory(prefix=UPLOADS, ignore_cleanup_errors=True) as folder,
        open(Path(folder, "new"), "w") as file,
    ):
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX)
            os.rename(file.name, Path(folder, HELD))  # so whoever sees it under this name finds it held
        yield folder


def remove_leftovers(folder: Path) -> None:
    """Delete the uploads in `folder` of servers of this user that were killed, and no living one's.

    >>> remove_leftovers(Path("no such folder"))
    """
    for uploads in folder.glob(f"{UPLOADS}*") if fcntl else ():
        with contextlib.suppress(OSError):  # such as BlockingIOError, where a server lives
            if uploads.lstat().st_uid == os.getuid():
                with open(uploads / HELD) as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(uploads)


def serve(model: AlignModel, processor: AlignProcessor, host: str, port: int, note: str = "") -> int:
    """Serve until Ctrl-C (returns 0), or until the system ends the process (returns 143)."""
    gradio = import_gradio()
    os.environ.update(no_proxy="*", NO_PROXY="*")  # gradio first opens its own page, which no proxy can reach
    ended = []

    def end(number, frame) -> None:
        ended.append(number)
        raise KeyboardInterrupt

    with uploads_folder() as uploads:
        before = signal.signal(signal.SIGTERM, end)
        os.environ["GRADIO_TEMP_DIR"] = uploads
        page = make_demo(model, processor, note).queue(max_size=WAITING)
        try:
            _, url, _ = page.launch(
                server_name=host,
                server_port=port,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                max_file_size=MAX_BYTES,
                theme=gradio.themes.Default(
                    primary_hue=gradio.themes.Color(*GREEN), font="sans-serif", font_mono="monospace"
                ),
                css=CSS,
                footer_links=[],
            )
            print(f"{url} (Ctrl-C ends it)", file=sys.stderr, flush=True)
            with contextlib.redirect_stdout(io.StringIO()):  # gradio says goodbye
                page.block_thread()  # until Ctrl-C; then gradio closes the server and its threads
        finally:
            signal.signal(signal.SIGTERM, before)
    return 128 + ended[0] if ended else 0
