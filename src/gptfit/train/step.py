"""One optimizer step: a batch, its gradients, the update."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gptfit.config import Recipe
from gptfit.data import Sampler
from gptfit.model import GPT2
from gptfit.train.device import Device
from gptfit.train.optimizer import Optimizer
from gptfit.train.world import World


@dataclass(frozen=True)
class Gradients:
    """The mean loss of a batch and the norm of its gradient before clipping, both on the device."""

    loss: Tensor
    norm: Tensor

    @property
    def are_finite(self) -> bool:
        """The norm is finite only if every gradient is, and the loss is not NaN where they are."""
        return bool(torch.isfinite(self.norm))


class Step:
    """Computes gradients and applies them; ``micro_batch_size`` may be lowered between steps."""

    def __init__(
        self, model: GPT2, recipe: Recipe, sampler: Sampler, device: Device, world: World
    ) -> None:
        self.model = world.wrap(model)
        self.config = recipe.train
        self.sampler = sampler
        self.device = device
        self.world = world
        self.optimizer = Optimizer(model, recipe.train)
        self.micro_batch_size = recipe.train.micro_batch_size
        model.spare_memory(recipe.run.checkpointed_blocks, recipe.run.loss_chunks)

    def gradients(self, number: int) -> Gradients:
        """Forward and backward of the batch ``number``, in micro-batches, and the clipping."""
        loss = self._accumulate(number)
        clip = self.config.grad_clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip, foreach=True)
        return Gradients(loss, norm)

    def update(self, factor: float) -> None:
        """Apply the gradients at ``factor`` of the full learning rate."""
        self.optimizer.step(factor)

    def _accumulate(self, number: int) -> Tensor:
        rank, size = self.world.rank, self.world.size
        # Dropout, like the batch, follows from seed and number alone: nothing to save for a resume.
        torch.manual_seed((self.config.seed * 1_000_003 + number + rank * 2**40) % 2**63)
        batch = [
            torch.from_numpy(array).to(self.device.torch_device, non_blocking=True)
            for array in self.sampler.batch(number, rank, size)
        ]
        total = torch.zeros((), device=self.device.torch_device)
        parts = [part.split(self.micro_batch_size) for part in batch]
        last = len(parts[0]) - 1
        for index, (inputs, targets) in enumerate(zip(*parts, strict=True)):
            with self.world.accumulating(more_to_come=index < last):
                with self.device.autocast():
                    loss = self.model(inputs, targets) / len(parts[0])
                loss.backward()
            total += loss.detach()
        return self.world.sum(total) / size
