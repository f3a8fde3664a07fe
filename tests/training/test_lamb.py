"""LAMB: two steps by hand, a second implementation, the ratio's edges, the temperature, resuming."""

import io
import math

import numpy as np
import pytest
import torch

from align_minimal import AlignConfig, AlignModel, contrastive_loss
from align_minimal.training.lamb import Lamb, parameter_groups


def parameter(*values):
    return torch.nn.Parameter(torch.tensor(values, dtype=torch.float64))


def scalar(value):
    return torch.nn.Parameter(torch.tensor(value, dtype=torch.float64))


def step(optimizer, *gradients):
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for p, gradient in zip(parameters, gradients, strict=True):
        p.grad = None if gradient is None else torch.as_tensor(gradient, dtype=p.dtype)
    optimizer.step()


def test_two_steps_by_hand():
    """β = (1/2, 3/4), ε = 1, λ = 1/4, lr = 1/8, w = (6, 8).

    1. g = (1, −1). One step in, m̂ = g and v̂ = g², so m̂/(√v̂ + 1) = (1/2, −1/2).
       u = (1/2, −1/2) + (6, 8)/4 = (2, 3/2). ‖w‖ = 10, ‖u‖ = 5/2, ratio 4.
       w = (6, 8) − 4/8 · (2, 3/2) = (5, 7.25).
    2. g = (1, 5/2). m = (1, −1)/4 + (1, 5/2)/2 = (3/4, 1) and m̂ = m/(3/4) = (1, 4/3).
       v = 3/16 + (1, 25/4)/4 = (7/16, 28/16) and v̂ = v/(7/16) = (1, 4), √v̂ = (1, 2).
       u = (1/2, 4/9) + (5, 7.25)/4 = (1.75, 2.256944).
       ‖w‖ = √77.5625 = 8.806957, ‖u‖ = √(3.0625 + 5.093798) = 2.855923, ratio 3.083751.
       w = (5, 7.25) − 0.385469 · (1.75, 2.256944) = (4.325429, 6.380018).
    """
    w = parameter(6.0, 8.0)
    optimizer = Lamb([w], lr=1 / 8, betas=(1 / 2, 3 / 4), eps=1.0, weight_decay=1 / 4)
    step(optimizer, [1.0, -1.0])
    assert w.tolist() == [5.0, 7.25]
    step(optimizer, [1.0, 2.5])
    assert w.tolist() == pytest.approx([4.325429, 6.380018], abs=1e-6)


def second_lamb(w, gradients, lr, betas, eps, decay, ratio):
    """No running moments: m̂ and v̂ are weighted means of every gradient so far, weights βᵗ⁻ⁱ."""
    for t in range(1, len(gradients) + 1):
        past, age = np.stack(gradients[:t]), np.arange(t)[::-1]
        mean = np.average(past, axis=0, weights=betas[0] ** age)
        square = np.average(past**2, axis=0, weights=betas[1] ** age)
        direction = mean / (np.sqrt(square) + eps) + decay * w
        length = math.sqrt((w**2).sum() / (direction**2).sum()) if ratio else 1.0
        w = w - lr * length * direction
    return w


@pytest.mark.parametrize("ratio", [True, False])
def test_a_second_implementation_agrees_over_20_steps_with_options_by_group(ratio):
    random = np.random.default_rng(0)
    shapes = [(5, 4), (7,), (3, 2, 3, 3), ()]
    start = [random.normal(size=shape) for shape in shapes]
    gradients = [
        [random.normal(size=shape) * 10.0 ** (i - 2) for _ in range(20)] for i, shape in enumerate(shapes)
    ]
    options = [(1e-2, (0.9, 0.999), 1e-6, 1e-5), (0.1, (0.5, 0.9), 1e-3, 0.0)] * 2
    names = ("lr", "betas", "eps", "weight_decay")
    groups = [
        {"params": [torch.nn.Parameter(torch.tensor(w))], **dict(zip(names, option, strict=True))}
        for w, option in zip(start, options, strict=True)
    ]
    optimizer = Lamb(groups, trust_ratio=ratio)
    for now in zip(*gradients, strict=True):
        step(optimizer, *now)
    for group, w, past, option in zip(groups, start, gradients, options, strict=True):
        expected = second_lamb(w, past, *option, ratio)
        np.testing.assert_allclose(group["params"][0].detach().numpy(), expected, rtol=1e-12)


