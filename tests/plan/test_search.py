"""The search: no candidate breaks a constraint, and nothing better is left out."""

from __future__ import annotations

import dataclasses

import pytest

from gptfit.config import Recipe
from gptfit.errors import ConfigError
from gptfit.plan.lattice import Lattice, Machine, Text
from gptfit.plan.memory import memory_ledger
from gptfit.plan.search import LEAST_STEPS, WINDOWS, SearchResult, search
from gptfit.plan.step import CHUNKED, WHOLE, TrainingStep
from gptfit.plan.time import letters_of
from made_up import COSTS

TEXT = Text(1e6, {512: 0.5, 2048: 0.35}, 2.0)
MACHINE = Machine("cpu", 4e9, "float32", COSTS)


@pytest.fixture(scope="module")
def result() -> SearchResult:
    return search(TEXT, MACHINE, 120)


def test_candidates_keep_every_constraint(result: SearchResult) -> None:
    assert result.considered > result.fitting > len(result.pareto) > 1
    for found in (*result.best, *result.pareto):
        assert found.memory_bytes <= MACHINE.usable_bytes
        assert found.steps >= LEAST_STEPS
        assert (
            found.n_positions * WINDOWS <= TEXT.train_bytes * TEXT.tokens_per_byte[found.vocab_size]
        )
        assert found.n_embd % found.n_head == 0
        assert found.seconds <= 120


def test_figures_of_a_candidate_are_those_of_the_planner(result: SearchResult) -> None:
    for found in result.best:
        recipe = Recipe.resolve(
            overrides=[
                *(f"{key}={value}" for key, value in found.values.items()),
                f"vocab_size={found.vocab_size}",
                "bias=false",
                "dropout=0",
            ]
        )
        step = TrainingStep.gptfit(recipe, "cpu", found.dtype)
        assert step.loss == (CHUNKED if found.loss_chunks > 1 else WHOLE)
        assert sum(COSTS.parts(letters_of(recipe.model, step)).values()) == pytest.approx(
            found.step_seconds
        )
        assert memory_ledger(recipe.model, step).total.high == pytest.approx(found.memory_bytes)
        assert step.tokens_per_step * found.steps == pytest.approx(found.tokens, rel=0.05)


def test_the_ranking_is_by_loss_and_each_is_another_model(result: SearchResult) -> None:
    losses = [found.bits_per_byte for found in result.best]
    assert losses == sorted(losses)
    sizes = {(f.n_layer, f.n_embd, f.n_positions, f.vocab_size) for f in result.best}
    assert len(sizes) == len(result.best)


def test_pareto_has_no_point_that_another_beats(result: SearchResult) -> None:
    points = [(p.bits_per_byte, p.seconds, p.memory_bytes) for p in result.pareto]
    for point in points:
        for other in points:
            better = all(a <= b for a, b in zip(other, point, strict=True)) and other != point
            assert not better
    assert min(points)[0] == pytest.approx(result.best[0].bits_per_byte, rel=0.003)


def test_more_never_hurts(result: SearchResult) -> None:
    assert {item.change for item in result.helps} >= {"twice the time", "twice the text"}
    for item in result.helps:
        assert item.bits_per_byte <= result.best[0].bits_per_byte + 1e-9


def test_less_memory_gives_a_smaller_step(result: SearchResult) -> None:
    cramped = search(TEXT, dataclasses.replace(MACHINE, usable_bytes=5e7), 120)
    assert cramped.best[0].memory_bytes <= 5e7
    assert cramped.best[0].bits_per_byte >= result.best[0].bits_per_byte


def test_wishes_are_kept() -> None:
    recipe = Recipe.resolve(overrides=["n_layer=3", "n_embd=96", "n_head=4", "batch_size=12"])
    found = search(TEXT, MACHINE, 120, lattice=Lattice.around(recipe)).best[0]
    assert (found.n_layer, found.n_embd, found.n_head, found.batch_size) == (3, 96, 4, 12)


def test_heads_that_no_width_has_are_refused() -> None:
    with pytest.raises(ConfigError, match="n_head=11 divides none"):
        search(TEXT, MACHINE, 120, lattice=Lattice(heads=11))


def test_an_odd_width_gets_heads_that_divide_it() -> None:
    found = search(TEXT, MACHINE, 120, lattice=Lattice(widths=(100,))).best[0]
    assert found.n_embd % found.n_head == 0


@pytest.mark.parametrize(
    ("machine", "text", "seconds", "short"),
    [
        ({"usable_bytes": 1e5}, {}, 120, "the smallest needs 0.0"),
        ({}, {"train_bytes": 40}, 120, "the text is too short"),
        ({}, {}, 0.01, "the time is too short"),
    ],
)
def test_a_budget_that_nothing_fits_says_what_is_short(
    machine: dict, text: dict, seconds: float, short: str
) -> None:
    with pytest.raises(ConfigError, match=short):
        search(
            dataclasses.replace(TEXT, **text),
            dataclasses.replace(MACHINE, **machine),
            seconds,
        )


def test_a_text_that_is_used_up_takes_less_than_the_time() -> None:
    short = dataclasses.replace(TEXT, train_bytes=3e4)
    long = search(short, MACHINE, 8 * 3600).best[0]
    assert long.seconds < 8 * 3600
    assert search(TEXT, MACHINE, 60).best[0].seconds == 60


def test_a_hundred_thousand_candidates() -> None:
    text = Text(1e9, {4096: 0.3, 8192: 0.27, 16384: 0.25, 32768: 0.235}, 2.3)
    machine = dataclasses.replace(MACHINE, kind="cuda", usable_bytes=24e9)
    assert search(text, machine, 8 * 3600).considered >= 100_000
