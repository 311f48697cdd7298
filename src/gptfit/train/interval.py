"""What is summed up between two lines of the log."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from gptfit.train.device import Device


class Interval:
    """The steps since the last log line; sums stay on the device until they are read.

    It may have begun before this process: then ``loss`` is the sum over the ``steps`` before.
    """

    def __init__(self, device: Device, loss: float = 0.0, steps: int = 0) -> None:
        self.loss = torch.tensor(loss, device=device.torch_device)
        self.grad_norm = torch.zeros((), device=device.torch_device)
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

    def seconds(self) -> float:
        """How long its timed steps took."""
        return time.perf_counter() - self.started
