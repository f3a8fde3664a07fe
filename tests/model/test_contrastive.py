"""The loss: equations (1) and (2) with hand-computed numbers, its gradient, its floor, its errors."""

import math

import pytest
import torch
import torch.nn.functional as F

from align_minimal import contrastive_loss
from tests.reference.parity import assert_close

# Two pairs in the plane. The cosines, row = text, column = image, are [[1, 0.6], [0, 0.8]].
TEXTS = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
IMAGES = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)


def unit(rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, columns, generator=generator, dtype=torch.float64), dim=-1)


def directions(texts, images, sigma):
    """Equations (1) and (2), one term after the other, as the paper prints them. → L_i2t, L_t2i"""
    N, i2t, t2i = len(texts), 0.0, 0.0
    for i in range(N):
        x, y = images[i], texts[i]
        from_image = sum(math.exp(float(x @ texts[j]) / sigma) for j in range(N))
        from_text = sum(math.exp(float(y @ images[j]) / sigma) for j in range(N))
        i2t -= math.log(math.exp(float(x @ y) / sigma) / from_image) / N
        t2i -= math.log(math.exp(float(y @ x) / sigma) / from_text) / N
    return i2t, t2i


def test_hand_computed_loss():
    # σ = 0.5: logits [[2, 1.2], [0, 1.6]].
    # text to image: log(1 + e^−0.8) = 0.371101, log(1 + e^−1.6) = 0.183901, mean 0.277501
    # image to text: log(1 + e^−2.0) = 0.126928, log(1 + e^−0.4) = 0.513015, mean 0.319972
    assert contrastive_loss(TEXTS, IMAGES, 0.5, label_smoothing=0.0).item() == pytest.approx(
        0.298736, abs=1e-6
    )


def test_hand_computed_loss_with_label_smoothing():
    # Each row pays ε/2 = 0.05 of the gap between its logits more: gaps 0.8, 1.6 and 2.0, 0.4.
    # 0.298736 + 0.05 · (0.8 + 1.6 + 2.0 + 0.4) / 4 = 0.358736
    assert contrastive_loss(TEXTS, IMAGES, 0.5).item() == pytest.approx(0.358736, abs=1e-6)


@pytest.mark.parametrize("sigma", [1.0, 0.1, 1 / 64])
def test_loss_is_the_mean_of_equations_1_and_2_and_so_half_of_the_papers_sum(sigma):
    texts, images = unit(5, 8), unit(5, 8, seed=1)
    i2t, t2i = directions(texts, images, sigma)
    loss = contrastive_loss(texts, images, sigma, label_smoothing=0.0).item()
    assert loss == pytest.approx((i2t + t2i) / 2, rel=1e-12)
    assert 2 * loss == pytest.approx(i2t + t2i, rel=1e-12)
    assert abs(i2t - t2i) > 1e-3  # the two differ here, so neither stands in for the other


@pytest.mark.parametrize(
    ("N", "gap", "floor"), [(16384, 11.90, 1.295), (256, 7.74, 0.876), (64, 6.36, 0.729)]
)
def test_label_smoothing_bounds_the_ideal_gap_and_the_floor(N, gap, floor):
    # Orthogonal pairs at σ = 1/gap have logits gap on the diagonal, 0 elsewhere: the ideal. One row of it is
    # all of it, so a large batch is not needed: −(1 − ε + ε/N)·log p − (1 − 1/N)·ε·log q.
    eps = 0.1
    ideal = math.log((1 - eps + eps / N) / (eps / N))
    assert ideal == pytest.approx(gap, abs=5e-3)
    row = torch.zeros(1, N, dtype=torch.float64)
    row[0, 0] = ideal
    assert F.cross_entropy(row, torch.tensor([0]), label_smoothing=eps).item() == pytest.approx(
        floor, abs=5e-4
    )
    if N <= 256:
        pairs = torch.eye(N, dtype=torch.float64)
        losses = [contrastive_loss(pairs, pairs, 1 / (ideal * scale)).item() for scale in (0.9, 1.0, 1.1)]
        assert losses[1] == pytest.approx(floor, abs=5e-4)
        assert losses[1] < losses[0] and losses[1] < losses[2]


