"""Real training steps on a GPU: the answers to the questions of ``planner_on_gpu.py``.

It calls this file in processes of their own, so that no case spoils the next.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
from planner_on_gpu import Case

from gptfit.config import Recipe
from gptfit.model import GPT2
from gptfit.plan.hardware import GIB
from gptfit.train.calibrate import calibration_for
from gptfit.train.device import Device
from gptfit.train.optimizer import Optimizer

WARM_UP, LEAST_STEPS, SECONDS = 2, 3, 1.0
"""Steps that are not measured; at least so many, and for so long, that are."""


def costs(dtype: str) -> dict[str, Any]:
    """gptfit's calibration in one precision."""
    device = Device(torch.device("cuda"), getattr(torch, dtype))
    return asdict(calibration_for(device, lambda line: print(line, file=sys.stderr)).costs)


def steps(**case: Any) -> dict[str, Any]:
    """Memory and time of a case as torch measures them."""
    return train(Case(**case)) or {"outcome": "out of memory"}


def proof(card_gib: int, fits: int, no: int, **case: Any) -> dict[str, Any]:
    """The largest micro-batch that runs on a card of this size, tried from ``fits`` to ``no``."""
    free, total = torch.cuda.mem_get_info()
    context = total - free  # on the small card it would take as much
    torch.cuda.set_per_process_memory_fraction((card_gib * GIB - context) / total)
    for size in range(max(1, fits), no + 1):
        if train(replace(Case(**case), batch=size), seconds=0.0) is None:
            return {"runs": size - 1}
    return {"runs": no}


def train(case: Case, seconds: float = SECONDS) -> dict[str, float] | None:
    """Real training steps in their steady state, in bytes and seconds; None when memory runs out."""
    if case.compiled:
        torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()
    step, device = case.step, Device(torch.device("cuda"), getattr(torch, case.dtype))
    durations: list[float] = []
    try:
        with device.torch_device:
            model = GPT2(case.config, step.vocab_multiple)
            shape = (2, step.micro_batch_size, step.context)
            inputs, targets = torch.randint(case.config.vocab_size, shape)
        model.spare_memory(step.checkpointed_blocks)
        forward = torch.compile(model, dynamic=False) if step.compiled else model
        optimizer = Optimizer(model, Recipe.resolve().train)
        while len(durations) < WARM_UP + LEAST_STEPS or sum(durations[WARM_UP:]) < seconds:
            if len(durations) == WARM_UP:
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            with device.autocast():
                loss = forward(inputs, targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
            optimizer.step()
            loss.item()  # waits for the device
            durations.append(time.perf_counter() - started)
    except torch.OutOfMemoryError:
        return None
    free, total = torch.cuda.mem_get_info()
    return {
        "allocated": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
        "shown": total - free,
        "seconds": statistics.median(durations[WARM_UP:]),
    }


JOBS: dict[str, Callable[..., dict[str, Any]]] = {"costs": costs, "steps": steps, "proof": proof}


def answer(asked: list[tuple[str, dict[str, Any]]]) -> None:
    """A line of JSON for each question as soon as it is answered."""
    for job, arguments in asked:
        print(json.dumps([[job, arguments], JOBS[job](**arguments)]), flush=True)


if __name__ == "__main__":
    answer(json.loads(sys.argv[1]))
