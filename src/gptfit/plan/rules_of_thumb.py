"""Ranges in which learning rates and batch sizes are usually good.

The laws disagree by factors of two to five, so none of them is a target: each function gives the
range that they span. ``best`` is their geometric middle.
"""

from __future__ import annotations

import math
from typing import Any

from gptfit.plan.interval import Interval

RATE_LOW, RATE_HIGH = 0.3, 3.0
"""How far from the laws a learning rate still trains well (the planner's margin)."""
BATCH_LOW, BATCH_HIGH = 1 / 8, 2.0
"""A batch below its optimum wastes little but hardware; one above it wastes tokens."""
KAPLAN_BATCH = 2**19
"""Tokens of a batch for which Kaplan et al. state their rate."""


def kaplan_rate(parameters: int) -> float:
    """Peak Adam rate for N parameters without embeddings (Kaplan et al. 2020, appendix D.6).

    >>> round(kaplan_rate(85_000_000), 5), round(kaplan_rate(1_475_000_000), 5)
    (0.00069, 0.00029)
    """
    return max(0.003239 - 0.0001395 * math.log(max(parameters, 1)), 1e-5)


def step_law_rate(parameters: int, tokens: float) -> float:
    """Peak AdamW rate for N parameters without embeddings and D tokens: 1.79·N^-0.713·D^0.307.

    Step Law (Li et al. 2025, arXiv 2503.04715), fitted on large texts: an extrapolation for small ones.

    >>> round(step_law_rate(85_000_000, 10e9), 4)
    0.0047
    """
    return 1.79 * math.pow(max(parameters, 1), -0.713) * math.pow(tokens, 0.307)


def step_law_batch(tokens: Any) -> Any:
    """Tokens of the best batch for D tokens, a number or an array: 0.58·D^0.571 (Step Law).

    >>> round(step_law_batch(10e9) / 1e3)
    297
    """
    return 0.58 * tokens**0.571


def power_lines_batch(tokens: float) -> float:
    """The best batch grows with D^0.383 (Bergsma et al. 2025, arXiv 2505.13738).

    Anchored where nanochat measured it: 2**19 tokens for a run of 1.3 billion (depth 12).

    >>> round(power_lines_batch(1.3e9) / 2**19, 2)
    1.0
    """
    return 2**19 * math.pow(tokens / 1.3e9, 0.383)


def batch_range(tokens: float) -> Interval:
    """Tokens of an optimizer step that suit a run of ``tokens`` tokens."""
    laws = step_law_batch(tokens), power_lines_batch(tokens)
    return Interval(BATCH_LOW * min(laws), math.sqrt(laws[0] * laws[1]), BATCH_HIGH * max(laws))


def rate_range(parameters: int, batch_tokens: int, tokens: float | None = None) -> Interval:
    """Peak learning rates that suit a model, its batch and, where it is known, its run.

    ``parameters`` are those without embeddings. Each law states its rate for its own best batch; the
    noisier gradients of a smaller one want down to sqrt(B / B_best) of it.
    """
    laws = [(kaplan_rate(parameters), KAPLAN_BATCH)]
    if tokens is not None:
        laws.append((step_law_rate(parameters, tokens), round(step_law_batch(tokens)) or 1))
    highest = max(rate for rate, _ in laws)
    lowest = min(rate * min(1.0, math.sqrt(batch_tokens / best)) for rate, best in laws)
    return Interval(RATE_LOW * lowest, math.sqrt(lowest * highest), RATE_HIGH * highest)
