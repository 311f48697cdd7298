"""What a measurement comes to, and what it was made on."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec

from gptfit.plan.host import cores, cpu_name


@dataclass(frozen=True)
class Spread:
    """The median of repeated measurements and the quartiles around it.

    >>> Spread.of([3.0, 1.0, 2.0, 5.0, 4.0])
    Spread(median=3.0, low=2.0, high=4.0, values=(3.0, 1.0, 2.0, 5.0, 4.0))
    """

    median: float
    low: float
    high: float
    values: tuple[float, ...]

    @property
    def share(self) -> float:
        """From quartile to quartile, as a share of the median."""
        return (self.high - self.low) / self.median

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one measurement, both quartiles are that one."""
        several = [*values] if len(values) > 1 else [*values] * 2
        low, median, high = statistics.quantiles(several, n=4, method="inclusive")
        return cls(median, low, high, tuple(values))


@dataclass(frozen=True)
class Absent:
    """A contestant that is not in the race; ``failed`` if it began and broke down."""

    name: str
    reason: str
    failed: bool = False


@dataclass(frozen=True)
class Setting:
    """The machine and the programs of a measurement."""

    cpu: str
    cores: int
    system: str
    python: str
    versions: dict[str, str]
    date: str


def setting() -> Setting:
    """This machine, now."""
    packages = [name for name in ("gptfit", "torch", "transformers") if find_spec(name)]
    return Setting(
        cpu=cpu_name(),
        cores=cores(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        versions={name: version(name) for name in packages},
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )
