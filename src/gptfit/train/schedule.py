"""The learning rate as a pure function of where the run stands."""

from __future__ import annotations

import math

from gptfit.config import TrainConfig


def learning_rate(config: TrainConfig, step: int, progress: float) -> float:
    """Linear warm-up over ``warmup_steps``, then the schedule down to ``min_lr``.

    ``progress`` in [0, 1] is the share of the budget that is spent, in steps, tokens or seconds:
    a run that is given two minutes decays over two minutes, however many steps they turn out to be.
    """
    warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
    span = config.learning_rate - config.min_lr
    return warmup * (config.min_lr + span * _shape(config.schedule, min(1.0, progress)))


def _shape(schedule: str, progress: float) -> float:
    """From 1 at the start to 0 at the end."""
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "linear":
        return 1 - progress
    return 1.0
