"""Choosing the next token from the logits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gptfit.config import checks
from gptfit.config.checks import Section, section
from gptfit.errors import Problem

COLDEST = 1e-30
"""Lower temperatures are 0 in float32."""

NUCLEUS = 1024
"""So many of the likeliest tokens hold nearly every ``top_p``; to sort a whole vocabulary is slow."""


@section
@dataclass(frozen=True, kw_only=True)
class SamplingOptions(Section):
    """How to choose the next token.

    The logits are changed in this order: ``repetition_penalty`` divides those of tokens that occur
    (Keskar et al. 2019, arXiv 1909.05858), ``frequency_penalty`` and ``presence_penalty`` are taken
    off those of generated tokens, per occurrence and once; ``logit_bias`` is added; ``temperature``
    divides them all, 0 is greedy. Of the probabilities only the ``top_k`` largest stay, then the
    largest that together reach ``top_p``, then those of at least ``min_p`` times the largest.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0

    def rules(self) -> Iterator[Problem]:
        """Values outside these ranges choose nothing."""
        yield from checks.at_least(self, 0, "temperature", "seed", "min_p")
        yield from checks.at_least(self, 1, "top_k")
        yield from checks.positive(self, "top_p", "repetition_penalty")
        yield from checks.at_most(self, {"top_p": 1, "min_p": 1, "seed": 2**63 - 2**16})
        if checks.sound(self, "logit_bias"):
            for token, bias in self.logit_bias.items():
                if not math.isfinite(bias):
                    message = f"logit_bias of token {token} is {bias}"
                    yield Problem(
                        "logit_bias", message, "use -100 to forbid a token, 100 to force it"
                    )

    @property
    def changes_logits(self) -> bool:
        """Whether the logits depend on more than the model."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return bool(self.logit_bias) or penalties != (1.0, 0.0, 0.0)

    @property
    def filters(self) -> tuple[float | None, ...]:
        """Rows with the same can be chosen together."""
        return self.temperature, self.top_k, self.top_p, self.min_p


def adjusted(
    logits: Tensor, options: SamplingOptions, ids: Sequence[int], generated: int
) -> Tensor:
    """The logits (V,) after penalties and bias; the last ``generated`` of the ``ids`` are new."""
    V, device = len(logits), logits.device
    logits = logits.float()
    if options.repetition_penalty != 1:
        seen = torch.bincount(torch.tensor(ids, device=device), minlength=V)[:V] > 0
        penalty = options.repetition_penalty
        weaker = torch.where(logits > 0, logits / penalty, logits * penalty)
        logits = torch.where(seen, weaker, logits)
    if generated and (options.frequency_penalty or options.presence_penalty):
        count = torch.bincount(torch.tensor(ids[-generated:], device=device), minlength=V)[:V]
        logits = logits - options.frequency_penalty * count
        logits = logits - options.presence_penalty * (count > 0)
    if bias := {token: value for token, value in options.logit_bias.items() if 0 <= token < V}:
        at = torch.tensor(list(bias), device=device)
        added = torch.tensor(list(bias.values()), dtype=logits.dtype, device=device)
        logits = logits.index_add(0, at, added)
    return logits


def choose(
    logits: Tensor, options: SamplingOptions, generators: Sequence[torch.Generator]
) -> Tensor:
    """Next ids (B,) from logits (B, V); each row draws one number from its own generator.

    A row's choice therefore does not depend on what else is in the batch. The generators are a
    CPU's, so that a seed means the same on every device.
    """
    if options.temperature == 0:
        return logits.argmax(dim=-1)
    probability = distribution(logits, options)
    # MPS has no float64, in which a sum over a large vocabulary keeps the small ones.
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    cumulative = probability.to(wide).cumsum(dim=-1)
    drawn = [torch.rand((), generator=generator, dtype=torch.float64) for generator in generators]
    # Just below 1, so that rounding cannot carry a draw past the last token that has a share.
    share = (torch.stack(drawn) * (1 - 2**-22)).to(logits.device, wide)
    goal = share[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, goal, right=True)[:, 0]


def distribution(logits: Tensor, options: SamplingOptions) -> Tensor:
    """The probabilities (..., V) that ``choose`` draws from."""
    logits = logits.float()
    logits = logits - logits.amax(dim=-1, keepdim=True)  # else a low temperature overflows
    logits = logits / max(options.temperature, COLDEST)
    if options.top_k is not None:
        logits = keep_top_k(logits, options.top_k)
    if options.top_p is not None and options.top_p < 1:
        logits = keep_top_p(logits, options.top_p)
    if options.min_p:
        logits = keep_min_p(logits, options.min_p)
    return logits.softmax(dim=-1)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Set all but the ``k`` largest logits of a row to -inf; ties with the last one stay."""
    threshold = logits.topk(min(k, logits.shape[-1]), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < threshold, float("-inf"))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest tokens whose probabilities reach ``p``; ties with the last one stay."""
    probability = logits.softmax(dim=-1)
    ordered = probability.topk(min(NUCLEUS, logits.shape[-1]), dim=-1).values
    # To ask a GPU whether that was enough would stop it; its sort is fast.
    if logits.device.type != "cpu" or bool((ordered.sum(dim=-1) < p).any()):
        ordered = probability.sort(dim=-1, descending=True).values
    # A token goes when those before it already reach p; the first one has none before it.
    surplus = ordered.cumsum(dim=-1) - ordered >= p
    surplus[..., 0] = False  # also where p is 0 in float32
    least = ordered.masked_fill(surplus, float("inf")).amin(dim=-1, keepdim=True)
    return logits.masked_fill(probability < least, float("-inf"))


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Keep the tokens at least ``p`` times as likely as the likeliest (arXiv 2407.01082)."""
    probability = logits.softmax(dim=-1)
    return logits.masked_fill(
        probability < p * probability.amax(dim=-1, keepdim=True), float("-inf")
    )
