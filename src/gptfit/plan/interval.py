"""A quantity that is not known exactly."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """``best`` is the expected value; the true one is meant to lie between ``low`` and ``high``.

    >>> Interval.around(100.0, 0.5) + Interval.exactly(5.0)
    Interval(low=55.0, best=105.0, high=155.0)
    """

    low: float
    best: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> Interval:
        """A value without doubt."""
        return cls(value, value, value)

    @classmethod
    def around(cls, best: float, share: float) -> Interval:
        """``best`` give or take this share of it."""
        return cls(best * (1 - share), best, best * (1 + share))

    def __add__(self, other: Interval) -> Interval:
        return Interval(self.low + other.low, self.best + other.best, self.high + other.high)

    def times(self, factor: float) -> Interval:
        """All three multiplied by a positive number."""
        return Interval(self.low * factor, self.best * factor, self.high * factor)
