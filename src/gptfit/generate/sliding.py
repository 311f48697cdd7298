"""The loss of a model on a long text, in windows that overlap."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gptfit.data import IGNORED
from gptfit.errors import ConfigError, DataError
from gptfit.generate.evaluate import (
    LOGITS_LIMIT,
    Evaluation,
    evaluation_batch_size,
    without_dropout,
)
from gptfit.model import GPT2
from gptfit.model.out_of_memory import give_back_unused, is_out_of_memory


@dataclass(frozen=True, eq=False)
class SlidingWindows:
    """Windows of ``context`` tokens of a text (N,), each ``stride`` further on than the one before.

    Every token but the first is a target once: in the first window all are, in each other one the
    last ``stride``, which are new. So a target is seen with everything before it, or with at least
    ``context - stride + 1`` tokens and at most ``context``; what follows it has no influence.
    ``max_tokens`` limits the targets. Raises ``DataError`` for fewer than two tokens.
    """

    tokens: np.ndarray
    context: int
    stride: int
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.context:
            raise ConfigError(
                f"stride={self.stride} must be between 1 and the context of {self.context} tokens"
            )
        if self.tokens.size < 2:
            raise DataError(
                f"{self.tokens.size} tokens hold nothing to predict, for the first has nothing "
                "before it; use more text"
            )
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigError(f"max_tokens={self.max_tokens} must be at least 1")

    @property
    def targets(self) -> int:
        """How many tokens are scored."""
        return min(self.tokens.size - 1, self.max_tokens or self.tokens.size)

    def __len__(self) -> int:
        return 1 + max(0, -(-(self.targets - self.context) // self.stride))

    def batch(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of up to ``count`` windows from ``first`` on, each (count, T), int64.

        T is the context, or less where the text is short. Where the targets are ``IGNORED`` nothing
        is to be scored: an earlier window has done it, or the text has ended.
        """
        T = min(self.context, self.targets)
        starts = np.arange(first, min(first + count, len(self)))[:, None] * self.stride
        column = np.arange(T)
        places = starts + column
        is_new = (starts == 0) | (column >= T - self.stride)
        inputs = self.tokens[np.minimum(places, self.targets - 1)].astype(np.int64)
        targets = self.tokens[np.minimum(places + 1, self.targets)].astype(np.int64)
        targets[~is_new | (places >= self.targets)] = IGNORED
        return inputs, targets


def half_the_context(context: int) -> int:
    """The usual stride: past the first window every token has half the context before it, or more.

    Twice the work of a stride of the whole context, in which a window's first tokens have hardly any
    context; still smaller strides cost much and gain little.
    """
    return max(1, context // 2)


@torch.inference_mode()
def evaluate_sliding(
    model: GPT2,
    tokens: np.ndarray,
    stride: int | None = None,
    max_tokens: int | None = None,
    autocast: AbstractContextManager[object] | None = None,
    progress: Callable[[int], None] = lambda scored: None,
) -> Evaluation:
    """Score each of ``tokens`` (N,) but the first once, in ``SlidingWindows`` of the model's context.

    A ``stride`` of the context is what ``evaluate`` does; None is half of it. ``progress`` is told how
    many tokens have been scored. Raises ``ConfigError`` for a stride out of range, ``DataError`` for
    ids that the model does not know and where it computes no numbers.
    """
    windows = windows_of(model, tokens, stride, max_tokens)
    loss_sum, scored = 0.0, 0
    with without_dropout(model), autocast or nullcontext():
        for found in log_probabilities(model, windows):
            loss_sum -= found.sum(dtype=torch.float64).item()
            scored += len(found)
            if not math.isfinite(loss_sum):
                raise DataError(
                    f"the model computes NaN or infinity within the first {scored:,} tokens: its "
                    "weights are damaged; take another checkpoint"
                )
            progress(scored)
    return Evaluation(loss_sum / scored, scored)


def windows_of(
    model: GPT2, tokens: np.ndarray, stride: int | None, max_tokens: int | None = None
) -> SlidingWindows:
    """The windows in which a model scores ids, which must be inside its vocabulary."""
    context = model.config.n_positions
    stride = half_the_context(context) if stride is None else stride
    windows = SlidingWindows(tokens, context, stride, max_tokens)
    require_known(tokens, model.config.vocab_size)
    return windows


def require_known(tokens: np.ndarray, vocab_size: int) -> None:
    """Raise ``DataError`` for an id outside the vocabulary."""
    for id in (int(tokens.min()), int(tokens.max())):
        if not 0 <= id < vocab_size:
            raise DataError(
                f"token id {id} is outside the model's vocabulary of {vocab_size}; the ids come "
                "from another tokenizer"
            )


def log_probabilities(model: GPT2, windows: SlidingWindows) -> Iterator[Tensor]:
    """Those of the targets, in nats and in order: (n,) of each batch of windows, float32, on the CPU.

    Where the memory does not suffice for a batch, it is halved.
    """
    batch_size, done = evaluation_batch_size(model.config), 0
    while done < len(windows):
        found = None
        try:
            found = _log_probabilities(model, *windows.batch(done, batch_size))
        except RuntimeError as error:
            if batch_size == 1 or not is_out_of_memory(error):
                raise
        if found is None:
            give_back_unused()
            batch_size //= 2
        else:
            yield found
            done += batch_size


def _log_probabilities(model: GPT2, inputs: np.ndarray, targets: np.ndarray) -> Tensor:
    """Logits are computed where something is scored, and of so many rows at once as are bounded."""
    device = model.wpe.weight.device
    idx, goals = (torch.from_numpy(rows).to(device) for rows in (inputs, targets))
    scored = goals != IGNORED
    x, goals = model.hidden(idx)[scored], goals[scored]  # (n, C), (n,)
    rows = max(1, LOGITS_LIMIT // model.config.vocab_size)
    losses = [
        F.cross_entropy(model.logits(part).float(), goal, reduction="none")
        for part, goal in zip(x.split(rows), goals.split(rows), strict=True)
    ]
    return -torch.cat(losses).cpu()
