"""Batches from token files: at random for training, in order for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from gptfit.errors import ConfigError, DataError, Problem

IGNORED = -100
"""Target of padding; ``torch.nn.functional.cross_entropy`` leaves it out."""


@dataclass(frozen=True, eq=False)
class Sampler:
    """Training batches as a pure function of the step: nothing to save, nothing to replay.

    An epoch reads the text once, in windows of ``block_size`` tokens that follow each other, in random
    order. Where the first window starts is drawn for each epoch, so the tokens that it leaves out at
    either end (less than two windows) and the places where windows meet differ from epoch to epoch.
    """

    tokens: np.ndarray
    block_size: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.tokens.size < self.block_size + 1:
            raise DataError(
                f"{self.tokens.size} tokens do not fill one window of n_positions={self.block_size} "
                "and its last target; use more text or a smaller n_positions"
            )

    @property
    def windows_per_epoch(self) -> int:
        """Windows that fit behind each possible start."""
        return max(1, (self.tokens.size - 1) // self.block_size - 1)

    def epoch(self, step: int) -> float:
        """Epochs read before this step."""
        return step * self.batch_size / self.windows_per_epoch

    def offsets(self, step: int) -> np.ndarray:
        """Where the windows of this step's batch start, (batch_size,), int64."""
        numbers = step * self.batch_size + np.arange(self.batch_size)
        epochs, places = np.divmod(numbers, self.windows_per_epoch)
        offsets = np.empty(self.batch_size, dtype=np.int64)
        for epoch in np.unique(epochs):
            members = epochs == epoch
            offsets[members] = self._epoch_offsets(int(epoch))[places[members]]
        return offsets

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets, each (batch_size / world_size, block_size), int64.

        The batches of all ranks, one below the other, are the batch of a single process.
        """
        if self.batch_size % world_size:
            raise ConfigError(
                Problem(
                    "train.batch_size",
                    f"batch_size={self.batch_size} cannot be shared by {world_size} processes",
                    f"use a multiple of {world_size}",
                )
            )
        share = self.batch_size // world_size
        offsets = self.offsets(step)[rank * share : (rank + 1) * share]
        windows = self.tokens[offsets[:, None] + np.arange(self.block_size + 1)]
        return windows[:, :-1].astype(np.int64), windows[:, 1:].astype(np.int64)

    def _epoch_offsets(self, epoch: int) -> np.ndarray:
        count = self.windows_per_epoch
        spare = self.tokens.size - 1 - count * self.block_size
        return _shuffled_windows(self.seed, epoch, count, self.block_size, spare)


@lru_cache(maxsize=4)
def _shuffled_windows(seed: int, epoch: int, count: int, block_size: int, spare: int) -> np.ndarray:
    """Starts of an epoch's windows. The first is at one of 0 to ``spare``."""
    # Raw Philox numbers are the same in every version of numpy, which its permutation() need not be.
    numbers = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(count + 1)
    phase = int(numbers[0]) % (spare + 1)
    starts = phase + block_size * np.argsort(numbers[1:], kind="stable")
    starts.flags.writeable = False
    return starts


def consecutive_windows(
    tokens: np.ndarray, block_size: int, batch_size: int, max_tokens: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Windows in order, in which every token but the first is a target exactly once.

    Yields inputs and targets, each (up to batch_size, block_size), int64. The last window is filled
    up with targets that are ``IGNORED``. ``max_tokens`` limits the targets.
    """
    if tokens.size < 2:
        raise DataError(f"{tokens.size} tokens hold nothing to predict; use more text")
    targets_left = tokens.size - 1 if max_tokens is None else min(max_tokens, tokens.size - 1)
    per_batch = batch_size * block_size
    for start in range(0, targets_left, per_batch):
        count = min(per_batch, targets_left - start)
        shape = (-(-count // block_size), block_size)
        inputs = np.zeros(shape, dtype=np.int64)
        targets = np.full(shape, IGNORED, dtype=np.int64)
        inputs.reshape(-1)[:count] = tokens[start : start + count]
        targets.reshape(-1)[:count] = tokens[start + 1 : start + 1 + count]
        yield inputs, targets
