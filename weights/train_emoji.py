"""Make `weights/emoji` from nothing, in one command: fetch and draw the art, train, put the result in place.

    python weights/train_emoji.py data/emoji --out runs/emoji    # about 75 minutes on 2 cores
    python weights/train_emoji.py data/emoji --out runs/tune --hold-out fluent --steps 500    # to tune

Everything is done by `prepare_emoji.py` and by `align-minimal train`, whose command is printed. A run that
was interrupted goes on where it stopped when the command is given again.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a checkout without installing
from align_minimal.__main__ import main as align_minimal
from weights import prepare_emoji

RECIPE = "--preset emoji --augment drawings --flip --batch-size 256 --optimizer adamw --lr 3e-3 --warmup 100"
RECIPE += " --weight-decay 0.05 --vocab-size 4000 --precision bf16 --save-every 500 --resume"
FILES = ("config.json", "model.safetensors", "preprocessor_config.json", "vocab.txt")
FILES += ("tokenizer_config.json", "special_tokens_map.json")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder for the imagefolders and the fetched packages")
    parser.add_argument("--out", type=Path, required=True, help="the run's folder")
    parser.add_argument(
        "--hold-out", help="a designer to leave out and measure on; weights/emoji stays as it is"
    )
    parser.add_argument("--steps", type=int, default=6000)
    args, more = parser.parse_known_args(argv)  # further flags go to `align-minimal train`
    status = prepare_emoji.main([str(args.data)])
    if status:
        return status
    folders = [str(args.data / name) for name in prepare_emoji.TRAINING if name != args.hold_out]
    command = ["train", *folders, "--out", str(args.out), "--steps", str(args.steps), *RECIPE.split(), *more]
    if args.hold_out:
        command += ["--eval", str(args.data / args.hold_out)]
    print("align-minimal", shlex.join(command), file=sys.stderr)
    status = align_minimal(command)
    if not status and not args.hold_out:
        for name in FILES:
            shutil.copy(args.out / name, Path(__file__).parent / "emoji" / name)
    return status


if __name__ == "__main__":
    sys.exit(main())
