"""Checkpoints while training goes on: what became of each is told, and not all of them may fail."""

from __future__ import annotations

from collections.abc import Callable

from gptfit.errors import CheckpointError
from gptfit.formats.locate import find_checkpoint, pointed_at
from gptfit.train.checkpoint import CheckpointStore, read_state
from gptfit.train.events import Saved, SaveFailed

MOST_FAILURES = 3
"""In a row; by then something is wrong that waiting does not put right."""


class SavingFailedError(CheckpointError):
    """A checkpoint that the run cannot do without was not written."""

    exit_code = 1


class Saving:
    """Follows the checkpoints that a store writes, perhaps in the background."""

    def __init__(self, store: CheckpointStore, tell: Callable[[Saved | SaveFailed], None]) -> None:
        self.store = store
        self.tell = tell
        self.failures: list[CheckpointError] = []
        """Since the last checkpoint that was written."""

    def report(self) -> set[int]:
        """Tell what has been settled since the last call; the steps whose checkpoints failed.

        Raises ``SavingFailedError`` at the third failure in a row.
        """
        failed = set()
        for written in self.store.finished():
            if written.error is None:
                assert written.folder is not None
                self.failures.clear()
                self.tell(Saved(written.step, written.folder.name))
            else:
                failed.add(written.step)
                self.failures.append(written.error)
                self.tell(SaveFailed(written.step, str(written.error)))
        if len(self.failures) >= MOST_FAILURES:
            self.require_last()
        return failed

    def require_last(self) -> None:
        """Raises ``SavingFailedError`` where the last checkpoint that is settled was not written."""
        if self.failures:
            raise SavingFailedError(f"{self.failures[-1]}; {self.last()}")

    def last(self) -> str:
        """What a run that has to end can go on from, in words for its error."""
        if pointed_at(self.store.run, "last") is None:
            return "no checkpoint had been written yet"
        return f"the last checkpoint is whole: {self.store.folder / 'last'}"

    def best(self) -> tuple[float | None, int | None]:
        """Loss and step of the best checkpoint there is."""
        if pointed_at(self.store.run, "best") is None:
            return None, None
        state = read_state(find_checkpoint(self.store.run, ("best",)))
        return state.best_loss, state.best_step
