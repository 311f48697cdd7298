"""TensorBoard and wandb get the numbers, and cannot harm a run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from gptfit.config import Recipe
from gptfit.errors import ConfigError, MissingDependencyError
from gptfit.train.events import Event, Listener
from gptfit.train.run import require_free
from gptfit.train.sinks import require_sinks, tracked
from written_run import evaluated, saved, stepped, told


def recipe(*names: str) -> Recipe:
    return Recipe.resolve(overrides={"run.track": list(names)})


def follow(run: Path, names: list[str], events: list[Event], step: int = 0) -> list[str]:
    """Tell the events; the warnings."""
    warnings: list[str] = []
    heard: list[Event] = []
    with tracked(heard.append, run, recipe(*names), step, warnings.append) as tell:
        for event in events:
            tell(event)
    assert heard == events
    return warnings


class FakeRun:
    """One run of wandb, and what was done to it."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.id = settings["id"] or "id-7"
        self.logged: list[dict[str, float]] = []
        self.metrics: list[tuple[str, str]] = []
        self.exit_code: int | None = None

    def define_metric(self, name: str, step_metric: str) -> None:
        self.metrics.append((name, step_metric))

    def log(self, numbers: dict[str, float]) -> None:
        self.logged.append(numbers)

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


class UsageError(Exception):
    pass


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in for the package: ``runs`` has what was begun."""
    runs: list[FakeRun] = []
    module: Any = ModuleType("wandb")
    module.__spec__ = SimpleNamespace()
    module.init = lambda **settings: runs.append(FakeRun(**settings)) or runs[-1]
    module.Settings = dict
    module.errors = SimpleNamespace(UsageError=UsageError)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return SimpleNamespace(module=module, runs=runs)


def test_without_sinks_events_pass(tmp_path: Path) -> None:
    assert follow(tmp_path, [], told(3.0)) == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_before_training(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptfit.train.sinks.find_spec", lambda name: None)
    words = rf"track={name} needs {name}; install it with: pip install 'gptfit\[track\]'"
    with pytest.raises(MissingDependencyError, match=words):
        require_sinks([name])
    with pytest.raises(MissingDependencyError, match=words):
        follow(tmp_path, [name], [])


def test_a_package_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptfit.train.sinks.find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingDependencyError, match="track=wandb needs wandb"):
        follow(tmp_path, ["wandb"], [])


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    assert follow(tmp_path, ["tensorboard"], told(3.0, 2.0)) == []
    found = scalars(tmp_path / "tensorboard")
    assert found["validation/loss"] == [(10, 3.0), (20, 2.0)]
    assert found["validation/bits_per_byte"] == [(10, 4.5), (20, 3.0)]
    assert found["train/loss"] == [(10, pytest.approx(2.9)), (20, pytest.approx(1.9))]
    assert "train/model_flops_utilization" not in found  # not known on this device


def test_tensorboard_of_a_resumed_run(tmp_path: Path) -> None:
    """Step 20 was told, the checkpoint is of step 10, and the second process goes another way."""
    pytest.importorskip("tensorboard")
    follow(tmp_path, ["tensorboard"], told(3.0, 2.0))
    follow(tmp_path, ["tensorboard"], [stepped(15, 2.2), stepped(20, 1.0)], step=10)
    losses = scalars(tmp_path / "tensorboard")["train/loss"]
    assert losses == [(10, pytest.approx(2.9)), (15, pytest.approx(2.2)), (20, 1.0)]


def test_folders_of_sinks_are_the_beginnings_of_a_run(tmp_path: Path) -> None:
    """A run that was killed before its first checkpoint can be begun again."""
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "wandb").mkdir()
    require_free(tmp_path)
    (tmp_path / "photos").mkdir()
    with pytest.raises(ConfigError, match="exists and is no run of gptfit"):
        require_free(tmp_path)


def test_wandb(wandb: SimpleNamespace, tmp_path: Path) -> None:
    assert follow(tmp_path, ["wandb"], [stepped(10), evaluated(10, 3.0), saved(10)]) == []
    (run,) = wandb.runs
    assert [set(numbers) for numbers in run.logged] == [
        {
            "step",
            "train/loss",
            "train/learning_rate",
            "train/grad_norm",
            "train/tokens",
            "train/epoch",
            "train/tokens_per_second",
        },
        {"step", "validation/loss", "validation/bits_per_byte"},
    ]
    assert run.metrics == [("*", "step")]
    assert run.exit_code == 0
    assert run.settings["config"]["run"]["track"] == ["wandb"]


def test_wandb_goes_on_where_it_was(wandb: SimpleNamespace, tmp_path: Path) -> None:
    for _ in range(3):
        follow(tmp_path, ["wandb"], [stepped(10)])
    assert [run.settings["id"] for run in wandb.runs] == [None, "id-7", "id-7"]


def test_wandb_is_told_of_a_failure(wandb: SimpleNamespace, tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        tracked(lambda event: None, tmp_path, recipe("wandb"), 0, lambda text: None),
    ):
        raise KeyboardInterrupt
    assert wandb.runs[0].exit_code == 1


def test_wandb_without_a_login_is_refused(wandb: SimpleNamespace, tmp_path: Path) -> None:
    def refuse(**settings: Any) -> None:
        raise UsageError("No API key configured.\nmore")

    wandb.module.init = refuse
    with pytest.raises(
        ConfigError, match=r"No API key configured\.\); run wandb login, or set WAND"
    ):
        follow(tmp_path, ["wandb"], [])


def failing(wandb: SimpleNamespace, method: str) -> Callable[..., None]:
    def fail(*arguments: Any, **settings: Any) -> None:
        raise ConnectionError("no route to host\nand more")

    if method == "init":
        wandb.module.init = fail
    return fail


@pytest.mark.parametrize("method", ["init", "log", "finish"])
def test_a_failing_network_costs_one_warning(
    method: str, wandb: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail = failing(wandb, method)
    monkeypatch.setattr(FakeRun, method, fail, raising=False)
    warnings = follow(tmp_path, ["wandb"], told(3.0, 2.0, 1.0))
    assert len(warnings) == 1
    assert "(ConnectionError: no route to host); metrics.jsonl has it all" in warnings[0]


def test_one_failing_sink_does_not_stop_the_other(
    wandb: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setattr(FakeRun, "log", failing(wandb, "log"))
    assert len(follow(tmp_path, ["wandb", "tensorboard"], told(3.0, 2.0))) == 1
    assert len(scalars(tmp_path / "tensorboard")["train/loss"]) == 2


def test_an_error_of_the_listener_is_not_taken_for_one_of_a_sink(tmp_path: Path) -> None:
    def broken(event: Event) -> None:
        raise ZeroDivisionError

    listener: Listener = broken
    with (
        pytest.raises(ZeroDivisionError),
        tracked(listener, tmp_path, recipe(), 0, lambda text: None) as tell,
    ):
        tell(saved(1))
