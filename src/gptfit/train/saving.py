"""From training to its checkpoints and back: what became of each is told, and not all may fail."""

from __future__ import annotations

from gptfit.data import Tokenizer
from gptfit.errors import CheckpointError
from gptfit.formats.hf import load_model
from gptfit.formats.locate import find_checkpoint, pointed_at
from gptfit.train.checkpoint import CheckpointStore, TrainingState, read_state
from gptfit.train.events import Listener, Saved, SaveFailed
from gptfit.train.recovery import Warn
from gptfit.train.step import Step

MOST_FAILURES = 3
"""In a row; by then something is wrong that waiting does not put right."""


class SavingFailedError(CheckpointError):
    """A checkpoint that the run cannot do without was not written."""

    exit_code = 1


class Saving:
    """Has a store write what a step changes, perhaps in the background, and follows what becomes of it."""

    def __init__(
        self, store: CheckpointStore, step: Step, tokenizer: Tokenizer, tell: Listener
    ) -> None:
        self.store = store
        self.step = step
        self.tokenizer = tokenizer
        self.tell = tell
        self.failures: list[CheckpointError] = []
        """Since the last checkpoint that was written."""

    def save(self, state: TrainingState) -> None:
        """Begin to write a checkpoint; ``report`` tells what becomes of it."""
        world, optimizer = self.step.world, self.step.optimizer
        model = world.whole(optimizer.model)
        moments = world.collected(optimizer.state())
        is_best = state.best_step == state.step
        world.of_main(lambda: self.store.save(model, self.tokenizer, moments, state, is_best))

    def put_back_last(self, warn: Warn) -> TrainingState:
        """Go back to the newest sound checkpoint. A damaged one is passed over, which ``warn`` is told."""
        folder, state, moments = self.store.load_last(warn)
        rows = len(self.step.optimizer.model.wte.weight)
        device = self.step.device.torch_device
        weights = load_model(folder, device, pad_vocab_to_multiple=rows)
        self.step.restore(dict(weights.named_parameters()), moments, state.step)
        return state

    def has_last(self) -> bool:
        """Whether there is a checkpoint to go back to, by the main process's files."""
        return self.step.world.of_main(lambda: pointed_at(self.store.run, "last") is not None)

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
