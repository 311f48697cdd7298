"""A model so small that starting the processes is what takes the time."""

from __future__ import annotations

import pytest

from gptfit.bench.inputs import Inputs, prepare_inputs
from gptfit.bench.steps import comparable
from gptfit.config import Recipe
from gptfit.data import TextSource
from tiny_run import TEXT

SIZES = ["n_layer=2", "n_head=2", "n_embd=32", "n_positions=16", "vocab_size=64", "dropout=0"]
TRAINING = ["batch_size=4", "micro_batch_size=2", "learning_rate=0.002", "tokenizer=char"]


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    return comparable(Recipe.resolve(overrides=[*SIZES, *TRAINING, "device=cpu"]))


@pytest.fixture(scope="session")
def inputs(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Tokens and weights that all contestants get."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    text = TextSource.from_paths([str(folder / "text.txt")])
    return prepare_inputs(recipe, text, folder)
