"""Whether it fits, and the largest micro-batch that does."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gptfit.config import GPT2Config
from gptfit.plan.interval import Interval
from gptfit.plan.memory.case import Case
from gptfit.plan.memory.formula import complete
from gptfit.plan.memory.ledger import bytes_at, memory_ledger, moments_of
from gptfit.plan.memory.overhead import Overhead, overhead_of
from gptfit.plan.step import TrainingStep

if TYPE_CHECKING:
    from gptfit.plan.hardware import DeviceSpec

FITS, TIGHT, NO = "FITS", "TIGHT", "NO"


def verdict(total: Interval, usable_bytes: float) -> str:
    """FITS even at the high end, TIGHT if only the expected value does, else NO."""
    if total.high < usable_bytes:
        return FITS
    return TIGHT if total.best <= usable_bytes else NO


def largest_micro_batch(
    config: GPT2Config,
    step: TrainingStep,
    usable_bytes: float,
    device: DeviceSpec | None = None,
    calibration: Overhead | None = None,
) -> int:
    """The largest micro-batch whose verdict is FITS, 0 if there is none.

    Each moment of the step holds a + c·B bytes, so the answer is the least of (room - a) / c. A last
    chunk of the loss that is not full lets the line step by up to one token of each chunk, and a
    single sequence is sometimes spared a copy, which the last two lines see to.
    """
    overhead = calibration or overhead_of(Case(config, step), device)
    room = overhead.most_allocated(usable_bytes)
    whole = 2 * step.loss_chunks  # several sequences, divided evenly into chunks: on the line
    first, second = (bytes_held(config, step, size) for size in (whole, 2 * whole))
    batches = [
        whole + (room - low) * whole / (high - low)
        for low, high in zip(first, second, strict=True)
        if high > low
    ]
    fitting = range(max(0, int(min(batches)) - 1), max(0, int(min(batches)) + 2))
    return max(
        (size for size in fitting if size and fits(config, step, size, usable_bytes, overhead)),
        default=0,
    )


def bytes_held(config: GPT2Config, step: TrainingStep, size: int) -> list[Any]:
    """Bytes at every moment with micro-batches of ``size``."""
    case = Case(config, replace(step, micro_batch_size=size))
    return bytes_at(moments_of(case), complete(case.letters()))


def fits(
    config: GPT2Config, step: TrainingStep, size: int, usable_bytes: float, overhead: Overhead
) -> bool:
    """Whether micro-batches of ``size`` have the verdict FITS."""
    ledger = memory_ledger(config, replace(step, micro_batch_size=size), calibration=overhead)
    return verdict(ledger.total, usable_bytes) == FITS
