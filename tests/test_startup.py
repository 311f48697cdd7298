"""The light verbs answer without importing anything heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from written_run import told, write_run

HEAVY = ("torch", "numpy", "transformers", "tokenizers", "safetensors", "tiktoken", "matplotlib")
HEAVY += ("fastapi", "starlette", "uvicorn")
VERBS: list[list[str]] = [
    ["--help"],
    ["--version"],
    ["show", "gpt2", "--formula"],
    ["presets"],
    ["lint", "gpt2"],
    ["devices"],
    ["plan", "gpt2", "--device", "rtx4090"],
    ["fit", "--help"],
    ["train", "--help"],
    ["runs", "RUN"],
    ["plot", "--help"],
    ["generate", "--help"],
    ["eval", "--help"],
    ["serve", "--help"],
]

PROGRAM = """
import sys
from gptfit.cli import main
sys.argv = ["gptfit", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print("loaded:", *(name for name in {heavy!r} if name in sys.modules))
"""


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_no_heavy_import(verb: list[str], tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", told(3.0))
    words = [str(run) if word == "RUN" else word for word in verb]
    command = [sys.executable, "-c", PROGRAM.format(heavy=HEAVY), *words]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "loaded:"
    assert len(result.stdout.splitlines()) > 1
