"""The documentation's zero-shot demo in the browser: drop a picture, type labels, see bars.

    pip install 'align_minimal[demo]'
    align-minimal demo

Served by gradio, to this machine only unless --host says otherwise; nothing is sent anywhere, and nothing is
kept.
"""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image

from .hub import weights_folder
from .image_processor import to_rgb
from .model import AlignModel
from .processor import AlignProcessor
from .zero_shot import ZeroShotClassifier

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
EXAMPLE_LABELS = "red apple, banana, strawberry, tomato, bicycle, dog, fish, guitar, rocket, house"


def split_labels(text: str) -> list[str]:
    """Labels as people type them, with commas or a line each; each once.

    >>> split_labels("red apple, dog,\\n cat, dog")
    ['red apple', 'dog', 'cat']
    """
    parts = (part.strip() for part in text.replace("\n", ",").split(","))
    return list(dict.fromkeys(part for part in parts if part))


def make_demo(model: AlignModel, processor: AlignProcessor):
    """The page, a gradio.Interface. Raises ModuleNotFoundError where gradio is not installed."""
    try:
        import gradio
    except ModuleNotFoundError:
        raise ModuleNotFoundError("demo needs gradio: pip install 'align_minimal[demo]'") from None

    def classify(picture: Image.Image | None, labels: str) -> dict[str, float]:
        if picture is None:
            raise gradio.Error("Choose a picture first.")
        names = split_labels(labels)
        if not names:
            raise gradio.Error("Type at least one label.")
        logits = ZeroShotClassifier(model, processor, names)([to_rgb(picture)])[0]  # (K,)
        return dict(zip(names, logits.softmax(-1).tolist(), strict=True))

    samples = sorted(Path(weights_folder() / "samples").glob("*.png"))
    return gradio.Interface(
        classify,
        inputs=[
            gradio.Image(type="pil", image_mode=None, sources=["upload", "clipboard"], label="Picture"),
            gradio.Textbox(EXAMPLE_LABELS, label="Labels, with commas between them"),
        ],
        outputs=gradio.Label(num_top_classes=10, label="What it shows"),
        examples=[[str(path), EXAMPLE_LABELS] for path in samples],
        cache_examples=False,
        flagging_mode="never",
        title="ALIGN, zero-shot",
        description="Which of these labels fits the picture? Labels can be anything you can say.",
        analytics_enabled=False,
    )


def serve(model: AlignModel, processor: AlignProcessor, host: str, port: int) -> None:
    """Serve until interrupted. OSError if the port is taken."""
    make_demo(model, processor).launch(server_name=host, server_port=port, share=False, quiet=False)
