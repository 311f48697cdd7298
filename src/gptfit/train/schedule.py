"""The learning rate as a pure function of where the run stands."""

from __future__ import annotations

import math

from gptfit.config import TrainConfig


def rate_factor(config: TrainConfig, step: int, progress: float) -> float:
    """The share of the full learning rate at ``step``: linear warm-up, then the schedule down to ``min_lr``.

    ``progress`` in [0, 1] is the share of the budget that is spent, in steps, tokens or seconds:
    a run that is given two minutes decays over two minutes, however many steps they turn out to be.
    """
    warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
    floor = config.min_lr / config.learning_rate
    return warmup * (floor + (1 - floor) * _shape(config, min(1.0, progress)))


def _shape(config: TrainConfig, progress: float) -> float:
    """From 1 at the start to 0 at the end."""
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if config.schedule == "linear":
        return 1 - progress
    if config.schedule == "wsd":
        return min(1.0, (1 - progress) / config.decay_share)
    return 1.0