def test_at_temperature_1_the_unsmoothed_loss_cannot_pass_its_bound():
    # Best conceivable: cosine 1 with its own, −1 with all others. For two pairs that exists: log(1 + e⁻²).
    pairs = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    assert contrastive_loss(pairs, pairs, 1.0, 0.0).item() == pytest.approx(
        math.log1p(math.exp(-2)), rel=1e-12
    )


def test_temperature_divides():
    texts, images = unit(4, 6), unit(4, 6, seed=1)
    halved = contrastive_loss(texts, images, 0.5, 0.0)
    doubled_logits = 2 * texts @ images.T
    labels = torch.arange(4)
    by_hand = (F.cross_entropy(doubled_logits, labels) + F.cross_entropy(doubled_logits.T, labels)) / 2
    assert_close(halved, by_hand, 1e-12)


def test_gradients_are_those_derived_by_hand():
    # dL/dlogits = ((softmax over rows − target) + (softmax over columns − target)) / 2N, target smoothed;
    # logits = T·Iᵀ/σ, so dT = G·I/σ, dI = Gᵀ·T/σ, dσ = −Σ G·logits/σ.
    N, eps, sigma = 5, 0.1, torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    texts, images = unit(N, 7).requires_grad_(), unit(N, 7, seed=1).requires_grad_()
    contrastive_loss(texts, images, sigma, eps).backward()
    with torch.no_grad():
        logits = texts @ images.T / sigma
        target = torch.eye(N, dtype=torch.float64) * (1 - eps) + eps / N
        G = (logits.softmax(1) - target + logits.softmax(0) - target) / (2 * N)
        assert_close(texts.grad, G @ images / sigma, 1e-12, "texts")
        assert_close(images.grad, G.T @ texts / sigma, 1e-12, "images")
        assert_close(sigma.grad, -(G * logits).sum() / sigma, 1e-12, "temperature")


def test_the_pairs_order_matters_and_swapping_the_sides_does_not():
    texts, images = unit(4, 6), unit(4, 6, seed=1)
    loss = contrastive_loss(texts, images, 0.2)
    assert abs(loss - contrastive_loss(texts, images.roll(1, 0), 0.2)) > 1e-2
    order = torch.tensor([2, 0, 3, 1])
    assert_close(contrastive_loss(texts[order], images[order], 0.2), loss, 1e-12)
    assert_close(contrastive_loss(images, texts, 0.2), loss, 1e-12)


def test_matching_pairs_lose_less_than_mismatched_ones():
    pairs = unit(8, 6)
    assert contrastive_loss(pairs, pairs, 0.1) < contrastive_loss(pairs, pairs.roll(1, 0), 0.1)


def test_loss_is_a_scalar_in_the_precision_of_its_input():
    for dtype in (torch.float32, torch.float64):
        loss = contrastive_loss(TEXTS.to(dtype), IMAGES.to(dtype), 0.5)
        assert loss.shape == () and loss.dtype == dtype


def test_live_transformers_gives_the_same_loss():
    modeling = pytest.importorskip("transformers.models.align.modeling_align", reason="no transformers")
    texts, images = unit(6, 8), unit(6, 8, seed=1)
    assert_close(contrastive_loss(texts, images, 0.2), modeling.align_loss(texts @ images.T / 0.2), 1e-12)


BAD = {
    "ranks": ((torch.ones(2), torch.ones(2), 1.0), r"\(batch, width\), not \(2,\) and \(2,\)"),
    "widths": ((torch.ones(2, 3), torch.ones(2, 4), 1.0), r"not \(2, 3\) and \(2, 4\)"),
    "numbers": ((torch.ones(2, 3), torch.ones(3, 3), 1.0), r"not \(2, 3\) and \(3, 3\)"),
    "smoothing above 1": ((TEXTS, IMAGES, 1.0, 1.5), r"label_smoothing must lie in \[0, 1\], not 1.5"),
    "smoothing below 0": ((TEXTS, IMAGES, 1.0, -0.1), r"label_smoothing must lie in \[0, 1\], not -0.1"),
    "zero temperature": ((TEXTS, IMAGES, 0.0), "temperature must be above 0, not 0.0"),
    "negative temperature": ((TEXTS, IMAGES, torch.tensor(-1.0)), "temperature must be above 0, not -1.0"),
    "NaN temperature": ((TEXTS, IMAGES, float("nan")), "temperature must be above 0, not nan"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_a_value_error_naming_the_value(name):
    arguments, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        contrastive_loss(*arguments)
