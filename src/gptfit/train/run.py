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
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import torch

from gptfit.config import DataConfig, Recipe
from gptfit.config.sections import SINKS
from gptfit.data import TextSource, TokenDataset, Tokenizer, make_tokenizer, prepare
from gptfit.data.sidecar import SIDECAR_FILE
from gptfit.errors import CheckpointError, ConfigError, DataError, Problem
from gptfit.formats.hf import load_config, load_model
from gptfit.formats.integrity import verify
from gptfit.formats.locate import CHECKPOINTS, METRICS, RECIPE
from gptfit.model import GPT2
from gptfit.plan.step import usual_vocab_multiple
from gptfit.train import recovery
from gptfit.train.checkpoint import read_state
from gptfit.train.continuation import continued, require_same_run
from gptfit.train.device import Device, choose_device
from gptfit.train.lock import LOCK, RunLock
from gptfit.train.loop import Trainer
from gptfit.train.recovery import STEP, Warn, has_checkpoint, newest, turn_to
from gptfit.train.starting_point import StartingPoint, is_written_down
from gptfit.train.world import World

DATA = "data"


class SpentError(ConfigError):
    """A run that has nothing left to do."""


@contextmanager
def new_run(run: Path) -> Iterator[None]:
    """While a run is being set up in a free folder: if that fails, nothing of it is left.

    A folder is free too where a process was killed before the first checkpoint.
    """
    require_free(run)
    made = [folder for folder in (run, *run.parents) if not folder.exists()]
    was_ours = (run / LOCK).exists()
    with RunLock(run):
        recovery.clear(run)
        require_free(run)  # another process may have been faster
        if was_ours:
            _clear_data(run / DATA)
        try:
            yield
        except BaseException:
            if made:
                shutil.rmtree(run, ignore_errors=True)
            with suppress(OSError):  # others may have begun to use them
                for parent in made[1:]:
                    parent.rmdir()
            raise


def start(run: Path, recipe: Recipe, dataset: TokenDataset, world: World | None = None) -> Trainer:
    """A trainer at step 0 in a new folder ``run``; the recipe is fixed there from now on.

    With ``run.init_from`` the weights are those of that model, else they are drawn.
    """
    world = world or World()
    origin = starting_point(recipe)
    recipe = settled(recipe, dataset, origin)
    dataset.require_context(recipe.model.n_positions)
    device = choose_device(recipe.run.device, recipe.run.dtype, recipe.model)
    world.settle(recipe, device)
    multiple = vocab_multiple(recipe, device)
    if origin is not None:
        model = origin.model(recipe.model, device.torch_device, multiple)
    else:
        generator = torch.Generator().manual_seed(recipe.train.seed)
        model = GPT2(recipe.model, multiple, generator, recipe.train.zero_init_projections)
        model = model.to(device.torch_device)
    with until_trained(run, world) as lock:
        trainer = Trainer(run, recipe, dataset, model, device, world, lock=lock)
        if world.is_main:
            recipe.save(run / RECIPE)
    return trainer


def starting_point(recipe: Recipe) -> StartingPoint | None:
    """Where the weights come from, if they are not drawn."""
    return StartingPoint.find(recipe.run.init_from) if recipe.run.init_from else None


def settled(recipe: Recipe, dataset: TokenDataset, origin: StartingPoint | None) -> Recipe:
    """The recipe with the model that its data, or the weights it starts from, ask for."""
    if origin is None:
        return with_vocabulary(recipe, dataset.tokenizer)
    origin.require_tokenizer(dataset)
    return origin.fitted(recipe)


def resume(
    where: Path,
    overrides: Sequence[str] = (),
    more_seconds: float | None = None,
    world: World | None = None,
    new_data: bool = False,
    warn: Warn = lambda text: None,
) -> Trainer:
    """A trainer where the run's newest checkpoint stands, or the one of its checkpoints that is named.

    ``overrides`` may change budgets and intervals; what would change the model, the data or the
    batches raises ``ConfigError`` naming both values. ``more_seconds`` extends the run's time. With
    ``new_data`` the tokens may be others. What is unusual, ``warn`` is told.
    """
    run, named = run_of(where)

    def change(recipe: Recipe, checkpoint: Path) -> Recipe:
        if more_seconds is None:
            return recipe.override(overrides)
        total = read_state(checkpoint).elapsed_seconds + more_seconds
        return recipe.override([*overrides, f"max_seconds={total:.1f}"])

    def find() -> Path:
        if named is not None:
            verify(named)
        return named or newest(run)

    return _take_up(run, find, change, world, new_data, warn)


def resume_newest(
    run: Path,
    wanted: Recipe,
    world: World | None = None,
    new_data: bool = False,
    warn: Warn = lambda text: None,
) -> Trainer:
    """A trainer where the run's newest sound checkpoint stands: damaged ones are passed over.

    Values that were given to ``wanted`` hold as overrides do in ``resume``.
    """

    def change(recipe: Recipe, checkpoint: Path) -> Recipe:
        return continued(recipe, wanted)

    return _take_up(run, lambda: newest(run, True, warn), change, world, new_data, warn)


