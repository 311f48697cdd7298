"""Costs that are fitted to measured steps, and where they are kept."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from gptfit.config import GPT2Config
from gptfit.plan.calibration import (
    LEAST_DOUBT,
    Calibration,
    Fingerprint,
    Sample,
    calibration_file,
    fit_costs,
    load,
)
from gptfit.plan.step import TrainingStep
from gptfit.plan.time import letters_of
from made_up import COSTS

FINGERPRINT = Fingerprint("a device", "a driver", "2.13", 2, "float32")


def a_sample(rng: random.Random) -> Sample:
    """A step of a random model on the made-up machine."""
    heads = rng.randint(1, 12)
    config = GPT2Config(
        n_layer=rng.randint(1, 12),
        n_head=heads,
        n_embd=64 * heads,
        vocab_size=rng.choice([65, 1000, 50257]),
        n_positions=rng.choice([32, 256, 1024]),
    )
    step = TrainingStep(
        micro_batch_size=rng.randint(1, 16),
        context=config.n_positions,
        grad_accum_steps=rng.choice([1, 4]),
        device_kind="cpu",
    )
    letters = letters_of(config, step)
    return Sample(letters, sum(COSTS.parts(letters).values()))


def test_costs_are_found_again() -> None:
    rng = random.Random(0)
    fitted = fit_costs([a_sample(rng) for _ in range(20)])
    assert fitted.calibrated
    for _ in range(20):
        sample = a_sample(rng)
        predicted = sum(fitted.parts(sample.letters).values())
        assert predicted == pytest.approx(sample.seconds, rel=0.02)


def test_costs_are_never_negative() -> None:
    rng = random.Random(1)
    noisy = [replace(s, seconds=s.seconds * rng.uniform(0.5, 2)) for s in map(a_sample, [rng] * 30)]
    fitted = fit_costs(noisy)
    assert min(fitted.seconds.values()) >= 0
    assert fitted.doubt > LEAST_DOUBT


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calibration:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calibration = Calibration(FINGERPRINT, COSTS, (Sample({"L": 2}, 0.5),), 3.0)
    calibration.save()
    return calibration


def test_what_was_saved_is_loaded(saved: Calibration) -> None:
    assert load(FINGERPRINT) == saved


@pytest.mark.parametrize("change", [{"driver": "another"}, {"threads": 4}, {"dtype": "bfloat16"}])
def test_another_fingerprint_is_another_machine(saved: Calibration, change: dict) -> None:
    assert load(replace(FINGERPRINT, **change)) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 0}', '{"version": 1}'])
def test_an_unreadable_calibration_is_measured_again(saved: Calibration, content: str) -> None:
    calibration_file(FINGERPRINT).write_text(content)
    assert load(FINGERPRINT) is None
