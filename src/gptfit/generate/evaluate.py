"""The loss of a model on a text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gptfit.config import GPT2Config
from gptfit.data import IGNORED, consecutive_windows
from gptfit.model import GPT2
from gptfit.model.out_of_memory import give_back_unused, is_out_of_memory

LOGITS_LIMIT = 2**24
"""Elements of one batch's logits: 64 MiB in float32, of which the loss takes a few copies."""


class Abandoned(Exception):
    """An evaluation or a sample that its caller did not want to wait for."""


@dataclass(frozen=True)
class Evaluation:
    """``loss`` in nats per token over ``tokens`` scored tokens."""

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss), infinite where that is beyond all numbers."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf

    def bits_per_byte(self, tokens_per_byte: float) -> float:
        """The loss per byte of text, which compares models of different tokenizers."""
        return self.loss / math.log(2) * tokens_per_byte


@torch.inference_mode()
def evaluate(
    model: GPT2,
    tokens: np.ndarray,
    max_tokens: int | None = None,
    autocast: AbstractContextManager[object] | None = None,
    rank: int = 0,
    world_size: int = 1,
    total: Callable[[Tensor], Tensor] = lambda mine: mine,
    should_stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Score ``tokens`` in consecutive windows of the context: each token but the first exactly once.

    Several processes share the windows; ``total`` sums over them what each has found. Where the
    memory does not suffice for a batch, it is halved. Draws no random numbers, so evaluating more
    often does not change a training run. Raises ``Abandoned`` when ``should_stop``, which is asked
    before each batch.
    """
    batch_size = evaluation_batch_size(model.config)
    found = None
    with without_dropout(model):
        while found is None:
            windows = consecutive_windows(
                tokens, model.config.n_positions, batch_size * world_size, max_tokens
            )
            try:
                with autocast or nullcontext():
                    found = _score(model, windows, rank, world_size, should_stop)
            except RuntimeError as error:
                if batch_size == 1 or world_size > 1 or not is_out_of_memory(error):
                    raise
            if found is None:
                give_back_unused()
                batch_size //= 2
    loss_sum, count = total(found).tolist()
    return Evaluation(loss_sum / count, int(count))


def _score(
    model: GPT2,
    windows: Iterable[tuple[np.ndarray, np.ndarray]],
    rank: int,
    world_size: int,
    should_stop: Callable[[], bool],
) -> Tensor:
    """The sum of this process's losses, and of how many tokens: (2,), float64."""
    device = model.wte.weight.device
    found = torch.zeros(2, dtype=torch.float64)
    for batch in windows:
        if should_stop():
            raise Abandoned
        idx, goal = (torch.from_numpy(rows[rank::world_size]).to(device) for rows in batch)
        scored = int((goal != IGNORED).sum())
        if not scored:  # computed all the same: where the model is in shards, nobody stays out
            idx, goal = (torch.from_numpy(rows[:1]).to(device) for rows in batch)
        loss = model(idx, goal).item()
        found += torch.tensor([loss * scored, scored], dtype=torch.float64)
    return found


@contextmanager
def without_dropout(model: GPT2) -> Iterator[None]:
    """The model as it computes outside training, and then again as it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def evaluation_batch_size(config: GPT2Config) -> int:
    """How many windows are scored at once."""
    return max(1, min(64, LOGITS_LIMIT // (config.n_positions * config.vocab_size)))
