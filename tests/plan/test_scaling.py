"""Scaling laws against the figures of their papers, and the sanity of ours."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gptfit.plan.scaling import (
    BESIROGLU,
    HOFFMANN,
    LARGE_TEXT,
    LARGE_TEXT_BYTES,
    SMALL_TEXT,
    UNTRAINED,
    Facts,
    PilotRun,
    TextLaw,
    effective_tokens,
    law_for,
)

FACTS = Facts(
    width=256,
    depth=4,
    weights=3e6,
    context=64,
    vocab_size=1024,
    tokens=1e6,
    unique_tokens=3e5,
    tokens_per_byte=0.4,
    step_tokens=1024,
)
COMPRESSED = 2.0


def bits(law: TextLaw = SMALL_TEXT, **changes: float) -> float:
    return float(law.bits_per_byte(replace(FACTS, **changes), COMPRESSED))


@pytest.mark.parametrize(
    ("law", "ratios"),
    [(HOFFMANN, [20.5, 25.7, 32, 40]), (BESIROGLU, [27.6, 25.9, 24.3, 22.8])],
)
def test_tokens_per_parameter_of_least_loss(law: object, ratios: list[float]) -> None:
    found = [law.tokens_per_parameter(flops) for flops in (1e17, 1e18, 1e19, 1e20)]
    assert found == pytest.approx(ratios, rel=0.01)


@pytest.mark.parametrize("flops", [1e17, 1e20])
def test_the_ratio_is_that_of_least_loss(flops: float) -> None:
    sizes = np.geomspace(1e5, 1e11, 20_000)
    best = sizes[np.argmin(BESIROGLU.loss(sizes, flops / 6 / sizes))]
    ratio = flops / 6 / best**2
    assert ratio == pytest.approx(BESIROGLU.tokens_per_parameter(flops), rel=0.01)


def test_four_epochs_are_nearly_fresh_and_forty_are_not() -> None:
    assert effective_tokens(1e6, 1e6) == 1e6
    assert effective_tokens(4e6, 1e6) == pytest.approx(3.73e6, rel=0.01)
    assert effective_tokens(40e6, 1e6) < 16e6
    assert effective_tokens(np.array([5e5, 4e6]), 1e6).shape == (2,)


@pytest.mark.parametrize("law", [SMALL_TEXT, LARGE_TEXT])
def test_more_of_anything_helps_and_nothing_is_worth_nothing(law: TextLaw) -> None:
    assert bits(law, tokens=2e6) < bits(law)
    assert bits(law, unique_tokens=6e5, tokens=4e6) < bits(law, tokens=4e6)
    assert bits(law, width=512, weights=12e6, unique_tokens=1e9) < bits(law, unique_tokens=1e9)
    assert bits(law, tokens=1.0) == pytest.approx(UNTRAINED * COMPRESSED, rel=0.05)
    assert bits(law, width=1e9, weights=1e12, tokens=1e15, unique_tokens=1e15) > law.E * COMPRESSED


def test_a_text_that_is_read_too_often_is_learned_by_heart() -> None:
    losses = [bits(tokens=3e5 * epochs) for epochs in (1, 4, 16, 1000)]
    assert losses[0] > losses[1] > losses[2] < losses[3]


def test_arrays_and_numbers_agree() -> None:
    tokens = np.array([1e5, 1e6, 1e7])
    together = SMALL_TEXT.bits_per_byte(replace(FACTS, tokens=tokens), COMPRESSED)
    assert together == pytest.approx([bits(tokens=value) for value in tokens])


def test_large_texts_follow_besiroglu() -> None:
    """What is left beside size and time is small, and so the loss is near that of the power law."""
    facts = Facts(
        width=768, depth=12, weights=124e6, context=1024, vocab_size=32_000, tokens=2.5e9,
        unique_tokens=1e12, tokens_per_byte=1 / 4.3, step_tokens=1,
    )  # fmt: skip
    nats_per_token = BESIROGLU.loss(124e6, 2.5e9)
    expected = nats_per_token / np.log(2) / 4.3
    assert LARGE_TEXT.bits_per_byte(facts, 2.3) == pytest.approx(expected, rel=0.05)
    assert law_for(2 * LARGE_TEXT_BYTES) is LARGE_TEXT
    assert law_for(1e6) is SMALL_TEXT


def test_a_law_is_fitted_to_what_came() -> None:
    hard = replace(SMALL_TEXT, time=2 * SMALL_TEXT.time, text=3 * SMALL_TEXT.text)
    runs = [
        PilotRun(facts, COMPRESSED, float(hard.bits_per_byte(facts, COMPRESSED)))
        for facts in (FACTS, replace(FACTS, tokens=3e5), replace(FACTS, width=64, weights=2e5))
    ]
    fitted = SMALL_TEXT.fitted(runs)
    for run in runs:
        before = SMALL_TEXT.bits_per_byte(run.facts, COMPRESSED)
        after = fitted.bits_per_byte(run.facts, COMPRESSED)
        assert abs(after - run.bits_per_byte) < abs(before - run.bits_per_byte) / 4
    assert "3 pilot runs" in fitted.name
