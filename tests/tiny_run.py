"""A tiny run that takes a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gptfit.config import Recipe
from gptfit.data import TextSource
from gptfit.train import run as runs
from gptfit.train.events import Event
from gptfit.train.interrupt import Interrupt
from gptfit.train.loop import Outcome, Trainer

TINY = [
    "n_layer=2",
    "n_head=2",
    "n_embd=16",
    "n_positions=8",
    "dropout=0.1",
    "batch_size=4",
    "micro_batch_size=2",
    "learning_rate=0.01",
    "warmup_steps=2",
    "max_steps=12",
    "eval_interval=4",
    "log_interval=2",
    "sample_tokens=5",
    "tokenizer=char",
    "device=cpu",
]
TEXT = "The quick brown fox jumps over the lazy dog.\n" * 20


def make_trainer(run: Path, *overrides: str, text: str = TEXT) -> Trainer:
    """A trainer at step 0 of a new run on a small text."""
    path = run.parent / "text.txt"
    path.write_text(text, encoding="utf-8")
    recipe = Recipe.resolve(overrides=[*TINY, *overrides])
    with runs.new_run(run):
        dataset = runs.prepare_data(run, recipe.data, TextSource.from_paths([str(path)]))
        return runs.start(run, recipe, dataset)


def finish(trainer: Trainer, listener: Callable[[Event], None] = lambda event: None) -> Outcome:
    """Run to the end of the budget."""
    return trainer.run(listener, Interrupt())