def _take_up(
    run: Path,
    find: Callable[[], Path],
    change: Callable[[Recipe, Path], Recipe],
    world: World | None,
    new_data: bool,
    warn: Warn,
) -> Trainer:
    world = world or World()
    before = load_recipe(run)

    def found() -> Path:
        recovery.clear(run)
        return find()

    with until_trained(run, world) as lock:
        checkpoint = world.of_main(found)
        recipe = change(before, checkpoint)
        require_same_run(before, recipe, new_data)
        if load_config(checkpoint) != recipe.model:
            raise ConfigError(
                f"the [model] of {run / RECIPE} is not that of {checkpoint / 'config.json'}, which "
                "the weights have; put it back, or start a new run"
            )
        dataset = open_dataset(run, recipe.data)
        device = choose_device(recipe.run.device, recipe.run.dtype, recipe.model)
        world.settle(recipe, device)
        multiple = vocab_multiple(recipe, device)
        model = load_model(checkpoint, device.torch_device, pad_vocab_to_multiple=multiple)
        trainer = Trainer(run, recipe, dataset, model, device, world, lock=lock)
        trainer.restore(checkpoint)
        if trainer.state.data_fingerprint != dataset.fingerprint:
            _take_new_data(trainer, checkpoint, new_data, warn)
        if trainer.is_done:
            raise SpentError(
                f"{run} has spent its budget after {trainer.state.step} steps; extend it, for "
                f"example with --time 2m or max_steps={2 * trainer.state.step}"
            )
        if world.is_main:
            for left in turn_to(run, checkpoint, trainer.state.best_step):
                warn(f"{run} goes on from {checkpoint.name}; what came later is now {left.name}")
            recipe.save(run / RECIPE)
    return trainer


def _take_new_data(trainer: Trainer, checkpoint: Path, new_data: bool, warn: Warn) -> None:
    run, dataset = trainer.run_folder, trainer.dataset
    if not new_data:
        raise DataError(
            f"{dataset.folder} is not the data that {run} was trained on; put that data back, start "
            "a new run, or go on with this data by --new-data"
        )
    if Tokenizer.load(checkpoint).fingerprint != dataset.tokenizer.fingerprint:
        raise DataError(
            f"{dataset.folder} was made with another tokenizer than {run}; prepare the text with "
            f"--tokenizer {shlex.quote(str(checkpoint / 'tokenizer.json'))}"
        )
    # A loss on another text is no better and no worse.
    trainer.state = replace(
        trainer.state, data_fingerprint=dataset.fingerprint, best_loss=None, best_step=None
    )
    warn(f"from step {trainer.state.step} on, {run} is trained on other data: {dataset.folder}")


@contextmanager
def until_trained(run: Path, world: World) -> Iterator[RunLock | None]:
    """The lock of the main process; when the block is over, it is given back by who trains."""
    lock = RunLock(run) if world.is_main else None
    if lock:
        lock.acquire()
    try:
        yield lock
    except BaseException:
        if lock:
            lock.release()
        raise


def run_of(where: Path) -> tuple[Path, Path | None]:
    """A run folder as it is; of a checkpoint in one, the run and the checkpoint."""
    if where.parent.name != CHECKPOINTS or not (where.parent.parent / RECIPE).is_file():
        return where, None
    checkpoint = where.parent / where.resolve().name  # best and last are links
    if not checkpoint.is_dir() or not checkpoint.name.startswith(STEP):
        raise CheckpointError(
            f"{where} is no checkpoint to go on from; name one like {where.parent}/{STEP}000500"
        )
    return where.parent.parent, checkpoint


def load_recipe(run: Path) -> Recipe:
    """The recipe of an existing run."""
    if not (run / RECIPE).is_file():
        raise CheckpointError(f"{run} is no run folder: it holds no {RECIPE}")
    return Recipe.load(run / RECIPE)


def require_free(run: Path) -> None:
    """Refuse a folder that already holds something, other than the beginnings of a run."""
    if has_checkpoint(run):
        raise ConfigError(
            f"{run} already holds a run; continue it with `gptfit train --resume "
            f"{shlex.quote(str(run))}`, or choose another folder with --out"
        )
    taken = {path.name for path in run.iterdir()} if run.is_dir() else set()
    ours = {DATA, RECIPE, METRICS, CHECKPOINTS, *SINKS}
    if run.is_file() or any(not name.startswith(".") for name in taken - ours):
        raise ConfigError(f"{run} exists and is no run of gptfit; choose another folder with --out")


def _clear_data(folder: Path) -> None:
    """Remove what a process that was killed had prepared so far; whole data has its description."""
    for half in folder.glob(".preparing-*"):
        shutil.rmtree(half, ignore_errors=True)
    if not (folder / SIDECAR_FILE).is_file():
        shutil.rmtree(folder, ignore_errors=True)


def prepare_data(
    run: Path,
    data: DataConfig,
    text: TextSource,
    progress: Callable[[float], None] | None = None,
    tokenizer: Tokenizer | None = None,
) -> TokenDataset:
    """Tokenize ``text`` into the run's folder; data prepared there from the same text is reused.

    By the given tokenizer, or the one that ``data`` asks for.
    """
    tokenizer = tokenizer or make_tokenizer(
        data.tokenizer, data.bpe_vocab_size, text, data.val_fraction
    )
    return prepare(text, tokenizer, run / DATA, data.val_fraction, progress)


def open_dataset(run: Path, data: DataConfig) -> TokenDataset:
    """The tokens of a run: its own, or the prepared folder that its recipe names."""
    folder = run / DATA
    if is_prepared(data.text) or (not folder.is_dir() and len(data.text) == 1):
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
    written = is_written_down(origin)
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
