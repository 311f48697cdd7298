"""Scaling laws: what loss to expect of a size, a text and a time. They rank; they do not promise.

Every function takes numbers or numpy arrays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gptfit.plan.least_squares import non_negative_least_squares
from gptfit.plan.rules_of_thumb import step_law_batch
from gptfit.plan.step import ADAMW, MUON

REPEATED_TOKENS_WORTH = 15.388
"""R_D* of Muennighoff et al. 2023 (arXiv 2305.16264): what repeating a text can add, in epochs."""


@dataclass(frozen=True)
class PowerLaw:
    """L = E + A/Nᵃ + B/Dᵇ in nats per token; N counts all parameters, D the training tokens."""

    name: str
    E: float
    A: float
    B: float
    a: float
    b: float

    def loss(self, parameters: Any, tokens: Any) -> Any:
        """Nats per token.

        >>> round(BESIROGLU.loss(124e6, 2.5e9), 2)
        3.31
        """
        return self.E + self.A / parameters**self.a + self.B / tokens**self.b

    def tokens_per_parameter(self, flops: float) -> float:
        """D/N of least loss for a training of ``flops`` = 6·N·D.

        >>> round(BESIROGLU.tokens_per_parameter(1e19))
        24
        """
        share = self.b / (self.a + self.b)
        ratio = (self.a * self.A / (self.b * self.B)) ** (1 / (self.a + self.b))
        parameters = ratio * (flops / 6) ** share
        return float(flops / 6 / parameters**2)


BESIROGLU = PowerLaw("Besiroglu et al. 2024", E=1.8172, A=477.84, B=2143.86, a=0.3473, b=0.3672)
"""The corrected fit of Chinchilla's data (arXiv 2404.10102, figures of its notebook)."""
HOFFMANN = PowerLaw("Hoffmann et al. 2022, approach 3", E=1.69, A=406.4, B=410.7, a=0.34, b=0.28)
"""Chinchilla as published (arXiv 2203.15556); its rounded constants are biased."""


def effective_tokens(tokens: Any, unique_tokens: Any) -> Any:
    """What ``tokens`` with repetitions are worth in fresh ones (Muennighoff et al. 2023, section 3).

    >>> round(effective_tokens(4e6, 1e6) / 1e6, 2), effective_tokens(5e5, 1e6)
    (3.73, 500000.0)
    """
    repeated = tokens / unique_tokens - 1
    repeated = (repeated + abs(repeated)) / 2
    once = (tokens + unique_tokens - abs(tokens - unique_tokens)) / 2
    decay = math.e ** (-repeated / REPEATED_TOKENS_WORTH)
    return once + unique_tokens * REPEATED_TOKENS_WORTH * (1 - decay)


CRITICAL = 4
"""Batches this many times the best one need twice the tokens (McCandlish et al. 2018, arXiv 1812.06162)."""
GAIN = {ADAMW: 1.0, MUON: 2.0}
"""How many of AdamW's tokens one token is worth to an optimizer (docs/lab-book.md)."""
UNTRAINED = 4.0
"""What a model that knows nothing pays, in units of the text's compressed size; about 8 bits a byte."""
CAUSES = ("width", "depth", "size", "time", "positions", "context", "vocabulary", "text")
PRIOR_WEIGHT = 0.1
"""How much the law's own coefficients count beside one run's."""


@dataclass(frozen=True)
class Facts:
    """What the loss of a training depends on; numbers or arrays.

    ``weights`` are those of the blocks, ``gain`` is the optimizer's.
    """

    width: Any
    depth: Any
    weights: Any
    context: Any
    vocab_size: Any
    tokens: Any
    unique_tokens: Any
    tokens_per_byte: Any
    step_tokens: Any
    gain: Any = 1.0


@dataclass(frozen=True)
class PilotRun:
    """A short real run: its facts, the text's compressed bits per byte, and the loss that came."""

    facts: Facts
    compressed_bits: float
    bits_per_byte: float


