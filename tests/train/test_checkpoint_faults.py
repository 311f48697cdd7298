"""Whatever fails while a checkpoint is written, and wherever the process dies, nothing is lost."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from gptfit.config import GPT2Config
from gptfit.data import Tokenizer
from gptfit.formats.hf import load_model
from gptfit.formats.integrity import is_whole, verify
from gptfit.model import GPT2
from gptfit.train import recovery
from gptfit.train.checkpoint import CheckpointStore, TrainingState, Written

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CONFIG = GPT2Config(n_layer=1, n_head=1, n_embd=8, n_positions=8, vocab_size=3)
OPERATIONS = ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir", "symlink", "open")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes most of the time, and shows only when the power fails."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Killed(BaseException):
    """The process is gone."""


class Disk:
    """Counts the operations that change something, and fails one of them."""

    def __init__(self, failing: int, error: BaseException) -> None:
        self.failing = failing
        self.error = error
        self.count = 0

    def operate(self) -> bool:
        """Whether this operation is the one that fails."""
        self.count += 1
        return self.count - 1 == self.failing

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While the system's functions go through this disk."""
        with pytest.MonkeyPatch.context() as patch:
            for name in OPERATIONS:
                patch.setattr(os, name, self._checked(getattr(os, name)))
            patch.setattr(io, "open", self._open)
            yield

    def _checked(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def checked(*arguments: Any, **options: Any) -> Any:
            if self.operate():
                raise self.error
            return function(*arguments, **options)

        return checked

    def _open(self, path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        file = open(path, mode, *arguments, **options)  # noqa: SIM115
        return HalfWritten(file, self) if "w" in mode else file


class HalfWritten:
    """A file whose failing write leaves half of it behind."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self.file, self.disk = file, disk

    def __enter__(self) -> HalfWritten:
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, data: Any) -> int:
        if self.disk.operate():
            self.file.write(data[: len(data) // 2])
            raise self.disk.error
        return int(self.file.write(data))


def save(store: CheckpointStore, step: int, best_step: int | None = None) -> Written:
    """Write a checkpoint whose weights say of which step they are."""
    model = GPT2(CONFIG)
    with torch.no_grad():
        model.wte.weight.fill_(step)
    state = TrainingState(step, 0.0, None, best_step, "")
    moments = {f"exp_avg/{name}": tensor for name, tensor in model.named_parameters()}
    store.save(model, Tokenizer.char("abc"), moments, state, step == best_step)
    store.wait()
    [written] = store.finished()
    return written


def content(folder: Path) -> dict[str, bytes]:
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {str(name): path.read_bytes() for name, path in files.items()}


def steps(run: Path) -> dict[str, dict[str, bytes]]:
    return {name: content(run / "checkpoints" / name) for name in names(run)}


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with three checkpoints: the best, one that the next save drops, and the last."""
    run = tmp_path_factory.mktemp("before") / "run"
    run.mkdir()
    store = CheckpointStore(run, keep=2)
    for step in (1, 2, 3):
        assert save(store, step, best_step=1).error is None
    assert names(run) == ["step-000001", "step-000002", "step-000003"]
    return run


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").glob("step-*"))


def copy_of(run: Path, where: Path) -> Path:
    shutil.rmtree(where, ignore_errors=True)
    shutil.copytree(run, where, symlinks=True)
    return where


def operations(before: Path, where: Path) -> int:
    """How many operations a save takes."""
    store, disk = CheckpointStore(copy_of(before, where), keep=1), Disk(-1, OSError())
    with disk.in_place():
        assert save(store, 4, best_step=4).error is None
    assert names(where) == ["step-000004"]
    assert disk.count > 80
    return disk.count


@pytest.mark.parametrize("asynchronous", [False, True])
def test_each_operation_of_a_save_may_fail(
    before: Path, tmp_path: Path, asynchronous: bool
) -> None:
    run = tmp_path / "run"
    failed = 0
    for failing in range(operations(before, run)):
        copy_of(before, run)
        store = CheckpointStore(run, keep=1, asynchronous=asynchronous)
        with Disk(failing, OSError(errno.EIO, "Input/output error")).in_place():
            written = save(store, 4, best_step=4)
        newest = recovery.newest(run)
        assert newest.name in ("step-000003", "step-000004")
        assert not list((run / "checkpoints").glob(".tmp-*")), failing
        if written.error is None:
            assert newest == written.folder
        else:
            failed += 1
            assert steps(before).items() <= steps(run).items()
            assert "Input/output error" in str(written.error)
            assert "earlier checkpoints are untouched" in str(written.error)
        assert save(store, 5, best_step=4).error is None
        assert recovery.newest(run).name == "step-000005"
    assert failed > 30


def test_the_process_may_die_before_each_operation_of_a_save(before: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    found = set()
    for failing in range(operations(before, run)):
        copy_of(before, run)
        with Disk(failing, Killed()).in_place(), pytest.raises(Killed):
            save(CheckpointStore(run, keep=1), 4, best_step=4)
        recovery.clear(run)
        assert all(is_whole(left) for left in recovery.checkpoints_of(run))
        store = CheckpointStore(run, keep=1)
        folder, state, _ = store.load_last()
        found.add(state.step)
        assert load_model(folder).wte.weight[0, 0] == state.step
        recovery.turn_to(run, folder, state.best_step)
        verify(run / "checkpoints" / recovery.step_name(state.best_step or 0))
        pointers = [
            json.loads((run / f"checkpoints/{name}.json").read_text(encoding="utf-8"))["folder"]
            for name in ("last", "best")
        ]
        assert pointers == [folder.name, recovery.step_name(state.best_step or 0)]
        assert save(store, 5, best_step=state.best_step).error is None
        hidden = {path.name for path in (run / "checkpoints").glob(".*")}
        assert hidden <= {".last.link", ".best.link"}
    assert found == {3, 4}


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), Killed()])
def test_a_checkpoint_that_is_replaced_survives_its_replacement(
    before: Path, tmp_path: Path, error: BaseException
) -> None:
    """The same step with another state, as after a rewind."""
    run = tmp_path / "run"
    failing = 0
    while True:
        disk = Disk(failing, error)
        store = CheckpointStore(copy_of(before, run), keep=2)
        with disk.in_place():
            try:
                save(store, 3, best_step=3)
            except Killed:
                recovery.clear(run)
        assert recovery.newest(run).name == "step-000003"
        failing += 1
        if disk.count <= disk.failing:
            break
    assert failing > 40


