"""How quantities read: three significant digits, a unit that suits, and the doubt in brackets."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gptfit.plan.interval import Interval

Unit = tuple[float, str]
"""The size of a unit and its name."""

BYTES: Sequence[Unit] = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B"))
SECONDS: Sequence[Unit] = (
    (86400, "days"),
    (3600, "hours"),
    (60, "minutes"),
    (1, "seconds"),
    (1e-3, "ms"),
    (1e-6, "µs"),
)
COUNT: Sequence[Unit] = ((1, ""),)
WORDS: Sequence[Unit] = ((1e12, "trillion"), (1e9, "billion"), (1e6, "million"), (1, ""))
FLOPS: Sequence[Unit] = ((1e12, "TFLOPs"), (1e9, "GFLOPs"), (1e6, "MFLOPs"), (1, "FLOPs"))


def text_of(quantity: float | Interval, units: Sequence[Unit]) -> str:
    """A number or an interval in the largest unit that it fills.

    >>> text_of(Interval(12.9 * 2**30, 13.5 * 2**30, 14.6 * 2**30), BYTES)
    '13.5 GiB (12.9 to 14.6)'
    >>> text_of(5400.0, SECONDS), text_of(Interval(118_412, 131_234, 140_000), COUNT)
    ('1.50 hours', '131,000 (118,000 to 140,000)')
    """
    best = quantity.best if isinstance(quantity, Interval) else quantity
    size, name = next((unit for unit in units if abs(best) >= unit[0]), units[-1])
    text = f"{significant(best / size)} {name}".strip()
    if isinstance(quantity, Interval) and quantity.low < quantity.high:
        text += f" ({significant(quantity.low / size)} to {significant(quantity.high / size)})"
    return text


def significant(value: float) -> str:
    """Three significant digits, without exponents.

    >>> significant(0.012345), significant(13.46), significant(130_871), significant(0)
    ('0.0123', '13.5', '131,000', '0')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{round(value, digits):,.{max(digits, 0)}f}"
