"""malloc settings that keep freed memory in the process, for programs that allocate tensors in a loop."""

from __future__ import annotations

import ctypes
import sys

from captioning.ops.cpu_kernels import probe

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> None:
    """Tell glibc's malloc to keep large freed blocks instead of returning them to the system.

    By default each large tensor of a training step is mapped and paged in anew. Does nothing without glibc.
    """
    if not probe.ENABLED or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none
        mallopt(_MMAP_THRESHOLD, 32 << 20)  # the largest value it accepts
        mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
