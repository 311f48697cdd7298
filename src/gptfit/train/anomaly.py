"""What a run may meet: numbers that are not finite, and memory that does not suffice."""

from __future__ import annotations

import math

from gptfit.config import Recipe, TrainConfig
from gptfit.errors import GptfitError

STOP, SKIP, REWIND = "stop", "skip", "rewind"


class TrainingDivergedError(GptfitError):
    """A loss, a gradient or a weight is not finite any more; the last checkpoint is."""

    exit_code = 1

    def __init__(self, what: str, step: int, config: TrainConfig, last: str) -> None:
        super().__init__(
            f"{what} after step {step}: training has diverged before the update; {last}. Start again "
            f"with a smaller learning_rate (now {config.learning_rate:g}) or more warmup_steps"
        )


class MemoryExhaustedError(GptfitError):
    """The device has no room for a step, however small its parts."""

    exit_code = 1

    def __init__(self, device: str, micro_batch_size: int, recipe: Recipe, last: str) -> None:
        smaller = [
            f"micro_batch_size={micro_batch_size // 2}" if micro_batch_size > 1 else "",
            f"checkpointed_blocks={recipe.model.n_layer}",
            f"loss_chunks={2 * recipe.run.loss_chunks}",
        ]
        super().__init__(
            f"{device} has no memory left with micro_batch_size={micro_batch_size}; {last}. "
            f"{', '.join(filter(None, smaller))} or a smaller model take less; `gptfit plan` shows "
            "what each part takes"
        )


class Anomalies:
    """Losses and gradients that are not finite, as they are met in a row.

    That is: without a step beyond the furthest after which one was met. So a rewind that leads to the
    same end each time counts, for all the good steps on the way.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.count = 0
        self._furthest = -1

    def action(self, step: int) -> str:
        """What to do about one more, after ``step``: stop, skip or rewind."""
        self.count = self.count + 1 if step <= self._furthest else 1
        self._furthest = max(step, self._furthest)
        return STOP if self.count >= self.config.max_nonfinite else self.config.on_nonfinite


def finite(number: float | None) -> float | None:
    """None in place of a number that JSON cannot hold."""
    return number if number is not None and math.isfinite(number) else None
