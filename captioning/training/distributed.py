"""Distributed training: the processes that torchrun started, or a single one."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
from torch import distributed

Item = TypeVar("Item")


class World(NamedTuple):
    """This process's rank among the `size` processes of a run."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and log lines."""
        return self.rank == 0

    def shard(self, items: Any) -> Any:
        """This process's share of a sequence or array: every `size`-th item, from `rank` on."""
        return items[self.rank :: self.size]

    def all_reduce(self, values: Sequence[float]) -> list[float]:
        """Sum each value over the processes, in float64."""
        if self.size == 1:
            return [float(value) for value in values]
        total = torch.tensor(values, dtype=torch.float64, device=_collective_device())
        distributed.all_reduce(total)
        return total.tolist()

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in some process."""
        return bool(self.all_reduce([flag])[0])

    def gather(self, items: list[Item]) -> list[Item]:
        """Reassemble, in every process and in the original order, a sequence divided by `shard`."""
        if self.size == 1:
            return items
        shards: list[list[Item]] = [[] for _ in range(self.size)]
        distributed.all_gather_object(shards, items)
        return [shards[i % self.size][i // self.size] for i in range(sum(map(len, shards)))]

    def wait(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            distributed.barrier()

    def leave(self) -> None:
        """Destroy the process group when the work has succeeded.

        Without it a gloo thread that still holds a tensor aborts the process as the interpreter ends. After an error
        it is not called, since it could wait for processes that have died.
        """
        if self.size > 1:
            gc.collect()  # a DDP module holds the group as well
            distributed.destroy_process_group()


def join(device: torch.device) -> World:
    """Join the process group described by torchrun's environment variables; without them, a world of one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    if not distributed.is_initialized():
        timeout = timedelta(hours=12)  # the first process may draw or encode a data set while the others wait
        store, rank, size = next(distributed.rendezvous("env://", timeout=timeout))
        # torchrun's restarts share one store: without a prefix, a dead process's address could be read
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=distributed.PrefixStore(f"attempt-{attempt}", store),
            rank=rank,
            world_size=size,
            timeout=timeout,
        )
    return World(rank=distributed.get_rank(), size=size)


def local_device(device: torch.device) -> torch.device:
    """`cuda` as the GPU with this process's local rank."""
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    return device


def _collective_device() -> Any:
    return torch.device("cuda", torch.cuda.current_device()) if distributed.get_backend() == "nccl" else "cpu"
