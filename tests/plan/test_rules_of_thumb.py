"""The ranges hold what well-known runs used."""

from __future__ import annotations

import pytest

from gptfit.plan.rules_of_thumb import batch_range, rate_range

# Parameters without embeddings, tokens per step, tokens of the run, peak learning rate.
RUNS = {
    "GPT-3 125M": (85_000_000, 2**19, 300e9, 6e-4),
    "GPT-3 1.3B": (1_208_000_000, 2**20, 300e9, 2e-4),
    "nanoGPT on OpenWebText": (85_000_000, 491_520, 295e9, 6e-4),
    "nanoGPT's Shakespeare": (10_600_000, 16_384, 82e6, 1e-3),
    "nanoGPT's Shakespeare on a CPU": (790_000, 768, 1.5e6, 1e-3),
    "Lingle's optimum at 109M": (109_000_000, 65_536, 256e6, 1.4e-3),
}


@pytest.mark.parametrize("run", RUNS)
def test_well_known_runs_are_in_range(run: str) -> None:
    parameters, batch, tokens, rate = RUNS[run]
    good = rate_range(parameters, batch, tokens)
    assert good.low < rate < good.high
    assert good.low < good.best < good.high
    assert batch_range(tokens).low < batch < batch_range(tokens).high


def test_absurd_ones_are_not() -> None:
    assert rate_range(85_000_000, 2**19, 10e9).high < 0.05
    assert rate_range(85_000_000, 2**19).low > 1e-4
    assert batch_range(1.5e6).high < 2**19
    assert batch_range(10e9).low > 1024


def test_larger_runs_want_larger_batches_and_larger_models_lower_rates() -> None:
    assert batch_range(1e10).best > batch_range(1e8).best
    assert rate_range(10**9, 2**19).best < rate_range(10**7, 2**19).best
    assert rate_range(10**8, 2**12).low < rate_range(10**8, 2**19).low
