"""The processes that share one run. Alone, every question has its answer at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TypeVar

from torch import Tensor, nn

from gptfit.config import Recipe, TrainConfig
from gptfit.errors import ConfigError, Problem
from gptfit.model import GPT2
from gptfit.train.device import Device, require_memory

T = TypeVar("T")


class World:
    """One process, alone. A batch is cut by rank; what all must agree on goes through here.

    Enter it around a run: where another process is lost, that is said and not what it led to.
    """

    rank = 0
    size = 1

    def __enter__(self) -> World:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Nobody to leave."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes, prints and keeps the time."""
        return self.rank == 0

    def micro_batch_size(self, train: TrainConfig) -> int:
        """Sequences of one forward pass of one process; all processes get equally many.

        Raises ``ConfigError`` where the batch cannot be shared like that.
        """
        batch = train.batch_size
        if batch % self.size:
            message = f"batch_size={batch} cannot be shared by {self.size} processes"
            fix = f"use a multiple of {self.size}, such as {-(-batch // self.size) * self.size}"
            raise ConfigError(Problem("train.batch_size", message, fix))
        share = batch // self.size
        micro = min(train.micro_batch_size, share)
        if share % micro:
            message = (
                f"micro_batch_size={micro} does not divide the {share} sequences that each of "
                f"{self.size} processes takes of batch_size={batch}"
            )
            fits = next(size for size in range(micro, 0, -1) if share % size == 0)
            raise ConfigError(Problem("train.micro_batch_size", message, f"try {fits}"))
        return micro

    def settle(self, recipe: Recipe, device: Device) -> None:
        """Decide how the work is shared, before the model is made.

        Raises ``ConfigError`` for what the devices cannot hold or the processes not share.
        """
        require_memory(recipe, device)

    def wrap(self, model: GPT2) -> nn.Module:
        """The model whose backward pass leaves the mean gradient of all processes.

        Where it shards the model, that happens in place, so the optimizer comes after it.
        """
        return model

    @contextmanager
    def accumulating(self, more_to_come: bool) -> Iterator[None]:
        """Around a backward pass: gradients are exchanged only when no more are to come."""
        yield

    def sum(self, value: Tensor) -> Tensor:
        """The sum of every process's ``value``."""
        return value

    def agree(self, stop: bool, seconds: float) -> tuple[bool, float]:
        """Whether any process wants to stop, and the main one's clock."""
        return stop, seconds

    def of_main(self, make: Callable[[], T]) -> T:
        """What ``make`` returns in the main process, which alone calls it; the others wait for it.

        It travels pickled, so it should be small and plain.
        """
        return make()

    def main_first(self, make: Callable[[], T], find: Callable[[], T]) -> T:
        """What ``make`` returns in the main process, and ``find`` in the others when that is done."""
        return make()

    def full(self, tensor: Tensor) -> Tensor:
        """A tensor of which each process may hold a shard, in one piece, in every process."""
        return tensor

    def like(self, full: Tensor, parameter: Tensor) -> Tensor:
        """The inverse of ``full``: what this process holds of it where it holds ``parameter``."""
        return full

    def collected(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors, for the main process to write. All call this; only it may use the result."""
        return dict(tensors)

    def whole(self, model: GPT2) -> GPT2:
        """The model in one piece, as ``collected`` gives its tensors."""
        return model

    def mine(self, count: int) -> slice:
        """Which of ``count`` equal pieces of work are this process's."""
        return slice(0, count)

    def gathered(self, mine: Tensor, count: int) -> Tensor:
        """The pieces (count, ...) of all processes, of which each gives its ``mine(count)``."""
        return mine


def join() -> World:
    """The processes that torchrun has started together; without it, this one."""
    if is_alone():
        return World()
    from gptfit.train.processes import Processes

    return Processes()


def is_alone() -> bool:
    """Whether nobody else was started with this process."""
    return os.environ.get("WORLD_SIZE", "1") == "1"
