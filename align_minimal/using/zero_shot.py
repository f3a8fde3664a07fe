"""Zero-shot classification (ALIGN, section 5.2): each label becomes a text, and an image gets the label whose
text is nearest.

A label can stand in several templates ("a photo of a {}", "art of a {}"). Their embeddings are normalized,
averaged and normalized again. The paper takes this from CLIP, under the name of prompt ensembling.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..model import AlignModel
from ..processor import AlignProcessor
from ..support.terminal import columns, fit, one_line, width
from ..training.pairs import metadata_file, read_folder
from .pictures import check_file, find_in_folder
from .retrieval import embed_images, embed_texts, expected_recall, readable

# For `--ensemble`: captions that people write under a picture of one thing.
TEMPLATES = (
    "{}",
    "a {}",
    "the {}",
    "a picture of a {}",
    "a photo of a {}",
    "a photo of the {}",
    "a good photo of a {}",
    "a close-up of a {}",
    "a small {}",
    "a large {}",
    "a drawing of a {}",
    "a painting of a {}",
    "an illustration of a {}",
    "an icon of a {}",
    "a {} on a white background",
)


def check_labels(labels: Sequence[str], templates: Sequence[str]) -> None:
    """ValueError if there is no label, an empty label, a label twice, or a template without {}.

    >>> check_labels(["dog", "dog"], ["a {}"])
    Traceback (most recent call last):
    ValueError: label 'dog' is there twice
    """
    if not labels:
        raise ValueError("no labels: give at least one")
    seen: set[str] = set()
    for label in labels:
        if not label.strip():
            raise ValueError(f"label {label!r} is empty")
        if label in seen:
            raise ValueError(f"label {label!r} is there twice")
        seen.add(label)
    if not templates:
        raise ValueError("no templates: give at least one")
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"template {template!r} has no {{}} for the label to stand in")


class ZeroShotClassifier:
    """Embeds K labels once. Then, called with pictures, it gives each picture a logit for each label.

    Each of the `templates` has `{}` where the label goes. By default the label stands alone; TEMPLATES is a
    set to average over. Puts the model in eval mode.

    >>> model, processor = AlignModel.from_pretrained("emoji"), AlignProcessor.from_pretrained("emoji")
    >>> classifier = ZeroShotClassifier(model, processor, ["dog", "red apple"], ["a picture of a {}"])
    >>> probabilities = classifier([Image.open("weights/samples/apple.png")]).softmax(dim=-1)  # (1, 2)
    >>> classifier.labels[probabilities.argmax()]
    'red apple'

    Raises the errors of `check_labels`.
    """

    def __init__(
        self,
        model: AlignModel,
        processor: AlignProcessor,
        labels: Sequence[str],
        templates: Sequence[str] = ("{}",),
    ):
        check_labels(labels, templates)
        self.model, self.processor, self.labels = model, processor, list(labels)
        texts = [template.replace("{}", label) for label in labels for template in templates]
        embeds = embed_texts(model, processor, texts).unflatten(0, (len(labels), len(templates)))
        self.label_embeds = F.normalize(embeds.mean(dim=1), dim=-1)  # (K, templates, D) → (K, D)

    def logits(self, image_embeds: Tensor) -> Tensor:
        """Cosines over the temperature: (B, D), normalized → (B, K). Their softmax gives probabilities."""
        # Computed in float64, then rounded: a matrix product may sum each column in another order, but labels
        # with equal embeddings must get equal scores.
        cosines = image_embeds.double() @ self.label_embeds.double().T
        logits = (cosines / self.model.temperature.detach().cpu()).float()
        if not logits.isfinite().all():
            raise ValueError("logits are not finite: the model's weights are broken")
        return logits

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """B pictures → logits (B, K) on the CPU. Their softmax gives probabilities."""
        batch = self.processor(images=list(images), return_tensors="pt").to(self.model.temperature.device)
        return self.logits(F.normalize(self.model.get_image_features(**batch), dim=-1).cpu())


# ---- measuring it on a labelled folder ---------------------------------------------------------------------


def read_labels(path: Path) -> dict[str, str]:
    """Read a file of labels into a dictionary from class to label.

    A line holds a label; or `class<TAB>label`, if the data set names the class otherwise. Empty lines are
    left out. Raises ValueError that names file and line.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "labels.txt").write_text("cat\\nn02084071\\tdog\\n")
    ...     read_labels(Path(folder, "labels.txt"))
    {'cat': 'cat', 'n02084071': 'dog'}
    """
    check_file(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {number}: not UTF-8 ({error.reason})") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: a folder, not a file of labels") from None
    labels: dict[str, str] = {}
    taken: set[str] = set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, tab, label = line.partition("\t")
        name, label = name.strip(), (label if tab else name).strip()
        if not name or not label:
            raise ValueError(f"{path}, line {number}: no {'label' if name else 'class'} beside the tab")
        if name in labels or label in taken:
            raise ValueError(f"{path}, line {number}: {line.strip()!r} is there twice")
        labels[name] = label
        taken.add(label)
    if not labels:
        raise ValueError(f"{path}: no labels in it")
    return labels


def read_labelled(folder: Path, labels: dict[str, str]) -> list[tuple[Path, str]]:
    """The pictures of a folder with their labels. The folder has a metadata.jsonl or metadata.csv, or a
    subfolder for each class.

    In metadata, the class stands in the column `label`; without this column, it is the first `text` that is a
    class. Raises ValueError that names a picture whose class is not in `labels`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder, "n02084071").mkdir()
    ...     Path(folder, "n02084071", "1.png").touch()
    ...     [(path.name, label) for path, label in read_labelled(Path(folder), {"n02084071": "dog"})]
    [('1.png', 'dog')]
    """
    if metadata_file(folder):
        classes = [(p.image, p.texts) for p in read_folder(folder, columns=("label", "text"))]
    else:
        classes = [(path, (path.relative_to(folder).parts[0],)) for path in find_in_folder(folder)]
        outside = next((path for path, (name,) in classes if name == path.name), None)
        if outside:
            raise ValueError(f"{outside}: in no class's folder, and there is no metadata.jsonl or .csv")
    labelled = []
    for path, names in classes:
        name = next((name for name in names if name in labels), None)
        if name is None:
            near = difflib.get_close_matches(names[0], labels, n=1)
            hint = f"; the nearest is {near[0]!r}" if near else ""
            raise ValueError(f"{path}: its class {names[0]!r} is not among the labels{hint}")
        labelled.append((path, labels[name]))
    return labelled


def zero_shot_accuracy(classifier: ZeroShotClassifier, pictures: Sequence[tuple[Path, str]]) -> dict:
    """How often a picture's label is the nearest one, or among the nearest five. `pictures`: (path, label).

    Returns {"images": n, "labels": k, "top1": …, "top5": …, "per_class": {label: {"images": …, "top1": …}}},
    fractions in [0, 1]. Equal scores count as if put in random order, as in `recall_at_k`. Pictures that
    cannot be read are left out with a warning. Raises ValueError if no picture can be read, or if one has
    two labels.

    >>> model, processor = AlignModel.from_pretrained("emoji"), AlignProcessor.from_pretrained("emoji")
    >>> pictures = [(Path(f"weights/samples/{name}.png"), name) for name in ("dog", "fish")]
    >>> zero_shot_accuracy(ZeroShotClassifier(model, processor, ["dog", "fish"]), pictures)["top1"]
    1.0
    """
    number = {label: i for i, label in enumerate(classifier.labels)}
    label_of: dict[str, str] = {}
    for path, label in pictures:
        if label_of.setdefault(str(path), label) != label:
            raise ValueError(f"{path}: two labels, {label_of[str(path)]!r} and {label!r}")
    images = [(name, Path(name)) for name in label_of]
    results = embed_images(classifier.model, classifier.processor, images)
    bar = tqdm(results, "pictures", len(images), unit="", leave=False)
    names, embeds = zip(*readable(bar), strict=True)
    target = torch.tensor([number[label_of[name]] for name in names])
    logits = classifier.logits(torch.stack(embeds))  # (N, K)
    own = logits.gather(1, target[:, None])  # (N, 1)
    above, tied = (logits > own).sum(1), (logits == own).sum(1) - 1  # (N,) each

    def accuracy(k: int, rows: Tensor | slice = slice(None)) -> float:
        return expected_recall(above[rows], tied[rows], torch.ones_like(tied[rows]), k)

    per_class = {
        label: {"images": int((target == i).sum()), "top1": accuracy(1, target == i)}
        for label, i in number.items()
        if (target == i).any()
    }
    totals = {"images": len(target), "labels": len(number), "top1": accuracy(1), "top5": accuracy(5)}
    return totals | {"per_class": per_class}


def print_accuracy(result: dict) -> None:
    """Print what `zero_shot_accuracy` returns, for a person; the worst classes come first.

    >>> result = {"images": 8, "labels": 9, "top1": 0.5, "top5": 1.0}
    >>> print_accuracy(result | {"per_class": {"dog": {"images": 8, "top1": 0.5}}})
    8 images, 9 labels
      top-1 0.500  top-5 1.000
      dog   50.0% of 8
    """
    print(f"{result['images']:,} images, {result['labels']:,} labels")
    print(f"  top-1 {result['top1']:.3f}  top-5 {result['top5']:.3f}")
    classes = [(one_line(label), own) for label, own in result["per_class"].items()]
    counts = max(len(f"{own['images']:,}") for _, own in classes)
    room = min(max(width(label) for label, _ in classes), columns() - 14 - counts)
    for label, own in sorted(classes, key=lambda item: item[1]["top1"]):
        print(f"  {fit(label, room)}  {own['top1']:6.1%} of {own['images']:,}")
