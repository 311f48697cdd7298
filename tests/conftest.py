"""The environment of all tests, and the texts that lie beside the repository, where they do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# As the command does, before anything imports torch: see benchmarks/spinning.py.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
# No test may depend on a network, or wait for one.
os.environ["HF_HUB_OFFLINE"] = "1"

SHARED = Path(__file__).parents[2] / "shared" / "data"


def _beside_repository(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not there; it is kept beside the repository, not in it")
    return path


@pytest.fixture(scope="session")
def tinyshakespeare() -> Path:
    """1.1 MB of Shakespeare, ASCII."""
    return _beside_repository("tinyshakespeare/input.txt")


@pytest.fixture(scope="session")
def gpt2_bpe() -> Path:
    """A folder with GPT-2's ``encoder.json`` and ``vocab.bpe``."""
    return _beside_repository("gpt2-bpe")
