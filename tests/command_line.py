"""Calling the command line in this process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

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
