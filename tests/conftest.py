"""The environment of all tests, and the texts that lie beside the repository, where they do."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

# As the command does, before anything imports torch: see benchmarks/spinning.py.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
# No test may depend on a network, or wait for one.
os.environ["HF_HUB_OFFLINE"] = "1"

# What a test measures of this machine is kept apart from what its user has measured.
CACHE = tempfile.TemporaryDirectory(prefix="gptfit-tests-")
os.environ["XDG_CACHE_HOME"] = CACHE.name

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


@pytest.fixture(scope="session", autouse=True)
def _known_speed() -> None:
    """The speed of the CPU is known: measuring it takes longer than most tests."""
    from gptfit.config import GPT2Config
    from gptfit.plan.calibration import Calibration
    from gptfit.train.calibrate import fingerprint
    from gptfit.train.device import choose_device
    from made_up import COSTS

    for width in (32, 256):
        device = choose_device("cpu", "auto", GPT2Config(n_embd=width, n_head=1))
        Calibration(fingerprint(device), COSTS, (), 0.0).save()
