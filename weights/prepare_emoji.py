"""Emoji art and its names as image-text pairs: the data from which `weights/emoji` is trained.

    python weights/prepare_emoji.py data/emoji                 # ten sets by six designers, a few minutes
    python weights/prepare_emoji.py data/noise --noise         # other icons, named by their files
    python weights/prepare_emoji.py data/fewer --fewer-concepts    # without one in ten; train_emoji.py, too
    python weights/prepare_emoji.py data/final --final-test    # Noto: for the last figure, never before

Needs npm (to fetch) and `pip install resvg-py` (to rasterize). Each set becomes an imagefolder:
DIR/twemoji/metadata.jsonl, one line a picture, {"file_name", "text": [captions], "world": {language:
[captions]}, "concept": code points, "mirror": whether its mirror image deserves the same captions}, and
transparent PNGs of 144×144, which every reader here puts over white. The first caption is the emoji's name in
CLDR, in each language. A second run fetches and draws only what is missing, and gives the same files.

`--noise` is the paper's data in small (section 3): pictures whose alt-text is their file's name, raw
("apple alt outline"), after those of the paper's filters that make sense for names so short.

Left out: skin tones (the same name, nearly the same picture), flags (270 rectangles that no one tells apart
at so few pixels) and the bare parts from which Unicode builds sequences. Letters, digits and signs stay in.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import re
import subprocess
import sys
import tarfile
import unicodedata
import zlib
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a checkout without installing
from align_minimal.support.hub import write_atomically

NAMES = "emojibase-data@17.0.0"  # CLDR's English names and keywords, MIT
WORLD = "cldr-annotations-full@48.2.0", "cldr-annotations-derived-full@48.2.0"  # the same in all languages
LANGUAGES = ["de", "fr", "es", "pt", "it", "ru", "ar", "hi", "zh", "ja", "ko"]  # beside English: 7 scripts
TRAINING = {
    "twemoji": "@iconify-json/twemoji@1.2.5",  # CC-BY-4.0, as the art's licence
    "openmoji": "@iconify-json/openmoji@1.2.29",  # CC-BY-SA-4.0
    "fluent": "@iconify-json/fluent-emoji-flat@1.2.6",  # MIT
    "emojitwo": "@iconify-json/emojione@1.2.3",  # CC-BY-4.0
    "fxemoji": "@iconify-json/fxemoji@1.2.2",  # Apache-2.0
    "fluent-shaded": "@iconify-json/fluent-emoji@1.2.7",  # MIT
    "fluent-contrast": "@iconify-json/fluent-emoji-high-contrast@1.2.6",  # MIT, one colour
    "emojione-v1": "@iconify-json/emojione-v1@1.2.3",  # CC-BY-SA-4.0
    "emojione-monotone": "@iconify-json/emojione-monotone@1.2.1",  # CC-BY-4.0, one colour
    "streamline": "@iconify-json/streamline-emojis@1.2.4",  # CC-BY-4.0
}
FAMILIES = (  # drawn by one hand, or after one another: held out together, or not at all
    ("fluent", "fluent-shaded", "fluent-contrast"),
    ("emojitwo", "emojione-v1", "emojione-monotone"),
)
ONE_COLOUR = ("fluent-contrast", "emojione-monotone")  # without these two a designer held out is known better
FINAL_TEST = {"noto": "@iconify-json/noto@1"}
NOISE = {
    "fluent-color": "@iconify-json/fluent-color@1.2.21",  # MIT
    "flat-color-icons": "@iconify-json/flat-color-icons@1.2.3",  # MIT
    "material-icon-theme": "@iconify-json/material-icon-theme@1.2.70",  # MIT
    "meteocons": "@iconify-json/meteocons@1.2.4",  # MIT
    "icon-park": "@iconify-json/icon-park@1.2.4",  # Apache-2.0
    "streamline-ultimate": "@iconify-json/streamline-ultimate-color@1.2.2",  # CC-BY-4.0
    "streamline-freehand": "@iconify-json/streamline-freehand-color@1.2.2",  # CC-BY-4.0
    "game-icons": "@iconify-json/game-icons@1.2.4",  # CC-BY-3.0, one colour
}
MAX_IMAGES = 10  # that share an alt-text, as in section 3
MIN_USES = 3  # of a word: a rarer one makes its alt-text rare
LEFT_OUT_GROUPS = (None, 2, 9)  # regional indicators, skin tones and hair, flags
SYMBOLS = 8  # the group of letters, digits and arrows
ONE_SIDED = re.compile(
    "hundred|zzz|left|right|clock|thirty|moon|quarter|latin|number|letter|keycap|calendar|ABC"
)
SIDE = 144  # pixels: half as much again as the model sees, for crops and rotations


def fetch(package: str, cache: Path) -> dict[str, dict]:
    """The JSON files of an npm package by their path inside it; kept in `cache` as npm packs them."""
    cache.mkdir(parents=True, exist_ok=True)
    archive = cache / (re.sub(r"[@/]+", "-", package).strip("-") + ".tgz")
    if not archive.exists():
        command = ["npm", "pack", "--loglevel=error", package, "--pack-destination", str(cache)]
        packed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]
        os.replace(cache / packed, archive)
    languages = "|".join(LANGUAGES)
    wanted = r"icons|chars|en/data|en/shortcodes/[^/]+|annotations(Derived)?/(" + languages + ")/annotations"
    try:
        with tarfile.open(archive) as tar:
            members = [m for m in tar if re.fullmatch(rf"package/({wanted})\.json", m.name)]
            return {m.name: json.load(tar.extractfile(m)) for m in members}
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error) as error:
        reason = type(error).__name__
        raise ValueError(f"{archive}: damaged ({reason}); delete it, and it is fetched again") from None


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


def add_languages(concepts: dict[str, dict], packages: list[dict[str, dict]]) -> None:
    """Give each concept "world": by language its name and keywords, where CLDR has them."""
    for words in concepts.values():
        words["world"] = {}
    for files in packages:
        for path, content in files.items():
            language = path.split("/")[2]
            for letters, entry in next(iter(content.values()))["annotations"].items():
                concept = code_points("-".join(f"{ord(c):x}" for c in letters))
                if concept in concepts and "tts" in entry:
                    found = {"name": entry["tts"][0], "keywords": entry.get("default", [])}
                    concepts[concept]["world"].setdefault(language, found)


def as_svg(icons: dict, name: str | None) -> str | None:
    """The icon of that name, or of that alias, as a file; None if there is none."""
    alias = icons.get("aliases", {}).get(name, {})
    icon = icons["icons"].get(alias.get("parent", name))
    if icon is None:
        return None
    turned = [key for key in ("hFlip", "vFlip", "rotate") if alias.get(key)]
    if turned not in ([], ["hFlip"]):
        raise ValueError(f"{icons['prefix']}: {name} is {alias['parent']} turned ({', '.join(turned)})")
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    body = icon["body"]
    if turned:  # a hand that points right is drawn as the one that points left
        across = 2 * icon.get("left", 0) + width
        body = f'<g transform="translate({across} 0) scale(-1 1)">{body}</g>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{body}</svg>'


def find_icons(files: dict[str, dict], concepts: dict[str, dict]) -> dict[str, str]:
    """Concept id → the SVG of this designer, by code points where the package lists them, else by name."""
    icons, aliases = files["package/icons.json"], files["package/icons.json"].get("aliases", {})
    chars = {code_points(k): v for k, v in files.get("package/chars.json", {}).items()}
    names = [*aliases, *icons["icons"]]
    # Streamline numbers its variants ("clinking-glasses-1"): the first stands for a name that no icon has.
    numbered = [name for name in reversed(names) if re.search(r"-\d$", name) and "keycap" not in name]
    by_name = {squash(name[:-2]): name for name in numbered}
    by_name |= {squash(name): name for name in names}
    found = {}
    for concept, words in concepts.items():
        candidates = [words["name"], *words["names"]]
        name = chars.get(concept)
        if not chars:
            name = next((by_name[s] for s in map(squash, candidates) if s in by_name), None)
        svg = as_svg(icons, name)
        if svg is not None:
            found[concept] = svg
    return found


def alt_text(name: str) -> str:
    """
    >>> alt_text("apple-alt-outline")
    'apple alt outline'
    """
    return name.replace("-", " ")


def filter_noise(sets: dict[str, list[str]]) -> dict[str, list[str]]:
    """The names, by set, less those that too many pictures share or that hold a rare word (section 3).

    The paper drops texts of fewer than three words, too; that would be nearly all of these.
    """
    texts = Counter(alt_text(name) for names in sets.values() for name in names)
    words = Counter(word for text in texts for word in text.split())

    def kept(text: str) -> bool:
        return texts[text] <= MAX_IMAGES and all(words[word] >= MIN_USES for word in text.split())

    return {key: [name for name in names if kept(alt_text(name))] for key, names in sets.items()}


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


def world_captions(words: dict, rng: random.Random) -> dict[str, list[str]]:
    """By language, the name three times and a list of keywords."""
    texts = {}
    for language, entry in words["world"].items():
        name, keywords = entry["name"], entry["keywords"]
        some = rng.sample(keywords, min(len(keywords), rng.randint(1, 4)))
        texts[language] = [name] * 3 + ([", ".join(some)] if some else [])
    return texts


def draw(task: tuple[str, Path]) -> None:
    """Rasterize one SVG, centred on a transparent square, and move it into place whole."""
    import resvg_py

    svg, path = task
    if path.exists():
        with Image.open(path) as drawn:
            if drawn.size == (SIDE, SIDE):
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


def write_folder(folder: Path, art: dict[str, str], lines: list[dict]) -> None:
    """An imagefolder of SVGs; its metadata.jsonl comes last, so it never names a missing file."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [(svg, folder / name) for name, svg in art.items()]
    with ProcessPoolExecutor() as pool:  # which notices if the system kills a worker
        list(tqdm(pool.map(draw, tasks, chunksize=16), folder.name, len(tasks), unit="image"))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_atomically(
        folder / "metadata.jsonl", lambda temporary: temporary.write_text(text, encoding="utf-8")
    )


