"""The plan: one object that holds together, from Python as from the command line."""

from __future__ import annotations

import dataclasses

import pytest

import gptfit
from gptfit.config import GPT2Config, Recipe
from gptfit.errors import ConfigError
from gptfit.plan.calibration import Calibration, Fingerprint
from gptfit.plan.plan import Plan, Price
from made_up import COSTS


def planned(*overrides: str, device: str = "rtx4090", **options: object) -> Plan:
    return gptfit.plan(Recipe.resolve(overrides=overrides), device, **options)


def test_the_plan_of_gpt2_holds_together() -> None:
    plan = planned("max_tokens=10_000_000", price=Price(0.5, "EUR"))
    assert plan.parameters == 124_439_808
    assert plan.time is not None
    assert plan.budget is not None
    hours = plan.budget.steps * plan.time.seconds.best / 3600
    assert plan.budget.hours.best == pytest.approx(hours)
    assert plan.budget.steps * plan.step.tokens_per_step == pytest.approx(10_000_000)
    assert plan.budget.cost.best == pytest.approx(hours * 0.5)
    assert plan.budget.kilowatt_hours.best == pytest.approx(hours * plan.device.watts * 0.8 / 1000)
    assert plan.loss.nats_per_token.low < plan.loss.nats_per_token.best


def test_the_first_budget_counts() -> None:
    assert planned("max_steps=10", "max_tokens=99999999").budget.steps == pytest.approx(10)
    timed = planned("max_seconds=100")
    assert timed.budget.hours.best == pytest.approx(100 / 3600)
    assert planned().budget is None


def test_the_largest_batch_fits_and_the_next_does_not() -> None:
    plan = planned("batch_size=1")
    largest = plan.largest_micro_batch
    assert largest > 1
    assert planned(f"batch_size={largest}").verdict == "FITS"
    assert planned(f"batch_size={largest + 1}").verdict != "FITS"


def test_verdicts_follow_memory() -> None:
    assert planned("n_layer=48", "n_embd=1600", "n_head=25", device="t4").verdict == "NO"
    assert planned("n_layer=2", "batch_size=1", device="h100").verdict == "FITS"


def test_without_known_speed_there_is_no_time_and_a_note() -> None:
    plan = planned("max_steps=10", device="cpu")
    assert plan.time is plan.budget is None
    assert "--calibrate" in plan.notes[0]


def test_a_calibration_gives_the_time() -> None:
    calibration = Calibration(Fingerprint("cpu", "", "", 2, "float32"), COSTS, (), 0.0)
    plan = planned("max_steps=10", device="cpu", calibration=calibration)
    assert plan.time.calibrated
    assert plan.budget.steps == pytest.approx(10)


def test_a_model_alone_and_a_preset_can_be_planned() -> None:
    assert gptfit.plan(GPT2Config(), "h100").parameters == 124_439_808
    assert gptfit.plan("gpt2-medium", "h100").parameters == 354_823_168


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean"):
        planned(device="rtx4091")


def test_absurd_sizes_are_planned_at_once_or_refused() -> None:
    with pytest.raises(ConfigError):
        planned("n_layer=1000000000")


def test_a_plan_is_plain_data() -> None:
    values = dataclasses.asdict(planned("max_steps=10"))
    assert values["ledger"]["phases"]
    assert values["step"]["micro_batch_size"] == 12


def test_the_vocabulary_of_the_data_is_planned_with() -> None:
    plan = planned("tokenizer=bpe", "bpe_vocab_size=1024", "n_layer=2")
    assert plan.parameters == planned("vocab_size=1024", "n_layer=2").parameters
    assert planned("bpe_vocab_size=1024", "vocab_size=2048").parameters > plan.parameters


def test_no_loss_is_foretold_where_the_laws_say_nothing() -> None:
    assert planned("max_tokens=100000").loss is None
    assert planned("max_tokens=1000000000").loss is not None
