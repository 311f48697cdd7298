"""A finished tiny run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny_run import finish, make_trainer


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """The folder of a finished run."""
    finish(make_trainer(tmp_path / "run"))
    return tmp_path / "run"
