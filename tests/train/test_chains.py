"""A run that was interrupted equals one that was not, bit for bit (benchmarks/interruption_chains.py)."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from interruptions import CHAINED, CRASH, KILL, LEAVE, At, chain, differences, told, train_until
from tiny_run import finish, make_trainer


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    run = tmp_path_factory.mktemp("straight") / "run"
    finish(make_trainer(run, *CHAINED))
    return run


def test_straight_tells_each_step_once_and_crosses_an_epoch(straight: Path) -> None:
    events = told(straight)
    steps = [event["step"] for event in events if event["event"] == "step"]
    assert steps == [*range(3, 31, 3), 31]
    assert events[-2]["epoch"] > 1
    evaluated = [event["step"] for event in events if event["event"] == "evaluation"]
    assert evaluated == [8, 16, 24, 31]


@pytest.mark.parametrize("seed", range(5))
def test_chains_equal_the_straight_run(straight: Path, tmp_path: Path, seed: int) -> None:
    planned = chain(tmp_path / "run", CHAINED, random.Random(seed), (LEAVE, CRASH))
    assert differences(tmp_path / "run", straight) == [], [vars(at) for at in planned]


def test_a_killed_run_equals_the_straight_one(straight: Path, tmp_path: Path) -> None:
    planned = chain(tmp_path / "run", CHAINED, random.Random(1), (KILL,))
    assert differences(tmp_path / "run", straight) == [], [vars(at) for at in planned]


def test_the_comparison_sees_a_difference(straight: Path, tmp_path: Path) -> None:
    finish(make_trainer(tmp_path / "run", *CHAINED, "seed=2"))
    found = differences(tmp_path / "run", straight)
    assert "metrics.jsonl" in found
    assert any(name.startswith("last/model") for name in found)


def test_what_was_lived_twice_is_told_once(straight: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_until(run, CHAINED, At(24, CRASH))
    before = told(run)[-1]["step"]
    train_until(run, CHAINED, At(1, CRASH))
    assert 0 < told(run)[-1]["step"] < before  # back at the checkpoint
    assert told(run) == told(straight)[: len(told(run))]
