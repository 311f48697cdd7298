"""The training loop. It knows steps, budgets and checkpoints; it prints nothing."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from gptfit.config import Recipe, TrainConfig
from gptfit.data import Sampler, TokenDataset
from gptfit.errors import ConfigError, GptfitError, Problem
from gptfit.formats.hf import load_model
from gptfit.formats.locate import find_checkpoint
from gptfit.generate import Evaluation, evaluate
from gptfit.model import GPT2
from gptfit.plan.flops import training_flops_per_token
from gptfit.plan.params import count_parameters
from gptfit.train.allocator import keep_freed_pages
from gptfit.train.checkpoint import CheckpointStore, TrainingState
from gptfit.train.device import Device
from gptfit.train.events import (
    Evaluated,
    Event,
    Listener,
    MetricsFile,
    Sampled,
    Saved,
    Started,
    Stepped,
)
from gptfit.train.interrupt import Interrupt
from gptfit.train.sample import SampleWriter
from gptfit.train.schedule import rate_factor
from gptfit.train.step import Step
from gptfit.train.world import World

METRICS = "metrics.jsonl"


class TrainingDivergedError(GptfitError):
    """The loss or the gradient is not finite any more; the last checkpoint is."""

    exit_code = 1


@dataclass(frozen=True)
class Outcome:
    """How a call of ``Trainer.run`` ended.

    ``best`` is the best checkpoint on the whole validation split, ``last`` the last one on the
    tokens that evaluations on the way read; both are None after an interrupt, which only saves.
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


