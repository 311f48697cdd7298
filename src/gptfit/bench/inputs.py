"""What all contestants start from: the same tokens and the same weights, in files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from gptfit.config import Recipe
from gptfit.data import TextSource, TokenDataset, make_tokenizer, prepare
from gptfit.errors import ConfigError, Problem
from gptfit.formats.hf import save_model
from gptfit.model import GPT2


@dataclass(frozen=True)
class Inputs:
    """A folder of tokens, in words too, a checkpoint, and a folder to work in."""

    data: Path
    tokens: str
    weights: Path
    folder: Path

    def to_dict(self) -> dict[str, str]:
        """What a process of its own has to find, as JSON can say it."""
        return {"data": str(self.data.resolve()), "weights": str(self.weights.resolve())}


def prepare_inputs(recipe: Recipe, text: TextSource | Path, folder: Path) -> Inputs:
    """Tokens of a text, or those of a prepared folder, and weights drawn from the recipe's seed.

    The model keeps its vocabulary, of which the text may use a part: raises ``ConfigError`` where the
    text needs more.
    """
    if isinstance(text, Path):
        dataset = TokenDataset.open(text)
    else:
        data = recipe.data
        tokenizer = make_tokenizer(data.tokenizer, data.bpe_vocab_size, text, data.val_fraction)
        _require_vocabulary(recipe, tokenizer.vocab_size)
        dataset = prepare(text, tokenizer, folder / "tokens", data.val_fraction)
    _require_vocabulary(recipe, dataset.vocab_size)
    weights = folder / "weights"
    weights.mkdir()
    generator = torch.Generator().manual_seed(recipe.train.seed)
    save_model(weights, GPT2(recipe.model, generator=generator))
    words = f"{dataset.train.size:,} tokens of {dataset.tokenizer.kind}, {dataset.vocab_size:,} ids"
    return Inputs(dataset.folder, words, weights, folder)


def _require_vocabulary(recipe: Recipe, needed: int) -> None:
    if needed > recipe.model.vocab_size:
        message = f"the text's tokenizer has {needed} ids and vocab_size={recipe.model.vocab_size}"
        fix = f"choose tokenizer=char, or vocab_size={needed}"
        raise ConfigError(Problem("model.vocab_size", message, fix))
