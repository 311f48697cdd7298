"""A run that several processes share: one voice, one clock, one end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from gptfit.config import Recipe
from gptfit.train import run as runs
from gptfit.train.events import MetricsFile
from several_processes import together
from shared_work import tiny_tokens, whole_run
from tiny_run import TINY

TOLERANCE = 1e-6
OVERRIDES = ["batch_size=8", "micro_batch_size=2"]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tokens(tmp_path_factory.mktemp("tokens"))


def saved(run: Path) -> dict[str, np.ndarray]:
    """Weights and moments of the last checkpoint."""
    last = run / "checkpoints/last"
    moments = load_file(last / "training/optimizer.safetensors")
    return {**load_file(last / "model.safetensors"), **moments}


def losses(run: Path) -> list[float]:
    events = MetricsFile(run / "metrics.jsonl").read()
    return [event["loss"] for event in events if event["event"] in ("step", "evaluation")]


def assert_same_run(one: Path, other: Path) -> None:
    assert losses(other) == pytest.approx(losses(one), abs=TOLERANCE)
    before, after = saved(one), saved(other)
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_allclose(after[name], array, 0, TOLERANCE, err_msg=name)


@pytest.fixture(scope="module")
def alone(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process."""
    run = tmp_path_factory.mktemp("alone") / "run"
    together(1, whole_run, run, tokens, OVERRIDES)
    return run


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_make_the_run_of_one(
    tokens: Path, alone: Path, tmp_path: Path, parallel: str
) -> None:
    run = tmp_path / "run"
    first, second = together(2, whole_run, run, tokens, [*OVERRIDES, f"parallel={parallel}"])
    assert_same_run(alone, run)
    assert first["outcome"].best.loss == pytest.approx(second["outcome"].best.loss, abs=TOLERANCE)
    assert first["told"][0] == "started"
    assert second["told"] == []


def test_one_then_two_then_one(tokens: Path, alone: Path, tmp_path: Path) -> None:
    """Each stopped by a signal to its last process alone."""
    run = tmp_path / "run"
    for size, resumed, stop in [(1, False, 3), (2, True, 7), (1, True, None)]:
        stopped = stop and (size - 1, stop)
        results = together(
            size, whole_run, run, tokens, [] if resumed else OVERRIDES, resumed, stopped
        )
        outcomes = [result["outcome"] for result in results]
        assert [outcome.step for outcome in outcomes] == [stop + 1 if stop else 12] * size
        assert all(outcome.interrupted == bool(stop) for outcome in outcomes)
    before, after = saved(alone), saved(run)
    for name, array in before.items():
        np.testing.assert_allclose(after[name], array, 0, TOLERANCE, err_msg=name)


def test_all_follow_the_main_clock(tokens: Path, tmp_path: Path) -> None:
    overrides = [*OVERRIDES, "max_steps=none", "max_seconds=0.4"]
    outcomes = [r["outcome"] for r in together(2, whole_run, tmp_path / "run", tokens, overrides)]
    assert outcomes[0].step == outcomes[1].step > 0


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_in_one_process_ends_the_others(tokens: Path, tmp_path: Path, rank: int) -> None:
    results = together(2, whole_run, tmp_path / "run", tokens, OVERRIDES, False, None, (rank, 6))
    assert results[rank] == {"error": "DataError"}
    assert results[1 - rank] == {"error": "ProcessLostError"}
    assert runs.resume(tmp_path / "run").state.step == 4


def torchrun(*arguments: object, restarts: int = 0) -> subprocess.Popen[str]:
    """``torchrun -m gptfit ARGUMENTS`` with two processes."""
    launcher = ["--standalone", "--nproc_per_node=2", f"--max-restarts={restarts}"]
    command = [sys.executable, "-m", "torch.distributed.run", *launcher, "-m", "gptfit"]
    return subprocess.Popen(
        [*command, *(str(argument) for argument in arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
    )


def worker(launcher: int, rank: int) -> int:
    """The process that torchrun has started for this rank."""
    [thread] = Path(f"/proc/{launcher}/task").glob(str(launcher))
    for child in (thread / "children").read_text().split():
        if f"RANK={rank}" in Path(f"/proc/{child}/environ").read_text().split("\0"):
            return int(child)
    raise AssertionError(f"no process of rank {rank}")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe long enough to be disturbed, with dropout."""
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    longer = ["max_steps=300", "eval_interval=30", "eval_tokens=64", "sample_interval=0"]
    Recipe.resolve(overrides=[*TINY, *OVERRIDES, *longer]).save(path)
    return path


def test_a_killed_process_is_restarted_with_all_others(
    tokens: Path, recipe: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = ["train", recipe, "--data", tokens, "--out", run, "--resume", "auto"]
    command = torchrun(*arguments, restarts=3)
    while not (run / "checkpoints/last.json").exists():
        assert command.poll() is None, command.communicate()[0]
        time.sleep(0.01)
    os.kill(worker(command.pid, 0), signal.SIGKILL)
    printed = command.communicate(timeout=60)[0]
    assert command.returncode == 0, printed
    assert printed.count("another process of this run has ended or does not answer") == 1
    assert "resumed after step" in printed
    straight = tmp_path / "straight"
    undisturbed = torchrun("train", recipe, "--data", tokens, "--out", straight)
    printed = undisturbed.communicate(timeout=60)[0]
    assert undisturbed.returncode == 0, printed
    before, after = saved(straight), saved(run)
    assert all(np.array_equal(array, after[name]) for name, array in before.items())


def test_an_error_that_all_meet_is_told_once(recipe: Path, tmp_path: Path) -> None:
    command = torchrun(
        "train", recipe, "--out", tmp_path / "run", "batch_size=7", "micro_batch_size=1"
    )
    printed = command.communicate(timeout=60)[0]
    assert command.returncode == 1
    assert printed.count("batch_size=7 cannot be shared by 2 processes") == 1
    assert not (tmp_path / "run").exists()
