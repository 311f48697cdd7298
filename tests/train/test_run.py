"""Runs: they learn, end at their budget, and continue as if never interrupted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gptfit.errors import CheckpointError, ConfigError, DataError
from gptfit.formats.hf import load_model
from gptfit.generate import evaluate
from gptfit.train import run as runs
from gptfit.train.anomaly import TrainingDivergedError
from gptfit.train.events import Event, MetricsFile, Sampled, Stepped
from gptfit.train.interrupt import Interrupt
from tiny_run import finish, make_trainer


def weights(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / name / "model.safetensors")


def losses(run: Path) -> list[tuple[int, float]]:
    events = MetricsFile(run / "metrics.jsonl").read()
    return [(event["step"], event["loss"]) for event in events if event["event"] == "step"]


def test_loss_falls(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", "max_steps=150", "eval_interval=150", "dropout=0")
    outcome = finish(trainer)
    recorded = losses(tmp_path / "run")
    assert outcome.step == 150
    assert not outcome.interrupted
    assert recorded[0][1] > 3.0  # about ln 29
    assert recorded[-1][1] < 1.0
    assert outcome.best.loss < 1.0
    assert outcome.best.tokens == trainer.dataset.val.size - 1


def test_outcome_is_of_the_best_checkpoint_on_the_whole_split(tmp_path: Path) -> None:
    run = tmp_path / "run"
    overrides = [
        "max_steps=60",
        "eval_interval=10",
        "eval_tokens=16",
        "learning_rate=0.3",
        "schedule=constant",
    ]
    trainer = make_trainer(run, *overrides)
    outcome = finish(trainer)
    best = load_model(run / "checkpoints/best")
    assert outcome.best_step < outcome.step  # this learning rate does not end well
    assert outcome.last.tokens == 16
    assert outcome.best == evaluate(best, trainer.dataset.val)
    assert outcome.best.tokens == len(trainer.dataset.val) - 1


def test_interrupted_and_resumed_three_times_equals_straight(tmp_path: Path) -> None:
    finish(make_trainer(tmp_path / "straight", "eval_interval=100"))
    broken = tmp_path / "broken"
    trainer = make_trainer(broken, "eval_interval=100")
    for stop in (3, 4, 9, None):
        interrupt = Interrupt()

        def listen(event: Event, stop: int | None = stop, interrupt: Interrupt = interrupt) -> None:
            if isinstance(event, Stepped) and event.step == stop:
                interrupt.is_set = True

        trainer.recipe = trainer.recipe.override(["log_interval=1"])
        outcome = trainer.run(listen, interrupt)
        assert outcome.interrupted == (stop is not None)
        assert outcome.step == (stop or 12)
        trainer = runs.resume(broken) if stop else trainer
    assert weights(broken).keys() == weights(tmp_path / "straight").keys()
    for name, tensor in weights(tmp_path / "straight").items():
        assert torch.equal(tensor, weights(broken)[name]), name
    moments = [
        load_file(run / "checkpoints/last/training/optimizer.safetensors")
        for run in (tmp_path / "straight", broken)
    ]
    assert all(torch.equal(moments[0][name], moments[1][name]) for name in moments[0])


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    whole = make_trainer(tmp_path / "whole", "micro_batch_size=4", "dropout=0")
    parts = make_trainer(tmp_path / "parts", "micro_batch_size=1", "dropout=0")
    losses = [trainer.step.gradients(0).loss.item() for trainer in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    gradients = {name: parameter.grad for name, parameter in parts.model.named_parameters()}
    for name, parameter in whole.model.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, gradients[name], atol=1e-6), name


def test_evaluating_more_often_does_not_change_training(tmp_path: Path) -> None:
    finish(make_trainer(tmp_path / "often", "eval_interval=1"))
    finish(make_trainer(tmp_path / "seldom", "eval_interval=100"))
    for name, tensor in weights(tmp_path / "often").items():
        assert torch.equal(tensor, weights(tmp_path / "seldom")[name]), name


def test_run_folder_holds_what_it_should(trained: Path) -> None:
    names = {path.name for path in (trained / "checkpoints").iterdir()}
    assert {"best", "best.json", "last", "last.json"} <= names
    steps = [name for name in names if name.startswith("step-")]
    assert 2 <= len(steps) <= 3
    assert "step-000012" in steps
    events = MetricsFile(trained / "metrics.jsonl").read()
    assert [event["step"] for event in events if event["event"] == "evaluation"] == [4, 8, 12]
    best = json.loads((trained / "checkpoints/best.json").read_text(encoding="utf-8"))
    lowest = min((e["loss"], e["step"]) for e in events if e["event"] == "evaluation")
    assert best == {"folder": f"step-{lowest[1]:06d}"}


def test_token_budget(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", "max_steps=none", "max_tokens=160")
    assert finish(trainer).step == 5  # 4 sequences of 8 tokens a step


def test_time_budget(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", "max_steps=none", "max_seconds=0.5")
    assert finish(trainer).step >= 1
    assert trainer.progress() == 1


def test_no_budget_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the run has no end; give --time 2m, or max_steps"):
        make_trainer(tmp_path / "run", "max_steps=none")
    assert not (tmp_path / "run").exists()


def test_a_finished_run_can_be_prolonged(trained: Path) -> None:
    trainer = runs.resume(trained, ["max_steps=16"])
    assert trainer.state.step == 12
    assert finish(trainer).step == 16


def test_an_existing_run_is_not_overwritten(trained: Path) -> None:
    before = weights(trained)
    with pytest.raises(ConfigError, match=r"already holds a run; continue it with .*--resume"):
        make_trainer(trained, "n_layer=1")
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(trained).items())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("n_layer=6", r"n_layer=6 conflicts with n_layer=2 of the run being resumed"),
        ("lr=0.5", r"learning_rate=0.5 conflicts with learning_rate=0.01"),
        ("batch_size=8", r"batch_size=8 conflicts with batch_size=4"),
    ],
)
def test_resume_refuses_another_run(trained: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        runs.resume(trained, [override])


def test_resume_refuses_other_data(trained: Path) -> None:
    sidecar = trained / "data/tokens.json"
    values = json.loads(sidecar.read_text(encoding="utf-8"))
    tokens = (trained / "data/train.bin").read_bytes()
    (trained / "data/train.bin").write_bytes(tokens[2:] + tokens[:2])
    sidecar.write_text(json.dumps(_with_hash(values, trained / "data/train.bin")), encoding="utf-8")
    with pytest.raises(DataError, match=r"is not the data that .* was trained on"):
        runs.resume(trained)


def _with_hash(values: dict[str, Any], path: Path) -> dict[str, Any]:
    import hashlib

    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    text = json.dumps(values)
    old = json.loads(text)
    for key, value in old.items():
        if isinstance(value, dict) and "train" in value and isinstance(value["train"], str):
            old[key]["train"] = digest
        elif isinstance(value, dict) and "sha256" in value:
            old[key]["sha256"] = digest
    assert json.dumps(old) != text
    return old


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "no manifest"])
@pytest.mark.parametrize("file", ["model.safetensors", "training/optimizer.safetensors"])
def test_damaged_checkpoint_is_refused(trained: Path, file: str, damage: str) -> None:
    folder = (trained / "checkpoints/last").resolve()
    path = folder / file
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-5] ^= 1
        path.write_bytes(content)
    elif damage == "truncate":
        path.write_bytes(content[:-7])
    elif damage == "delete":
        path.unlink()
    else:
        (folder / "manifest.json").unlink()
        file = "manifest.json"
    with pytest.raises(CheckpointError, match=Path(file).name.replace(".", r"\.")):
        runs.resume(trained)


def test_no_space_is_said_before_training_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path / "run")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(CheckpointError, match=r"needs [\d,]+ bytes and 1,000 bytes are free; make"):
        finish(trainer)


def test_failed_write_leaves_earlier_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path / "run", "max_steps=4")
    finish(trainer)
    before = weights(tmp_path / "run")
    trainer = runs.resume(tmp_path / "run", ["max_steps=8"])

    def broken(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gptfit.train.checkpoint.save_model", broken)
    with pytest.raises(CheckpointError, match=r"No space left on device.*earlier checkpoints"):
        finish(trainer)
    monkeypatch.undo()
    assert not list((tmp_path / "run/checkpoints").glob(".tmp-*"))
    assert runs.resume(tmp_path / "run").state.step == 4
    assert all(torch.equal(before[n], t) for n, t in weights(tmp_path / "run").items())


def test_divergence_stops_before_the_update(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", "max_steps=8")

    def poison(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == 6:
            with torch.no_grad():
                trainer.model.wte.weight[0, 0] = float("nan")

    with pytest.raises(
        TrainingDivergedError, match=r"diverged before the update.*checkpoints/last"
    ):
        finish(trainer, poison)
    assert runs.resume(tmp_path / "run").state.step == 4
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "run").values())


def test_text_shorter_than_the_context(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="64"):
        make_trainer(tmp_path / "run", "n_positions=64", text="too short for that\n")
    assert not (tmp_path / "run").exists()


def test_half_a_line_of_metrics_is_ignored(trained: Path) -> None:
    metrics = MetricsFile(trained / "metrics.jsonl")
    before = metrics.read()
    with metrics.path.open("a", encoding="utf-8") as file:
        file.write('{"event": "step", "ste')
    assert metrics.read() == before


def test_a_checkpoint_of_another_future_is_replaced(tmp_path: Path) -> None:
    """Back to step 4 while step 8 exists: what is saved at step 8 then is the new step 8."""
    run = tmp_path / "run"
    finish(make_trainer(run, "max_steps=8", "keep_checkpoints=9"))
    abandoned = weights(run)
    trainer = runs.resume(run / "checkpoints/step-000004", ["max_steps=9", "eval_interval=8"])
    assert trainer.state.step == 4
    assert torch.equal(
        load_file(run / "checkpoints/left-step-000008/model.safetensors")["transformer.wte.weight"],
        abandoned["transformer.wte.weight"],
    )
    with torch.no_grad():
        trainer.model.wte.weight.add_(0.1)
    finish(trainer)
    saved = load_file(run / "checkpoints/step-000008/model.safetensors")
    assert not torch.equal(saved["transformer.wte.weight"], abandoned["transformer.wte.weight"])


def test_a_run_copied_without_links_goes_on(trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    assert not (copy / "checkpoints/last").is_symlink()
    assert finish(runs.resume(copy, ["max_steps=14"])).step == 14
    assert (copy / "checkpoints/last").resolve().name == "step-000014"


def test_a_recipe_edited_behind_the_weights_is_refused(trained: Path) -> None:
    path = trained / "recipe.toml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("n_layer = 2", "n_layer = 4"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"is not that of .*config\.json"):
        runs.resume(trained)


def test_missing_data_is_said(trained: Path) -> None:
    shutil.rmtree(trained / "data")
    with pytest.raises(DataError, match="data is missing: it holds the tokens of this run"):
        runs.resume(trained)


def test_interrupt_saves_at_once_without_evaluating(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", "eval_interval=100", "max_steps=50")
    interrupt, seen = Interrupt(), []

    def listen(event: Event) -> None:
        seen.append(event.kind)
        interrupt.is_set = isinstance(event, Stepped) and event.step >= 6

    outcome = trainer.run(listen, interrupt)
    assert outcome.interrupted
    assert outcome.best is None
    assert seen == ["started", "step", "step", "step", "checkpoint"]
    assert runs.resume(tmp_path / "run").state.step == 6


def test_large_seeds(tmp_path: Path) -> None:
    assert (
        finish(make_trainer(tmp_path / "run", "seed=1700000000000000000", "max_steps=2")).step == 2
    )


def test_metrics_that_cannot_be_written(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run")
    trainer.tell.metrics = MetricsFile(Path("/dev/full"))
    with pytest.raises(CheckpointError, match=r"cannot be written.*No space left"):
        finish(trainer)


def test_short_runs_have_a_curve(tmp_path: Path) -> None:
    finish(make_trainer(tmp_path / "run", "max_steps=5", "log_interval=100"))
    assert [step for step, _ in losses(tmp_path / "run")] == [5]


@pytest.mark.parametrize(
    ("text", "prompt"),
    [("1. One two 3 four five six.\n" * 40, "four five six"), ("abcdefgh" * 100, "abcdefgh"[0])],
)
def test_samples_continue_the_validation_text(text: str, prompt: str, tmp_path: Path) -> None:
    seen: list[Event] = []
    finish(make_trainer(tmp_path / "run", text=text), seen.append)
    samples = [event for event in seen if isinstance(event, Sampled)]
    assert len(samples) == 3
    assert all(event.prompt == prompt and event.text.startswith(prompt) for event in samples)


def test_a_sample_prompt_that_cannot_be_encoded_is_found_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'ß'"):
        make_trainer(tmp_path / "run", "sample_prompt=the ß")
    assert not (tmp_path / "run").exists()


def test_whole_checkpoints_are_named_beside_a_damaged_one(trained: Path) -> None:
    (trained / "checkpoints/step-000012/model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"step-000008 can be had, .*checkpoints/step-000008"):
        runs.resume(trained)
    assert runs.resume(trained / "checkpoints/step-000008").state.step == 8
