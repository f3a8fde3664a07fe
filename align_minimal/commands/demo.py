"""Zero-shot classification in the browser: drop a picture, type labels, see a bar for each label.

    pip install 'align_minimal[demo]'
    align-minimal demo

The library gradio serves the page, to this machine only, unless --host says otherwise. Nothing is sent
anywhere else, and uploaded pictures are deleted when the server ends.
"""

from __future__ import annotations

import functools
import html
import os
import socket
import sys
import tempfile
from pathlib import Path

from ..image_processor import open_image, to_rgb
from ..model import AlignModel
from ..processor import AlignProcessor
from ..support.hub import weights_folder
from ..using.zero_shot import ZeroShotClassifier

EXAMPLE_LABELS = "red apple, bicycle, cat, cup of coffee, dog, fish, guitar, pizza, rocket, snail, snowman"


def split_labels(text: str) -> list[str]:
    """Labels as people type them, with commas between them or a line each. Repeated ones count once.

    >>> split_labels("red apple, dog,\\n cat, dog")
    ['red apple', 'dog', 'cat']
    """
    parts = (part.strip() for part in text.replace("\n", ",").split(","))
    return list(dict.fromkeys(part for part in parts if part))


def import_gradio():
    """gradio, set to report and to record nothing. ModuleNotFoundError says what to install."""
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_RUN_HISTORY="False")
    try:
        import gradio
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ModuleNotFoundError("demo needs gradio: pip install 'align_minimal[demo]'") from None
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


def make_classify(model: AlignModel, processor: AlignProcessor):
    """Returns a function: classify(file, labels as typed) → {label: probability}. It raises ValueError, or
    OSError, for a picture that cannot be read and for missing labels.

    >>> model, processor = AlignModel.from_pretrained("emoji"), AlignProcessor.from_pretrained("emoji")
    >>> probabilities = make_classify(model, processor)("weights/samples/apple.png", "dog, red apple")
    >>> max(probabilities, key=probabilities.get)
    'red apple'
    """

    @functools.lru_cache(maxsize=1)
    def classifier(labels: tuple[str, ...]) -> ZeroShotClassifier:
        return ZeroShotClassifier(model, processor, labels)

    def classify(picture: str | None, text: str) -> dict[str, float]:
        labels = split_labels(text)
        if picture is None:
            raise ValueError("Choose a picture first.")
        if not labels:
            raise ValueError("Type at least one label.")
        image = to_rgb(open_image(picture, Path(picture).name))
        logits = classifier(tuple(labels))([image])[0]  # (K,)
        return dict(zip(labels, logits.softmax(-1).tolist(), strict=True))

    return classify


def make_demo(model: AlignModel, processor: AlignProcessor):
    """The page, a gradio.Interface. Raises ModuleNotFoundError if gradio is not installed."""
    gradio = import_gradio()
    classify = make_classify(model, processor)

    def answer(picture: str | None, text: str) -> dict[str, float]:
        try:
            return classify(picture, text)
        except (OSError, ValueError) as error:
            message = html.escape(str(error))  # gradio shows it as HTML, and it can contain the file's name
            raise gradio.Error(message, print_exception=False) from None

    def uploaded(upload) -> str | None:
        """The uploaded file itself (gradio would decode it in its own way), and no other file."""
        folder = Path(picture.GRADIO_CACHE).resolve()
        if upload and upload.path and Path(upload.path).resolve().is_relative_to(folder):
            return upload.path
        return None

    picture = gradio.Image(type="filepath", sources=["upload", "clipboard"], height=320, label="Picture")
    picture.preprocess = uploaded
    labels = gradio.Textbox(EXAMPLE_LABELS, lines=3, label="Labels, with commas between them or a line each")
    samples = [path for path in (weights_folder() / "samples").iterdir() if path.suffix in (".jpg", ".png")]
    return gradio.Interface(
        answer,
        inputs=[picture, labels],
        outputs=gradio.Label(num_top_classes=20, label="What it shows"),
        examples=[[str(path)] for path in sorted(samples)],
        examples_per_page=len(samples),
        cache_examples=False,
        clear_btn=None,  # it would empty the labels, too
        flagging_mode="never",
        title="ALIGN, zero-shot",
        description="Which of these labels fits the picture? Labels can be anything you can say.",
        analytics_enabled=False,
    )


def serve(model: AlignModel, processor: AlignProcessor, host: str, port: int) -> None:
    """Serve until Ctrl-C."""
    gradio = import_gradio()
    os.environ.update(no_proxy="*", NO_PROXY="*")  # gradio first opens its own page, which no proxy can reach
    with tempfile.TemporaryDirectory(prefix="align-minimal-", ignore_cleanup_errors=True) as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        demo = make_demo(model, processor)
        _, url, _ = demo.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            theme=gradio.themes.Default(font="sans-serif", font_mono="monospace"),
            css="h2, dt { overflow-wrap: anywhere; min-width: 0 }",  # a long label leaves room for the number
            footer_links=[],
        )
        print(f"{url} (Ctrl-C ends it)", file=sys.stderr, flush=True)
        demo.block_thread()  # until Ctrl-C; then gradio closes the server and its threads
