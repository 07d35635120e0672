"""Several processes that train one model, launched by torchrun; alone where there is one. Knows no model."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
from torch import distributed

Value = TypeVar("Value")


class World(NamedTuple):
    """This process among `size` processes that train together."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Of the process that writes files and talks to the user."""
        return self.rank == 0

    def shard(self, items: Any) -> Any:
        """This process's share of a sequence or an array: every `size`-th from `rank` on."""
        return items[self.rank :: self.size]

    def all_reduce(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the processes, in float64."""
        if self.size == 1:
            return [float(value) for value in values]
        total = torch.tensor(values, dtype=torch.float64, device=_device())
        distributed.all_reduce(total)
        return total.tolist()

    def gather(self, items: list[Value]) -> list[Value]:
        """What `shard` divided, put together again in its order; `items` is what this process made of its share."""
        if self.size == 1:
            return items
        parts: list[list[Value]] = [[] for _ in range(self.size)]
        distributed.all_gather_object(parts, items)
        return [parts[i % self.size][i // self.size] for i in range(sum(map(len, parts)))]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            distributed.barrier()

    def leave(self) -> None:
        """End the group, at the ordinary end of a process and as its last use of the others.

        Without it a thread of gloo's may still hold a tensor as the interpreter ends, and aborts the process. After
        an error it is left out: it could wait for processes that are gone.
        """
        if self.size > 1:
            gc.collect()  # a model spread over processes holds the group as well
            distributed.destroy_process_group()


def join(device: torch.device) -> World:
    """Take the place that torchrun's environment names; a world of one without it."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    if not distributed.is_initialized():
        patience = timedelta(hours=12)  # the first process may be drawing or encoding a data set meanwhile
        store, rank, size = next(distributed.rendezvous("env://", timeout=patience))
        # torchrun's restarts share one store: without a prefix an address of a process that is dead may be read
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=distributed.PrefixStore(f"attempt-{attempt}", store),
            rank=rank,
            world_size=size,
            timeout=patience,
        )
    return World(rank=distributed.get_rank(), size=size)


def local_device(device: torch.device) -> torch.device:
    """`cuda` becomes the GPU of this process's number on its machine."""
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    return device


def _device() -> Any:
    return torch.device("cuda", torch.cuda.current_device()) if distributed.get_backend() == "nccl" else "cpu"
