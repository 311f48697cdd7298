"""This machine, read from the operating system alone: its processor, memory and graphics cards."""

from __future__ import annotations

import functools
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16")
"""Those for which oneDNN has bfloat16 kernels (torch.cpu asks for the same two)."""


@functools.cache
def cpu_name() -> str:
    """As the processor calls itself, or its architecture where it does not say."""
    named = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return named[1].strip() if named else platform.processor() or platform.machine()


@functools.cache
def bf16_instructions() -> tuple[str, ...]:
    """Which of ``BF16_INSTRUCTIONS`` the processor has."""
    flags = re.search(r"^flags\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return tuple(name for name in BF16_INSTRUCTIONS if flags and name in flags[1].split())


def cores() -> int:
    """Logical processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """Physical memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_limit_bytes(root: Path = Path("/")) -> int | None:
    """The lowest limit of the control groups that this process is in, or None without one.

    A container's limit ends a process long before physical memory does.
    """
    limits = [int(text) for text in _memory_limits(root) if text.isdigit()]
    return min(limits, default=None)


def _memory_limits(root: Path) -> Iterator[str]:
    """What the limit files say, of version 1 and 2, from the process's own group up to the root."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        mount, name = root / "sys/fs/cgroup", "memory.max"
        if controllers:
            mount, name = mount / "memory", "memory.limit_in_bytes"
        group = Path(path.lstrip("/"))
        for folder in (group, *group.parents):
            yield _read(mount / folder / name).strip()


def gpu_names(root: Path = Path("/")) -> list[str]:
    """NVIDIA cards as their driver calls them; no library is loaded for it."""
    folders = sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))
    models = (re.search(r"^Model:\s*(.+)$", _read(path), re.MULTILINE) for path in folders)
    return [model[1].strip() for model in models if model]


def _read(path: str | Path) -> str:
    """A file of the system; empty where this system has none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
