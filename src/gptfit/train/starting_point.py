"""A new run from the weights of another model: that model's shape and tokenizer, and step 0."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from gptfit.config import GPT2Config, Recipe
from gptfit.config.recipe import is_given
from gptfit.data import TokenDataset, Tokenizer
from gptfit.errors import ConfigError, DataError, Problem
from gptfit.formats.hf import load_config, load_model
from gptfit.formats.integrity import MANIFEST, verify
from gptfit.formats.locate import find_model
from gptfit.model import GPT2

DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout")
"""What may differ from the weights' own config."""


@dataclass(frozen=True)
class StartingPoint:
    """A model to start from: ``name`` as the user gave it, and the folder that it is in."""

    name: str
    folder: Path
    config: GPT2Config
    tokenizer: Tokenizer

    @classmethod
    def find(cls, name: str) -> StartingPoint:
        """Of a run, a checkpoint folder or a hub id; see ``find_model``."""
        folder = find_model(name)
        return cls(name, folder, load_config(folder), Tokenizer.load(folder))

    def fitted(self, recipe: Recipe) -> Recipe:
        """The recipe with the model of the weights, but for dropout.

        What came from a default or a preset gives way; what the user wrote down and is another raises
        ``ConfigError``.
        """
        problems, dropout = [], {}
        for key, origin in recipe.origins.items():
            section, _, field = key.partition(".")
            if section != "model" or not is_given(origin):
                continue
            wanted, has = getattr(recipe.model, field), getattr(self.config, field)
            if field in DROPOUTS:
                dropout[field] = wanted
            elif wanted != has and is_written_down(origin):
                message = (
                    f"{field}={wanted!r} ({origin}), but the weights of {self.name} have {has!r}"
                )
                problems.append(Problem(key, message, "leave it out"))
        if problems:
            raise ConfigError(problems)
        recipe = recipe.with_model(self.config.replace(**dropout), f"the weights of {self.name}")
        return recipe.override({"run.init_from": self.name})

    def require_tokenizer(self, dataset: TokenDataset) -> None:
        """Refuse tokens that the weights do not know."""
        if dataset.tokenizer.fingerprint != self.tokenizer.fingerprint:
            raise DataError(
                f"{dataset.folder} was made with another tokenizer ({dataset.tokenizer.kind}, "
                f"{dataset.tokenizer.vocab_size:,} tokens) than {self.name} "
                f"({self.tokenizer.kind}, {self.tokenizer.vocab_size:,} tokens); give the text itself"
            )

    def model(self, config: GPT2Config, device: torch.device, vocab_multiple: int) -> GPT2:
        """The weights, whose hashes are checked where they are known."""
        if (self.folder / MANIFEST).is_file():
            verify(self.folder, without="training")
        changes = {name: getattr(config, name) for name in DROPOUTS}
        return load_model(self.folder, device, changes, vocab_multiple)


def is_written_down(origin: str) -> bool:
    """Whether the user has set a value of this origin, rather than a default or a preset."""
    return origin == "command line" or origin.startswith("file")