@dataclass(frozen=True)
class TextLaw:
    """The loss of a model of one text by what keeps it up.

    L / compressed = E + (4 - E)·h/(1 + h), in units of what bzip2 makes of the text, which puts texts
    that are easy and hard to predict on one scale. h sums power laws. The bounded form (arXiv
    2605.09189) is their sum where h is small, and never exceeds an untrained model's loss where h is
    large, as with the little data and time of a small machine.
    """

    name: str
    E: float
    width: float = 0.0
    depth: float = 0.0
    size: float = 0.0
    time: float = 0.0
    positions: float = 0.0
    context: float = 0.0
    vocabulary: float = 0.0
    text: float = 0.0
    time_power: float = 0.3

    def features(self, facts: Facts) -> dict[str, Any]:
        """What h is linear in, by cause."""
        critical = facts.gain * CRITICAL * step_law_batch(facts.tokens)
        useful = facts.tokens / (1 + facts.step_tokens / critical)
        worth = facts.gain * useful
        seen = effective_tokens(worth, facts.unique_tokens) / facts.tokens_per_byte
        unique = facts.unique_tokens / facts.tokens_per_byte
        return {
            "width": facts.width**-0.5,
            "depth": 1 / facts.depth,
            "size": facts.weights**-0.3473,
            "time": seen**-self.time_power,
            # Each position has an embedding of its own, which only its own tokens teach.
            "positions": (worth / facts.context) ** -1.5,
            "context": (facts.context / facts.tokens_per_byte) ** -0.3,
            "vocabulary": facts.vocab_size / (facts.gain * facts.tokens),
            # What is learned by heart: more weights, fewer bytes, more passes.
            "text": useful / facts.unique_tokens * facts.weights**0.35 * unique**-0.37,
        }

    def terms(self, facts: Facts) -> dict[str, Any]:
        """The parts of h by their cause."""
        return {
            cause: getattr(self, cause) * value for cause, value in self.features(facts).items()
        }

    def bits_per_byte(self, facts: Facts, compressed_bits: float) -> Any:
        """The loss to expect of a text that bzip2 makes ``compressed_bits`` per byte of."""
        h = sum(self.terms(facts).values())
        return compressed_bits * (self.E + (UNTRAINED - self.E) * h / (1 + h))

    def fitted(self, runs: Sequence[PilotRun]) -> TextLaw:
        """The law with coefficients that suit these runs, near its own where they say nothing."""
        import numpy as np

        causes = [cause for cause in CAUSES if getattr(self, cause)]
        rows = []
        for run in runs:
            loss = run.bits_per_byte / run.compressed_bits
            above = max(loss - self.E, 0.01)
            h = above / max(UNTRAINED - self.E - above, 0.01)
            terms = self.terms(run.facts)
            rows.append([terms[cause] / h for cause in causes])
        trust = PRIOR_WEIGHT * np.eye(len(causes))
        targets = np.concatenate([np.ones(len(rows)), np.full(len(causes), PRIOR_WEIGHT)])
        scale = non_negative_least_squares(np.vstack([rows, trust]), targets)
        changed = {
            cause: getattr(self, cause) * float(factor)
            for cause, factor in zip(causes, scale, strict=True)
        }
        return replace(self, name=f"{self.name}, fitted to {len(runs)} pilot runs", **changed)


SMALL_TEXT = TextLaw(
    "the law of small texts (benchmarks/small_text_law.py)",
    E=0.5,
    width=0.642,
    depth=0.011,
    time=7.12,
    positions=9580,
    context=0.03,
    vocabulary=2.34,
    text=0.00157,
)
"""Fitted to trainings of 1 to 6 million weights on 0.5 and 1.1 MB of text, with fit's settings: 23 by AdamW,
then drawn towards 6 by Muon, in whose hands narrow models lose less (``TextLaw.fitted``). They show
nothing of what a longer context is worth; that term is set, so that it counts when all else is good."""

LARGE_TEXT = TextLaw(
    "Besiroglu et al. 2024 with repeated data",
    E=0.27,
    size=19.6,
    time=150,
    positions=9230,
    context=0.03,
    vocabulary=2.31,
    text=0.00164,
    time_power=0.3672,
)
"""``BESIROGLU`` in these units: 4.3 bytes a token, of which bzip2 makes 2.3 bits a byte (enwik8); what
it does not know of, context, vocabulary and learning by heart, from ``SMALL_TEXT``; E is lower by what
the context costs at its 2,048 tokens."""

LARGE_TEXT_BYTES = 50e6


def law_for(text_bytes: float) -> TextLaw:
    """Whose constants are nearer to a text of this size."""
    return SMALL_TEXT if text_bytes < LARGE_TEXT_BYTES else LARGE_TEXT
