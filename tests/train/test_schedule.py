"""The learning rate over a run."""

from __future__ import annotations

import pytest

from gptfit.config import TrainConfig
from gptfit.train.schedule import rate_factor


@pytest.mark.parametrize(
    ("schedule", "halfway", "end"),
    [("cosine", 0.55, 0.1), ("linear", 0.55, 0.1), ("constant", 1.0, 1.0)],
)
def test_shapes(schedule: str, halfway: float, end: float) -> None:
    config = TrainConfig(learning_rate=1.0, schedule=schedule, warmup_steps=0)
    assert rate_factor(config, 0, 0.0) == pytest.approx(1.0)
    assert rate_factor(config, 50, 0.5) == pytest.approx(halfway)
    assert rate_factor(config, 100, 1.0) == pytest.approx(end)


def test_warmup_rises_to_the_full_rate() -> None:
    config = TrainConfig(learning_rate=1.0, schedule="constant", warmup_steps=4)
    rates = [rate_factor(config, step, 0.0) for step in range(6)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_never_rises_after_warmup() -> None:
    config = TrainConfig(learning_rate=1.0, warmup_steps=10)
    rates = [rate_factor(config, step, step / 100) for step in range(10, 101)]
    assert rates == sorted(rates, reverse=True)
