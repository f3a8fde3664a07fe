"""Any batch: the loss in tiles against the plain one, and the gradient in chunks against the whole graph."""

import copy

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from align_minimal import AlignConfig, AlignModel, contrastive_loss
from align_minimal.training.large_batch import backward_in_chunks
from tests.reference.parity import assert_close, assert_gradients_close, gradients, healthy, relative_error


def pairs(rows, columns, seed=0, dtype=torch.float64):
    """Unit embeddings; an image is a little nearer to its own text than to the others."""
    generator = torch.Generator().manual_seed(seed)
    texts, noise = torch.randn(2, rows, columns, generator=generator, dtype=torch.float64)
    texts, images = F.normalize(texts, dim=-1), F.normalize(texts / 2 + noise, dim=-1)
    return texts.to(dtype), images.to(dtype)


def loss_and_gradients(texts, images, sigma, epsilon=0.1, factor=1.0, **options):
    leaves = [x.clone().requires_grad_() for x in (texts, images, sigma)]
    loss = contrastive_loss(*leaves, epsilon, **options)
    return [loss.detach(), *torch.autograd.grad(factor * loss, leaves)]


NAMES = ("loss", "text gradient", "image gradient", "temperature gradient")


@pytest.mark.parametrize("rows", [1, 2, 13])
@pytest.mark.parametrize("tile", [1, 4, 13, 100])
@pytest.mark.parametrize(("sigma", "epsilon"), [(1.0, 0.1), (1 / 16, 0.0), (1 / 64, 0.1), (1e-3, 1.0)])
def test_tiled_loss_and_its_gradients_are_the_plain_ones(rows, tile, sigma, epsilon):
    inputs = (*pairs(rows, 7), torch.tensor(sigma, dtype=torch.float64), epsilon, 3.0)
    tiled, plain = loss_and_gradients(*inputs, tile=tile), loss_and_gradients(*inputs)
    for name, ours, expected in zip(NAMES, tiled, plain, strict=True):
        if rows == 1:  # one pair is its own softmax: everything is 0
            assert ours.abs().max() < 1e-9 and ours.shape == expected.shape
        else:
            assert_close(ours, expected, 1e-11, name)


def test_tiled_gradients_are_those_of_finite_differences():
    texts, images = (x.requires_grad_() for x in pairs(5, 3))
    sigma = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    tiled = lambda t, i, s: contrastive_loss(t, i, s, tile=2)  # noqa: E731
    assert torch.autograd.gradcheck(tiled, (texts, images, sigma))


@pytest.mark.parametrize("sigma", [1.0, 1 / 16, 1 / 64])
def test_tiled_float32_is_no_further_from_float64_than_the_plain_loss(sigma):
    errors = {"plain": torch.zeros(4), "tiled": torch.zeros(4)}
    for seed in range(5):
        texts, images = pairs(768, 64, seed, torch.float32)
        temperature = torch.tensor(sigma)
        exact = loss_and_gradients(texts.double(), images.double(), temperature.double())
        for name, options in (("plain", {}), ("tiled", {"tile": 100})):
            ours = loss_and_gradients(texts, images, temperature, **options)
            pairwise = zip(ours, exact, strict=True)
            errors[name] += torch.tensor([relative_error(o, e) for o, e in pairwise]) / 5
    # What is left of a scalar is its last bit's rounding: half a bit more is no worse.
    assert (errors["tiled"] <= errors["plain"] + torch.tensor([3e-8, 0, 0, 3e-8])).all(), errors


def test_no_block_of_logits_is_larger_than_tile_by_tile():
    sizes = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            sizes.append(result.numel() if isinstance(result, torch.Tensor) else 0)
            return result

    inputs = (*pairs(64, 3), torch.tensor(0.1, dtype=torch.float64))
    with Watch():
        loss_and_gradients(*inputs, tile=16)
    assert max(sizes) == 16 * 16  # more than the embeddings' 64 × 3
    sizes.clear()
    with Watch():
        loss_and_gradients(*inputs)
    assert max(sizes) == 64 * 64


def test_the_embeddings_of_one_side_or_the_temperature_may_be_fixed():
    texts, images = pairs(6, 4)
    texts.requires_grad_()
    contrastive_loss(texts, images, 0.1, tile=4).backward()
    tiled, texts.grad = texts.grad, None
    contrastive_loss(texts, images, 0.1).backward()
    assert_close(tiled, texts.grad, 1e-12)


def test_a_second_derivative_is_refused_and_not_wrong():
    texts, images = (x.requires_grad_() for x in pairs(4, 3))
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(contrastive_loss(texts, images, 0.5, tile=2), texts, create_graph=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(tile=0), "tile must be a whole number of at least 1, not 0"),
        (dict(tile=2.5), "tile must be a whole number of at least 1, not 2.5"),
        (dict(tile=2, label_smoothing=2), r"label_smoothing must lie in \[0, 1\], not 2"),
        (dict(tile=2, temperature=0.0), "temperature must be above 0, not 0.0"),
        (dict(tile=2, image_embeds=torch.ones(3, 4)), r"not \(2, 4\) and \(3, 4\)"),
    ],
)
def test_bad_input_is_the_plain_loss_s_value_error(options, message):
    good = dict(text_embeds=torch.ones(2, 4), image_embeds=torch.ones(2, 4), temperature=1.0)
    with pytest.raises(ValueError, match=message):
        contrastive_loss(**good | options)


def test_distributed_without_a_process_group_says_so():
    with pytest.raises(RuntimeError, match="init_process_group"):
        contrastive_loss(*pairs(2, 3), 1.0, distributed=True)


