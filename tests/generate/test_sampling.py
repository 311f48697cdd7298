"""Sampling: the distribution that is drawn from, and the one that should be."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gptfit.errors import ConfigError
from gptfit.generate.sampling import (
    NUCLEUS,
    SamplingOptions,
    adjusted,
    choose,
    distribution,
    keep_min_p,
    keep_top_k,
    keep_top_p,
)

DRAWS = 20_000
ONE_IN_A_MILLION = 4.75
"""Standard deviations that a normal variable passes once in a million."""


def exact(logits: Tensor, options: SamplingOptions) -> Tensor:
    """The distribution by its definition, in float64 and without a tensor operation too clever."""
    weight = [math.exp(x / options.temperature) for x in logits.double().tolist()]
    probability = [w / sum(weight) for w in weight]
    order = sorted(range(len(weight)), key=lambda token: -weight[token])
    kept = set(order[: options.top_k or len(order)])

    def share(token: int) -> float:
        return probability[token] / sum(probability[one] for one in kept)

    if options.top_p is not None:
        nucleus: set[int] = set()
        for token in order:
            if token in kept and sum(share(one) for one in nucleus) < options.top_p:
                nucleus.add(token)
        kept = nucleus
    if options.min_p is not None:
        kept = {one for one in kept if probability[one] >= options.min_p * max(probability)}
    return torch.tensor([share(token) if token in kept else 0.0 for token in range(len(weight))])


@pytest.mark.parametrize(
    "options",
    [
        SamplingOptions(),
        SamplingOptions(temperature=0.6),
        SamplingOptions(temperature=1.7),
        SamplingOptions(top_k=7),
        SamplingOptions(top_p=0.8),
        SamplingOptions(min_p=0.2),
        SamplingOptions(temperature=1.3, top_k=12, top_p=0.9, min_p=0.05),
    ],
    ids=lambda options: str(options.filters),
)
def test_drawn_tokens_are_distributed_as_they_should(options: SamplingOptions) -> None:
    """Pearson's chi-square; its normal approximation by Wilson and Hilferty."""
    logits = 2 * torch.randn(40, generator=torch.Generator().manual_seed(1))
    want = exact(logits, options)
    assert torch.allclose(distribution(logits, options), want, atol=1e-6)
    generator = torch.Generator().manual_seed(2)
    ids = choose(logits.expand(DRAWS, -1), options, [generator] * DRAWS)
    count = torch.bincount(ids, minlength=40).double()
    assert count[want == 0].sum() == 0
    expected = DRAWS * want.double()[want > 0]
    chi_square = float(((count[want > 0] - expected) ** 2 / expected).sum())
    freedom = len(expected) - 1
    cube_root = (chi_square / freedom) ** (1 / 3)
    normal = (cube_root - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    assert abs(normal) < ONE_IN_A_MILLION


def test_choice_depends_on_the_own_generator_only() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    options = SamplingOptions(top_p=0.9)
    together = choose(logits, options, [torch.Generator().manual_seed(seed) for seed in range(3)])
    alone = [
        choose(logits[row : row + 1], options, [torch.Generator().manual_seed(row)]).item()
        for row in range(3)
    ]
    assert together.tolist() == alone


def test_filters_keep_what_they_should() -> None:
    logits = torch.tensor([[0.1, 0.4, 0.3, 0.2]]).log()
    assert keep_top_k(logits, 2).isfinite().tolist() == [[False, True, True, False]]
    assert keep_top_k(logits, 99).isfinite().all()
    assert keep_top_p(logits, 0.65).isfinite().tolist() == [[False, True, True, False]]
    assert keep_top_p(logits, 0.75).isfinite().tolist() == [[False, True, True, True]]
    assert keep_top_p(logits, 1e-9).isfinite().tolist() == [[False, True, False, False]]
    assert keep_min_p(logits, 0.6).isfinite().tolist() == [[False, True, True, False]]


def test_a_flat_nucleus_is_larger_than_the_short_cut() -> None:
    vocabulary = 3 * NUCLEUS
    logits = torch.arange(vocabulary).float()[None] / vocabulary
    kept = keep_top_p(logits, 0.9).isfinite().sum().item()
    assert kept == keep_top_p(logits.double(), 0.9).isfinite().sum().item()
    assert NUCLEUS < kept < vocabulary


def test_penalties_and_bias() -> None:
    logits = torch.tensor([2.0, -2.0, 1.0, 0.5])
    repeated = adjusted(logits, SamplingOptions(repetition_penalty=2.0), [0, 1, 0], generated=1)
    assert repeated.tolist() == [1.0, -4.0, 1.0, 0.5]
    options = SamplingOptions(frequency_penalty=0.25, presence_penalty=1.0)
    assert adjusted(logits, options, [2, 0, 3, 3], generated=2).tolist() == [2.0, -2.0, 1.0, -1.0]
    assert adjusted(logits, options, [2, 0], generated=0).tolist() == logits.tolist()
    biased = adjusted(logits, SamplingOptions(logit_bias={1: 5, 99: 3.0}), [0], generated=0)
    assert biased.tolist() == [2.0, 3.0, 1.0, 0.5]


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-30, 1e-6, 1e6, 1e300])
def test_any_temperature_draws_a_token(temperature: float) -> None:
    logits = 30 * torch.randn(1, 50, generator=torch.Generator().manual_seed(3))
    options = SamplingOptions(temperature=temperature, top_p=0.999)
    token = choose(logits, options, [torch.Generator().manual_seed(0)]).item()
    assert 0 <= token < 50
    if temperature < 1e-3:
        assert token == logits.argmax().item()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, "temperature=-0.1 must be at least 0"),
        ({"temperature": float("nan")}, "temperature=nan is not a finite number"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"top_p": 0.0}, "top_p=0.0 must be positive"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"min_p": 1.5}, "min_p=1.5 is beyond 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 must be positive"),
        ({"logit_bias": {"a": 1}}, "must be a table of integers with numbers"),
        ({"logit_bias": {3: float("inf")}}, "logit_bias of token 3 is inf; use -100"),
        ({"seed": -1}, "seed=-1"),
        ({"topk": 3}, "unknown key 'topk'; did you mean 'top_k'"),
    ],
)
def test_bad_options(values: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SamplingOptions(**values)
