"""The run folder: starting one from a recipe, and taking it up again.

runs/NAME/
  recipe.toml      every value of the run, resolved
  data/            tokens and tokenizer, unless prepared data was given
  metrics.jsonl    what happened, one event a line
  checkpoints/     step-NNNNNN/, best and last
  loss.png         the curve
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from gptfit.config import DataConfig, Recipe
from gptfit.data import TextSource, TokenDataset, Tokenizer, make_tokenizer, prepare
from gptfit.errors import CheckpointError, ConfigError, DataError, Problem
from gptfit.formats.hf import load_config, load_model
from gptfit.formats.integrity import is_whole, verify
from gptfit.formats.locate import CHECKPOINTS, find_checkpoint
from gptfit.model import GPT2
from gptfit.plan.step import usual_vocab_multiple
from gptfit.train.checkpoint import read_state
from gptfit.train.device import Device, choose_device, require_memory
from gptfit.train.loop import Trainer

RECIPE = "recipe.toml"
DATA = "data"


@contextmanager
def new_run(run: Path) -> Iterator[None]:
    """While a run is being set up in a free folder: if that fails, nothing of it is left."""
    require_free(run)
    existed = run.exists()
    try:
        yield
    except BaseException:
        if not existed:
            shutil.rmtree(run, ignore_errors=True)
        raise


def start(run: Path, recipe: Recipe, dataset: TokenDataset) -> Trainer:
    """A trainer at step 0 in a new folder ``run``; the recipe is fixed there from now on."""
    recipe = with_vocabulary(recipe, dataset.tokenizer)
    dataset.require_context(recipe.model.n_positions)
    device = choose_device(recipe.run.device, recipe.run.dtype, recipe.model)
    require_memory(recipe, device)
    generator = torch.Generator().manual_seed(recipe.train.seed)
    model = GPT2(recipe.model, vocab_multiple(recipe, device), generator)
    trainer = Trainer(run, recipe, dataset, model.to(device.torch_device), device)
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{run} cannot be made ({error.strerror}); choose --out") from None
    recipe.save(run / RECIPE)
    return trainer


def resume(run: Path, overrides: Sequence[str] = (), more_seconds: float | None = None) -> Trainer:
    """A trainer where the run's last checkpoint stands; ``more_seconds`` extends its time.

    ``overrides`` may change budgets and intervals; what would change the model, the data or the
    batches raises ``ConfigError`` naming both values.
    """
    recipe = load_recipe(run)
    checkpoint = last_checkpoint(run)
    if more_seconds is not None:
        total = read_state(checkpoint).elapsed_seconds + more_seconds
        overrides = [*overrides, f"max_seconds={total:.1f}"]
    changed = recipe.override(overrides)
    require_same_run(recipe, changed)
    if load_config(checkpoint) != changed.model:
        raise ConfigError(
            f"the [model] of {run / RECIPE} is not that of {checkpoint / 'config.json'}, which the "
            "weights have; put it back, or start a new run"
        )
    dataset = open_dataset(run, changed.data)
    device = choose_device(changed.run.device, changed.run.dtype, changed.model)
    multiple = vocab_multiple(changed, device)
    model = load_model(checkpoint, device.torch_device, pad_vocab_to_multiple=multiple)
    trainer = Trainer(run, changed, dataset, model, device)
    trainer.restore()
    if trainer.state.data_fingerprint != dataset.fingerprint:
        raise DataError(
            f"{dataset.folder} is not the data that {run} was trained on; put that data back, or "
            "start a new run"
        )
    if trainer.progress() >= 1:
        raise ConfigError(
            f"{run} has spent its budget after {trainer.state.step} steps; extend it, for example "
            f"with --time 2m or max_steps={2 * trainer.state.step}"
        )
    changed.save(run / RECIPE)
    return trainer


def last_checkpoint(run: Path) -> Path:
    """The verified last checkpoint; the error for a damaged one names those that are whole."""
    try:
        checkpoint = find_checkpoint(run, ("last",))
        verify(checkpoint)
    except CheckpointError as error:
        whole = sorted(path.name for path in (run / CHECKPOINTS).glob("step-*") if is_whole(path))
        if not whole:
            raise
        raise CheckpointError(
            f"{error}; {', '.join(whole)} can be had: to go on from one, write "
            f'{{"folder": "{whole[0]}"}} into {run / CHECKPOINTS / "last.json"}'
        ) from None
    return checkpoint


def load_recipe(run: Path) -> Recipe:
    """The recipe of an existing run."""
    if not (run / RECIPE).is_file():
        raise CheckpointError(f"{run} is no run folder: it holds no {RECIPE}")
    return Recipe.load(run / RECIPE)


def require_free(run: Path) -> None:
    """Refuse a folder that already holds something."""
    if (run / CHECKPOINTS).is_dir():
        raise ConfigError(
            f"{run} already holds a run; continue it with `gptfit train --resume "
            f"{shlex.quote(str(run))}`, or choose another folder with --out"
        )
    taken = [path.name for path in run.iterdir() if path.name != DATA] if run.is_dir() else []
    if run.is_file() or set(taken) - {RECIPE, "metrics.jsonl"}:
        raise ConfigError(f"{run} exists and is no run of gptfit; choose another folder with --out")


def prepare_data(
    run: Path, data: DataConfig, text: TextSource, progress: Callable[[float], None] | None = None
) -> TokenDataset:
    """Tokenize ``text`` into the run's folder; data prepared there from the same text is reused."""
    tokenizer = make_tokenizer(data.tokenizer, data.bpe_vocab_size, text, data.val_fraction)
    return prepare(text, tokenizer, run / DATA, data.val_fraction, progress)


