"""A small text and a finished run on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import SMALL, TEXT, call


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "families.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a char model."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "families.txt").write_text(TEXT, encoding="utf-8")
    result = call(
        "train", "tiny-char", *SMALL, "max_steps=30", "eval_interval=15", "tokenizer=char",
        "--data", folder / "families.txt", "--out", folder / "run",
    )  # fmt: skip
    assert result.code == 0, result.err
    return folder / "run"