class PairEncoder(nn.Module):
    """The model as `backward_in_chunks` wants it: a chunk → text, image, temperature."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, chunk):
        input_ids, pixel_values = chunk
        text = self.model.get_text_features(input_ids)
        image = self.model.get_image_features(pixel_values)
        return F.normalize(text, dim=-1), F.normalize(image, dim=-1), self.model.temperature


@pytest.fixture(scope="module")
def encoder():
    """The emoji preset, narrower and shallower, with all its chance: dropout and drop-connect."""
    config = AlignConfig.preset("emoji").to_dict()
    config["text_config"] |= dict(hidden_size=16, num_hidden_layers=1, intermediate_size=32, vocab_size=50)
    config["text_config"] |= dict(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2)
    config["vision_config"] |= dict(width_coefficient=0.25, depth_coefficient=0.5, drop_connect_rate=0.4)
    config = AlignConfig.from_dict(config | dict(projection_dim=80))
    return PairEncoder(healthy(AlignModel(config).double()).train())


def draw_chunks(sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(1, 50, (b, 6), generator=generator) for b in sizes]
    pixels = [torch.randn(b, 3, 32, 32, generator=generator, dtype=torch.float64) for b in sizes]
    return list(zip(ids, pixels, strict=True))


def whole_graph(encoder, chunks, loss=contrastive_loss):
    """What GradCache must equal: every chunk's graph kept until the one backward."""
    torch.manual_seed(3)
    texts, images, temperatures = zip(*[encoder(chunk) for chunk in chunks], strict=True)
    value = loss(torch.cat(texts), torch.cat(images), temperatures[0])
    value.backward()
    return value.detach()


def in_chunks(encoder, chunks, loss=contrastive_loss):
    torch.manual_seed(3)
    return backward_in_chunks(encoder, chunks, loss)


@pytest.mark.parametrize("sizes", [(4, 3, 5), (4,)], ids=["three chunks", "one chunk"])
def test_in_chunks_all_is_as_with_the_whole_graph(encoder, sizes):
    chunks, ours, theirs = draw_chunks(sizes), copy.deepcopy(encoder), copy.deepcopy(encoder)
    before = dict(theirs.named_buffers())
    before = {name: buffer.clone() for name, buffer in before.items()}
    expected = whole_graph(theirs, chunks)
    random_after = torch.rand(4)
    value = in_chunks(ours, chunks)
    assert torch.equal(torch.rand(4), random_after)
    assert_close(value, expected, 1e-12, "loss")
    assert not value.requires_grad
    assert_gradients_close(gradients(ours), gradients(theirs), 1e-10)
    buffers = dict(ours.named_buffers())
    for name, buffer in theirs.named_buffers():
        assert torch.equal(buffers[name], buffer), name
        if "running" in name:
            assert relative_error(buffer, before[name]) > 1e-6, f"{name} was not updated"
        if "num_batches_tracked" in name:
            assert buffer == before[name] + len(sizes)


def test_gradients_in_chunks_are_added_to_what_is_there(encoder):
    chunks, ours = draw_chunks((2, 2)), copy.deepcopy(encoder)
    in_chunks(ours, chunks)
    once = {name: g.clone() for name, g in gradients(ours).items()}
    in_chunks(ours, chunks)
    assert_gradients_close(gradients(ours), {name: 2 * g for name, g in once.items()}, 1e-10)


def test_without_the_chunks_random_states_the_gradient_would_be_another(encoder, monkeypatch):
    chunks, ours, theirs = draw_chunks((4, 4)), copy.deepcopy(encoder), copy.deepcopy(encoder)
    whole_graph(theirs, chunks)
    monkeypatch.setattr("align_minimal.training.large_batch.set_random_state", lambda device, state: None)
    in_chunks(ours, chunks)
    name = "model.text_projection.weight"
    assert relative_error(gradients(ours)[name], gradients(theirs)[name]) > 1e-2


def test_what_is_frozen_or_fixed_stays_so(encoder):
    chunks, ours, theirs = draw_chunks((3, 3)), copy.deepcopy(encoder), copy.deepcopy(encoder)
    for module in (ours, theirs):
        module.model.vision_model.requires_grad_(False)
        module.model.temperature.requires_grad_(False)
    whole_graph(theirs, chunks)
    in_chunks(ours, chunks)
    assert ours.model.temperature.grad is None
    assert_gradients_close(gradients(ours), gradients(theirs), 1e-10)


def test_chunks_and_tiles_go_together(encoder):
    chunks, ours, theirs = draw_chunks((4, 3)), copy.deepcopy(encoder), copy.deepcopy(encoder)
    whole_graph(theirs, chunks)
    in_chunks(ours, chunks, lambda *embeds: contrastive_loss(*embeds, tile=3))
    assert_gradients_close(gradients(ours), gradients(theirs), 1e-10)


def test_accumulating_the_chunks_own_losses_is_not_the_bigger_batch():
    # Each pair meets only its own chunk's negatives: another loss (log 4, not log 8, at σ → ∞).
    texts, images = (x.requires_grad_() for x in pairs(8, 5))
    whole = contrastive_loss(texts, images, 100.0)
    halves = (
        contrastive_loss(texts[:4], images[:4], 100.0) + contrastive_loss(texts[4:], images[4:], 100.0)
    ) / 2
    assert whole.item() == pytest.approx(torch.tensor(8.0).log().item(), abs=0.02)
    assert halves.item() == pytest.approx(torch.tensor(4.0).log().item(), abs=0.02)
    ours, expected = (torch.autograd.grad(loss, texts)[0] for loss in (halves, whole))
    assert relative_error(ours, expected) > 0.1


def test_no_chunks_is_a_value_error(encoder):
    with pytest.raises(ValueError, match="at least one chunk"):
        backward_in_chunks(encoder, [], contrastive_loss)
