"""Recall at K against a plain sort, its ties against every order of them, a collapsed model, bad input."""

from itertools import permutations
from math import comb

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from align_minimal.using.retrieval import recall_at_k


def sorted_recall(scores, right, k):
    """Sort each row, highest first, and look whether a right one is among the first k."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(right, order, axis=1).any(1).mean()


def brute_force(images, texts, text_image, ks):
    x = images.double().numpy() / np.linalg.norm(images.double().numpy(), axis=1, keepdims=True)
    y = texts.double().numpy() / np.linalg.norm(texts.double().numpy(), axis=1, keepdims=True)
    right = np.arange(len(x))[:, None] == text_image.numpy()  # (N, M)
    return {
        "image_to_text": {f"R@{k}": sorted_recall(x @ y.T, right, k) for k in ks},
        "text_to_image": {f"R@{k}": sorted_recall(y @ x.T, right.T, k) for k in ks},
    }


def same(ours, expected):
    assert ours.keys() == expected.keys()
    for way in expected:
        assert ours[way] == pytest.approx(expected[way], abs=1e-12), way


def pairs(images, texts, width, noise, dtype=torch.float64):
    """Texts near their image, every image with one at least; no embedding is normalized."""
    text_image = torch.cat([torch.randperm(images), torch.randint(images, (texts - images,))])
    x = torch.randn(images, width, dtype=dtype)
    y = x[text_image] + noise * torch.randn(texts, width, dtype=dtype)
    return x * 10 ** torch.randn(images, 1), y * 10 ** torch.randn(texts, 1), text_image


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("block", [1, 7, 64, 1024])
@pytest.mark.parametrize(("images", "texts"), [(64, 64), (50, 131), (1, 3), (9, 9)])
def test_agrees_with_a_plain_sort_whatever_the_block(images, texts, block, dtype):
    torch.manual_seed(images + texts)
    case = pairs(images, texts, width=16, noise=2.0, dtype=dtype)
    ks = (1, 2, 5, 10, 60)
    ours = recall_at_k(*case, ks=ks, block=block)
    same(ours, brute_force(*case, ks))
    if images == 50:
        assert 0 < ours["image_to_text"]["R@1"] < ours["image_to_text"]["R@10"] < 1
        assert ours["image_to_text"]["R@1"] != ours["text_to_image"]["R@1"]


def test_by_hand():
    # Cosines, row = image: [1, 0.6, 0], [0, 0.8, 1]. Texts 0 and 2 are image 0's, text 1 is image 1's.
    images = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 0.5]])
    assert recall_at_k(images, texts, torch.tensor([0, 1, 0]), ks=(1, 2)) == {
        "image_to_text": {"R@1": 0.5, "R@2": 1.0},  # image 0 finds text 0; image 1 finds text 2 before text 1
        "text_to_image": {"R@1": 2 / 3, "R@2": 1.0},  # text 2 finds image 1 before image 0
    }


AXES = st.integers(0, 2)
ALBUM = st.lists(st.tuples(AXES, st.lists(AXES, min_size=1, max_size=3)), min_size=1, max_size=4)


@settings(max_examples=20, deadline=None)
@given(ALBUM.filter(lambda album: sum(len(texts) for _, texts in album) <= 4))
def test_ties_give_the_mean_over_every_order_of_the_candidates(album):
    # Along the axes all cosines are 0 or 1, so most of them tie.
    images = torch.eye(3)[[axis for axis, _ in album]]
    texts = torch.eye(3)[[axis for _, axes in album for axis in axes]]
    owners = torch.tensor([image for image, (_, axes) in enumerate(album) for _ in axes])
    scores, right = (images @ texts.T).numpy(), np.arange(len(album))[:, None] == owners.numpy()
    expected, ks = {}, (1, 2, 3)
    for way, s, r in (("image_to_text", scores, right), ("text_to_image", scores.T, right.T)):
        orders = [list(order) for order in permutations(range(s.shape[1]))]
        shuffled = [[sorted_recall(s[:, order], r[:, order], k) for order in orders] for k in ks]
        expected[way] = {f"R@{k}": np.mean(recalls) for k, recalls in zip(ks, shuffled, strict=True)}
    same(recall_at_k(images, texts, owners, ks=ks, block=2), expected)


@pytest.mark.parametrize("block", [16, 1024])
def test_a_collapsed_model_gets_chance(block):
    torch.manual_seed(0)
    everything = torch.randn(1, 160)
    ours = recall_at_k(
        everything.expand(103, -1), 3 * everything.expand(206, -1), torch.arange(206) % 103, block=block
    )
    same(
        ours,
        {
            "image_to_text": {
                f"R@{k}": 1 - comb(204, k) / comb(206, k) for k in (1, 5, 10)
            },  # 2 of 206 are right
            "text_to_image": {f"R@{k}": k / 103 for k in (1, 5, 10)},
        },
    )


@pytest.mark.parametrize("count", [5, 6, 7, 9, 10, 11])
def test_texts_of_one_embedding_tie_whatever_their_column(count):
    torch.manual_seed(0)
    ours = recall_at_k(torch.randn(count, 160), torch.randn(1, 160).expand(count, -1), torch.arange(count))
    assert ours["image_to_text"]["R@1"] == pytest.approx(1 / count)


def test_a_text_that_two_images_share_costs_a_perfect_model_half_a_hit_each():
    images = torch.eye(4)
    images[1] = images[0]
    ours = recall_at_k(images, images, torch.arange(4), ks=(1, 2))
    assert ours["image_to_text"] == ours["text_to_image"] == {"R@1": 0.75, "R@2": 1.0}


def test_half_precision_makes_no_ties_of_its_own():
    # In bfloat16 the two cosines, 1 and 0.9988, would both round to 1.
    images, texts = torch.tensor([[1.0, 0.05], [1.0, 0.0]]), torch.tensor([[1.0, 0.05], [1.0, 0.0]])
    ours = recall_at_k(images.bfloat16(), texts.bfloat16(), torch.arange(2), ks=(1,))
    assert ours == {"image_to_text": {"R@1": 1.0}, "text_to_image": {"R@1": 1.0}}


def test_a_k_beyond_the_candidates_finds_everything():
    torch.manual_seed(0)
    ours = recall_at_k(torch.randn(3, 2), torch.randn(5, 2), torch.tensor([0, 1, 2, 0, 0]), ks=(5, 1000))
    assert ours["image_to_text"] == ours["text_to_image"] == {"R@5": 1.0, "R@1000": 1.0}


EYE, NAN = torch.eye(3), torch.eye(3).index_fill(0, torch.tensor([1]), float("nan"))
BAD = {
    "NaN image": ((NAN, EYE, torch.arange(3)), "image_embeds must be finite, but row 1 is not"),
    "infinite text": (
        (EYE, EYE / (1 - EYE), torch.arange(3)),
        "text_embeds must be finite, but row 0 is not",
    ),
    "widths": ((EYE, torch.eye(4), torch.arange(4)), r"not \(3, 3\) and \(4, 4\)"),
    "ranks": ((EYE, EYE[0], torch.arange(3)), r"not \(3, 3\) and \(3,\)"),
    "too few indices": ((EYE, EYE, torch.arange(2)), "one image's index for each of the 3 texts"),
    "fractional indices": ((EYE, EYE, torch.ones(3)), "one image's index for each of the 3 texts"),
    "image too high": ((EYE, EYE, torch.tensor([0, 1, 3])), "names image 3, but there are 3, from 0"),
    "image below 0": ((EYE, EYE, torch.tensor([0, 1, -1])), "names image -1, but there are 3, from 0"),
    "no text": ((EYE, EYE, torch.tensor([0, 2, 2])), "image 1 has no text"),
    "nothing": ((EYE[:0], EYE[:0], torch.arange(0)), "no images"),
    "K of 0": ((EYE, EYE, torch.arange(3), (5, 0)), "every K must be at least 1, not 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_a_value_error_naming_the_value(name):
    arguments, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        recall_at_k(*arguments)
