"""compose and top_k: against their definitions, written down one number after the other."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from align_minimal.using.retrieval import compose, top_k
from tests.reference.parity import assert_close


def whole_numbers(rows: int, width: int, seed: int) -> torch.Tensor:
    """Few and small, so that sums are exact in any order and many scores are equal."""
    return torch.randint(-2, 3, (rows, width), generator=torch.Generator().manual_seed(seed)).float()


def defined(queries, embeds, k):
    """For each query the k best (score, row), sorted by score downwards, then by row."""
    answers = []
    for query in queries.tolist():
        scores = [sum(q * e for q, e in zip(query, embed, strict=True)) for embed in embeds.tolist()]
        answers.append(
            sorted(((s, i) for i, s in enumerate(scores)), key=lambda pair: (-pair[0], pair[1]))[:k]
        )
    return answers


def found(queries, embeds, k, **options):
    scores, rows = top_k(queries, embeds, k, **options)
    assert rows.dtype == torch.long
    return [list(zip(*pair, strict=True)) for pair in zip(scores.tolist(), rows.tolist(), strict=True)]


@settings(max_examples=150, deadline=None)
@given(
    Q=st.integers(1, 4),
    N=st.integers(1, 30),
    D=st.integers(1, 3),
    k=st.integers(1, 40),
    block=st.integers(1, 35),
    seed=st.integers(0, 999),
)
def test_the_k_best_in_order_the_first_of_equals_whatever_the_blocks(Q, N, D, k, block, seed):
    queries, embeds = whole_numbers(Q, D, seed), whole_numbers(N, D, seed + 1)
    assert found(queries, embeds, k, block=block) == defined(queries, embeds, k)


def test_more_than_there_are_gives_all_of_them():
    scores, rows = top_k(torch.eye(2), torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]]), k=99)
    assert rows.tolist() == [[1, 2, 0], [0, 2, 1]]
    assert scores.tolist() == [[1.0, 0.5, 0.0], [1.0, 0.5, 0.0]]


def test_equal_scores_keep_the_order_of_the_rows_within_blocks_and_across_them():
    same = torch.ones(1000, 2)
    for block in (1, 7, 64, 5000):
        assert top_k(torch.ones(3, 2), same, k=20, block=block)[1].tolist() == [list(range(20))] * 3


def test_nothing_to_search_and_nothing_to_search_for():
    for queries, embeds in ((torch.ones(2, 3), torch.ones(0, 3)), (torch.ones(0, 3), torch.ones(5, 3))):
        scores, rows = top_k(queries, embeds, k=4)
        assert scores.shape == rows.shape == (len(queries), min(4, len(embeds)))


def test_real_embeddings_in_several_blocks_are_as_in_one():
    generator = torch.Generator().manual_seed(0)
    queries, embeds = (F.normalize(torch.randn(n, 64, generator=generator), dim=-1) for n in (5, 700))
    expected = (queries @ embeds.T).sort(dim=1, descending=True)
    scores, rows = top_k(queries, embeds, k=50, block=64)
    assert torch.equal(rows, expected.indices[:, :50])
    assert_close(scores, expected.values[:, :50], 1e-6)


class Largest(TorchFunctionMode):
    """Remembers how many numbers the largest tensor held that any call gave back."""

    numbers = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple) else [result]:
            self.numbers = max(self.numbers, x.numel() if isinstance(x, torch.Tensor) else 0)
        return result


def test_never_more_scores_than_queries_times_block_in_memory():
    queries, embeds = whole_numbers(3, 1, 0), whole_numbers(1000, 1, 1)  # so narrow that scores are the most
    with Largest() as largest:
        top_k(queries, embeds, k=5, block=20)
    assert largest.numbers == 3 * 20
    with Largest() as largest:
        top_k(queries, embeds, k=5)
    assert largest.numbers == 3 * 1000  # in one block: the measure sees what it is to see


# ---- compose -----------------------------------------------------------------------------------------------


def unit(*shape, seed):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(x, dim=-1)


@pytest.mark.parametrize("weight", [2.0, 1.0, 0.3])
@pytest.mark.parametrize(
    "given", ["text", "image", "text image", "text minus", "image minus", "text image minus"]
)
def test_a_query_is_image_plus_weight_times_text_less_minus_made_a_unit(given, weight):
    parts = {name: unit(8, seed=i) for i, name in enumerate(["text", "image", "minus"]) if name in given}
    total = [0.0] * 8
    for name, part in parts.items():
        factor = {"text": weight, "image": 1.0, "minus": -weight}[name]
        total = [t + factor * p for t, p in zip(total, part.tolist(), strict=True)]
    length = math.sqrt(sum(t * t for t in total))
    expected = torch.tensor([t / length for t in total], dtype=torch.float64)
    assert_close(compose(**parts, text_weight=weight), expected, 1e-12)


def test_the_paper_s_weights_are_the_default():
    text, image = torch.eye(2, dtype=torch.float64)
    # 2 · (1, 0) + 1 · (0, 1) = (2, 1), of length √5
    assert compose(text, image).tolist() == pytest.approx([2 / 5**0.5, 1 / 5**0.5])
    assert compose(text, image, text_weight=1.0).tolist() == pytest.approx([0.5**0.5, 0.5**0.5])


def test_one_image_goes_with_each_of_several_texts():
    texts, image, minus = unit(3, 8, seed=0), unit(8, seed=1), unit(8, seed=2)
    each = torch.stack([compose(text, image, minus) for text in texts])
    assert_close(compose(texts, image, minus), each, 1e-12)


def test_neither_text_nor_image_is_an_error():
    with pytest.raises(ValueError, match="a query needs a text or an image"):
        compose(minus=unit(8, seed=0))
