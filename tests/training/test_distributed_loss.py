"""Two processes against one: the mean of the ranks' gradients is the gradient of the whole batch."""

import gc
import time

import pytest
import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from align_minimal import contrastive_loss
from align_minimal.training.large_batch import backward_in_chunks
from tests.reference.parity import assert_close, assert_gradients_close, gradients, relative_error

SPLITS = {"equal": (6, 6), "unequal": (7, 5), "one rank without pairs": (0, 12)}
TILES = {"untiled": None, "tiled": 2}


class Towers(nn.Module):
    """Two small towers and the temperature. A chunk, (b, 2, 5), → text, image (b, 4), temperature ()."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        draw = lambda *shape: nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))  # noqa: E731
        self.text, self.image = draw(5, 4), draw(5, 4)
        self.temperature = nn.Parameter(torch.tensor(0.2, dtype=torch.float64))

    def forward(self, pairs):
        text, image = pairs.unbind(1)
        return (
            F.normalize(text @ self.text, dim=-1),
            F.normalize(image @ self.image, dim=-1),
            self.temperature,
        )


def whole_batch():
    return torch.randn(12, 2, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def naive(text, image, temperature):
    """All pairs, but no gradient through the other ranks': the mistake of open_clip's issue 616."""
    everyone = []
    for x in (text, image):
        others = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(others, x.detach().contiguous())
        others[dist.get_rank()] = x
        everyone.append(torch.cat(others))
    return contrastive_loss(*everyone, temperature)


def work(rank, ranks, folder):
    """One rank: every way of the loss, through DistributedDataParallel; values and gradients to a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    results = {}

    def note(name, run):
        net = DistributedDataParallel(Towers())
        results[name] = run(net).detach(), gradients(net.module)

    def plainly(loss, local):
        def run(net):
            value = loss(*net(local))
            value.backward()
            return value

        return run

    for split, sizes in SPLITS.items():
        local = whole_batch().split(sizes)[rank]
        for tiling, tile in TILES.items():
            loss = lambda *e, tile=tile: contrastive_loss(*e, tile=tile, distributed=True)  # noqa: E731
            note((split, tiling), plainly(loss, local))
    local = whole_batch().split(SPLITS["equal"])[rank]
    note("naive", plainly(naive, local))
    chunks = local.split(2 + rank)  # three chunks here, two there
    note("chunks", lambda net: backward_in_chunks(net, chunks, loss))
    torch.save(results, f"{folder}/{rank}.pt")
    gc.collect()  # wrappers in cycles: one that outlives its group can abort the process
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    context = torch.multiprocessing.spawn(work, (2, str(folder)), nprocs=2, join=False)
    deadline = time.monotonic() + 300  # ranks that wait for each other would do so for ever
    try:
        while not context.join(timeout=5):
            assert time.monotonic() < deadline, "the two processes wait for each other"
    finally:
        for process in context.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def whole():
    net = Towers()
    loss = contrastive_loss(*net(whole_batch()))
    loss.backward()
    return loss.detach(), gradients(net)


CASES = [(split, tiling) for split in SPLITS for tiling in TILES] + ["chunks"]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_processes_have_the_loss_and_gradients_of_one(case, ranks, whole):
    for result in ranks:  # DistributedDataParallel has taken the mean of the gradients
        value, grads = result[case]
        assert_close(value, whole[0], 1e-9, "loss")
        assert_gradients_close(grads, whole[1], 1e-9)


def test_without_the_gradient_through_the_gathered_embeddings_it_would_be_another(ranks, whole):
    value, grads = ranks[0]["naive"]
    assert_close((value + ranks[1]["naive"][0]) / 2, whole[0], 1e-9, "the value does not show it")
    assert relative_error(grads["text"], whole[1]["text"]) > 1e-2
    assert relative_error(grads["image"], whole[1]["image"]) > 1e-2


def test_a_group_of_one_is_the_plain_loss(tmp_path, whole):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        net = Towers()
        loss = contrastive_loss(*net(whole_batch()), distributed=True)
        loss.backward()
    finally:
        dist.destroy_process_group()
    assert_close(loss, whole[0], 1e-12)
    assert_gradients_close(gradients(net), whole[1], 1e-10)
