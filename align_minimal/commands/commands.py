"""What each command does with its flags: it prints results to stdout, or raises an error of one line.

Each `run_…` checks what is cheap to check before it loads a model. A mistake in the flags ends in
`parser.error` (exit status 2), bad data in a ValueError or OSError (exit status 1).
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from textwrap import shorten

import torch
from tqdm import tqdm

from ..model import AlignModel
from ..processor import AlignProcessor
from ..support.image_files import load_image
from ..support.terminal import busy, columns, fit, glyph, message, one_line, paint, width
from ..training.dataset import Pairs
from ..using.pictures import check_file, check_folder, find_pictures
from ..using.retrieval import embed_images, evaluate, print_recall, readable
from ..using.search import ImageIndex
from ..using.trace import trace_pair
from ..using.zero_shot import (
    TEMPLATES,
    ZeroShotClassifier,
    check_labels,
    print_accuracy,
    read_labelled,
    read_labels,
    zero_shot_accuracy,
)
from . import page
from .flags import about_model


def check_device(name: str, parser: argparse.ArgumentParser) -> None:
    """End with a usage error unless this machine's PyTorch can use the device called `name`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that PyTorch once knew
            torch.empty(0, device=name).cpu()
    except Exception as error:  # what PyTorch raises for one that it lacks has no common base
        parser.error(f"--device {name}: {shorten(message(error), 200, placeholder=' …')}")


def load(args: argparse.Namespace) -> tuple[AlignModel, AlignProcessor]:
    with busy(f"loading {Path(args.model).name}"):
        model = AlignModel.from_pretrained(args.model).to(args.device)
    return model, AlignProcessor.from_pretrained(args.model)


def load_for_inference(args: argparse.Namespace) -> tuple[AlignModel, AlignProcessor]:
    model, processor = load(args)
    return model.for_inference(), processor


def about_call(args: argparse.Namespace) -> list[str]:
    """What a page says of its model."""
    return list(filter(None, [f"model: {args.model}", about_model(args.model)]))


def print_json(args: argparse.Namespace, **content) -> None:
    try:
        print(json.dumps({"model": args.model, **content}, indent=2, allow_nan=False))
    except ValueError:
        raise ValueError(f"{args.model}: a result is not a finite number: the model is broken") from None


# ---- classify ----------------------------------------------------------------------------------------------


