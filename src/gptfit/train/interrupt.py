"""Leaving on request, at the end of a step."""

from __future__ import annotations

import signal
from types import FrameType


class Interrupt:
    """While entered, the first SIGINT or SIGTERM sets a flag; the second takes its usual way."""

    def __init__(self) -> None:
        self.is_set = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Interrupt:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.is_set = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before.clear()
