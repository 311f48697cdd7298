"""The store: what it keeps, what it copies, and what a checkpoint takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gptfit.config import GPT2Config, TrainConfig
from gptfit.data import Tokenizer
from gptfit.errors import CheckpointError
from gptfit.formats.hf import load_model
from gptfit.formats.integrity import NewerFormatError, _seal, _text, verify
from gptfit.model import GPT2
from gptfit.train import recovery
from gptfit.train.checkpoint import (
    STATE,
    CheckpointStore,
    TrainingState,
    checkpoint_bytes,
    read_state,
)
from gptfit.train.optimizer import Optimizer

CONFIG = GPT2Config(n_layer=1, n_head=1, n_embd=8, n_positions=8, vocab_size=3, dropout=0.0)
TOKENIZER = Tokenizer.char("abc")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def save(store: CheckpointStore, step: int, best: int | None = None) -> None:
    state = TrainingState(step, 0.0, None, best, "")
    store.save(GPT2(CONFIG), TOKENIZER, {}, state, is_best=step == best)


def steps(run: Path) -> list[int]:
    return [recovery.step_of(folder) for folder in reversed(recovery.checkpoints_of(run))]


def test_last_best_and_every_so_many_are_kept(run: Path) -> None:
    store = CheckpointStore(run, keep=2, keep_every=4)
    for step in range(1, 12):
        save(store, step, best=3 if step >= 3 else 1)
    assert all(written.error is None for written in store.finished())
    assert steps(run) == [3, 4, 8, 10, 11]


@pytest.mark.parametrize("keep", [0, 1])
def test_at_least_one_is_kept(run: Path, keep: int) -> None:
    store = CheckpointStore(run, keep=keep)
    save(store, 1)
    save(store, 2)
    assert steps(run) == [2]


def test_the_clock_decides_nothing(run: Path) -> None:
    """Times of files come from wrong clocks, and from copies."""
    store = CheckpointStore(run, keep=3)
    for step in (5, 6, 1000000):
        save(store, step)
    for age, folder in enumerate(recovery.checkpoints_of(run)):
        os.utime(folder, (10**9 + 1000 * age, 10**9 + 1000 * age))
    assert recovery.newest(run).name == "step-1000000"
    save(store, 1000001)
    assert steps(run) == [6, 1000000, 1000001]


def test_a_damaged_one_does_not_count_among_the_kept(run: Path) -> None:
    store = CheckpointStore(run, keep=2)
    for step in (1, 2):
        save(store, step)
    (run / "checkpoints/step-000002/model.safetensors").write_bytes(b"")
    save(store, 3)
    assert {1, 3} <= set(steps(run))


def test_an_asynchronous_save_is_of_the_moment_it_was_asked_for(run: Path) -> None:
    store = CheckpointStore(run, asynchronous=True)
    model = GPT2(CONFIG, pad_vocab_to_multiple=4)
    moments = {"exp_avg/x": torch.ones(3)}
    before = model.wte.weight.detach().clone()
    for step in (1, 2):  # the second waits for the first
        store.save(model, TOKENIZER, moments, TrainingState(step, 0.0, None, None, ""), False)
    with torch.no_grad():
        model.wte.weight.zero_()
        moments["exp_avg/x"].zero_()
    store.wait()
    assert [written.step for written in store.finished()] == [1, 2]
    assert store.finished() == []
    folder, _, saved = store.load_last()
    assert torch.equal(load_model(folder).wte.weight, before[:3])
    assert torch.equal(saved["exp_avg/x"], torch.ones(3))


PROGRAM = """
import sys
from pathlib import Path
from gptfit.model import GPT2
from gptfit.train.checkpoint import CheckpointStore, TrainingState
sys.path.insert(0, {tests!r})
from test_checkpoint import CONFIG, TOKENIZER
store = CheckpointStore(Path({run!r}), asynchronous=True)
store.save(GPT2(CONFIG), TOKENIZER, {{}}, TrainingState(1, 0.0, None, None, ""), True)
raise SystemExit(3)
"""


def test_an_interpreter_that_ends_finishes_what_it_writes(run: Path) -> None:
    program = PROGRAM.format(tests=str(Path(__file__).parent), run=str(run))
    assert subprocess.run([sys.executable, "-c", program]).returncode == 3
    assert recovery.newest(run).name == "step-000001"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("bias", [True, False])
def test_the_predicted_size_is_that_of_the_files(run: Path, optimizer: str, bias: bool) -> None:
    config = GPT2Config(
        n_layer=2, n_head=1, n_embd=64, n_positions=64, vocab_size=3, bias=bias, dropout=0.0
    )
    model = GPT2(config)
    of_run = Optimizer(model, TrainConfig(optimizer=optimizer))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    of_run.step()
    store = CheckpointStore(run)
    store.save(model, TOKENIZER, of_run.state(), TrainingState(1, 0.0, None, None, ""), False)
    folder = recovery.newest(run)
    names = ("model.safetensors", "training/optimizer.safetensors")
    headers = [8 + int.from_bytes((folder / name).read_bytes()[:8], "little") for name in names]
    size = sum((folder / name).stat().st_size for name in names) - sum(headers)
    assert checkpoint_bytes(config, optimizer) == size


def test_the_same_step_is_written_once_unless_it_is_another(run: Path) -> None:
    store = CheckpointStore(run)
    state = TrainingState(4, 1.0, None, None, "")
    for changed in (state, replace(state, elapsed_seconds=2.0), replace(state, batches_skipped=1)):
        store.save(GPT2(CONFIG), TOKENIZER, {}, changed, False)
        written = read_state(recovery.newest(run))
        assert written.batches_skipped == changed.batches_skipped
    assert written.elapsed_seconds == 1.0
    assert steps(run) == [4]


def test_states_of_earlier_versions_are_read(run: Path) -> None:
    save(CheckpointStore(run), 3)
    path = recovery.newest(run) / STATE
    values = asdict(read_state(path.parents[1]))
    old = {key: values[key] for key in list(values)[:5]}
    path.write_text(json.dumps(old), encoding="utf-8")
    assert read_state(path.parents[1]) == TrainingState(3, 0.0, None, None, "")


def test_a_best_model_that_is_gone_is_none(run: Path) -> None:
    store = CheckpointStore(run)
    store.save(GPT2(CONFIG), TOKENIZER, {}, TrainingState(3, 0.0, 1.5, 2, ""), False)
    _, state, _ = store.load_last()
    assert (state.best_loss, state.best_step) == (None, None)


def test_a_checkpoint_of_a_newer_format_is_not_passed_over(run: Path) -> None:
    store = CheckpointStore(run)
    for step in (1, 2):
        save(store, step)
    path = recovery.newest(run) / "manifest.json"
    values = json.loads(path.read_text(encoding="utf-8")) | {"version": 7, "news": []}
    del values["sha256"]
    path.write_text(_text(values | {"sha256": _seal(values)}), encoding="utf-8")
    with pytest.raises(NewerFormatError, match=r"manifest.json was written by version 7 .*upgrade"):
        recovery.newest(run, fall_back=True)
    assert NewerFormatError.exit_code == 2


def test_manifests_of_the_first_format_are_read(run: Path) -> None:
    save(CheckpointStore(run), 1)
    path = recovery.newest(run) / "manifest.json"
    values = json.loads(path.read_text(encoding="utf-8")) | {"version": 1}
    del values["sha256"]
    path.write_text(json.dumps(values), encoding="utf-8")
    verify(path.parent)


@pytest.mark.parametrize("change", [("step", 9), ("note", "")])
def test_a_manifest_that_was_changed_is_damaged(run: Path, change: tuple[str, object]) -> None:
    save(CheckpointStore(run), 1)
    path = recovery.newest(run) / "manifest.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(values | dict([change]), indent=2) + "\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
        verify(path.parent)


def test_damaged_pointers_do_not_stop_a_save(run: Path) -> None:
    store = CheckpointStore(run)
    save(store, 1, best=1)
    for name in ("last", "best"):
        (run / f"checkpoints/{name}.json").write_text("{", encoding="utf-8")
    save(store, 2, best=2)
    assert [written.error for written in store.finished()] == [None, None]
    assert load_file(run / "checkpoints/best/model.safetensors")
    assert "step-000002" in (run / "checkpoints/best.json").read_text(encoding="utf-8")
