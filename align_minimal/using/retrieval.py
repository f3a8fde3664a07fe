"""Retrieval: find the right picture for a text, or the right text for a picture (ALIGN, sections 5.1 and 7).

Pictures and texts become vectors of length 1, and the answers to a query are those with the highest cosine. A
query can be a text, a picture, or a picture with something added or taken away: section 7 adds and subtracts
embeddings.
"""

from __future__ import annotations

import warnings
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import islice
from operator import length_hint
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..config import AlignConfig
from ..model import AlignModel
from ..processor import AlignProcessor
from ..support.image_files import open_image
from ..support.rgb import to_rgb
from ..support.terminal import columns
from .pictures import read_ahead

# ---- embeddings --------------------------------------------------------------------------------------------


def longest_text(config: AlignConfig) -> int:
    """After how many tokens texts are cut: 64, as in the paper (section 5), or fewer if the model has fewer.

    >>> longest_text(AlignConfig.preset("b7_base"))
    64
    """
    return min(64, config.text_config.max_position_embeddings)


@torch.inference_mode()
def embed_texts(
    model: AlignModel, processor: AlignProcessor, texts: Sequence[str], batch_size: int = 64
) -> Tensor:
    """M texts → (M, D) on the CPU, L2-normalized. Texts are cut after `longest_text` tokens.

    Puts the model in eval mode.

    >>> model, processor = AlignModel.from_pretrained("emoji"), AlignProcessor.from_pretrained("emoji")
    >>> apples, dog = embed_texts(model, processor, ["red apple", "apple", "dog"]).split([2, 1])
    >>> bool(apples[0] @ apples[1] > apples[0] @ dog[0])
    True
    """
    model.eval()
    limit = longest_text(model.config)
    embeds = []
    for start in tqdm(range(0, len(texts), batch_size), "texts", leave=False, disable=len(texts) <= 512):
        part = list(texts[start : start + batch_size])
        tokens = processor(text=part, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        embeds.append(model.get_text_features(**tokens.to(model.temperature.device)).cpu())  # (B, D)
    return F.normalize(torch.cat(embeds), dim=-1) if embeds else torch.empty(0, model.config.projection_dim)


@torch.inference_mode()
def embed_images(
    model: AlignModel,
    processor: AlignProcessor,
    images: Iterable[tuple[str, Path | bytes]],
    batch_size: int = 32,
) -> Iterator[tuple[str, Tensor | Exception]]:
    """Yield (name, embedding (D,)) for each image, in order; L2-normalized, on the CPU. For an image that
    cannot be read, the error, which names it, takes the embedding's place.

    `images` are pairs of a name and a file, or a file's content. The next images are read while the model
    works on a batch. Puts the model in eval mode. Raises ValueError if the processed images differ in size.

    >>> model, processor = AlignModel.from_pretrained("emoji"), AlignProcessor.from_pretrained("emoji")
    >>> [(name, embed)] = embed_images(model, processor, [("dog", Path("weights/samples/dog.png"))])
    >>> name, embed.shape
    ('dog', torch.Size([160]))
    """
    model.eval()

    def load(item: tuple[str, Path | bytes]) -> Tensor:
        name, source = item
        image = to_rgb(open_image(source, name))
        return processor(images=image, return_tensors="pt")["pixel_values"][0]  # (3, H, W)

    loaded = read_ahead(images, load, ahead=2 * batch_size)
    while part := list(islice(loaded, batch_size)):
        embeds = iter(_embed_pixels(model, [pixels for _, pixels in part if isinstance(pixels, Tensor)]))
        for (name, _), pixels in part:
            yield name, next(embeds) if isinstance(pixels, Tensor) else pixels


def readable(
    results: Iterable[tuple[str, Tensor | Exception]], named: Container[str] = (), required: bool = True
) -> Iterator[tuple[str, Tensor]]:
    """Yield the embeddings among the results of `embed_images`. Warn about each image that could not be read.

    The user has `named` some images: an error of one of these is raised. Raises ValueError if no image at
    all could be read, and one is `required`.

    >>> [(name, embed.shape) for name, embed in readable([("dog", torch.zeros(160))])]
    [('dog', torch.Size([160]))]
    """
    total, errors = 0, []
    for name, result in results:
        total += 1
        if isinstance(result, Tensor):
            yield name, result
        elif name in named:
            raise result
        else:
            errors.append(result)
            warnings.warn(f"skipped: {result}", stacklevel=2)
    if required and len(errors) == total:
        raise ValueError(f"no picture could be read; {errors[0] if errors else 'there is none'}")
    if len(errors) > 1:
        warnings.warn(f"{len(errors):,} pictures could not be read", stacklevel=2)


def _embed_pixels(model: AlignModel, pixels: list[Tensor]) -> Tensor | list:
    """B images, each (3, H, W) → (B, D), L2-normalized, on the CPU."""
    sizes = {tuple(x.shape) for x in pixels}
    if len(sizes) > 1:
        raise ValueError(f"images of several sizes, {' and '.join(map(str, sorted(sizes)))}, once processed")
    if not pixels:
        return []
    batch = torch.stack(pixels).to(model.temperature.device)
    return F.normalize(model.get_image_features(batch), dim=-1).cpu()


# ---- searching ---------------------------------------------------------------------------------------------


def compose(
    text: Tensor | None = None,
    image: Tensor | None = None,
    minus: Tensor | None = None,
    text_weight: float = 2.0,
) -> Tensor:
    """A query from vectors of length 1: image + weight · (text − minus), L2-normalized. (…, D) → (…, D)

    The paper's weights are 2 for texts and 1 for the image (section 7). Raises ValueError if both text and
    image are missing, if nothing is left after the subtraction, or if the weight is not in [0.001, 1000]:
    beyond, rounding removes one of the two.

    >>> x, y = torch.eye(2)
    >>> compose(image=x, text=y)
    tensor([0.4472, 0.8944])
    """
    if text is None and image is None:
        raise ValueError("a query needs a text or an image")
    if not 0.001 <= text_weight <= 1000:
        raise ValueError(f"text_weight must be from 0.001 to 1000, not {text_weight}")
    parts = [(text, text_weight), (image, 1.0), (minus, -text_weight)]
    query = sum(weight * part for part, weight in parts if part is not None)
    if (query.norm(dim=-1) < 1e-4 * text_weight).any():  # only rounding is left
        raise ValueError("nothing is left of a query from which the same is subtracted")
    return F.normalize(query, dim=-1)


def top_k(queries: Tensor, embeds: Tensor, k: int, block: int = 65_536) -> tuple[Tensor, Tensor]:
    """For each query the k embeddings with the largest inner product, best first: scores and rows (Q, k).

    `queries` (Q, D), `embeds` (N, D). The search is exact; of equal scores, the first row wins. At most
    Q × block scores are in memory.

    >>> top_k(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1], [1, 0], [0.6, 0.8]]), k=2)[1]
    tensor([[1, 2]])
    """
    scores, rows = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long)
    for start in range(0, len(embeds), block):
        part = queries @ embeds[start : start + block].T  # (Q, block)
        best, order = part.sort(dim=1, descending=True, stable=True)
        # The best of the earlier blocks stand first, so the stable sort prefers them where scores are equal.
        scores = torch.cat([scores, best[:, :k]], dim=1)  # (Q, up to 2k)
        rows = torch.cat([rows, start + order[:, :k]], dim=1)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        scores, rows = scores[:, :k], rows.gather(1, order)[:, :k]
    return scores, rows


