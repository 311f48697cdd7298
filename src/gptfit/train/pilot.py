"""Pilot runs: three short real trainings, to which a scaling law's constants are fitted."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from gptfit.config import Recipe
from gptfit.data import TextSource, Vocabulary, compressed_bits
from gptfit.plan.lattice import Machine
from gptfit.plan.params import count_parameters
from gptfit.plan.scaling import GAIN, Facts, PilotRun, TextLaw
from gptfit.plan.search import Candidate
from gptfit.train import run as runs
from gptfit.train.fit import find, recipe_for
from gptfit.train.interrupt import Interrupt

SHARES = (0.4, 1.0, 1.0)
"""Of a pilot's time, for each of the three."""
Say = Callable[[str], None]


def fit_to_pilots(
    law: TextLaw,
    base: Recipe,
    text: TextSource,
    choices: Sequence[Vocabulary],
    machine: Machine,
    seconds: float,
    budget: float,
    say: Say,
) -> TextLaw:
    """The law after three runs of at most ``seconds``: the best model for that, briefly and for as long,
    and for as long the one that it thinks best for the whole ``budget``."""
    best = find(base, text, choices, machine, seconds, law).best[0]
    hoped = find(base, text, choices, machine, budget, law).best[0]
    measured = []
    for candidate, share in zip((best, best, hoped), SHARES, strict=True):
        run = _run(candidate, base, text, choices, share * seconds)
        say(
            f"pilot: {candidate.n_layer} layers, {candidate.n_embd} wide, context "
            f"{candidate.n_positions}, {share * seconds:.0f} s: "
            f"{run.bits_per_byte:.3f} bits/byte"
        )
        measured.append(run)
    return law.fitted(measured)


def _run(
    candidate: Candidate,
    base: Recipe,
    text: TextSource,
    choices: Sequence[Vocabulary],
    seconds: float,
) -> PilotRun:
    """Train the candidate for so long and look at its best loss."""
    share = seconds / candidate.seconds
    candidate = replace(
        candidate,
        seconds=seconds,
        steps=int(candidate.steps * share),
        tokens=candidate.tokens * share,
        epochs=candidate.epochs * share,
    )
    vocabulary = next(item for item in choices if item.size == candidate.vocab_size)
    recipe = recipe_for(candidate, base.override(vocabulary.values, "pilot"), seconds)
    recipe = recipe.override({"train.sample_interval": 0}, "pilot")
    with tempfile.TemporaryDirectory(prefix="gptfit-pilot-") as folder:
        run = Path(folder) / "run"
        with runs.new_run(run):
            dataset = runs.prepare_data(run, recipe.data, text)
            trainer = runs.start(run, recipe, dataset)
        outcome = trainer.run(lambda event: None, Interrupt())
        assert outcome.best is not None
        bits = trainer.bits_per_byte(outcome.best)
        assert bits is not None
        facts = Facts(
            width=candidate.n_embd,
            depth=candidate.n_layer,
            weights=count_parameters(trainer.recipe.model).non_embedding,
            context=candidate.n_positions,
            vocab_size=candidate.vocab_size,
            tokens=outcome.step * trainer.tokens_per_step,
            unique_tokens=len(dataset.train),
            tokens_per_byte=vocabulary.tokens_per_byte,
            step_tokens=trainer.tokens_per_step,
            gain=GAIN[trainer.recipe.train.optimizer],
        )
        return PilotRun(facts, compressed_bits(text, base.data.val_fraction), bits)
