"""What was measured on a device, kept under a fingerprint of everything it holds for.

A calibration is used only where the fingerprint is the same: another driver, another release of
torch or another number of threads is another machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from gptfit.plan import host
from gptfit.plan.least_squares import non_negative_least_squares
from gptfit.plan.memory.formula import evaluate
from gptfit.plan.time import WORK, Costs

VERSION = 2


@dataclass(frozen=True)
class Fingerprint:
    """What a measurement depends on: the device, its software, and how the step is computed."""

    device: str
    driver: str
    torch: str
    threads: int
    dtype: str
    compiled: bool = False

    @classmethod
    def of_cpu(cls, dtype: str) -> Fingerprint:
        """This machine's processor with the threads that torch will use, found without torch."""
        threads = os.environ.get("OMP_NUM_THREADS", "")
        count = int(threads) if threads.isdigit() else host.cores()
        return cls(host.cpu_name(), platform.system(), version("torch"), count, dtype)


@dataclass(frozen=True)
class Sample:
    """A measured step: the letters of its configuration and its seconds."""

    letters: dict[str, int]
    seconds: float


@dataclass(frozen=True)
class Calibration:
    """Costs fitted to measured steps."""

    fingerprint: Fingerprint
    costs: Costs
    samples: tuple[Sample, ...]
    measured_seconds: float

    def save(self) -> Path:
        """Write it where ``load`` looks."""
        path = calibration_file(self.fingerprint)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps({"version": VERSION} | asdict(self), indent=1))
        temporary.replace(path)
        return path


def load(fingerprint: Fingerprint) -> Calibration | None:
    """The calibration of exactly this fingerprint; None where there is none that can be read."""
    try:
        values = json.loads(calibration_file(fingerprint).read_text(encoding="utf-8"))
        if values["version"] != VERSION or values["fingerprint"] != asdict(fingerprint):
            return None
        costs = Costs(**values["costs"])
        samples = tuple(Sample(**sample) for sample in values["samples"])
        return Calibration(fingerprint, costs, samples, values["measured_seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # none, unreadable or of another release: it is measured again


def calibration_file(fingerprint: Fingerprint) -> Path:
    """Where a calibration lies: in the user's cache, under a digest of the fingerprint."""
    digest = hashlib.sha256(json.dumps(asdict(fingerprint), sort_keys=True).encode()).hexdigest()
    return cache_folder() / "calibration" / f"{digest[:16]}.json"


def cache_folder() -> Path:
    """What can be measured or made again: gptfit's folder in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "gptfit"


LEAST_DOUBT = 0.10
"""The largest error over the models of benchmarks/step_times.py was 9 %."""


def fit_costs(samples: Sequence[Sample]) -> Costs:
    """The non-negative costs that predict the samples best, in relative error.

    ``doubt`` grows with what they leave unexplained: a machine that is busy with something else.
    """
    import numpy as np

    work = np.array([[evaluate(formula, s.letters) for formula in WORK.values()] for s in samples])
    relative = work / np.array([sample.seconds for sample in samples])[:, None]
    costs = non_negative_least_squares(relative, np.ones(len(samples)))
    unexplained = float(np.median(abs(relative @ costs - 1)))
    fitted = dict(zip(WORK, map(float, costs), strict=True))
    return Costs(fitted, max(LEAST_DOUBT, 2 * unexplained), calibrated=True)
