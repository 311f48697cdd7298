"""Choosing the next token from the logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gptfit.config import checks
from gptfit.config.checks import Section, section
from gptfit.errors import Problem


@section
@dataclass(frozen=True, kw_only=True)
class SamplingOptions(Section):
    """How to choose: ``temperature`` 0 is greedy; then the ``top_k`` likeliest, then the ``top_p``."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def rules(self) -> Iterator[Problem]:
        """Values outside these ranges choose nothing."""
        yield from checks.at_least(self, 0, "temperature", "seed")
        yield from checks.at_least(self, 1, "top_k")
        yield from checks.positive(self, "top_p")
        yield from checks.at_most(self, {"top_p": 1, "seed": 2**63 - 2**16})


def choose(
    logits: Tensor, options: SamplingOptions, generators: Sequence[torch.Generator]
) -> Tensor:
    """Next ids (B,) from logits (B, V); each row draws from its own generator.

    A row's choice therefore does not depend on what else is in the batch.
    """
    if options.temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float() / options.temperature
    if options.top_k is not None:
        logits = keep_top_k(logits, options.top_k)
    if options.top_p is not None:
        logits = keep_top_p(logits, options.top_p)
    # argmax(p / e) with e ~ Exp(1) draws from p, without the host sync of torch.multinomial.
    noise = torch.stack(
        [torch.empty_like(logits[0]).exponential_(generator=generator) for generator in generators]
    )
    return (logits.softmax(dim=-1) / noise).argmax(dim=-1)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Set all but the ``k`` largest logits of a row to -inf; ties with the last one stay."""
    threshold = logits.topk(min(k, logits.shape[-1]), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < threshold, float("-inf"))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of likeliest tokens whose probabilities reach ``p``; never none."""
    ordered, order = logits.sort(dim=-1, descending=True)
    probability = ordered.softmax(dim=-1)
    # A token goes when those before it already reach p; the first one has none before it.
    surplus = probability.cumsum(dim=-1) - probability >= p
    surplus[..., 0] = False
    return logits.masked_fill(surplus.scatter(-1, order, surplus), float("-inf"))
