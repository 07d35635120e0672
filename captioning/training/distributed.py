"""Distributed training: the processes that torchrun started, or a single one."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
from torch import distributed

from captioning.errors import UserError

Item = TypeVar("Item")
_BROKEN = re.compile(r"gloo|NCCL|[Cc]onnection (closed|reset|refused)|[Bb]roken pipe")
_PROBE_S = 5.0
_listeners: list[socket.socket] = []  # open until the process ends


class Peer(NamedTuple):
    """A process of the run, with a port on which it listens for as long as it exists."""

    rank: int
    host: str
    address: str
    port: int

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}"

    def alive(self) -> bool:
        """Whether the system of that process accepts a connection for it, however busy the process is."""
        try:
            with socket.create_connection((self.address, self.port), timeout=_PROBE_S):
                return True
        except OSError:
            return False


class World(NamedTuple):
    """This process's rank among the `size` processes of a run."""

    rank: int = 0
    size: int = 1
    peers: Sequence[Peer] = ()  # all processes, this one included

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

    @contextlib.contextmanager
    def explain_lost_process(self) -> Iterator[None]:
        """Turn a connection that broke inside the block into a UserError that names the ended process and its host."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not _BROKEN.search(str(error)):
                raise
            deadline = time.monotonic() + _PROBE_S  # a process may end a little after its connection
            while not (lost := [str(peer) for peer in self.peers if not peer.alive()]):
                if time.monotonic() > deadline:
                    break
                time.sleep(0.2)
            raise UserError(
                f"{' and '.join(lost) or 'another rank'} ended or cannot be reached (noticed by "
                f"{self.peers[self.rank]}); the output of the first that ended says why: mend that and start all "
                "processes with --resume"
            ) from None

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
    rank = distributed.get_rank()
    peers: list[Any] = [None] * size
    distributed.all_gather_object(peers, _listen(rank))
    return World(rank, size, peers)


@functools.cache
def _listen(rank: int) -> Peer:
    """Listen on a free port, until this process ends; nothing is ever received."""
    family, kind, _, _, first = socket.getaddrinfo(os.environ["MASTER_ADDR"], 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as route:
        route.connect(first)  # sends nothing
        address = route.getsockname()[0]
    _listeners.append(socket.create_server((address, 0), family=family))
    return Peer(rank, socket.gethostname(), address, _listeners[-1].getsockname()[1])


def local_device(device: torch.device) -> torch.device:
    """`cuda` as the GPU with this process's local rank."""
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    return device


def _collective_device() -> Any:
    return torch.device("cuda", torch.cuda.current_device()) if distributed.get_backend() == "nccl" else "cpu"
