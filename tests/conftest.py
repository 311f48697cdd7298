"""Texts and vocabularies that lie beside the repository, where they do."""

from __future__ import annotations

from pathlib import Path

import pytest

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
