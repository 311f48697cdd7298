"""The processes that share one run. Alone, every question has its answer at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from gptfit.model import GPT2


class World:
    """One process, alone. A batch is cut by rank; what all must agree on goes through here."""

    rank = 0
    size = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes, prints and keeps the time."""
        return self.rank == 0

    def wrap(self, model: GPT2) -> GPT2:
        """The model whose backward pass leaves the mean gradient of all processes."""
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

    def barrier(self) -> None:
        """Wait until every process is here."""