def prepare(designer: str, package: str, out: Path, concepts: dict[str, dict]) -> None:
    """Write the imagefolder out/designer."""
    icons = find_icons(fetch(package, out / ".packages"), concepts)
    uses = Counter(k for words in concepts.values() for k in words["keywords"])
    rare = {k for k, n in uses.items() if n <= 3}  # "bike" names a picture, "vehicle" does not
    lines = []
    for concept in icons:
        words, rng = concepts[concept], random.Random(f"{designer} {concept}")
        texts = captions(words, rare, rng)
        if designer in FINAL_TEST:
            texts = texts[:1]  # asked for by its name alone
        line = {"file_name": f"{concept}.png", "text": texts, "world": world_captions(words, rng)}
        lines.append(line | {"concept": concept, "mirror": words["mirror"]})
    write_folder(out / designer, {f"{concept}.png": svg for concept, svg in icons.items()}, lines)


def prepare_noise(out: Path) -> None:
    """Write an imagefolder for each set of NOISE. Pictures of one text never meet in a batch."""
    sets = {key: fetch(package, out / ".packages")["package/icons.json"] for key, package in NOISE.items()}
    for key, names in filter_noise({key: list(icons["icons"]) for key, icons in sets.items()}).items():
        total = len(sets[key]["icons"])
        print(f"{key}: {len(names):,} of {total:,} pictures pass the filters", file=sys.stderr)
        lines = []
        for name in names:
            text = alt_text(name)
            line = {"file_name": f"{name}.png", "text": [text], "concept": text}
            lines.append(line | {"mirror": not ONE_SIDED.search(text)})
        write_folder(out / key, {f"{name}.png": as_svg(sets[key], name) for name in names}, lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for the imagefolders and the fetched packages")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--final-test", action="store_true", help="the designer kept for the last test only")
    which.add_argument("--noise", action="store_true", help="icons named by their files, instead of emoji")
    parser.add_argument("--fewer-concepts", action="store_true", help="leave out one concept in ten")
    args = parser.parse_args(argv)
    if args.noise and args.fewer_concepts:
        parser.error("--fewer-concepts: not of --noise, which has no concepts")
    try:
        if args.noise:
            prepare_noise(args.out)
            return 0
        concepts = read_concepts(fetch(NAMES, args.out / ".packages"))
        add_languages(concepts, [fetch(package, args.out / ".packages") for package in WORLD])
        if args.fewer_concepts:
            concepts = {c: words for c, words in concepts.items() if not unseen(c)}
        for designer, package in (FINAL_TEST if args.final_test else TRAINING).items():
            prepare(designer, package, args.out, concepts)
    except FileNotFoundError as error:
        print(f"{error.filename}: not found (npm fetches the packages)", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        why = (error.stderr.strip().splitlines() or ["no reason given"])[0]
        print(f"{' '.join(error.cmd)}: {why}", file=sys.stderr)
        return 1
    except (BrokenProcessPool, ImportError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
