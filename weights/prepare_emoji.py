"""Emoji art and its names as image-text pairs: the data from which `weights/emoji` is trained.

    python weights/prepare_emoji.py data/emoji                 # five designers, 6,651 pictures, half a minute
    python weights/prepare_emoji.py data/fewer --fewer-concepts    # without one concept in ten
    python weights/prepare_emoji.py data/final --final-test    # the sixth: for the last figure, never before

Needs npm (to fetch) and `pip install resvg-py` (to rasterise). Each designer becomes an imagefolder:
DIR/twemoji/metadata.jsonl, one line a picture, {"file_name", "text": [captions], "concept": code points,
"mirror": whether its mirror image deserves the same captions}, and transparent PNGs of 96×96, which every
reader here puts over white. The first caption is the emoji's name in CLDR. A second run fetches and draws
only what is missing, and gives the same files.

Left out: skin tones (the same name, nearly the same picture), flags (270 rectangles that no one tells apart
at 64 pixels) and the bare parts from which Unicode builds sequences. Letters, digits and signs stay in.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import random
import re
import subprocess
import sys
import tarfile
import unicodedata
from collections import Counter
from pathlib import Path

from PIL import Image
from tqdm import tqdm

NAMES = "emojibase-data@17.0.0"  # CLDR's English names and keywords, MIT
TRAINING = {  # licence of the art: CC-BY-4.0, CC-BY-SA-4.0, MIT, CC-BY-4.0, Apache-2.0
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "openmoji": "@iconify-json/openmoji@1.2.29",
    "fluent": "@iconify-json/fluent-emoji-flat@1.2.6",
    "emojitwo": "@iconify-json/emojione@1.2.3",
    "fxemoji": "@iconify-json/fxemoji@1.2.2",
}
FINAL_TEST = {"noto": "@iconify-json/noto@1"}
LEFT_OUT_GROUPS = (None, 2, 9)  # regional indicators, skin tones and hair, flags
SYMBOLS = 8  # the group of letters, digits and arrows
ONE_SIDED = re.compile(
    "hundred|zzz|left|right|clock|thirty|moon|quarter|latin|number|letter|keycap|calendar|ABC"
)
SIDE = 96  # pixels: half as much again as the model sees, for crops and rotations


def fetch(package: str, cache: Path) -> dict[str, dict]:
    """The JSON files of an npm package by their path inside it; kept in `cache` as npm packs them."""
    cache.mkdir(parents=True, exist_ok=True)
    archive = cache / (re.sub(r"[@/]+", "-", package).strip("-") + ".tgz")
    if not archive.exists():
        command = ["npm", "pack", "--silent", package, "--pack-destination", str(cache)]
        packed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]
        os.replace(cache / packed, archive)
    wanted = ("package/icons.json", "package/chars.json", "package/en/data.json")
    with tarfile.open(archive) as tar:
        members = [m for m in tar if m.name in wanted or m.name.startswith("package/en/shortcodes/")]
        return {m.name: json.load(tar.extractfile(m)) for m in members if m.name.endswith(".json")}


def code_points(text: str) -> str:
    """'1F3CB-FE0F' → '1f3cb': lower case, without the selector that asks for colour."""
    return "-".join(p for p in text.lower().split("-") if p != "fe0f")


def squash(name: str) -> str:
    """A name's letters and digits only, so that 'red-apple', 'Red apple' and 'redapple' meet.

    >>> squash("Red-apple")
    'redapple'
    """
    plain = unicodedata.normalize("NFKD", name.lower()).encode("ascii", "ignore").decode()
    return re.sub("[^a-z0-9]", "", plain)


def read_concepts(files: dict[str, dict]) -> dict[str, dict]:
    """Concept id → its name, its keywords, and every other name (shortcodes, Unicode's own)."""
    concepts = {}
    for entry in files["package/en/data.json"]:
        if entry.get("group") in LEFT_OUT_GROUPS:
            continue
        names = []
        for path in sorted(files):
            if "shortcodes" in path and "cldr" not in path:
                codes = files[path].get(entry["hexcode"], [])
                names += [codes] if isinstance(codes, str) else codes
        letters = entry["emoji"].replace("\ufe0f", "")
        if len(letters) == 1:
            names.append(unicodedata.name(letters, "").lower())
        names = [n.replace("_", " ") for n in names if re.search("[a-z]{3}", n)]
        concepts[code_points(entry["hexcode"])] = {
            "name": entry["label"],
            "keywords": entry.get("tags", []),
            "names": list(dict.fromkeys(names)),
            "mirror": entry["group"] != SYMBOLS and not ONE_SIDED.search(" ".join([entry["label"], *names])),
        }
    return concepts


def find_icons(files: dict[str, dict], concepts: dict[str, dict]) -> dict[str, str]:
    """Concept id → the SVG of this designer, by code points where the package lists them, else by name."""
    icons, aliases = files["package/icons.json"], files["package/icons.json"].get("aliases", {})
    chars = {code_points(k): v for k, v in files.get("package/chars.json", {}).items()}
    by_name = {squash(name): name for name in [*aliases, *icons["icons"]]}
    found = {}
    for concept, words in concepts.items():
        candidates = [words["name"], *words["names"]]
        name = chars.get(concept)
        if not chars:
            name = next((by_name[s] for s in map(squash, candidates) if s in by_name), None)
        icon = icons["icons"].get(aliases.get(name, {}).get("parent", name))
        if icon is not None:
            width = icon.get("width", icons.get("width", 16))
            height = icon.get("height", icons.get("height", 16))
            box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
            found[concept] = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{icon["body"]}</svg>'
    return found


def with_article(name: str) -> str:
    """'apple' → 'an apple'; plurals and names that begin with a capital or a digit stay as they are."""
    if not name[0].islower() or re.search("[^su]s$", name):
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def captions(words: dict, rare: set[str], rng: random.Random) -> list[str]:
    """The name first, then alt-texts as people write them: phrases, other names, lists of keywords.

    One is drawn each epoch, so a text that stands here several times is drawn as many times as often: the
    name about a quarter of the time.
    """
    name, keywords = words["name"], words["keywords"]
    texts = [with_article(name)]
    for form in ("a picture of {}", "a photo of {}", "an emoji of {}", "a drawing of {}", "{} icon"):
        texts.append(form.format(name if form[0] == "{" else with_article(name)))
    texts += words["names"]
    texts += [k for k in keywords if k in rare]
    for count in (2, 3, 4, 5):
        if len(keywords) >= count:
            texts.append(", ".join(rng.sample(keywords, count)))
            texts.append(", ".join([name, *rng.sample(keywords, count - 1)]))
    return [name] * 6 + list(dict.fromkeys(texts))


def draw(task: tuple[str, Path]) -> None:
    """Rasterise one SVG, centred on a transparent square, and move it into place whole."""
    import resvg_py

    svg, path = task
    if path.exists():
        return
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * SIDE))
    art = Image.open(io.BytesIO(png)).convert("RGBA")
    art.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (SIDE, SIDE), (255, 255, 255, 0))
    canvas.paste(art, ((SIDE - art.width) // 2, (SIDE - art.height) // 2))
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    canvas.save(temporary, format="png", optimize=True)
    os.replace(temporary, path)


def unseen(concept: str) -> bool:
    """One concept in ten, the same ones always: those that --fewer-concepts leaves out."""
    return random.Random(concept).random() < 0.1


def prepare(designer: str, package: str, out: Path, concepts: dict[str, dict]) -> None:
    """Write the imagefolder out/designer; its metadata.jsonl comes last, so it never names a missing file."""
    icons = find_icons(fetch(package, out / ".packages"), concepts)
    folder = out / designer
    folder.mkdir(parents=True, exist_ok=True)
    uses = Counter(k for words in concepts.values() for k in words["keywords"])
    rare = {k for k, n in uses.items() if n <= 3}  # "bike" names a picture, "vehicle" does not
    tasks = [(svg, folder / f"{concept}.png") for concept, svg in icons.items()]
    with multiprocessing.Pool() as pool:
        list(tqdm(pool.imap_unordered(draw, tasks, 16), designer, len(tasks), unit="image"))
    lines = []
    for concept in icons:
        texts = captions(concepts[concept], rare, random.Random(f"{designer} {concept}"))
        if designer in FINAL_TEST:
            texts = texts[:1]  # asked for by its name alone
        line = {"file_name": f"{concept}.png", "text": texts, "concept": concept}
        lines.append(json.dumps(line | {"mirror": concepts[concept]["mirror"]}))
    temporary = folder / ".metadata.jsonl.tmp"
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(temporary, folder / "metadata.jsonl")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for the imagefolders and the fetched packages")
    parser.add_argument("--final-test", action="store_true", help="the designer kept for the last test only")
    parser.add_argument("--fewer-concepts", action="store_true", help="leave out one concept in ten")
    args = parser.parse_args(argv)
    try:
        concepts = read_concepts(fetch(NAMES, args.out / ".packages"))
        if args.fewer_concepts:
            concepts = {c: words for c, words in concepts.items() if not unseen(c)}
        for designer, package in (FINAL_TEST if args.final_test else TRAINING).items():
            prepare(designer, package, args.out, concepts)
    except FileNotFoundError as error:
        print(f"{error.filename}: not found (npm fetches the packages)", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"{' '.join(error.cmd)}: {error.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
