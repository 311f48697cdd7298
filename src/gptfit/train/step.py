"""One optimizer step: a batch, its gradients, the update."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gptfit.config import Recipe
from gptfit.data import Sampler
from gptfit.model import GPT2
from gptfit.train.compiled import compile_blocks, wants_compilation
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
        """The norm is finite only if every gradient is; the loss may be infinite even so."""
        return bool(torch.isfinite(self.norm) & torch.isfinite(self.loss))


class Step:
    """Computes gradients and applies them; ``micro_batch_size`` may be lowered between steps.

    What ``gradients`` gives depends on the weights and the number of the batch alone, so it can be
    asked again after it has failed, when ``drop_gradients`` was called.
    """

    def __init__(
        self, model: GPT2, recipe: Recipe, sampler: Sampler, device: Device, world: World
    ) -> None:
        self.config = recipe.train
        self.sampler = sampler
        self.device = device
        self.world = world
        self.micro_batch_size = world.micro_batch_size(recipe.train)
        model.spare_memory(recipe.run.checkpointed_blocks, recipe.run.loss_chunks)
        self.compilation = ""
        if wants_compilation(recipe, device):
            self.compilation = compile_blocks(model, device, self.micro_batch_size)
        self.model = world.wrap(model)
        self.optimizer = Optimizer(model, recipe.train, device.dtype, world)

    def gradients(self, number: int) -> Gradients:
        """Forward and backward of the batch ``number``, in micro-batches, and the clipping."""
        loss = self._accumulate(number)
        clip = self.config.grad_clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip, foreach=True)
        return Gradients(loss, self.world.full(norm))

    def update(self, factor: float) -> None:
        """Apply the gradients at ``factor`` of the full learning rate."""
        self.optimizer.step(factor)

    @torch.no_grad()
    def restore(
        self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor], step: int
    ) -> None:
        """Put back the whole weights by name, and what the optimizer's ``state`` was after ``step``."""
        for name, parameter in self.optimizer.model.named_parameters():
            parameter.copy_(self.world.like(weights[name], parameter))
        self.optimizer.restore(moments, step)

    def drop_gradients(self) -> None:
        """Forget what has been accumulated, a part of a batch included."""
        self.model.zero_grad(set_to_none=True)

    def limit_micro_batch(self, most: int) -> None:
        """Take at most ``most`` sequences at once from here on, equally many each time."""
        share = self.config.batch_size // self.world.size
        sizes = range(min(most, self.micro_batch_size), 0, -1)
        self.micro_batch_size = next(size for size in sizes if share % size == 0)

    @property
    def grad_accum_steps(self) -> int:
        """Forward and backward passes of this process in a step."""
        return self.config.batch_size // self.world.size // self.micro_batch_size

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
