"""Choosing a model for a text, a machine and a time: a search over costs that were measured here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gptfit.config import GPT2Config, Recipe
from gptfit.config.recipe import usual_learning_rate
from gptfit.data import TextSource, TokenDataset, Vocabulary, compressed_bits, vocabularies
from gptfit.errors import DataError
from gptfit.plan.lattice import CONTEXTS, Lattice, Machine, Text
from gptfit.plan.memory import memory_ledger
from gptfit.plan.params import count_parameters
from gptfit.plan.scaling import TextLaw
from gptfit.plan.search import WINDOWS, Candidate, SearchResult, search
from gptfit.plan.step import TrainingStep
from gptfit.train import run as runs
from gptfit.train.calibrate import this_machine
from gptfit.train.device import choose_device
from gptfit.train.forecast import Figures, Fitted, memory_bytes

CONTEXTS_OF_A_NOTE = (8, 16)
"""Where the text does not fill ten windows of the shortest usual context."""
EVALUATIONS = 8
WITHOUT_LAST_EVALUATION = 0.95
STEPS_SHARE = 0.92
"""Of the time of a run; the rest goes into evaluations and checkpoints."""
Say = Callable[[str], None]


def fit(
    run: Path,
    text: TextSource,
    seconds: float,
    overrides: Sequence[str],
    say: Say,
    check: Callable[[Recipe, TokenDataset], None] = lambda recipe, dataset: None,
) -> Fitted:
    """The best model that ``text`` and ``seconds`` allow on this machine, ready to be trained.

    Tells ``say`` what was chosen and why. ``overrides`` win over every choice; ``check`` may refuse
    what came of it. The whole call and the training together are meant to take ``seconds``.
    """
    started = time.perf_counter()

    def left() -> float:
        return max(seconds / 2, started + WITHOUT_LAST_EVALUATION * seconds - time.perf_counter())

    base = Recipe.resolve(overrides=overrides)
    with runs.new_run(run):
        say(f"text: {text.description}, {text.total_bytes:,} bytes")
        choices = vocabularies(text, base.data)
        machine = this_machine(base, say)
        budget = STEPS_SHARE * left()
        found = find(base, text, choices, machine, budget)
        best = found.best[0]
        tokenizer = next(item for item in choices if item.size == best.vocab_size)
        base = base.override(tokenizer.values, "fit")
        dataset = _prepare(run, text, base, say)
        enough = min(left(), best.seconds / STEPS_SHARE)
        recipe = recipe_for(best, base, enough).named(text.name).override(overrides)
        recipe = runs.with_vocabulary(recipe, dataset.tokenizer)
        _explain(found, recipe, budget, say)
        check(recipe, dataset)
        forecast = Figures(
            best.bits_per_byte,
            best.tokens_per_second,
            seconds,
            memory_bytes() + _step_bytes(recipe, best.dtype),  # the process has some already
        )
        return Fitted(runs.start(run, recipe, dataset), forecast, started)


def find(
    base: Recipe,
    text: TextSource,
    choices: Sequence[Vocabulary],
    machine: Machine,
    seconds: float,
    law: TextLaw | None = None,
) -> SearchResult:
    """The search for this text; what the recipe says already is no longer searched."""
    facts = Text(
        text.total_bytes * (1 - base.data.val_fraction),
        {item.size: item.tokens_per_byte for item in choices},
        compressed_bits(text, base.data.val_fraction),
    )
    lattice = Lattice.around(base)
    tokens = facts.train_bytes * max(facts.tokens_per_byte.values())
    if lattice.contexts is CONTEXTS and tokens < WINDOWS * min(CONTEXTS):
        lattice = replace(lattice, contexts=CONTEXTS_OF_A_NOTE)
    return search(facts, machine, seconds, law, lattice)


def recipe_for(best: Candidate, base: Recipe, seconds: float) -> Recipe:
    """The candidate with its learning rate, weight decay, budget, warm-up and intervals."""
    steps = max(1, best.steps)
    model = GPT2Config(n_embd=best.n_embd, n_head=best.n_head)
    rate, _ = usual_learning_rate(model, base.train.optimizer)
    values: dict[str, Any] = {
        **best.values,
        "model.bias": False,
        "model.dropout": 0.0,
        "train.learning_rate": rate,
        "train.min_lr": rate / 20,
        "train.max_seconds": round(seconds, 1),
        "train.schedule": "linear",
        # A shorter warm-up at these rates leaves the model on a plateau for the rest of the run.
        "train.warmup_steps": min(200, max(50, steps // 20), steps // 4),
        "train.beta2": 0.99,
        "train.muon_learning_rate": 0.04,
        "train.muon_momentum": 0.9,
        "train.weight_decay": weight_decay(best.epochs),
        "train.eval_interval": max(1, steps // EVALUATIONS),
        "train.eval_tokens": max(4096, round(best.tokens / 40)),
        "train.log_interval": max(1, min(20, steps // 50)),
        "train.sample_interval": max(1, steps // EVALUATIONS) * (EVALUATIONS // 2),
        "run.sample_tokens": 120,
    }
    return base.override(values, "fit")


def weight_decay(epochs: float) -> float:
    """A text that is read often is learned by heart unless the weights decay faster than usual.

    Ten times the usual decay cuts that by two thirds (arXiv 2605.01640); where it sets in and where it
    ends was tried (docs/lab-book.md). Dropout would cost a CPU a third of its speed.

    >>> weight_decay(2), weight_decay(7.5), weight_decay(30)
    (0.1, 1.0, 2.0)
    """
    return round(min(2.0, max(0.1, 0.4 * (epochs - 5))), 2)


def _step_bytes(recipe: Recipe, dtype: str) -> float:
    """What a training step is expected to take."""
    kind = choose_device(recipe.run.device, dtype, recipe.model).torch_device.type
    return memory_ledger(recipe.model, TrainingStep.gptfit(recipe, kind, dtype)).total.best


def _prepare(run: Path, text: TextSource, recipe: Recipe, say: Say) -> TokenDataset:
    dataset = runs.prepare_data(run, recipe.data, text)
    if len(dataset.val) <= CONTEXTS_OF_A_NOTE[0]:
        raise DataError(
            f"{text.description} has {len(dataset.train)} training and {len(dataset.val)} validation "
            "tokens, too few to learn from; use more text"
        )
    kind = {"char": "characters", "bpe": "byte-level BPE"}
    name = kind.get(dataset.tokenizer.kind, recipe.data.tokenizer)
    say(
        f"data: {len(dataset.train):,} training and {len(dataset.val):,} validation tokens of "
        f"{name}, a vocabulary of {dataset.tokenizer.vocab_size:,}"
    )
    return dataset


def _explain(found: SearchResult, recipe: Recipe, budget: float, say: Say) -> None:
    best, model = found.best[0], recipe.model
    say(
        f"search: {found.considered:,} candidates in {found.search_seconds:.1f} s, of which "
        f"{found.fitting:,} fit; the best is limited by {best.binding}"
    )
    say(
        f"model: {model.n_layer} layers, {model.n_embd} wide, {model.n_head} heads, context "
        f"{model.n_positions}, {count_parameters(model).total:,} parameters"
    )
    say(
        f"time: {1000 * best.step_seconds:,.0f} ms a step ({best.tokens_per_second:,.0f} tokens/s), "
        f"about {best.steps:,} steps and {best.epochs:.1f} epochs in {best.seconds:.0f} s"
    )
    say(f"forecast: {best.bits_per_byte:.2f} bits/byte, {best.memory_bytes / 2**20:,.0f} MiB")
    if best.seconds < budget:
        say(f"stops early: after {best.epochs:.0f} passes over this text more would make it worse")
    if helps := [item for item in found.helps if item.bits_per_byte < best.bits_per_byte - 0.005]:
        say(f"{helps[0].change} would give {helps[0].bits_per_byte:.2f}")
