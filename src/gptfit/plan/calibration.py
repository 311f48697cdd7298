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

VERSION = 1


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
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    digest = hashlib.sha256(json.dumps(asdict(fingerprint), sort_keys=True).encode()).hexdigest()
    return Path(cache) / "gptfit" / "calibration" / f"{digest[:16]}.json"


def fit_costs(samples: Sequence[Sample]) -> Costs:
    """The non-negative costs that predict the samples best, in relative error.

    ``doubt`` is the larger of 5 % and twice the median error of predicting each sample from the
    others.
    """
    import numpy as np

    work = np.array([[evaluate(formula, s.letters) for formula in WORK.values()] for s in samples])
    seconds = np.array([sample.seconds for sample in samples])
    relative = work / seconds[:, None]
    errors = []
    for left_out in range(len(samples)):
        rest = np.arange(len(samples)) != left_out
        costs = non_negative_least_squares(relative[rest], np.ones(len(samples) - 1))
        errors.append(abs(relative[left_out] @ costs - 1))
    costs = non_negative_least_squares(relative, np.ones(len(samples)))
    fitted = dict(zip(WORK, map(float, costs), strict=True))
    return Costs(fitted, max(0.05, 2 * float(np.median(errors))), calibrated=True)
