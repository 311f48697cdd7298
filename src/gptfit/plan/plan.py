"""The plan: what a recipe will cost on a device, before it is launched. One object, many faces."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gptfit.config import GPT2Config, Recipe, TrainConfig
from gptfit.config.recipe import DEFAULT
from gptfit.errors import ConfigError, Problem
from gptfit.plan.calibration import Calibration
from gptfit.plan.flops import Flops, flops_per_token
from gptfit.plan.hardware import DeviceSpec, find_device
from gptfit.plan.interval import Interval
from gptfit.plan.memory import (
    Ledger,
    Remedy,
    largest_micro_batch,
    memory_ledger,
    remedies,
    verdict,
)
from gptfit.plan.params import count_parameters
from gptfit.plan.scaling import BESIROGLU, HOFFMANN
from gptfit.plan.step import BFLOAT16, TrainingStep, usual_dtype
from gptfit.plan.time import StepTime, step_time

NOT_OURS = {"compiled", "parallel"}
"""What gptfit's own training step cannot do yet."""
POWER_SHARE = 0.8
"""Of its rated power that a device in training draws, about."""
SMALLEST_COMPARABLE_VOCABULARY = 16_384
"""The laws were fitted to text in 32 thousand tokens; a loss per character is another quantity."""


@dataclass(frozen=True)
class Price:
    """Money for an hour of one device."""

    per_hour: float
    currency: str


@dataclass(frozen=True)
class Budget:
    """The whole training: tokens, optimizer steps, and what they take; None is unknown."""

    tokens: float
    steps: float
    hours: Interval
    kilowatt_hours: Interval | None
    cost: Interval | None
    currency: str


@dataclass(frozen=True)
class LossForecast:
    """What a scaling law expects; good for comparing models, not as a promise."""

    nats_per_token: Interval
    law: str
    note: str


@dataclass(frozen=True)
class Plan:
    """The verdict on a recipe and a device, and everything that it rests on."""

    recipe_name: str
    parameters: int
    device: DeviceSpec
    step: TrainingStep
    verdict: str
    ledger: Ledger
    usable_bytes: int
    largest_micro_batch: int
    flops: Flops
    time: StepTime | None
    budget: Budget | None
    remedies: tuple[Remedy, ...]
    loss: LossForecast | None
    notes: tuple[str, ...]


def plan(
    recipe: Recipe | GPT2Config | str,
    device: DeviceSpec | str,
    *,
    step: TrainingStep | None = None,
    tokens: float | None = None,
    price: Price | None = None,
    calibration: Calibration | None = None,
) -> Plan:
    """What ``recipe`` will take on ``device``: memory, time, money, and the loss to hope for.

    A recipe may be a model alone or the name of a preset, a device its name in the table. ``step`` is gptfit's own where none is given; ``tokens`` is the recipe's budget, if it has one.
    Nothing is allocated and nothing heavy imported.
    """
    recipe = _recipe(recipe)
    device = find_device(device) if isinstance(device, str) else device
    model = recipe.model
    own = step is None or not step.keeps_logits
    step = step or TrainingStep.gptfit(recipe, device.torch_kind, dtype_of(recipe, device))
    ledger = memory_ledger(model, step, device)
    costs = calibration.costs if calibration else None
    time = step_time(model, step, device, costs)
    tokens = tokens or _tokens_of(recipe.train, step, time)
    parameters = count_parameters(model).total
    return Plan(
        recipe_name=recipe.name,
        parameters=parameters,
        device=device,
        step=step,
        verdict=verdict(ledger.total, device.usable_bytes),
        ledger=ledger,
        usable_bytes=device.usable_bytes,
        largest_micro_batch=largest_micro_batch(model, step, device.usable_bytes, device),
        flops=flops_per_token(model, step),
        time=time,
        budget=_budget(tokens, step, time, device, price) if tokens and time else None,
        remedies=tuple(
            remedy
            for remedy in remedies(model, step, device)
            if not own or not remedy.change.keys() & NOT_OURS
        ),
        loss=_forecast(model.vocab_size, parameters, tokens) if tokens else None,
        notes=_notes(device, time, calibration),
    )


def _recipe(what: Recipe | GPT2Config | str) -> Recipe:
    if isinstance(what, GPT2Config):
        return Recipe.resolve().with_model(what, "the caller")
    return with_vocabulary(Recipe.resolve(preset=what) if isinstance(what, str) else what)


def with_vocabulary(recipe: Recipe) -> Recipe:
    """With the vocabulary that the data's tokenizer will have, where the recipe says so."""
    size = recipe.data.bpe_vocab_size
    if size is None or recipe.origins["model.vocab_size"] != DEFAULT:
        return recipe
    return recipe.with_model(recipe.model.replace(vocab_size=size), "data.bpe_vocab_size")


def dtype_of(recipe: Recipe, device: DeviceSpec) -> str:
    """What the recipe's dtype comes to on the device; ``ConfigError`` for one that it has not."""
    dtype = recipe.run.dtype
    if dtype == BFLOAT16 and not device.bfloat16:
        message = f"dtype=bfloat16 is not supported by {device.name}"
        raise ConfigError(Problem("run.dtype", message, "use float32"))
    if dtype != "auto":
        return dtype
    return usual_dtype(device.kind, bool(device.bfloat16), recipe.model.n_embd)


def _tokens_of(train: TrainConfig, step: TrainingStep, time: StepTime | None) -> float | None:
    """The tokens that the recipe's first budget allows."""
    limits = []
    if train.max_steps is not None:
        limits.append(float(train.max_steps * step.tokens_per_step))
    if train.max_tokens is not None:
        limits.append(float(train.max_tokens))
    if train.max_seconds is not None and time is not None:
        limits.append(train.max_seconds * time.tokens_per_second.best)
    return min(limits, default=None)


def _budget(
    tokens: float, step: TrainingStep, time: StepTime, device: DeviceSpec, price: Price | None
) -> Budget:
    steps = tokens / step.tokens_per_step
    hours = time.seconds.times(steps / 3600)
    kilowatts = device.watts * POWER_SHARE * step.world_size / 1000 if device.watts else None
    return Budget(
        tokens=tokens,
        steps=steps,
        hours=hours,
        kilowatt_hours=hours.times(kilowatts) if kilowatts else None,
        cost=hours.times(price.per_hour * step.world_size) if price else None,
        currency=price.currency if price else "",
    )


def _forecast(vocab_size: int, parameters: int, tokens: float) -> LossForecast | None:
    if vocab_size < SMALLEST_COMPARABLE_VOCABULARY:
        return None
    losses = sorted(law.loss(parameters, tokens) for law in (BESIROGLU, HOFFMANN))
    best = BESIROGLU.loss(parameters, tokens)
    if losses[-1] > math.log(vocab_size):
        return None  # more than knowing nothing: so few tokens are not what the laws are about
    note = "on fresh web text; good for comparing models, not a promise"
    return LossForecast(Interval(losses[0], best, losses[1]), BESIROGLU.name, note)


def _notes(
    device: DeviceSpec, time: StepTime | None, calibration: Calibration | None
) -> tuple[str, ...]:
    notes = []
    if time is None:
        notes.append(f"the speed of {device.name} is unknown; --calibrate measures this machine")
    elif calibration is None:
        notes.append("time by roofline from the maker's peaks; --calibrate measures the device")
    if device.uncertain:
        notes.append(f"uncertain in the table of devices: {', '.join(device.uncertain)}")
    return tuple(notes)
