"""The log: the steps since its last line, summed up in one."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from gptfit.config import Recipe
from gptfit.plan.flops import training_flops_per_token
from gptfit.train.device import Device
from gptfit.train.events import Listener, Stepped


class Log:
    """Sums up steps and tells them as one event; sums stay on the device until they are read.

    ``loss`` is the sum over ``steps`` since the last event, of which ``timed_steps`` were in this
    process.
    """

    def __init__(self, recipe: Recipe, device: Device, tell: Listener) -> None:
        self.device = device
        self.tell = tell
        self.tokens_per_step = recipe.train.batch_size * recipe.model.n_positions
        self.flops_per_token = training_flops_per_token(recipe.model)
        self._told_steps, self._told_seconds = 0, 0.0
        self.begin()

    def begin(self, loss: float = 0.0, steps: int = 0) -> None:
        """Sum up anew, on top of what an earlier process had not told."""
        self.loss = torch.tensor(loss, device=self.device.torch_device)
        self.grad_norm = torch.zeros((), device=self.device.torch_device)
        self.learning_rate = 0.0
        self.steps = steps
        self.timed_steps = 0
        self.started = time.perf_counter()

    def add(self, loss: Tensor, grad_norm: Tensor, learning_rate: float) -> None:
        """Count one step."""
        self.loss += loss
        self.grad_norm, self.learning_rate = grad_norm, learning_rate
        self.steps += 1
        self.timed_steps += 1

    def pause(self, seconds: float) -> None:
        """Leave out of the speed what was no training."""
        self.started += seconds

    def tell_steps(self, step: int, epoch: float, elapsed_seconds: float, progress: float) -> None:
        """Tell what has been summed up, and begin anew; the run stands after ``step``."""
        seconds = time.perf_counter() - self.started
        self._told_steps += self.timed_steps
        self._told_seconds += seconds
        rate = self.timed_steps * self.tokens_per_step / seconds
        peak = self.device.peak_flops
        self.tell(
            Stepped(
                step=step,
                loss=(self.loss / self.steps).item(),
                learning_rate=self.learning_rate,
                grad_norm=self.grad_norm.item(),
                tokens=step * self.tokens_per_step,
                epoch=epoch,
                tokens_per_second=rate,
                elapsed_seconds=elapsed_seconds,
                progress=progress,
                model_flops_utilization=rate * self.flops_per_token / peak if peak else None,
            )
        )
        self.begin()

    def tokens_per_second(self) -> float:
        """Mean speed of this process's steps, without evaluations and checkpoints."""
        if not self._told_steps:
            return 0.0
        return self._told_steps * self.tokens_per_step / self._told_seconds
