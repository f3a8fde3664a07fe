"""Several processes that train one model: who they are, what they tell each other, how they are stopped."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import itertools
import os
import signal
import warnings

import torch
import torch.distributed as dist

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # mallopt's, in malloc.h


@dataclasses.dataclass
class Processes:
    """This process among those that train together.

    >>> Processes().gather(2.5, 1), Processes().gather_lists(["a", "b"])
    ([[2.5, 1.0]], ['a', 'b'])
    """

    rank: int = 0
    world: int = 1
    device: str = "cpu"

    def gather(self, *numbers: float) -> list[list[float]]:
        """Every rank's numbers, on every rank."""
        if self.world == 1:  # without a tensor: MPS has no float64
            return [list(map(float, numbers))]
        own = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        everyone = [torch.zeros_like(own) for _ in range(self.world)]
        dist.all_gather(everyone, own)
        return [row.tolist() for row in everyone]

    def wait(self) -> None:
        """Go on when every rank is here."""
        self.gather(0)

    def gather_lists(self, items: list) -> list:
        """Every rank's items, as one list, on every rank."""
        lists = [items]
        if self.world > 1:
            lists = [None] * self.world
            dist.all_gather_object(lists, items)
        return list(itertools.chain(*lists))


def keep_freed_memory() -> None:
    """What one step frees stays with this process for the next one, where malloc can be told so (glibc).

    Otherwise malloc gives large blocks back to the operating system, which then has to map them anew, page by
    page, at every step: 5 to 15% of a step's time on a CPU.

    >>> keep_freed_memory()  # nothing to see here
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another system, or another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)  # no block is mapped by itself, to be unmapped when it is freed
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # bytes free at the end of the heap before it shrinks


@contextlib.contextmanager
def processes(device: str):
    """Join the process group if torchrun started this process, and leave it at the end.

    >>> with processes("cpu") as group:
    ...     group
    Processes(rank=0, world=1, device='cpu')
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        yield Processes(device=device)
        return
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    yield Processes(dist.get_rank(), world, device)
    # Not in a `finally`: where an error ended the run, the others may still be waiting.
    # A DistributedDataParallel lies in a circle of references. One that outlives its group can abort the
    # process or hang it: its destructor waits for a thread that waits for Python's lock (PyTorch 56297).
    gc.collect()
    dist.destroy_process_group()


@contextlib.contextmanager
def note_signals():
    """Yield a list, into which a SIGINT or SIGTERM puts its number.

    A second Ctrl-C acts as usual. A second SIGTERM does not: a supervisor may send it to the group of
    processes and then again to each of them.
    """
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, before[signal.SIGINT])

    for number in before:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, action in before.items():
            signal.signal(number, action)


def start_worker(number: int) -> None:
    """Workers ignore signals: only the main process handles them. One worker's warnings are enough."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    torch.set_num_threads(1)
    if number > 0:
        warnings.simplefilter("ignore")