def test_without_the_ratio_it_is_adamw():
    torch.manual_seed(0)
    start, gradients = torch.randn(6, 5, dtype=torch.float64), torch.randn(20, 6, 5, dtype=torch.float64)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    lamb = Lamb([ours], lr=0.01, weight_decay=0.1, trust_ratio=False)
    adamw = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1, eps=1e-6)
    for gradient in gradients:
        step(lamb, gradient)
        step(adamw, gradient)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


def test_the_ratio_is_1_for_a_weight_of_zeros_and_for_an_update_of_zeros():
    zero, still = parameter(0.0, 0.0), parameter(3.0, 4.0)
    optimizer = Lamb([zero, still], lr=0.1, eps=0.5, weight_decay=0.0)
    step(optimizer, [0.5, -0.5], [0.0, 0.0])
    assert zero.tolist() == [-0.05, 0.05]  # u = 0.5/(0.5 + 0.5)
    assert still.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_ratio_makes_a_scalar_step_multiplicative_whatever_the_gradient(scale, sign):
    sigma = scalar(0.7)
    optimizer = Lamb([sigma], lr=0.01, weight_decay=0.0)
    for _ in range(5):
        step(optimizer, sign * scale)
    assert sigma.item() == pytest.approx(0.7 * (1 - sign * 0.01) ** 5, rel=1e-12)


def temperature_after(steps, lr, trust_ratio):
    """Four pairs of near twins, one of them mislabelled: of each text's two candidates 3 in 4 are right.

    Apart from the twin all lie at cosine 0. So the best σ has sigmoid(gap/σ) = 3/4, or σ = gap/ln 3; the
    gap between cosine 1 and the twin's is ln 3/64, and the best σ 1/64 (the others then weigh e⁻⁶⁴).
    """
    angle = math.acos(1 - math.log(3) / 64)
    twins = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    texts = torch.block_diag(*[twins] * 4)  # (8, 8)
    images = texts[[1, 0, 2, 3, 4, 5, 6, 7]]
    sigma = scalar(1.0)
    optimizer = Lamb([sigma], weight_decay=0.0, trust_ratio=trust_ratio)
    for t in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - t / steps)
        optimizer.zero_grad()
        contrastive_loss(texts, images, sigma, label_smoothing=0.0).backward()
        optimizer.step()
    return sigma.item()


def test_a_short_run_takes_the_temperature_to_a_64th_without_the_ratio_and_not_with_it():
    # Σ lr = 1.5: more than the 1 that steps of lr need, less than the ln 64 = 4.16 that factors 1 − lr need.
    assert temperature_after(300, 0.01, trust_ratio=False) == pytest.approx(1 / 64, rel=1e-3)
    assert temperature_after(300, 0.01, trust_ratio=True) == pytest.approx(math.exp(-1.5), rel=0.02)


def test_a_run_resumed_from_its_saved_state_ends_in_the_same_bits():
    torch.manual_seed(0)
    inputs = torch.randn(12, 16, 8)
    start = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).state_dict()

    def resume(weights, state=None):
        model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        model.load_state_dict(weights)
        optimizer = Lamb([{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters()}])
        if state:
            optimizer.load_state_dict(state)
        return model, optimizer

    def run(model, optimizer, batches):
        for batch in batches:
            optimizer.zero_grad()
            model(batch).square().sum().backward()
            optimizer.step()

    straight, optimizer = resume(start)
    run(straight, optimizer, inputs)
    half, before = resume(start)
    run(half, before, inputs[:6])
    file = io.BytesIO()
    torch.save((half.state_dict(), before.state_dict()), file)
    file.seek(0)
    again, after = resume(*torch.load(file, weights_only=True))
    assert str(after.state_dict()) == str(before.state_dict())
    run(again, after, inputs[6:])
    for name, weight in straight.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    for p, q in zip(straight.parameters(), again.parameters(), strict=True):
        assert optimizer.state[p]["step"] == after.state[q]["step"] == 12
        assert all(torch.equal(optimizer.state[p][key], after.state[q][key]) for key in "mv")


