"""Keeps freed memory for the next tensor of its size. Knows nothing of captioning."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> None:
    """Tell glibc's malloc not to give large blocks back to the system: for a process that makes tensors in a loop.

    Otherwise each large tensor of a step is mapped and paged in anew. Where there is no glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none
        mallopt(_MMAP_THRESHOLD, 32 << 20)  # the most that it takes; larger blocks are mapped anew each time
        mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
