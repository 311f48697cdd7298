"""The training loop. It knows steps, budgets and checkpoints; it prints nothing."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gptfit.config import Recipe
from gptfit.data import Sampler, TokenDataset
from gptfit.formats.locate import METRICS
from gptfit.generate import Evaluation
from gptfit.generate.evaluate import Abandoned
from gptfit.model import GPT2
from gptfit.model.out_of_memory import give_back_unused, is_out_of_memory
from gptfit.plan.params import count_parameters
from gptfit.train.allocator import keep_freed_pages
from gptfit.train.anomaly import (
    REWIND,
    SKIP,
    STOP,
    Anomalies,
    MemoryExhaustedError,
    TrainingDivergedError,
    finite,
)
from gptfit.train.budget import require_end, share_spent
from gptfit.train.checkpoint import CheckpointStore, TrainingState, checkpoint_bytes
from gptfit.train.determinism import make_deterministic
from gptfit.train.device import Device
from gptfit.train.events import (
    Listener,
    MetricsFile,
    MicroBatchHalved,
    NonFinite,
    Started,
    Teller,
    unheard,
)
from gptfit.train.examination import Examiner
from gptfit.train.interrupt import Interrupt
from gptfit.train.log import Log
from gptfit.train.recovery import Warn
from gptfit.train.saving import Saving
from gptfit.train.schedule import rate_factor
from gptfit.train.step import Gradients, Step
from gptfit.train.world import World

if TYPE_CHECKING:
    from gptfit.train.lock import RunLock


@dataclass(frozen=True)
class Outcome:
    """How a call of ``Trainer.run`` ended.

    ``best`` is the best checkpoint on the whole validation split, ``last`` the last one on the
    tokens that evaluations on the way read. Both are None after an interrupt, which only saves;
    ``best`` alone is where the interrupt came when the training was over.
    """

    step: int
    last: Evaluation | None
    best: Evaluation | None
    best_step: int | None
    elapsed_seconds: float

    @property
    def interrupted(self) -> bool:
        """Whether the run was stopped before its budget was spent."""
        return self.last is None


class Trainer:
    """One run on one device: a model, its data, and the folder that holds what must last."""

    def __init__(
        self,
        run: Path,
        recipe: Recipe,
        dataset: TokenDataset,
        model: GPT2,
        device: Device,
        world: World | None = None,
        *,
        lock: RunLock | None = None,
    ) -> None:
        """``lock``, if any, is released when ``run`` has ended."""
        if recipe.run.deterministic:
            make_deterministic()
        self.run_folder = run
        self.recipe = recipe
        self.dataset = dataset
        self.model = model
        self.device = device
        self.world = world or World()
        self.lock = lock
        self.sampler = Sampler(
            dataset.train, recipe.model.n_positions, recipe.train.batch_size, recipe.train.seed
        )
        self.step = Step(model, recipe, self.sampler, device, self.world)
        self.checkpoints = CheckpointStore(
            run,
            recipe.run.keep_checkpoints,
            recipe.run.keep_every,
            recipe.run.async_checkpoints,
        )
        self.state = TrainingState(0, 0.0, None, None, dataset.fingerprint)
        # What the trainer holds does not hold the trainer: then its memory is free with it.
        self.tell = Teller(MetricsFile(run / METRICS), self.world.is_main)
        self.log = Log(recipe, device, self.tell)
        self.saving = Saving(self.checkpoints, self.step, dataset.tokenizer, self.tell)
        self.examiner = Examiner(run, recipe, dataset, device, self.world, self.tell)
        self.anomalies = Anomalies(recipe.train)
        self._started: float | None = None
        self._agreed_seconds: float | None = None
        self._evaluation: Evaluation | None = None  # of the weights as they are
        require_end(recipe.train)
        if device.torch_device.type == "cpu":
            keep_freed_pages()

    def restore(self, checkpoint: Path) -> None:
        """Continue from a verified checkpoint of the run, whose weights the model already has."""
        self.state, moments = self.checkpoints.load(checkpoint)
        self.step.optimizer.restore(moments, self.state.step)
        if self.recipe.origins["train.micro_batch_size"] == "command line":
            self.state = replace(self.state, micro_batch_size=None)  # there is more memory now
        if self.state.micro_batch_size is not None:
            self.step.limit_micro_batch(self.state.micro_batch_size)

    def run(self, listener: Listener, interrupt: Interrupt) -> Outcome:
        """Train until the budget is spent or ``interrupt`` is set; the run folder is whole either way."""
        self.tell.listener, self._interrupt = listener, interrupt
        try:
            return self._run()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self.checkpoints.wait()
            size, last = self.step.micro_batch_size, self.saving.last()
            raise MemoryExhaustedError(self.device.name, size, self.recipe, last) from error
        finally:
            self.tell.listener = unheard
            self.checkpoints.wait()  # whoever has the lock next finds nobody writing
            if self.lock:
                self.lock.release()

    def _run(self) -> Outcome:
        self._started = time.perf_counter() - self.state.elapsed_seconds
        config, state, device = self.recipe.model, self.state, self.device
        needed = checkpoint_bytes(config, self.recipe.train.optimizer)
        self.world.of_main(lambda: self.checkpoints.require_space(needed))
        self.tell(
            Started(
                step=state.step,
                metrics_bytes=state.metrics_bytes,
                device=device.name,
                dtype=device.dtype_name,
                parameters=count_parameters(config).total,
                compilation=self.step.compilation,
            )
        )
        self.log.begin(state.unlogged_loss, state.unlogged_steps)
        try:
            while not self._agree_to_stop():
                if self.progress() >= 1:
                    if self._evaluation:
                        return self._conclude(self._evaluation)
                    self._milestone(is_last=True)
                elif self._is_evaluation_due():
                    self._milestone()
                else:
                    self._step()
                self._report_saves()
        except Abandoned:
            pass  # what was given up is done again after a resume
        return self._leave()

    def _leave(self) -> Outcome:
        """Save at once: whoever interrupts is in a hurry."""
        if self.progress() >= 1:
            self._log_rest()
        self._save()
        self._settle()
        self.saving.require_last()
        state = self.state
        return Outcome(state.step, None, None, state.best_step, state.elapsed_seconds)

    def _conclude(self, last: Evaluation) -> Outcome:
        """The end of the budget: nothing is left in the air, and a look at the best checkpoint."""
        self._log_rest()
        self._settle()
        self.saving.require_last()
        # The main process knows which checkpoints could be written.
        best_step = self.world.of_main(lambda: self.state.best_step)
        try:
            best = self.examiner.best(
                best_step or 0, self.model, self.state.step, last, self._agree_to_stop
            )
        except Abandoned:
            best = None
        return Outcome(self.state.step, last, best, best_step, self.elapsed_seconds())

    def _agree_to_stop(self) -> bool:
        """Whether to stop. All processes do so together, and go by the main one's clock."""
        wish, seconds = self._interrupt.is_set, self.elapsed_seconds()
        stop, self._agreed_seconds = self.world.agree(wish, seconds)
        return stop

    @property
    def is_done(self) -> bool:
        """Whether the budget is spent and its end evaluated; an interrupt may come in between."""
        return self.progress() >= 1 and self.state.evaluated_step == self.state.step

    def progress(self) -> float:
        """Share of the budget spent, 0 to 1: of the budget that is nearest to its end."""
        seconds = self._agreed_seconds
        seconds = self.elapsed_seconds() if seconds is None else seconds
        return share_spent(self.recipe.train, self.state.step, self.tokens_per_step, seconds)

    def elapsed_seconds(self) -> float:
        """Time spent in ``run``, over all resumes."""
        if self._started is None:
            return self.state.elapsed_seconds
        return time.perf_counter() - self._started

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimizer step sees."""
        return self.recipe.train.batch_size * self.recipe.model.n_positions

    def tokens_per_second(self) -> float:
        """Mean speed of this process's steps, without evaluations and checkpoints."""
        return self.log.tokens_per_second()

    @property
    def next_batch(self) -> int:
        """The number of the batch that comes next. One that was skipped counts, but is no step."""
        return self.state.step + self.state.batches_skipped

    def _step(self) -> None:
        factor = rate_factor(self.recipe.train, self.state.step, self.progress())
        gradients = self._gradients()
        if not gradients.are_finite:
            self._meet_nonfinite(gradients.loss.item(), gradients.norm.item())
            return
        self.step.update(factor)
        self.state = replace(self.state, step=self.state.step + 1)
        self._evaluation = None
        rate = factor * self.recipe.train.learning_rate
        self.log.add(gradients.loss, gradients.norm, rate)
        if self.state.step % self.recipe.train.log_interval == 0:
            self._log()

    def _gradients(self) -> Gradients:
        """Of the next batch; in half as large pieces, until they fit into the memory."""
        while True:
            try:
                return self.step.gradients(self.next_batch)
            except RuntimeError as error:
                smallest = self.step.micro_batch_size == 1
                if smallest or self.world.size > 1 or not is_out_of_memory(error):
                    raise
            # Not within the except clause, where the error still holds what it could not finish.
            self.step.drop_gradients()
            give_back_unused()
            self.step.limit_micro_batch(self.step.micro_batch_size // 2)
            size, times = self.step.micro_batch_size, self.step.grad_accum_steps
            self.state = replace(self.state, micro_batch_size=size)
            self.tell(MicroBatchHalved(self.state.step, size, times))

    def _meet_nonfinite(self, loss: float, norm: float | None = None) -> None:
        """Stop, skip the batch at hand, or rewind behind it. Without a norm, an evaluation met it."""
        self._settle()
        step, batch = self.state.step, None if norm is None else self.next_batch
        what = f"the validation loss is {loss}"
        if batch is not None:
            what = f"the loss of batch {batch} is {loss} and its gradient's norm {norm}"
        action = self.anomalies.action(step)
        if (action == SKIP and batch is None) or (action == REWIND and not self.saving.has_last()):
            action = STOP
        self.step.drop_gradients()
        damaged: list[str] = []
        if action == SKIP:
            self.state = replace(self.state, batches_skipped=self.state.batches_skipped + 1)
        elif action == REWIND:
            self._rewind(self.next_batch + (batch is not None), damaged.append)
        back_to = self.state.metrics_bytes if action == REWIND else None
        self.tell(NonFinite(step, batch, finite(loss), finite(norm), action, back_to, (*damaged,)))
        if action == STOP:
            raise self._diverged(what)

    def _diverged(self, what: str) -> TrainingDivergedError:
        train = self.recipe.train
        return TrainingDivergedError(what, self.state.step, train, self.saving.last())

    def _rewind(self, next_batch: int, warn: Warn) -> None:
        """Back to the last sound checkpoint, but not to the batches before ``next_batch``."""
        saved = self.saving.put_back_last(warn)
        self.state = replace(
            saved,
            batches_skipped=next_batch - saved.step,
            micro_batch_size=self.state.micro_batch_size,
        )
        self.log.begin(saved.unlogged_loss, saved.unlogged_steps)
        self._evaluation = self.examiner.sampled_step = None

    def _log(self) -> None:
        epoch = self.sampler.epoch(self.next_batch)
        self.log.tell_steps(self.state.step, epoch, self.elapsed_seconds(), self.progress())

    def _log_rest(self) -> None:
        if self.log.timed_steps:
            self._log()

    def _is_evaluation_due(self) -> bool:
        state = self.state
        at_interval = state.step > 0 and state.step % self.recipe.train.eval_interval == 0
        return at_interval and state.evaluated_step != state.step

    def _milestone(self, is_last: bool = False) -> None:
        """Evaluate, sample, save."""
        if is_last:
            self._log_rest()
        started = time.perf_counter()
        step = self.state.step
        evaluation, sample = self.examiner.examine(self.model, step, self._agree_to_stop, is_last)
        if not math.isfinite(evaluation.loss):
            self._meet_nonfinite(evaluation.loss)
            return
        self._settle()  # whether the best so far could be saved
        is_best = self.state.best_loss is None or evaluation.loss < self.state.best_loss
        if is_best:
            self.state = replace(self.state, best_loss=evaluation.loss, best_step=step)
        self.state = replace(self.state, evaluated_step=step)
        self._evaluation = evaluation
        self.examiner.tell_of(step, evaluation, is_best, self.elapsed_seconds(), sample)
        self._save()
        self.log.pause(time.perf_counter() - started)

    def bits_per_byte(self, evaluation: Evaluation) -> float | None:
        """None where the size of the validation text is not known."""
        return self.examiner.bits_per_byte(evaluation)

    def _save(self) -> None:
        """Begin to write a checkpoint; ``_report_saves`` tells what becomes of it."""
        self._settle()
        largest = torch.nn.utils.get_total_norm(self.model.parameters(), math.inf)
        if not torch.isfinite(self.world.full(largest)):
            self.tell(NonFinite(self.state.step, None, None, None, STOP))
            raise self._diverged("a weight is not finite")
        self.state = replace(
            self.state,
            elapsed_seconds=self.elapsed_seconds(),
            metrics_bytes=self.tell.metrics.size(),
            unlogged_loss=self.log.loss.item(),
            unlogged_steps=self.log.steps,
        )
        self.saving.save(self.state)

    def _settle(self) -> None:
        """Wait for the checkpoint that is being written."""
        self.checkpoints.wait()
        self._report_saves()

    def _report_saves(self) -> None:
        if self.state.best_step in self.saving.report():
            loss, step = self.saving.best()
            self.state = replace(self.state, best_loss=loss, best_step=step)
