"""Leaving on request, at the end of a step."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from gptfit.train.world import is_alone

# Schedulers announce the end of a job by one of these: SLURM and torchrun by SIGTERM, Lightning's and
# submitit's users by SIGUSR1 or SIGUSR2. Windows has only the first two.
NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")


class Interrupt:
    """While entered, a signal that asks to leave only sets a flag, however often it comes.

    Only a second SIGINT takes its usual way, which is to leave at once. Python delivers signals to
    the main thread; entered in another one, this waits for none.
    """

    def __init__(self) -> None:
        self.is_set = False
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, as shells have it; 0 for a scheduler, which got what it asked for."""
        return 130 if self.signal in (None, signal.SIGINT) else 0

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in NAMES if hasattr(signal, name)):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number in self._before:
            self._restore(number)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.is_set = True
        self.signal = self.signal or signal.Signals(number)
        # Not among several processes: torchrun repeats to them the Ctrl-C that they have had.
        if number == signal.SIGINT and is_alone():
            self._restore(signal.SIGINT)

    def _restore(self, number: signal.Signals) -> None:
        signal.signal(number, self._before[number])  # type: ignore[arg-type]
