"""The figures in `weights/emoji/README.md`: a checkpoint measured on imagefolders through the public classes.

    python weights/evaluate_emoji.py data/emoji/twemoji --model runs/tune    # a designer held out of a run
    python weights/prepare_emoji.py data/final --final-test
    python weights/evaluate_emoji.py data/final/noto                # once, when nothing changes any more

Every picture is asked for its name (the first caption, or CLDR's name in --language) among all the others'
names, and the reverse. Some languages give two things one name; such a tie counts against the model.
`shuffled` gives each picture another one's name: a leak would show there. `pixels` looks up the nearest
picture among --gallery's, by cosine of 16×16 thumbnails less their mean, and answers with that one's concept:
what no learning gives.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a checkout without installing
from align_minimal import AlignModel, AlignProcessor
from weights.prepare_emoji import LANGUAGES, unseen

ROUNDS, LABELS = 20, 10


def read(folder: Path, language: str = "en") -> list[tuple[Path, str, str]]:
    """An imagefolder's files, with the name in that language (where there is one) and the concept of each."""
    entries = [json.loads(line) for line in (folder / "metadata.jsonl").read_text("utf-8").splitlines()]
    texts = ((e, e["text"] if language == "en" else e["world"].get(language)) for e in entries)
    return [(folder / e["file_name"], captions[0], e["concept"]) for e, captions in texts if captions]


@torch.no_grad()
def embed(model: AlignModel, processor: AlignProcessor, files: list[Path], names: list[str]):
    """Normalized embeddings of N pictures and N names, (N, D) each."""
    images, texts = [], []
    for i in range(0, len(files), 128):
        pixels = processor(images=[Image.open(f) for f in files[i : i + 128]], return_tensors="pt")
        images.append(model.get_image_features(pixels["pixel_values"]))
        texts.append(
            model.get_text_features(**processor(text=names[i : i + 128], padding=True, return_tensors="pt"))
        )
    return F.normalize(torch.cat(images), dim=-1), F.normalize(torch.cat(texts), dim=-1)


def recall(cosine: Tensor) -> dict[str, float]:
    """R@1, 5, 10 of (N, N) scores whose diagonal is right. A tie counts against it."""
    rank = (cosine >= cosine.diagonal()[:, None]).sum(dim=1) - 1
    return {f"R@{k}": round((rank < k).float().mean().item(), 4) for k in (1, 5, 10)}


def among_ten(cosine: Tensor) -> float:
    """Top-1 of each picture among its own name and nine others, drawn ROUNDS times with a fixed seed."""
    draw = torch.Generator().manual_seed(0)
    right = 0.0
    for _ in range(ROUNDS):
        lottery = torch.rand(cosine.shape, generator=draw).fill_diagonal_(-1)
        others = cosine.gather(1, lottery.topk(LABELS - 1, dim=1).indices)
        right += (cosine.diagonal() > others.amax(dim=1)).float().mean().item()
    return round(right / ROUNDS, 4)


def measure(cosine: Tensor) -> dict:
    return {
        "pairs": len(cosine),
        "image_to_text": recall(cosine),
        "text_to_image": recall(cosine.T),
        "top-1 of 10 labels": among_ten(cosine),
    }


def thumbnails(files: list[Path]) -> Tensor:
    """(N, 768): what a picture is without any learning."""
    rows = []
    for file in files:
        art = Image.open(file).convert("RGBA")
        white = Image.new("RGBA", art.size, "white")
        white.alpha_composite(art)
        small = white.convert("RGB").resize((16, 16), Image.Resampling.BILINEAR)
        rows.append(torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).float())
    return torch.stack(rows)


def pixel_baseline(files: list[Path], concepts: list[str], galleries: list[Path]) -> float:
    """How often the nearest picture of the galleries is of the same concept."""
    known = [row for folder in galleries for row in read(folder)]
    gallery = thumbnails([file for file, _, _ in known])
    labels = [concept for _, _, concept in known]
    mean = gallery.mean(dim=0)
    nearest = F.normalize(thumbnails(files) - mean) @ F.normalize(gallery - mean).T
    answers = [labels[i] for i in nearest.argmax(dim=1)]
    return round(sum(a == c for a, c in zip(answers, concepts, strict=True)) / len(concepts), 4)


def evaluate(
    folder: Path,
    name: str,
    galleries: list[Path] = (),
    pick: Callable[[str], bool] = lambda concept: True,
    language: str = "en",
) -> dict:
    """All the figures of the checkpoint `name` on an imagefolder, or on the concepts that `pick` takes."""
    rows = [row for row in read(folder, language) if pick(row[2])]
    files, names, concepts = map(list, zip(*rows, strict=True))
    model, processor = AlignModel.from_pretrained(name).eval(), AlignProcessor.from_pretrained(name)
    images, texts = embed(model, processor, files, names)
    shuffle = torch.randperm(len(names), generator=torch.Generator().manual_seed(0))
    result = measure(images @ texts.T) | {"shuffled": measure(images @ texts[shuffle].T)}
    result["chance"] = round(1 / len(names), 4)
    if galleries:
        result["pixels"] = pixel_baseline(files, concepts, galleries)
    return result


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="an imagefolder")
    parser.add_argument("--model", default="emoji", help="a checkpoint's folder or name")
    parser.add_argument(
        "--gallery", type=Path, nargs="*", default=[], help="imagefolders to look pixels up in"
    )
    parser.add_argument("--language", nargs="+", default=["en"], choices=["en", *LANGUAGES], metavar="CODE")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--unseen", action="store_true", help="only what --fewer-concepts leaves out")
    which.add_argument("--seen", action="store_true", help="only the rest")
    args = parser.parse_args(argv)
    try:
        seen = (True,) if args.unseen else (False,) if args.seen else (True, False)
        results = {
            language: evaluate(args.data, args.model, args.gallery, lambda c: unseen(c) in seen, language)
            for language in args.language
        }
        print(json.dumps(results, indent=2))
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