def run_classify(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    check_device(args.device, parser)
    templates = TEMPLATES if args.ensemble else args.template or ["{}"]
    labels = args.labels or list(read_labels(Path(args.labels_file)).values())
    try:
        check_labels(labels, templates)
    except ValueError as error:
        parser.error(str(error))
    if args.html:
        page.check_page(Path(args.html))  # the cheap mistake first
    found = find_pictures(args.images)
    classifier = ZeroShotClassifier(*load_for_inference(args), labels, templates)
    results = classify(classifier, found, args.top)
    if args.html:
        about = [*about_call(args), f"labels: {', '.join(labels)}"]
        about += [f"templates: {', '.join(templates)}"] if templates != ["{}"] else []
        page.write_page(Path(args.html), "align-minimal classify", page.classification(results), about)
    if args.json:
        print_json(args, results=results)
    elif args.csv:
        print_csv(results)
    else:
        print_table(results)


def classify(
    classifier: ZeroShotClassifier, found: list[tuple[Path, bool]], top: int | None = None
) -> list[dict]:
    """For each picture {"image", "labels": [{"label", "probability", "logit"}, …]}, with the `top` labels.

    `found` holds pairs (picture, named). If a picture cannot be read, that is an error if the user has named
    it, and else a warning.
    """
    named = {str(path) for path, was_named in found if was_named}
    embeds = embed_images(classifier.model, classifier.processor, ((str(path), path) for path, _ in found))
    bar = tqdm(embeds, total=len(found), unit="picture", leave=False, disable=len(found) <= 32)
    results = []
    for name, embed in readable(bar, named):
        logits = classifier.logits(embed)  # (K,)
        scored = zip(classifier.labels, logits.softmax(-1).tolist(), logits.tolist(), strict=True)
        labels = [{"label": label, "probability": p, "logit": x} for label, p, x in scored]
        labels.sort(key=lambda entry: -entry["logit"])
        results.append({"image": name, "labels": labels[:top]})
    return results


def print_table(results: list[dict]) -> None:
    """Print a block for each picture: labels, probabilities, and a bar for each probability.

    On a terminal of 40 columns, a long label is cut so that 6 columns are left for the bar.
    """
    longest = max((width(one_line(e["label"])) for result in results for e in result["labels"]), default=0)
    full = min(30, max(6, columns() - 12 - longest))  # columns of a bar for 100 %
    for result in results:
        print(heading(result["image"]))
        for i, entry in enumerate(result["labels"]):
            label = fit(one_line(entry["label"]), min(longest, columns() - 12 - full))
            bar = paint(glyph("█") * round(full * entry["probability"]), "green")
            line = f"  {paint(label, *(['bold'] if i == 0 else []))}  {entry['probability']:6.1%}  {bar}"
            print(line.rstrip())


def print_csv(results: list[dict]) -> None:
    """Print image,label,probability,logit for each picture and label. Texts stand in quotation marks."""
    show = one_line if sys.stdout.isatty() else str  # a file gets the names and labels as they are
    # Otherwise csv writes a carriage return without quotation marks, and its own reader ends the line there.
    writer = csv.writer(sys.stdout, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(["image", "label", "probability", "logit"])
    for result in results:
        for entry in result["labels"]:
            names = show(result["image"]), show(entry["label"])
            writer.writerow([*names, entry["probability"], entry["logit"]])


# ---- search ------------------------------------------------------------------------------------------------


def run_search(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if not args.queries and args.image is None:
        parser.error("nothing to search for: give a QUERY or --image REF")
    for text in [*args.queries, *([] if args.minus is None else [args.minus])]:
        if not text.strip():
            parser.error(f"query {text!r} is empty")
    check_device(args.device, parser)
    if args.html:
        page.check_page(Path(args.html))  # the cheap mistake first
    if args.image is not None:
        check_file(Path(args.image))
        load_image(args.image)  # an error here, if any, and not after the folder was embedded
    check_folder(Path(args.folder))  # the same: before a model is loaded
    index = ImageIndex(args.folder, *load(args), args.index)
    queries = index.queries(args.queries, args.image, args.minus, args.text_weight)
    answers = list(zip(args.queries or [None], index.nearest(queries, args.top), strict=True))
    titled = [(title(query, args.image, args.minus), hits) for query, hits in answers]
    if args.html:
        sections = page.search_results(titled, Path(args.image) if args.image else None)
        title_of_page = f"align-minimal search {args.folder}"
        page.write_page(Path(args.html), title_of_page, sections, about_call(args))
    if args.json:
        hits = [(query, score, path) for query, found in answers for score, path in found]
        print_json(args, results=[{"query": q, "image": str(path), "score": s} for q, s, path in hits])
        return
    for asked, found in titled:
        print(heading(asked))
        for score, path in found:
            name = one_line(path)
            print(f"  {score:6.3f}  {fit(name, min(width(name), columns() - 10), end=True)}")


def title(query: str | None, image: str | None, minus: str | None) -> str:
    """The query as a person reads it: 'like cat.jpg + snow − sofa'."""
    return " + ".join(([f"like {image}"] if image else []) + ([query] if query else [])) + (
        f" {glyph('−')} {minus}" if minus else ""
    )


def heading(text: object) -> str:
    """A line above a block of results."""
    line = one_line(text)
    return paint(fit(line, min(width(line), columns()), end=True), "bold")


# ---- evaluate, demo, train, trace --------------------------------------------------------------------------


def run_evaluate(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    check_device(args.device, parser)
    if args.ensemble and args.zero_shot is None:
        parser.error("--ensemble goes with --zero-shot")
    if args.zero_shot is not None:
        labels = read_labels(Path(args.zero_shot))
        pictures = [picture for folder in args.data for picture in read_labelled(Path(folder), labels)]
        templates = TEMPLATES if args.ensemble else ["{}"]
        classifier = ZeroShotClassifier(*load_for_inference(args), list(labels.values()), templates)
        result, print_result = zero_shot_accuracy(classifier, pictures), print_accuracy
    else:
        pairs = Pairs(args.data)  # what is wrong with them is cheaper to find than a model
        result, print_result = evaluate(*load_for_inference(args), pairs), print_recall
    if args.json:
        print_json(args, **result)
    else:
        print_result(result)


def run_demo(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from . import demo

    check_device(args.device, parser)
    demo.import_gradio()
    demo.check_address(args.host, args.port)
    return demo.serve(*load_for_inference(args), args.host, args.port, about_model(args.model))


def run_train(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int | None:
    from ..training.command import train

    check_device(args.device, parser)
    return train(args, parser)


def run_trace(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if not args.text.strip():
        parser.error(f"text {args.text!r} is empty")
    check_device(args.device, parser)
    check_file(Path(args.image))
    load_image(args.image)  # an error here, if any, and not after a model was loaded
    # Unless told otherwise, two levels, and one line for all blocks of a stage.
    trace_pair(*load(args), Path(args.image), args.text, args.depth or 2, fold=args.depth is None)


RUN: dict[str, Callable] = {
    "classify": run_classify,
    "search": run_search,
    "evaluate": run_evaluate,
    "demo": run_demo,
    "trace": run_trace,
    "train": run_train,
}