# ---- measuring ---------------------------------------------------------------------------------------------


def count_competitors(
    queries: Tensor, candidates: Tensor, query_image: Tensor, candidate_image: Tensor, block: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Compare the best right candidate of each query with its competitors. Returns three counts (Q,): the
    candidates that score above it, the wrong ones that score the same, and the right ones that score the
    same, itself included.

    `queries` (Q, D) and `candidates` (C, D) are normalized. A candidate is right for a query if both belong
    to the same image: `query_image` (Q,) and `candidate_image` (C,) are the images' indices. At most
    block × C scores are in memory.

    >>> same, image = torch.ones(3, 1), torch.arange(3)
    >>> count_competitors(same, same, image, image, block=2)  # none above, two wrong ties, itself
    (tensor([0, 0, 0]), tensor([2, 2, 2]), tensor([1, 1, 1]))
    """
    # Made before the loop. Small results that are kept from each block would be stored in the memory that its
    # large tensors have just left, and the next block's large tensors would not fit there any more.
    above, wrong, right_ties = torch.zeros(3, len(queries), dtype=torch.long)
    wide = candidates.double()
    for start in range(0, len(queries), block):
        rows = slice(start, start + block)
        # Computed in float64, then rounded: a matrix product may sum each column in another order, but
        # candidates with equal embeddings must get equal scores.
        scores = (queries[rows].double() @ wide.T).to(candidates.dtype)  # (block, C)
        right = query_image[rows, None] == candidate_image  # (block, C)
        # Taken from the same product as its competitors: another order of summing would break exact ties.
        best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)  # (block, 1)
        tied = scores == best
        above[rows] = (scores > best).sum(1)
        right_ties[rows] = (tied & right).sum(1)
        wrong[rows] = tied.sum(1) - right_ties[rows]
    return above, wrong, right_ties


def expected_recall(above: Tensor, wrong: Tensor, right: Tensor, k: int) -> float:
    """The mean probability that a right candidate is among the first k, if ties were put in random order.

    Candidates `above` come first, and k − above places are left. Each of these goes to one of the `wrong`
    ties with a probability of (wrong ties still left) / (all ties still left). The query is a miss if all of
    them do.

    >>> one = torch.tensor([1])
    >>> expected_recall(above=one, wrong=one, right=one, k=1), expected_recall(one, one, one, k=2)
    (0.0, 0.5)
    """
    miss = torch.ones(len(above), dtype=torch.float64)
    for place in range(min(k, int((above + wrong + right).max()))):
        share = (wrong - place).clamp(min=0) / (wrong + right - place).clamp(min=1).double()
        miss = torch.where(place < k - above, miss * share, miss)
    return (1 - miss).mean().item()


def check_pairs(image_embeds: Tensor, text_embeds: Tensor, text_image: Tensor) -> None:
    """ValueError unless all embeddings are finite and equally wide, and every image has a text.

    >>> check_pairs(torch.eye(2), torch.eye(2), text_image=torch.tensor([0, 0]))
    Traceback (most recent call last):
    ValueError: image 1 has no text
    """
    if image_embeds.ndim != 2 or text_embeds.ndim != 2 or image_embeds.shape[1] != text_embeds.shape[1]:
        shapes = f"{tuple(image_embeds.shape)} and {tuple(text_embeds.shape)}"
        raise ValueError(f"image_embeds and text_embeds must be (N, width) and (M, width), not {shapes}")
    for name, embeds in (("image_embeds", image_embeds), ("text_embeds", text_embeds)):
        if not embeds.isfinite().all():
            row = int((~embeds.isfinite()).any(1).nonzero()[0])
            raise ValueError(f"{name} must be finite, but row {row} is not")
    images, texts = len(image_embeds), len(text_embeds)
    if text_image.shape != (texts,) or text_image.is_floating_point():
        raise ValueError(f"text_image must hold one image's index for each of the {texts} texts")
    outside = text_image[(text_image < 0) | (text_image >= images)]
    if len(outside):
        raise ValueError(f"text_image names image {int(outside[0])}, but there are {images}, from 0")
    alone = (torch.bincount(text_image, minlength=images) == 0).nonzero()
    if images == 0 or len(alone):
        raise ValueError(f"image {int(alone[0])} has no text" if images else "no images")


@torch.no_grad()
def recall_at_k(
    image_embeds: Tensor,
    text_embeds: Tensor,
    text_image: Tensor,
    ks: Sequence[int] = (1, 5, 10),
    block: int = 256,
) -> dict[str, dict[str, float]]:
    """R@K: how often a right candidate is among the K with the highest cosine, both ways (5.1, table 1).

    `image_embeds` (N, D) and `text_embeds` (M, D) are normalized here; `text_image` (M,) is the index of each
    text's image. An image counts as a hit if any of its texts is found. Returns {"image_to_text":
    {"R@1": …, …}, "text_to_image": {…}}, fractions in [0, 1]. At most block × max(N, M) scores are in memory.

    Candidates with exactly the same score are taken in random order, and R@K is the expected value. So a
    collapsed model, which gives everything the same embedding, gets what chance gives (K/N), neither 1 nor 0.
    If two images share a text, a perfect model loses half a hit for each.

    Raises ValueError for embeddings that are not finite or not equally wide, an image without a text, a text
    whose image does not exist, or a K below 1.

    >>> recall_at_k(torch.eye(4), torch.eye(4).roll(1, 0), torch.arange(4), ks=(1, 4))["text_to_image"]
    {'R@1': 0.0, 'R@4': 1.0}
    """
    check_pairs(image_embeds, text_embeds, text_image)
    if not all(k >= 1 for k in ks):
        raise ValueError(f"every K must be at least 1, not {min(ks)}")
    # In half precision, scores that differ would be rounded to the same number and become ties.
    precision = torch.promote_types(torch.promote_types(image_embeds.dtype, text_embeds.dtype), torch.float32)
    images = F.normalize(image_embeds.to("cpu", precision), dim=-1)  # not every device has float64
    texts = F.normalize(text_embeds.to("cpu", precision), dim=-1)
    image_of_text, image_of_image = text_image.cpu(), torch.arange(len(images))
    ways = {
        "image_to_text": count_competitors(images, texts, image_of_image, image_of_text, block),
        "text_to_image": count_competitors(texts, images, image_of_text, image_of_image, block),
    }
    return {way: {f"R@{k}": expected_recall(*counts, k) for k in ks} for way, counts in ways.items()}


def evaluate(model: AlignModel, processor: AlignProcessor, pairs: Iterable, batch_size: int = 64) -> dict:
    """Embed the images and texts of `pairs`, and measure R@1, R@5 and R@10 both ways.

    Each pair has a name, an image (a path, or a file's bytes) and texts, as in `training.pairs`. Pairs with
    the same name are one image with all their texts. Images that cannot be read are left out with a warning.
    Returns {"images": N, "texts": M, "image_to_text": {"R@1": …}, "text_to_image": {…}}. Puts the model in
    eval mode. Raises ValueError if no image can be read.

    >>> from align_minimal.training.pairs import Pair
    >>> model, processor = AlignModel.from_pretrained("emoji"), AlignProcessor.from_pretrained("emoji")
    >>> pairs = [Pair(name, Path(f"weights/samples/{name}.png"), (name,)) for name in ("dog", "fish")]
    >>> evaluate(model, processor, pairs)["text_to_image"]
    {'R@1': 1.0, 'R@5': 1.0, 'R@10': 1.0}
    """
    texts: dict[str, dict[str, None]] = {}  # an image's name → its texts, each once

    def each_image_once() -> Iterator[tuple[str, Path | bytes]]:
        for pair in tqdm(pairs, "pictures", length_hint(pairs) or None, unit="", leave=False):
            new = pair.name not in texts
            texts.setdefault(pair.name, {}).update(dict.fromkeys(pair.texts))
            if new:
                yield pair.name, pair.image

    embeds = dict(readable(embed_images(model, processor, each_image_once(), batch_size)))
    text_image = torch.tensor([i for i, name in enumerate(embeds) for _ in texts[name]])
    all_texts = [text for name in embeds for text in texts[name]]
    text_embeds = embed_texts(model, processor, all_texts, batch_size)
    recall = recall_at_k(torch.stack(list(embeds.values())), text_embeds, text_image)
    return {"images": len(embeds), "texts": len(all_texts), **recall}


def print_recall(result: dict) -> None:
    """Print what `evaluate` returns, for a person.

    >>> print_recall({"images": 4, "texts": 8, "image_to_text": {"R@1": 0.5}, "text_to_image": {"R@1": 0.25}})
    4 images, 8 texts
      image to text: R@1 0.500
      text to image: R@1 0.250
    """
    print(f"{result['images']:,} images, {result['texts']:,} texts")
    for direction in ("image_to_text", "text_to_image"):
        values = "  ".join(f"{k} {v:.3f}" for k, v in result[direction].items())
        line = f"  {direction.replace('_', ' ')}: {values}"
        print(line if len(line) <= columns() else line.replace(": ", ":\n    "))