def test_a_parameter_without_a_gradient_is_left_alone():
    w, unused = parameter(3.0, 4.0), parameter(1.0)
    optimizer = Lamb([w, unused], lr=0.1, weight_decay=0.5)
    step(optimizer, [1.0, 1.0], None)
    assert unused.item() == 1.0 and unused not in optimizer.state and w[0] < 3


def test_a_closure_is_called_with_gradients_on_and_its_loss_returned():
    w = parameter(3.0, 4.0)
    optimizer = Lamb([w], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = w.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 25.0
    assert w.norm() < 5


def test_a_sparse_gradient_is_refused():
    table = torch.nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="dense gradients"):
        Lamb(table.parameters()).step()


BAD = {
    "lr": (dict(lr=-1e-3), "lr must be at least 0 and finite, not -0.001"),
    "lr NaN": (dict(lr=math.nan), "lr must be at least 0 and finite, not nan"),
    "lr infinite": (dict(lr=math.inf), "lr must be at least 0 and finite, not inf"),
    "eps": (dict(eps=-1.0), "eps must be at least 0 and finite, not -1.0"),
    "weight_decay": (dict(weight_decay=-0.1), "weight_decay must be at least 0 and finite, not -0.1"),
    "beta 1": (dict(betas=(1.0, 0.9)), r"betas must be two numbers in \[0, 1\), not \(1.0, 0.9\)"),
    "beta 2": (dict(betas=(0.9, -0.1)), r"betas must be two numbers in \[0, 1\), not \(0.9, -0.1\)"),
    "one beta": (dict(betas=(0.9,)), r"betas must be two numbers in \[0, 1\), not \(0.9,\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_option_is_a_value_error_naming_the_value_for_all_or_for_one_group(name):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        Lamb([parameter(1.0)], **options)
    with pytest.raises(ValueError, match=message):
        Lamb([{"params": [parameter(1.0)], **options}])


@pytest.fixture(scope="module")
def emoji():
    torch.manual_seed(0)
    return AlignModel(AlignConfig.preset("emoji"))


def test_every_parameter_is_in_one_group_and_only_batch_norm_and_the_temperature_are_exempt(emoji):
    groups = {group["name"]: group for group in parameter_groups(emoji, weight_decay=1e-5)}
    assert {n: (g["weight_decay"], g["trust_ratio"]) for n, g in groups.items()} == {
        "weights": (1e-5, True),
        "batch_norm": (0.0, False),
        "temperature": (0.0, False),
    }
    grouped = [id(p) for group in groups.values() for p in group["params"]]
    assert len(grouped) == len(set(grouped)) and set(grouped) == {id(p) for p in emoji.parameters()}
    # By name, as the groups are not: every BatchNorm here is some ConvNorm's `bn`.
    names = {id(p): name for name, p in emoji.named_parameters()}
    members = {name: {names[id(p)] for p in group["params"]} for name, group in groups.items()}
    assert members["temperature"] == {"temperature"}
    assert members["batch_norm"] == {name for name in names.values() if ".bn." in name}
    assert any("norm" in name and name.startswith("text_model.") for name in members["weights"])
    assert any(name.endswith(".bias") for name in members["weights"])


def test_frozen_parameters_are_in_no_group(emoji):
    emoji.temperature.requires_grad_(False)
    emoji.vision_model.requires_grad_(False)
    try:
        (group,) = parameter_groups(emoji, weight_decay=0.1)
    finally:
        emoji.requires_grad_(True)
    assert group["name"] == "weights"
    text = [*emoji.text_model.parameters(), *emoji.text_projection.parameters()]
    assert {id(p) for p in group["params"]} == {id(p) for p in text}


def test_the_groups_serve_lamb_and_adamw_alike(emoji):
    for optimizer in (Lamb, torch.optim.AdamW):
        groups = optimizer(parameter_groups(emoji, weight_decay=0.1), lr=1e-3).param_groups
        assert [group["weight_decay"] for group in groups] == [0.1, 0.0, 0.0]
