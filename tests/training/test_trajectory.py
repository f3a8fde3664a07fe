"""Training follows Hugging Face's: the same losses and running statistics, step by step."""

import pytest
import torch

from align_minimal import AlignConfig, AlignModel
from align_minimal.checkpoint import hugging_face_key
from tests.reference.parity import assert_close, copy_to_hugging_face, healthy

STEPS = 20


def tiny() -> AlignConfig:
    """Dropout and drop-connect off: the reference draws other random numbers, and drops elements."""
    text = dict(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    text |= dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    vision = dict(width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=80, drop_connect_rate=0.0)
    config = dict(text_config=text, vision_config=vision, projection_dim=80, temperature_init_value=0.5)
    return AlignConfig(**config)


def train(model: torch.nn.Module, ids: torch.Tensor, pixels: torch.Tensor) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9)
    losses = []
    for step in range(STEPS):
        batch = slice(8 * (step % 2), 8 * (step % 2) + 8)
        loss = model(input_ids=ids[batch], pixel_values=pixels[batch], return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_twenty_steps_follow_the_reference_s_loss_and_running_statistics():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    ids, pixels = torch.randint(1, 50, (16, 7)), torch.randn(16, 3, 33, 33)
    config = tiny()
    ours = healthy(AlignModel(config), sample=pixels).train()
    theirs = transformers.AlignModel(transformers.AlignConfig(**config.to_dict()))
    copy_to_hugging_face(ours, theirs)
    for model in (ours, theirs):  # theirs has 0.99 in PyTorch's sense, and 0.1 in the expansions
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 0.1
    start = {n: b.clone() for n, b in ours.named_buffers()}
    a, b = train(ours, ids, pixels), train(theirs, ids, pixels)
    assert a[-1] < 0.9 * a[0], f"nothing was learnt: {a[0]} to {a[-1]}"
    assert_close(torch.tensor(a), torch.tensor(b), 1e-4, "losses")
    expected = dict(theirs.named_buffers())
    for name, buffer in ours.named_buffers():
        if "running" in name:
            assert_close(buffer, expected[hugging_face_key(name)], 1e-4, name)
            assert not torch.equal(buffer, start[name]), f"{name} never moved"
