"""A batch of 16,384 pairs (ALIGN, 5) on any machine: the loss in tiles, over processes, and in chunks.

A contrastive loss cannot be cut into small batches: each pair is compared with every other, and those
negatives are what a large batch is for. Three things grow with it, and each has its own way out.

1. The B×B logits (Inf-CL, arXiv 2410.17243). Only their row and column sums are needed, and a sum can run:

       a tile:  m' = max(m, max_j s_j),  z' = z·exp(m − m') + Σ_j exp(s_j − m');  at last  m + log z

   One block of s = text·imageᵀ/σ serves the rows (text to image) and the columns (image to text). The block
   is then thrown away, and computed again for the gradient: 4 matrix products where the plain loss has 3.

2. The pairs themselves, spread over processes. Each rank holds its own texts' rows against the images of all
   ranks (open_clip calls this `local_loss`), so its memory is linear in the whole batch. An image is a
   negative on every rank: its gradient is the sum over ranks. Forgetting that is the usual mistake.

3. The towers' activations (GradCache, Gao et al. 2021, arXiv 2101.06983). The loss knows the towers only by
   the embeddings e. So: (1) embed everything without a graph, (2) compute dL/de, (3) embed chunk by chunk
   again and back-propagate dL/de · de/dθ, which takes the graph of one chunk. Adding up the gradients of the
   chunks' own losses would be something else: each pair would meet fewer negatives.

x is an image and y a text, as in the paper; s_ij is the score of text i and image j.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
import torch.distributed as dist
import torch.nn as nn
from torch import Tensor


def tiles(start: int, length: int, tile: int) -> list[slice]:
    """Cut `length` positions, from `start`, into pieces of `tile`; the last may be shorter.

    >>> tiles(10, 5, 2)
    [slice(10, 12, None), slice(12, 14, None), slice(14, 15, None)]
    """
    return [slice(start + i, start + min(i + tile, length)) for i in range(0, length, tile)]


def add_exponentials(s: Tensor, dim: int, m: Tensor, z: Tensor) -> None:
    """Take one block of logits into the running maximum m and sum z = Σ exp(s − m) along `dim`, in place.

    >>> m, z = torch.tensor([-torch.inf]), torch.zeros(1)
    >>> for block in torch.tensor([[[1.0, 2.0]], [[5.0, 0.0]]]):
    ...     add_exponentials(block, 1, m, z)
    >>> m + z.log(), torch.tensor([[1.0, 2.0, 5.0, 0.0]]).logsumexp(1)
    (tensor([5.0722]), tensor([5.0722]))
    """
    larger = torch.maximum(m, s.amax(dim))
    z.mul_(torch.exp(m - larger)).add_((s - larger.unsqueeze(dim)).exp_().sum(dim))
    m.copy_(larger)


class TiledLoss(torch.autograd.Function):
    """The loss of this rank's texts y = text/σ (b, D) and images x (b, D) among the N pairs of all ranks.

        s_ij = y_i·x_j,  L = 1/2N [Σ_i log Σ_j exp(s_ij) + Σ_j log Σ_i exp(s_ij)] − Σ_ij q_ij s_ij / N
        dL/ds_ij = [P_ij + Q_ij − 2 q_ij] / 2N

    with P the softmax along rows, Q along columns, q_ij = ε/N, and 1 − ε more where i = j. Division by σ is
    left outside, to autograd. `sizes` are the ranks' numbers of pairs; just [b] if there is one process.

    >>> pairs = torch.eye(4)
    >>> TiledLoss.apply(pairs, pairs, 0.1, 3, [4], 0)  # ε, the tile's size, `sizes` and this rank
    tensor(0.8187)
    """

    @staticmethod
    def forward(ctx, y: Tensor, x: Tensor, epsilon: float, tile: int, sizes: list[int], rank: int) -> Tensor:
        b, N, first = len(y), sum(sizes), sum(sizes[:rank])
        own, x = slice(first, first + b), gather(x, sizes, rank)  # x: (N, D)
        # Cut so that no tile has images of two ranks: a pair's own logit is then on a tile's diagonal.
        starts = [sum(sizes[:r]) for r in range(len(sizes))]
        columns = [c for start, size in zip(starts, sizes, strict=True) for c in tiles(start, size, tile)]
        row_m, row_z = y.new_full((b,), -torch.inf), y.new_zeros(b)
        column_m, column_z = y.new_full((N,), -torch.inf), y.new_zeros(N)
        positive = y.new_empty(b)  # s_ii
        for r in tiles(0, b, tile):
            for c in columns:
                s = y[r] @ x[c].T  # (≤ tile, ≤ tile)
                add_exponentials(s, 1, row_m[r], row_z[r])
                add_exponentials(s, 0, column_m[c], column_z[c])
                if c.start == first + r.start:
                    positive[r] = s.diagonal()
        if len(sizes) > 1:  # a column runs through all ranks
            local = column_m.clone()
            dist.all_reduce(column_m, dist.ReduceOp.MAX)
            column_z.mul_(torch.exp(local - column_m))
            dist.all_reduce(column_z)
        both = row_z.log() + (row_m - positive) + column_z[own].log() + (column_m[own] - positive)  # (b,)
        smoothing = positive.sum() - y.sum(0) @ x.sum(0) / N  # Σ_j s_ij = y_i · Σ_j x_j: no tile is needed
        loss = (both.sum() / 2 + epsilon * smoothing) / N
        if len(sizes) > 1:
            dist.all_reduce(loss)
        ctx.save_for_backward(y, x, row_m, row_z, column_m, column_z)
        ctx.epsilon, ctx.tile, ctx.columns, ctx.own, ctx.ranks = epsilon, tile, columns, own, len(sizes)
        return loss

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        if torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError("the tiled loss has no second derivative; the plain one has")
        y, x, row_m, row_z, column_m, column_z = ctx.saved_tensors
        N, (dy, dx) = len(x), (torch.zeros_like(y), torch.zeros_like(x))
        minus_smoothing = y.new_tensor(-2 * ctx.epsilon / max(N, 1))
        for r in tiles(0, len(y), ctx.tile):
            for c in ctx.columns:
                s = y[r] @ x[c].T  # again, and now with the sums over all tiles known
                P = (s - row_m[r, None]).exp_()
                ds = torch.addcmul(minus_smoothing, P, 1 / row_z[r, None], out=P)
                Q = s.sub_(column_m[c]).exp_()
                ds.addcmul_(Q, 1 / column_z[c])
                if c.start == ctx.own.start + r.start:
                    ds.diagonal().sub_(2 * (1 - ctx.epsilon))
                dy[r].addmm_(ds, x[c])
                dx[c].addmm_(ds.T, y[r])
        if ctx.ranks > 1:
            dist.all_reduce(dx)  # each rank has the share of its own rows
        scale = grad * ctx.ranks / (2 * N)  # times the ranks: DistributedDataParallel divides by them
        return dy.mul_(scale), dx[ctx.own] * scale, None, None, None, None


def gather(x: Tensor, sizes: list[int], rank: int) -> Tensor:
    """The rows of all ranks, in their order. (b, D) → (N, D).

    As a sum of tensors that are zero outside a rank's own rows, because ranks may hold different numbers of
    them; for the same reason `backward` above sums, and takes its own rows.

    >>> gather(torch.zeros(4, 2), sizes=[4], rank=0).shape  # one process
    torch.Size([4, 2])
    """
    if len(sizes) == 1:
        return x
    everything = x.new_zeros(sum(sizes), x.shape[1])
    everything[sum(sizes[:rank]) :][: len(x)] = x
    dist.all_reduce(everything)
    return everything


def tiled_loss(
    text_embeds: Tensor,
    image_embeds: Tensor,
    temperature: Tensor | float,
    label_smoothing: float,
    tile: int | None,
    distributed: bool,
) -> Tensor:
    """`contrastive_loss`, which has checked the other arguments, with tile or distributed. → scalar.

    tile is 1024 if not given. distributed: every rank of the default process group must call this, with its
    own b ≥ 0 pairs; each gets the loss of all pairs, and gradients whose mean over the ranks is the whole
    batch's.

    Raises ValueError if tile is not a whole number from 1 up; RuntimeError if there is no process group, or
    when a second derivative is asked for.

    >>> pairs = torch.eye(4)
    >>> tiled_loss(pairs, pairs, temperature=1.0, label_smoothing=0.0, tile=3, distributed=False)
    tensor(0.7437)
    """
    tile = 1024 if tile is None else tile
    if not isinstance(tile, int) or tile < 1:
        raise ValueError(f"tile must be a whole number of at least 1, not {tile!r}")
    sizes, rank = [len(text_embeds)], 0
    if distributed:
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError("distributed=True needs torch.distributed.init_process_group first")
        rank = dist.get_rank()
        counts = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=text_embeds.device)
        counts[rank] = len(text_embeds)
        dist.all_reduce(counts)
        sizes = counts.tolist()
    return TiledLoss.apply(text_embeds / temperature, image_embeds, label_smoothing, tile, sizes, rank)


def random_state(device: torch.device) -> list[Tensor]:
    """The generators' states that a pass on `device` draws from: the CPU's, and the device's own.

    >>> len(random_state(torch.device("cpu")))
    1
    """
    if device.type == "cuda":
        return [torch.get_rng_state(), torch.cuda.get_rng_state(device)]
    if device.type == "mps":
        return [torch.get_rng_state(), torch.mps.get_rng_state()]
    return [torch.get_rng_state()]


def set_random_state(device: torch.device, state: list[Tensor]) -> None:
    """Put back what `random_state` returned.

    >>> cpu = torch.device("cpu")
    >>> state, drawn = random_state(cpu), torch.rand(3)
    >>> set_random_state(cpu, state)
    >>> torch.equal(torch.rand(3), drawn)
    True
    """
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
    if device.type == "mps":
        torch.mps.set_rng_state(state[1])


def backward_in_chunks(
    encode: nn.Module,
    chunks: Sequence,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    one_pass: bool | None = None,
) -> Tensor:
    """The gradient of one loss over all chunks, added to `.grad`, in the memory of one chunk. → the loss.

    encode(chunk) → text (b, D), image (b, D), temperature (); it may be wrapped in DistributedDataParallel,
    and autocast belongs inside it. loss(text, image, temperature) → scalar, on all rows. What is random in a
    chunk (dropout, drop-connect) falls the same way in both passes; buffers (BatchNorm's running statistics)
    change in the second alone. So all is as in one pass with every chunk's graph kept: dL/dθ =
    Σ_chunks dL/de · de/dθ, and BatchNorm's batch is the chunk.

    one_pass: a single chunk whose graph is kept needs no second pass (None: one pass if there is one chunk).
    Over processes every rank must say the same, whatever its own number of chunks: in one pass the ranks meet
    in the encoder before they meet in the loss, in two passes the other way round, and ranks that do not meet
    wait for each other without end.

    Raises ValueError if there are no chunks, or several for one pass.

    >>> class Towers(nn.Linear):
    ...     def forward(self, x):
    ...         return super().forward(x), x, torch.tensor(1.0)
    >>> towers = Towers(4, 4)
    >>> def loss(text, image, temperature):
    ...     return (text * image).sum() / temperature
    >>> backward_in_chunks(towers, torch.eye(4).split(3), loss).shape, towers.bias.grad
    (torch.Size([]), tensor([1., 1., 1., 1.]))
    """
    if len(chunks) == 0:
        raise ValueError("backward_in_chunks needs at least one chunk")
    if one_pass and len(chunks) > 1:
        raise ValueError(f"one pass takes one chunk, not {len(chunks)}")
    if len(chunks) == 1 if one_pass is None else one_pass:
        value = loss(*encode(chunks[0]))
        value.backward()
        return value.detach()
    bare = getattr(encode, "module", encode)  # under DistributedDataParallel: no collectives in this pass
    device = next(bare.parameters()).device
    buffers = [buffer.clone() for buffer in bare.buffers()]
    states, outputs = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(random_state(device))
            outputs.append(bare(chunk))
        for buffer, before in zip(bare.buffers(), buffers, strict=True):
            buffer.copy_(before)
    texts, images, temperatures = zip(*outputs, strict=True)
    leaves = [torch.cat(texts), torch.cat(images), temperatures[0].clone()]  # the (B, D) embeddings, and σ
    value = loss(*(leaf.requires_grad_() for leaf in leaves))
    d_text, d_image, d_temperature = torch.autograd.grad(value, leaves)
    d_texts, d_images = d_text.split([len(t) for t in texts]), d_image.split([len(i) for i in images])
    for i, chunk in enumerate(chunks):
        last = i == len(chunks) - 1
        set_random_state(device, states[i])
        # The ranks exchange gradients once, in the last backward; σ enters the loss once, not once a chunk.
        with nullcontext() if last or bare is encode else encode.no_sync():
            gradients = d_texts[i], d_images[i], d_temperature * last
            pairs = zip(encode(chunk), gradients, strict=True)
            torch.autograd.backward(*zip(*[(e, g) for e, g in pairs if e.requires_grad], strict=True))
    return value.detach()
