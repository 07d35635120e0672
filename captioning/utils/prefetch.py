"""Loading ahead: threads load items in their order while the caller works on earlier ones."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")

THREADS = min(8, os.cpu_count() or 1)


def prefetch(
    load: Callable[[Item], Loaded], items: Iterable[Item], *, ahead: int = THREADS
) -> Iterator[tuple[Item, Loaded]]:
    """Each item with the result of `load(item)`, which threads compute up to `ahead` items early."""
    with ThreadPoolExecutor(THREADS) as pool:
        waiting: deque[tuple[Item, Future[Loaded]]] = deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(load, item)))
                if len(waiting) > ahead:
                    item, future = waiting.popleft()
                    yield item, future.result()
            for item, future in waiting:
                yield item, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
