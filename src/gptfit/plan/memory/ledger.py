"""The ledger: what a training step holds at the worst moment of each of its phases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from gptfit.config import GPT2Config
from gptfit.errors import ConfigError, Problem
from gptfit.plan.interval import Interval
from gptfit.plan.memory.case import Case, letters_of_sizes
from gptfit.plan.memory.formula import complete, evaluate, largest, numbers
from gptfit.plan.memory.overhead import Overhead, overhead_of
from gptfit.plan.memory.tape import EVALUATION, GENERATION, Held, Moment
from gptfit.plan.memory.training import training_tape
from gptfit.plan.step import TrainingStep

if TYPE_CHECKING:
    from gptfit.plan.hardware import DeviceSpec


@dataclass(frozen=True)
class Term:
    """One line: ``formula`` in the letters of ``LETTERS``, the same with this model's numbers, and
    what it is. The formula as it is printed is what was evaluated."""

    component: str
    bytes: float
    formula: str
    numbers: str
    source: str


@dataclass(frozen=True)
class Phase:
    """A part of the step at the moment when it holds most; ``terms`` largest first."""

    name: str
    terms: tuple[Term, ...]

    @property
    def bytes(self) -> float:
        """All that is held."""
        return sum(term.bytes for term in self.terms)

    def components(self) -> dict[str, float]:
        """Bytes of each component, largest first."""
        totals: dict[str, float] = {}
        for term in self.terms:
            totals[term.component] = totals.get(term.component, 0) + term.bytes
        return dict(sorted(totals.items(), key=lambda item: -item[1]))


@dataclass(frozen=True)
class Ledger:
    """``allocated`` is the peak of the tensors over all phases, ``total`` what the device shows."""

    phases: tuple[Phase, ...]
    allocated: Interval
    total: Interval

    @property
    def peak(self) -> Phase:
        """The phase that holds most."""
        return max(self.phases, key=lambda phase: phase.bytes)

    @property
    def training_peak(self) -> Phase:
        """The same without evaluation and sampling: what a traced step can be held against."""
        training = [p for p in self.phases if p.name not in (EVALUATION, GENERATION)]
        return max(training, key=lambda phase: phase.bytes)


def memory_ledger(
    config: GPT2Config,
    step: TrainingStep,
    device: DeviceSpec | None = None,
    calibration: Overhead | None = None,
) -> Ledger:
    """What ``step`` takes to train this model. Nothing is allocated, and no size makes it slow.

    ``calibration`` replaces what is assumed of the device's allocator and context. Raises
    ``ConfigError`` for a step that the model cannot take.
    """
    require_possible(config, step)
    case = Case(config, step)
    letters = complete(case.letters())
    moments = moments_of(case)
    worst: dict[str, tuple[float, Moment]] = {}
    for moment, size in zip(moments, bytes_at(moments, letters), strict=True):
        if moment.phase not in worst or size > worst[moment.phase][0]:
            worst[moment.phase] = (size, moment)
    phases = tuple(phase_of(moment, letters) for _, moment in worst.values())
    overhead = calibration or overhead_of(case, device)
    allocated = overhead.allocated(max(phase.bytes for phase in phases))
    return Ledger(phases, allocated, overhead.total(allocated))


def require_possible(config: GPT2Config, step: TrainingStep) -> None:
    """Refuse sizes below one and more checkpointed blocks than there are."""
    counts = ("micro_batch_size", "context", "grad_accum_steps", "loss_chunks", "vocab_multiple")
    problems = [
        Problem(name, f"{name}={getattr(step, name)} must be at least 1")
        for name in (*counts, "world_size")
        if getattr(step, name) < 1
    ]
    if not 0 <= step.checkpointed_blocks <= config.n_layer:
        message = f"checkpointed_blocks={step.checkpointed_blocks} of n_layer={config.n_layer}"
        fix = f"use 0 to {config.n_layer}"
        problems.append(Problem("checkpointed_blocks", message, fix))
    if step.context > config.n_positions:
        message = f"context={step.context} is beyond n_positions={config.n_positions}"
        problems.append(Problem("context", message, f"use at most {config.n_positions}"))
    if problems:
        raise ConfigError(problems)


def training_peak_bytes(
    sizes: Mapping[str, Any], step: TrainingStep, config: GPT2Config | None = None
) -> Any:
    """The peak of the tensors for many models at once; ``sizes`` as ``letters_of_sizes`` takes them."""
    letters = letters_of_sizes(sizes, step, config)
    model = config or GPT2Config()
    if "k" in sizes:  # zero of them is the same tape with nothing checkpointed
        step = replace(step, checkpointed_blocks=1)
    if "A" not in sizes:
        return highest(Case(model, step), letters)
    once = highest(Case(model, replace(step, grad_accum_steps=1)), letters)
    often = highest(Case(model, replace(step, grad_accum_steps=2)), letters)
    return once + (often - once) * (letters["A"] > 1)


def highest(case: Case, letters: Mapping[str, Any]) -> Any:
    """Bytes at the worst moment. Moments differ little from those before, so only what comes and what
    goes is added up."""
    known: dict[str, Any] = {}

    def value(formula: str) -> Any:
        if formula not in known:
            known[formula] = evaluate(formula, letters)
        return known[formula]

    held: Any = 0
    peak: Any = 0
    for come, go, exists in changes_of(case):
        held = held + sum(map(value, come)) - sum(map(value, go))
        peak = largest(peak, held if exists == "1" else held * (value(exists) > 0))
    return peak


@lru_cache(maxsize=256)
def changes_of(case: Case) -> tuple[tuple[list[str], list[str], str], ...]:
    """From each moment to the next: the formulas that come, those that go, and when it exists."""
    changes, before = [], Counter[str]()
    for moment in moments_of(case):
        now = Counter(held.formula for held in moment.held)
        come, go = (now - before).elements(), (before - now).elements()
        changes.append((list(come), list(go), moment.exists))
        before = now
    return tuple(changes)


@lru_cache(maxsize=256)
def moments_of(case: Case) -> tuple[Moment, ...]:
    """The tape's moments. They are the same for all sizes."""
    return tuple(training_tape(case).moments)


def bytes_at(moments: tuple[Moment, ...], letters: Mapping[str, Any]) -> list[Any]:
    """Bytes held at each moment; each formula is evaluated once."""
    known: dict[str, Any] = {}

    def value(formula: str) -> Any:
        if formula not in known:
            known[formula] = evaluate(formula, letters)
        return known[formula]

    return [
        sum(value(held.formula) for held in moment.held) if value(moment.exists) > 0 else 0
        for moment in moments
    ]


def phase_of(moment: Moment, letters: Mapping[str, Any]) -> Phase:
    """The moment with its terms, largest first."""
    terms = [term_of(held, letters) for held in moment.held]
    return Phase(moment.phase, tuple(sorted((t for t in terms if t.bytes), key=lambda t: -t.bytes)))


def term_of(held: Held, letters: Mapping[str, Any]) -> Term:
    """One buffer's line."""
    return Term(
        component=held.buffer.component,
        bytes=evaluate(held.formula, letters),
        formula=held.formula,
        numbers=numbers(held.formula, letters),
        source=held.buffer.source,
    )
