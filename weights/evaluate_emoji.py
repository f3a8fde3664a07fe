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
from collections.abc import Callable, Sequence
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
    texts = ((e, e["text"] if language == "en" else e.get("world", {}).get(language)) for e in entries)
    texts = [(e, [some] if isinstance(some, str) else some) for e, some in texts if some]
    return [(folder / e["file_name"], captions[0], e.get("concept", captions[0])) for e, captions in texts]


@torch.no_grad()
def embed_pictures(model: AlignModel, processor: AlignProcessor, files: list[Path]) -> Tensor:
    """Normalized embeddings of N pictures, (N, D)."""
    rows = []
    for i in range(0, len(files), 128):
        pixels = processor(images=[Image.open(f) for f in files[i : i + 128]], return_tensors="pt")
        rows.append(model.get_image_features(pixels["pixel_values"]))
    return F.normalize(torch.cat(rows), dim=-1)


@torch.no_grad()
def embed_names(model: AlignModel, processor: AlignProcessor, names: list[str]) -> Tensor:
    """Normalized embeddings of N names, (N, D)."""
    rows = []
    for i in range(0, len(names), 128):
        inputs = processor(text=names[i : i + 128], padding=True, return_tensors="pt")
        rows.append(model.get_text_features(**inputs))
    return F.normalize(torch.cat(rows), dim=-1)


def recall(cosine: Tensor) -> dict[str, float]:
    """R@1, 5, 10 of (N, N) scores whose diagonal is right. A tie counts against it. ValueError for NaN."""
    if not cosine.isfinite().all():
        raise ValueError("a score is not a finite number: the model is broken")
    rank = (cosine >= cosine.diagonal()[:, None]).sum(dim=1) - 1
    return {f"R@{k}": round((rank < k).float().mean().item(), 4) for k in (1, 5, 10)}


def among_ten(cosine: Tensor) -> float:
    """Top-1 of each picture among its own name and nine others, drawn ROUNDS times with a fixed seed.

    Of fewer than ten pictures, among all.
    """
    draw = torch.Generator().manual_seed(0)
    right = 0.0
    for _ in range(ROUNDS):
        lottery = torch.rand(cosine.shape, generator=draw).fill_diagonal_(-1)
        others = cosine.gather(1, lottery.topk(min(LABELS, len(cosine)) - 1, dim=1).indices)
        right += (cosine.diagonal() > others.amax(dim=1)).float().mean().item()
    return round(right / ROUNDS, 4)


def recalls(cosine: Tensor) -> dict:
    return {"pairs": len(cosine), "image_to_text": recall(cosine), "text_to_image": recall(cosine.T)}


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
    pick: Callable[[str], bool] = lambda concept: True,
    languages: Sequence[str] = ("en",),
) -> dict:
    """R@K of the checkpoint `name`, by language, on an imagefolder, or on the concepts that `pick` takes."""
    model, processor = AlignModel.from_pretrained(name).eval(), AlignProcessor.from_pretrained(name)
    rows = {language: [row for row in read(folder, language) if pick(row[2])] for language in languages}
    for language, several in rows.items():
        if not several:
            raise ValueError(f"{folder}: no picture with a name (language {language})")
    files = list(dict.fromkeys(file for several in rows.values() for file, _, _ in several))
    images = dict(zip(files, embed_pictures(model, processor, files), strict=True))
    result = {}
    for language, several in rows.items():
        texts = embed_names(model, processor, [text for _, text, _ in several])
        cosine = torch.stack([images[file] for file, _, _ in several]) @ texts.T
        result[language] = recalls(cosine)
        if language == "en":
            shuffled = cosine[:, torch.randperm(len(several), generator=torch.Generator().manual_seed(0))]
            result[language] |= {
                "top-1 of 10 labels": among_ten(cosine),
                "chance": round(1 / len(several), 4),
                "shuffled": recalls(shuffled) | {"top-1 of 10 labels": among_ten(shuffled)},
            }
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
        results = evaluate(args.data, args.model, lambda concept: unseen(concept) in seen, args.language)
        if args.gallery:
            rows = [row for row in read(args.data) if unseen(row[2]) in seen]
            files, _, concepts = map(list, zip(*rows, strict=True))
            results["pixels"] = pixel_baseline(files, concepts, args.gallery)
        print(json.dumps(results, indent=2))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