def test_kills_at_random_times_lose_nothing() -> None:
    script("kill_during_save.py", "--trials", "12")


def test_damage_is_refused_with_the_file_named() -> None:
    found = script("damage_checkpoint.py", "--flips", "60", "--truncations", "20")
    assert sum(found["damaged"].values()) == 80
    assert len(found["damaged"]) > 5


def script(name: str, *arguments: str) -> Any:
    """The result of a benchmark, which ends with 1 where something was lost."""
    command = [sys.executable, str(BENCHMARKS / name), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_full_disk_says_what_is_needed_and_free(
    before: Path, tmp_path: Path, asynchronous: bool
) -> None:
    """The limit on a file's size stands for the disk's, with the system's own errors."""
    run = copy_of(before, tmp_path / "run")
    kept = content(run)
    store = CheckpointStore(run, keep=2, asynchronous=asynchronous)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        written = save(store, 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert written.folder is None
    assert "it needs " in str(written.error)
    assert "bytes are free" in str(written.error)
    assert content(run) == kept
    assert not list((run / "checkpoints").glob(".tmp-*"))
    assert save(store, 5).error is None


def test_too_little_space_is_seen_before_anything_is_written(
    before: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_of(before, tmp_path / "run")
    usage = shutil.disk_usage(run)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    written = save(CheckpointStore(run), 4)
    assert "bytes and 1,000 bytes are free; make room" in str(written.error)
    assert names(run) == names(before)


@pytest.mark.parametrize("place", ["run", "checkpoints"])
def test_a_place_that_cannot_be_written_is_named(before: Path, tmp_path: Path, place: str) -> None:
    """The run was deleted, or its disk unmounted; or something else stands there."""
    run = copy_of(before, tmp_path / "run")
    store = CheckpointStore(run)
    shutil.rmtree(run)
    if place == "checkpoints":
        run.mkdir()
        (run / "checkpoints").write_text("", encoding="utf-8")
    written = save(store, 4)
    assert f"{run / 'checkpoints'}" in str(written.error)
    assert run.exists() == (place == "checkpoints")


def test_a_deletion_that_fails_does_not_fail_the_save(
    before: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_of(before, tmp_path / "run")

    def stuck(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(recovery, "drop", stuck)
    assert save(CheckpointStore(run, keep=2), 4).error is None
    assert "step-000002" in names(run)


def test_a_system_without_links_has_pointers(
    before: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_of(before, tmp_path / "run")

    def forbidden(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", forbidden)
    assert save(CheckpointStore(run), 4).error is None
    assert '"step-000004"' in (run / "checkpoints/last.json").read_text(encoding="utf-8")