def open_dataset(run: Path, data: DataConfig) -> TokenDataset:
    """The tokens of a run: its own, or the prepared folder that its recipe names."""
    folder = run / DATA
    if not folder.is_dir() and len(data.text) == 1:
        folder = Path(data.text[0])
    if not (folder / "train.bin").is_file():
        raise DataError(f"{folder} is missing: it holds the tokens of this run; put it back")
    return TokenDataset.open(folder)


def is_prepared(texts: Sequence[str]) -> bool:
    """Whether ``texts`` is one folder of token files rather than text."""
    return len(texts) == 1 and (Path(texts[0]) / "train.bin").is_file()


def with_vocabulary(recipe: Recipe, tokenizer: Tokenizer) -> Recipe:
    """The recipe with the vocabulary of its data.

    A size that came from a default or a preset gives way; one that the user wrote down may be
    larger than the tokenizer's, but not smaller.
    """
    model, origin = recipe.model, recipe.origins["model.vocab_size"]
    written = origin == "command line" or origin.startswith("file")
    if written and model.vocab_size < tokenizer.vocab_size:
        raise ConfigError(
            Problem(
                "model.vocab_size",
                f"vocab_size={model.vocab_size} ({origin}) is smaller than the tokenizer's "
                f"{tokenizer.vocab_size}",
                f"use {tokenizer.vocab_size}, or leave it out",
            )
        )
    size = model.vocab_size if written else tokenizer.vocab_size
    eos = tokenizer.eos_token_id
    changes = {"vocab_size": size, "bos_token_id": eos, "eos_token_id": eos, "pad_token_id": None}
    return recipe.with_model(model.replace(**changes), "the data's tokenizer")


def vocab_multiple(recipe: Recipe, device: Device) -> int:
    """To what multiple the vocabulary is padded inside the model."""
    if recipe.run.pad_vocab_to_multiple is not None:
        return recipe.run.pad_vocab_to_multiple
    return usual_vocab_multiple(device.torch_device.type)


# What may differ between a run and its continuation: where it ends and what it tells on the way.
CONTINUABLE = {
    "train": {
        "max_steps",
        "max_tokens",
        "max_seconds",
        "eval_interval",
        "log_interval",
        "sample_interval",
        "micro_batch_size",
    },
    "run": {
        "device",
        "dtype",
        "checkpointed_blocks",
        "loss_chunks",
        "keep_checkpoints",
        "sample_prompt",
        "sample_tokens",
        "pad_vocab_to_multiple",
    },
}


def require_same_run(before: Recipe, after: Recipe) -> None:
    """Refuse overrides that would make another run of it."""
    problems = []
    old, new = before.to_dict(resolved=True), after.to_dict(resolved=True)
    for section in ("model", "data", "train", "run"):
        for name in old[section]:
            was, now = old[section][name], new[section][name]
            if was != now and name not in CONTINUABLE.get(section, ()):
                message = f"{name}={now!r} conflicts with {name}={was!r} of the run being resumed"
                problems.append(Problem(f"{section}.{name}", message, "start a new run for that"))
    if problems:
        raise ConfigError(problems)
