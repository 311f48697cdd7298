"""Calling the command line in this process, and one small finished run to look at."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gptfit.cli import app

SMALL = ["n_layer=1", "n_embd=16", "n_head=2", "n_positions=16", "sample_tokens=5", "device=cpu"]
TEXT = "All happy families are alike; each unhappy family is unhappy in its own way.\n" * 40


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def call(*arguments: object, stdin: str | bytes | None = None) -> Result:
    """Run ``gptfit ARGUMENTS`` and return exit code, stdout and stderr."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Result(result.exit_code, result.stdout, result.stderr)


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
