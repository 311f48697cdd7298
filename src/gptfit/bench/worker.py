"""The process of one contestant: it makes its model and answers questions until its input ends.

    python -m gptfit.bench.worker

The first line of standard input says who it is; the answers are lines on standard output.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from gptfit.bench.peers import Trained, enter
from gptfit.train.device import Device

MATMUL_SECONDS = 0.5


def main() -> None:
    """Answer on what was standard output; what models print goes where errors go."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        serve(sys.stdin, answers)
    except KeyboardInterrupt:
        sys.exit(130)  # who asks was interrupted too


def serve(questions: TextIO, answers: TextIO) -> None:
    """A line for each line."""

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    first = json.loads(questions.readline())
    trained = enter(first, Path(first["data"]), Path(first["weights"]))
    device = trained.device
    answer(
        threads=torch.get_num_threads(),
        device=device.name,
        device_kind=device.torch_device.type,
        notes=trained.notes,
    )
    number = 0
    for line in questions:
        question = json.loads(line)
        if "matmul" in question:
            answer(flops_per_second=matmul_rate(device))
            continue
        warm_up, count = question["warm_up"], question["count"]
        losses = take(trained, number, warm_up)
        synchronize(device)
        started = time.perf_counter()
        losses += take(trained, number + warm_up, count)
        synchronize(device)
        seconds = time.perf_counter() - started
        number += warm_up + count
        values = torch.stack(losses).tolist()
        answer(seconds=seconds, losses=values, peak_bytes=peak_bytes(device))
        if device.torch_device.type == "cuda":
            torch.cuda.empty_cache()  # the next contestant needs the room


def take(trained: Trained, first: int, count: int) -> list[Tensor]:
    """Steps one after the other; nothing waits for their losses."""
    return [trained.step(number) for number in range(first, first + count)]


def matmul_rate(device: Device) -> float:
    """FLOP/s of a large square matrix product in the device's precision, on random numbers."""
    size = 8192 if device.torch_device.type == "cuda" else 2048
    left, right = torch.randn(2, size, size, device=device.torch_device, dtype=device.dtype)
    left @ right
    synchronize(device)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < MATMUL_SECONDS:
        left @ right
        synchronize(device)
        count += 1
    return count * 2 * size**3 / (time.perf_counter() - started)


def synchronize(device: Device) -> None:
    """Wait until the device has done what it was given."""
    if device.torch_device.type == "cuda":
        torch.cuda.synchronize(device.torch_device)
    elif device.torch_device.type == "mps":
        torch.mps.synchronize()


def peak_bytes(device: Device) -> int:
    """The most memory so far: a GPU's reserved, a process's resident."""
    if device.torch_device.type == "cuda":
        return torch.cuda.max_memory_reserved(device.torch_device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main()
