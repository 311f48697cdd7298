"""One process trains a run at a time."""

from __future__ import annotations

import errno
import gc
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gptfit.errors import CheckpointError
from gptfit.train import lock as locks
from gptfit.train import run as runs
from gptfit.train.lock import RunLock
from tiny_run import finish, make_trainer

HOLD = """
import sys
from pathlib import Path
from gptfit.train.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def holder(run: Path) -> subprocess.Popen[str]:
    """Another process that has the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_process_is_refused_and_told_who_has_it(trained: Path) -> None:
    with holder(trained) as first:
        who = rf"being trained by process {first.pid} on {socket.gethostname()} \(since 20"
        with pytest.raises(CheckpointError, match=who) as caught:
            runs.resume(trained, ["max_steps=16"])
        assert caught.value.exit_code == 2
        first.kill()
    assert finish(runs.resume(trained, ["max_steps=16"])).step == 16


def test_a_new_run_is_locked_from_its_first_file_on(tmp_path: Path) -> None:
    with holder(tmp_path / "run") as first:
        with pytest.raises(CheckpointError, match=f"process {first.pid} "):
            make_trainer(tmp_path / "run")
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
        first.kill()
    assert finish(make_trainer(tmp_path / "run")).step == 12


def test_a_run_that_has_ended_or_was_refused_is_free(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", "max_steps=2")
    assert trainer.lock is not None
    assert finish(trainer).step == 2
    with pytest.raises(runs.SpentError):
        runs.resume(tmp_path / "run")
    with holder(tmp_path / "run") as other:
        other.kill()


def test_parts_of_one_process_share_it(tmp_path: Path) -> None:
    first, second = RunLock(tmp_path), RunLock(tmp_path / "x" / "..")
    with first:
        second.acquire()
    assert (tmp_path / ".lock").read_bytes() != b""
    second.release()
    second.release()
    assert second.path not in locks.HELD
    assert (tmp_path / ".lock").read_bytes() == b""


def test_a_process_of_another_host_is_named(tmp_path: Path) -> None:
    """Killed there, or alive on a disk that does not carry locks: that cannot be told from here."""
    content = {"pid": 7, "host": "elsewhere", "since": "2026-01-02 03:04:05"}
    (tmp_path / ".lock").write_text(json.dumps(content), encoding="utf-8")
    lock = RunLock(tmp_path)
    with lock:
        assert lock.note is not None
        assert "not given back by process 7 on elsewhere (since 2026-01-02 03:04:05)" in lock.note
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_a_disk_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(descriptor: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks, "_take", unable)
    lock = RunLock(tmp_path)
    with lock:
        assert lock.note is not None
        assert "knows no locks" in lock.note


def test_a_place_that_cannot_be_locked_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"file/run cannot be made .*choose --out"):
        RunLock(tmp_path / "file" / "run").acquire()


def test_a_trainer_that_is_never_run_gives_it_back(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run")
    assert trainer.lock is not None
    path = trainer.lock.path
    assert path in locks.HELD
    del trainer
    gc.collect()
    assert path not in locks.HELD
