"""What each of several processes does in a test; see ``several_processes``."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptfit.config import Recipe
from gptfit.data import Sampler, TextSource, TokenDataset
from gptfit.errors import DataError, GptfitError
from gptfit.model import GPT2
from gptfit.train import run as runs
from gptfit.train.device import choose_device
from gptfit.train.events import Event
from gptfit.train.interrupt import Interrupt
from gptfit.train.step import Gradients, Step
from gptfit.train.world import join
from tiny_run import TEXT, TINY

Arrays = dict[str, np.ndarray]  # tensors would travel in shared memory, which ends with its maker


def tiny_tokens(folder: Path) -> Path:
    """A prepared small text, for any number of processes to open."""
    path = folder / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    data = Recipe.resolve(overrides=TINY).data
    return runs.prepare_data(folder, data, TextSource.from_paths([str(path)])).folder


def steps(
    tokens: Path,
    overrides: list[str],
    first: int = 0,
    last: int = 4,
    kept: Mapping[str, Arrays] | None = None,
    poisoned: int | None = None,
) -> dict[str, Any]:
    """Training from step ``first`` to ``last``, from what another call has ``kept`` before it.

    From step ``poisoned`` on, the last process alone meets a loss that is no number. Gives losses,
    norms, this process's part of each batch, and what is to be kept.
    """
    dataset = TokenDataset.open(tokens)
    recipe = Recipe.resolve(overrides=[*TINY, "dropout=0", "bias=false", *overrides])
    recipe = runs.with_vocabulary(recipe, dataset.tokenizer)
    device = choose_device("cpu", "auto", recipe.model)
    with join() as world:
        world.settle(recipe, device)
        model = GPT2(recipe.model, 4, torch.Generator().manual_seed(world.rank if kept else 0))
        if kept:
            model.load_state_dict(_tensors(kept["weights"]), strict=False)
        train = recipe.train
        sampler = Sampler(dataset.train, recipe.model.n_positions, train.batch_size, train.seed)
        step = Step(model, recipe, sampler, device, world)
        if kept:
            step.optimizer.restore(_tensors(kept["moments"]), first)
        seen: dict[str, Any] = {"losses": [], "norms": [], "batches": []}
        for number in range(first, last):
            if number == poisoned and world.rank == world.size - 1:
                step.model.register_forward_hook(lambda module, args, loss: loss * float("nan"))
            gradients = step.gradients(number)
            if not gradients.are_finite:
                break
            seen["losses"].append(gradients.loss.item())
            seen["norms"].append(gradients.norm.item())
            seen["batches"].append(sampler.batch(number, world.rank, world.size)[0].tobytes())
            step.update(1.0)
        seen["steps"] = len(seen["losses"])
        weights = {name: p.detach() for name, p in model.named_parameters()}
        seen["weights"] = _arrays(world.collected(weights))
        seen["moments"] = _arrays(world.collected(step.optimizer.state()))
        return seen


def whole_run(
    folder: Path,
    tokens: Path,
    overrides: list[str],
    resumed: bool = False,
    stopped: tuple[int, int] | None = None,
    broken: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """A run as the command makes it, or the rest of one.

    ``stopped`` and ``broken`` name a rank and a step: there this process alone gets SIGTERM, or
    meets an error.
    """
    recipe = Recipe.resolve(overrides=[*TINY, "dropout=0", "bias=false", *overrides])
    recipe = recipe.override({"data.text": [str(tokens)]})
    try:
        with join() as world, Interrupt() as interrupt:
            if resumed:
                trainer = runs.resume(folder, overrides, None, world)
            else:
                trainer = runs.start(folder, recipe, TokenDataset.open(tokens), world)
            gradients = trainer.step.gradients

            def watched(number: int) -> Gradients:
                if stopped == (world.rank, number):
                    os.kill(os.getpid(), signal.SIGTERM)
                if broken == (world.rank, number):
                    raise DataError("this process alone cannot go on")
                return gradients(number)

            trainer.step.gradients = watched  # type: ignore[method-assign]
            events: list[Event] = []
            outcome = trainer.run(events.append, interrupt)
            return {"outcome": outcome, "told": [event.kind for event in events]}
    except GptfitError as error:
        return {"error": type(error).__name__}


def batch_hashes(results: list[dict[str, Any]]) -> list[str]:
    """A hash of each step's global batch: all processes' parts, one after the other."""
    steps = zip(*(result["batches"] for result in results), strict=True)
    return [hashlib.sha256(b"".join(parts)).hexdigest() for parts in steps]


def _arrays(tensors: Mapping[str, Tensor]) -> Arrays:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _tensors(arrays: Arrays) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
