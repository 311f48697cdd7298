"""What was predicted of a run before it began, and what came of it."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass

import torch

from gptfit.train.loop import Outcome, Trainer


@dataclass(frozen=True)
class Figures:
    """A run in four numbers: loss of its best checkpoint, speed, time with preparation, memory."""

    bits_per_byte: float | None
    tokens_per_second: float
    seconds: float
    memory_bytes: float


@dataclass(frozen=True)
class Fitted:
    """A run that is ready to start, with the forecast for it; ``started`` is when it was asked for."""

    trainer: Trainer
    forecast: Figures
    started: float

    def came(self, outcome: Outcome) -> Figures:
        """The same figures after the run."""
        return Figures(
            self.trainer.bits_per_byte(outcome.best) if outcome.best else None,
            self.trainer.tokens_per_second(),
            time.perf_counter() - self.started,
            memory_bytes(),
        )


def memory_bytes() -> int:
    """The most that this process has held: GPU memory where it is in use, else resident memory."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_reserved()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
