"""How long a run lasts."""

from __future__ import annotations

from gptfit.config import TrainConfig
from gptfit.errors import ConfigError, Problem


def share_spent(train: TrainConfig, step: int, tokens_per_step: int, seconds: float) -> float:
    """Share of the budget spent, 0 to 1: of the budget that is nearest to its end."""
    spent = (
        (step, train.max_steps),
        (step * tokens_per_step, train.max_tokens),
        (seconds, train.max_seconds),
    )
    return min(1.0, max((amount / budget for amount, budget in spent if budget), default=0.0))


def require_end(train: TrainConfig) -> None:
    """Refuse a run without any budget."""
    if not train.has_end:
        fix = "give --time 2m, or max_steps or max_tokens"
        raise ConfigError(Problem("train.max_steps", "the run has no end", fix))
