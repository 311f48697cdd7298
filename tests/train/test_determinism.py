"""``run.deterministic``, which holds for a whole process and is taken back here by hand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from interruptions import differences
from tiny_run import finish, make_trainer


@pytest.fixture
def _taken_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_taken_back")
def test_a_deterministic_run_repeats_itself(tmp_path: Path) -> None:
    quick = ["max_steps=6", "deterministic=true"]
    finish(make_trainer(tmp_path / "run", *quick))
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finish(make_trainer(tmp_path / "again", *quick))
    assert differences(tmp_path / "run", tmp_path / "again") == []


def test_runs_are_not_deterministic_unless_asked(tmp_path: Path) -> None:
    make_trainer(tmp_path / "run")
    assert not torch.are_deterministic_algorithms_enabled()
