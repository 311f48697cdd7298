"""Telling the C library's allocator to keep the pages that a training step will need again."""

from __future__ import annotations

import ctypes
import sys

# Parameters of mallopt(3).
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
KEEP = 2**31 - 1
GROW_BY = 64 * 2**20


def keep_freed_pages() -> bool:
    """Stop glibc from returning large blocks to the system; whether it could be told.

    By default every tensor above 32 MiB is a fresh mapping, whose pages the kernel clears one by
    one at each step. ``python benchmarks/allocator.py`` shows what that costs.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    settings = ((M_MMAP_THRESHOLD, KEEP), (M_TRIM_THRESHOLD, KEEP), (M_TOP_PAD, GROW_BY))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
