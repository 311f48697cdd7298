"""The loss of a model on a text."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from gptfit.config import GPT2Config
from gptfit.data import IGNORED, consecutive_windows
from gptfit.model import GPT2

LOGITS_LIMIT = 2**24
"""Elements of one batch's logits: 64 MiB in float32, of which the loss takes a few copies."""


@dataclass(frozen=True)
class Evaluation:
    """``loss`` in nats per token over ``tokens`` scored tokens."""

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(self.loss)

    def bits_per_byte(self, tokens_per_byte: float) -> float:
        """The loss per byte of text, which compares models of different tokenizers."""
        return self.loss / math.log(2) * tokens_per_byte


@torch.inference_mode()
def evaluate(
    model: GPT2,
    tokens: np.ndarray,
    max_tokens: int | None = None,
    autocast: AbstractContextManager[object] | None = None,
) -> Evaluation:
    """Score ``tokens`` in consecutive windows of the context: each token but the first exactly once.

    Draws no random numbers, so evaluating more often does not change a training run.
    """
    block_size = model.config.n_positions
    batch_size = evaluation_batch_size(model.config)
    device = model.wte.weight.device
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    with autocast or nullcontext():
        for inputs, targets in consecutive_windows(tokens, block_size, batch_size, max_tokens):
            scored = int((targets != IGNORED).sum())
            idx, goal = (torch.from_numpy(a).to(device) for a in (inputs, targets))
            total += model(idx, goal).item() * scored
            count += scored
    model.train(was_training)
    return Evaluation(total / count, count)


def evaluation_batch_size(config: GPT2Config) -> int:
    """How many windows are scored at once."""
    return max(1, min(64, LOGITS_LIMIT // (config.n_positions * config.vocab_size)))
