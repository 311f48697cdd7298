"""Guessing the next tokens from what has been said before (prompt lookup; Saxena 2023)."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST_MATCH = 3


def draft(ids: Sequence[int], length: int) -> list[int]:
    """Up to ``length`` ids that followed when the last few ids occurred before, at their latest place.

    >>> draft([1, 2, 3, 4, 1, 2], 3)
    [3, 4, 1]
    """
    if length < 1:
        return []
    for match in range(min(LONGEST_MATCH, len(ids) - 1), 0, -1):
        ending = list(ids[-match:])
        for start in range(len(ids) - match - 1, -1, -1):
            if ids[start : start + match] == ending:
                return list(ids[start + match : start + match + length])
    return []