class Interval:
    """The steps since the last log line; sums stay on the device until they are read."""

    def __init__(self, device: Device) -> None:
        self.loss = torch.zeros((), device=device.torch_device)
        self.grad_norm = torch.zeros((), device=device.torch_device)
        self.learning_rate = 0.0
        self.steps = 0
        self.started = time.perf_counter()

    def add(self, loss: Tensor, grad_norm: Tensor, learning_rate: float) -> None:
        """Count one step."""
        self.loss += loss
        self.grad_norm, self.learning_rate = grad_norm, learning_rate
        self.steps += 1

    def seconds(self) -> float:
        """Time since the interval began."""
        return time.perf_counter() - self.started


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
    ) -> None:
        self.run_folder = run
        self.recipe = recipe
        self.dataset = dataset
        self.model = model
        self.device = device
        self.world = world or World()
        self.sampler = Sampler(
            dataset.train, recipe.model.n_positions, recipe.train.batch_size, recipe.train.seed
        )
        self.step = Step(model, recipe, self.sampler, device, self.world)
        self.checkpoints = CheckpointStore(run, recipe.run.keep_checkpoints)
        self.state = TrainingState(0, 0.0, None, None, dataset.fingerprint)
        self.metrics = MetricsFile(run / METRICS)
        self._started: float | None = None
        self._logged = (0, 0.0)
        self._sampled_step: int | None = None
        self.writer = SampleWriter(recipe, dataset, device)
        require_end(recipe.train)
        if device.torch_device.type == "cpu":
            keep_freed_pages()

    def restore(self) -> None:
        """Continue from the run's last checkpoint, whose weights the model already has."""
        _, self.state, moments = self.checkpoints.load_last()
        self.step.optimizer.restore(moments, self.state.step)

    def run(self, listener: Listener, interrupt: Interrupt) -> Outcome:
        """Train until the budget is spent or ``interrupt`` is set; the run folder is whole either way."""
        self._listener = listener
        self._started = time.perf_counter() - self.state.elapsed_seconds
        parameters = count_parameters(self.recipe.model).total
        self._tell(Started(self.state.step, self.device.name, self.device.dtype_name, parameters))
        train = self.recipe.train
        evaluation = None
        self._interval = Interval(self.device)
        while self.progress() < 1 and not interrupt.is_set:
            evaluation = None
            self._step()
            if self.state.step % train.log_interval == 0:
                self._log()
            if self.state.step % train.eval_interval == 0 and self.progress() < 1:
                evaluation = self._milestone()
        if self._interval.steps:
            self._log()
        if interrupt.is_set and self.progress() < 1:
            self._save(is_best=False)  # at once: whoever interrupts is in a hurry
            return Outcome(
                self.state.step, None, None, self.state.best_step, self.elapsed_seconds()
            )
        last = evaluation or self._milestone(is_last=True)
        best = self._conclude(last)
        return Outcome(self.state.step, last, best, self.state.best_step, self.elapsed_seconds())

    def _conclude(self, last: Evaluation) -> Evaluation:
        """The checkpoint that is handed over, on every token of the validation split; and a sample."""
        step = self.state.best_step or 0
        model = self.model
        if step != self.state.step:
            model = load_model(
                find_checkpoint(self.run_folder, ("best",)), self.device.torch_device
            )
        if self.recipe.train.sample_interval != 0 and self._sampled_step != step:
            self._sample(step, model)
        if model is self.model and last.tokens == len(self.dataset.val) - 1:
            return last
        return evaluate(model, self.dataset.val, None, self.device.autocast())

    def progress(self) -> float:
        """Share of the budget spent, 0 to 1: of the budget that is nearest to its end."""
        train, step = self.recipe.train, self.state.step
        shares = [0.0]
        if train.max_steps is not None:
            shares.append(step / train.max_steps)
        if train.max_tokens is not None:
            shares.append(step * self.tokens_per_step / train.max_tokens)
        if train.max_seconds is not None:
            shares.append(self.elapsed_seconds() / train.max_seconds)
        return min(1.0, max(shares))

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
        steps, seconds = self._logged
        return steps * self.tokens_per_step / seconds if steps else 0.0

    def _step(self) -> None:
        factor = rate_factor(self.recipe.train, self.state.step, self.progress())
        gradients = self.step.gradients(self.state.step)
        if not gradients.are_finite:
            raise self._diverged(gradients.loss.item())
        self.step.update(factor)
        self.state = replace(self.state, step=self.state.step + 1)
        rate = factor * self.recipe.train.learning_rate
        self._interval.add(gradients.loss, gradients.norm, rate)

    def _log(self) -> None:
        interval = self._interval
        steps, seconds = self._logged
        self._logged = steps + interval.steps, seconds + interval.seconds()
        rate = interval.steps * self.tokens_per_step / interval.seconds()
        peak = self.device.peak_flops
        mfu = rate * training_flops_per_token(self.recipe.model) / peak if peak else None
        self._tell(
            Stepped(
                step=self.state.step,
                loss=(interval.loss / interval.steps).item(),
                learning_rate=interval.learning_rate,
                grad_norm=interval.grad_norm.item(),
                tokens=self.state.step * self.tokens_per_step,
                epoch=self.sampler.epoch(self.state.step),
                tokens_per_second=rate,
                elapsed_seconds=self.elapsed_seconds(),
                progress=self.progress(),
                model_flops_utilization=mfu,
            )
        )
        self._interval = Interval(self.device)

    def _milestone(self, is_last: bool = False) -> Evaluation:
        """Evaluate, sample, save."""
        started = time.perf_counter()
        evaluation = evaluate(
            self.model, self.dataset.val, self.recipe.train.eval_tokens, self.device.autocast()
        )
        if not math.isfinite(evaluation.loss):
            raise self._diverged(evaluation.loss)
        is_best = self.state.best_loss is None or evaluation.loss < self.state.best_loss
        if is_best:
            self.state = replace(self.state, best_loss=evaluation.loss, best_step=self.state.step)
        self._tell(
            Evaluated(
                step=self.state.step,
                loss=evaluation.loss,
                bits_per_byte=self.bits_per_byte(evaluation),
                tokens=evaluation.tokens,
                of_tokens=len(self.dataset.val) - 1,
                is_best=is_best,
                elapsed_seconds=self.elapsed_seconds(),
            )
        )
        if self.writer.is_due(self.state.step) and not is_last:
            self._sample(self.state.step, self.model)
        self._save(is_best)
        self._interval.started += time.perf_counter() - started  # not training time
        return evaluation

    def bits_per_byte(self, evaluation: Evaluation) -> float | None:
        """None where the size of the validation text is not known."""
        tokens_per_byte = self.dataset.val_tokens_per_byte
        return evaluation.bits_per_byte(tokens_per_byte) if tokens_per_byte else None

    def _sample(self, step: int, model: GPT2) -> None:
        self._tell(Sampled(step, self.writer.prompt, self.writer.write(model)))
        self._sampled_step = step

    def _save(self, is_best: bool) -> None:
        self.state = replace(self.state, elapsed_seconds=self.elapsed_seconds())
        folder = self.checkpoints.save(
            self.model,
            self.dataset.tokenizer,
            self.step.optimizer.state(),
            self.state,
            is_best,
        )
        self._tell(Saved(self.state.step, folder.name))

    def _tell(self, event: Event) -> None:
        self.metrics.append(event)
        self._listener(event)

    def _diverged(self, loss: float) -> TrainingDivergedError:
        where = (
            f"the last checkpoint is whole: {self.checkpoints.folder / 'last'}"
            if (self.checkpoints.folder / "last.json").is_file()
            else "no checkpoint had been written yet"
        )
        return TrainingDivergedError(
            f"the loss is {loss} after step {self.state.step}: training has diverged before the "
            f"update; {where}. Start again with a smaller learning_rate "
            f"(now {self.recipe.train.learning_rate:g}) or more warmup_steps"
        )


def require_end(train: TrainConfig) -> None:
    """Refuse a run without any budget."""
    if not train.has_end:
        fix = "give --time 2m, or max_steps or max_tokens"
        raise ConfigError(Problem("train.max_steps", "the run has no end", fix))
