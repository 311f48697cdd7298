"""The case ``step``: training tokens per second of everybody on the same model, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from gptfit.bench.contestant import GPTFIT, Contestant
from gptfit.bench.figures import Absent, Setting, Spread, setting
from gptfit.bench.inputs import Inputs
from gptfit.bench.process import BenchError, Driven
from gptfit.config import Recipe
from gptfit.errors import ConfigError, Problem
from gptfit.plan.flops import CAUSAL_EXACT, flops_per_token
from gptfit.plan.interval import Interval
from gptfit.plan.memory import NO, memory_ledger, verdict
from gptfit.plan.memory.overhead import CUDA_CONTEXT
from gptfit.plan.params import count_parameters
from gptfit.plan.step import TrainingStep

PARITY_STEPS = 20
PARITY = 0.005
"""How far a contestant's loss may be from gptfit's, after so many steps from the same weights on the
same batches. Beyond it its speed says nothing."""
TURN_SECONDS = 5.0
LEAST_STEPS = 2

EQUAL = {
    "model.resid_pdrop": 0.0,
    "model.embd_pdrop": 0.0,
    "model.attn_pdrop": 0.0,
    "train.optimizer": "adamw",
}
"""What has to be so for the losses to be comparable."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One contestant. ``times`` is how many times as fast gptfit is.

    ``losses`` are those of the batches 0 to ``PARITY_STEPS``, ``loss_differences`` what each is off
    gptfit's, as a share of that.
    ``matmul_share`` holds its work (causal-exact FLOPs) against the matrix products of the same run,
    ``start_seconds`` is from the start of its process to the end of its first step.
    """

    key: str
    name: str
    settings: str
    tokens_per_second: Spread
    seconds_per_step: float
    times: float
    matmul_share: float
    losses: tuple[float, ...]
    loss_differences: tuple[float, ...]
    void: bool
    peak_bytes: int
    start_seconds: float
    notes: tuple[str, ...]

    @property
    def loss(self) -> float:
        """Of the batch after ``PARITY_STEPS`` steps."""
        return self.losses[-1]

    @property
    def loss_difference(self) -> float:
        """The one that decides."""
        return self.loss_differences[-1]


@dataclass(frozen=True)
class StepResult:
    """The table; gptfit's row is the first."""

    model: str
    recipe: dict[str, Any]
    parameters: int
    context: int
    batch_size: int
    micro_batch_size: int
    tokens: str
    device: str
    threads: int
    matmul_flops_per_second: Spread
    setting: Setting
    rows: tuple[Row, ...]
    absent: tuple[Absent, ...]

    @property
    def passed(self) -> bool:
        """Nobody's loss went astray, and nobody broke down."""
        return not any(row.void for row in self.rows) and not any(a.failed for a in self.absent)


class Entrant:
    """A contestant under way, warm after ``PARITY_STEPS`` steps."""

    def __init__(self, contestant: Contestant, inputs: Inputs, stack: ExitStack) -> None:
        started = time.perf_counter()
        self.contestant = contestant
        self.driven = stack.enter_context(Driven(contestant, inputs.folder))
        self.facts = self.driven.ask(**contestant.to_dict(), **inputs.to_dict())
        self.losses: list[float] = []
        self.turns: list[float] = []
        self.peak_bytes = 0
        self.take(1)
        self.start_seconds = time.perf_counter() - started
        self.warm_seconds = self.take(PARITY_STEPS - 1)

    def take(self, count: int, warm_up: int = 0) -> float:
        """Seconds per step of ``count`` steps, after some that the clock does not see."""
        answer = self.driven.ask(count=count, warm_up=warm_up)
        self.losses += answer["losses"]
        self.peak_bytes = answer["peak_bytes"]
        seconds: float = answer["seconds"] / count
        return seconds

    def take_turn(self, steps: int | None) -> None:
        """``steps`` of them; None is as many as fill ``TURN_SECONDS``."""
        count = steps or max(LEAST_STEPS, round(TURN_SECONDS / self.warm_seconds))
        # A GPU's memory was given back after the last turn and has to be taken again.
        self.turns.append(self.take(count, warm_up=int(self.facts["device_kind"] == "cuda")))


def comparable(recipe: Recipe) -> Recipe:
    """The recipe with what everybody must have equal. Raises ``ConfigError`` where the user forbids it."""
    for key, value in EQUAL.items():
        section, _, name = key.partition(".")
        asked = getattr(getattr(recipe, section), name)
        if asked != value and recipe.origins[key] == "command line":
            message = f"{name}={asked} makes losses that cannot be compared"
            raise ConfigError(Problem(key, message, f"leave it out; it is {value} for everybody"))
    return recipe.override(EQUAL, "bench")


def require_room(
    contestants: Sequence[Contestant], device_kind: str, usable_bytes: int, parameters: int
) -> None:
    """Refuse a field that will not fit into memory together.

    On a GPU each gives back all but weights and moments after its turn.
    """
    steps: list[TrainingStep] = [one.step(device_kind) for one in contestants]
    totals = [
        memory_ledger(one.recipe.model, step).total
        for one, step in zip(contestants, steps, strict=True)
    ]
    if device_kind == "cuda":
        largest = max(totals, key=lambda total: total.best)
        kept = CUDA_CONTEXT + Interval.exactly(12.0 * parameters)
        totals = [largest, *[kept] * (len(totals) - 1)]
    together = sum(totals, start=Interval.exactly(0.0))
    if verdict(together, usable_bytes) == NO:
        message = (
            f"{len(contestants)} contestants take about {together.best / 1e9:,.1f} GB together and "
            f"{usable_bytes / 1e9:,.1f} GB can be had"
        )
        fix = "name fewer with --contestants, or take a smaller model or micro_batch_size"
        raise ConfigError(Problem("train.micro_batch_size", message, fix))


def measure(
    contestants: Sequence[Contestant],
    absent: Sequence[Absent],
    inputs: Inputs,
    rounds: int,
    steps: int | None,
    say: Say,
) -> StepResult:
    """Start everybody, then let them take turns; the first of ``contestants`` is gptfit.

    ``steps`` are those of a turn, None as many as fill ``TURN_SECONDS``. Raises ``BenchError`` if
    gptfit itself breaks down; a peer that does is left behind.
    """
    missing = list(absent)

    def lose(contestant: Contestant, error: BenchError) -> None:
        if contestant.code == GPTFIT:
            raise error
        missing.append(Absent(contestant.name, str(error), failed=True))
        say(str(error))

    rates: list[float] = []
    entrants: list[Entrant] = []
    with ExitStack() as stack:
        for one in contestants:
            say(f"{one.name}: {PARITY_STEPS} steps to warm up ({one.settings})")
            try:
                entrants.append(Entrant(one, inputs, stack))
            except BenchError as error:
                lose(one, error)
        for number in range(1, rounds + 1):
            rates.append(entrants[0].driven.ask(matmul=True)["flops_per_second"])
            for entrant in list(entrants):
                try:
                    entrant.take_turn(steps)
                except BenchError as error:
                    entrants.remove(entrant)
                    lose(entrant.contestant, error)
            last = ", ".join(f"{e.contestant.name} {1000 * e.turns[-1]:,.4g}" for e in entrants)
            say(f"round {number} of {rounds}, ms per step: {last}")
    return _result(entrants, missing, Spread.of(rates), inputs.tokens)


def _result(
    entrants: Sequence[Entrant], absent: Sequence[Absent], matmul: Spread, tokens: str
) -> StepResult:
    ours = entrants[0]
    recipe = ours.contestant.recipe
    model, train = recipe.model, recipe.train
    return StepResult(
        model=_name(recipe),
        recipe=recipe.to_dict(),
        parameters=count_parameters(model).total,
        context=model.n_positions,
        batch_size=train.batch_size,
        micro_batch_size=train.micro_batch_size,
        tokens=tokens,
        device=ours.facts["device"],
        threads=ours.facts["threads"],
        matmul_flops_per_second=matmul,
        setting=setting(),
        rows=tuple(_row(entrant, ours, matmul.median) for entrant in entrants),
        absent=tuple(absent),
    )


def _name(recipe: Recipe) -> str:
    changed = any(
        origin == "command line" and key.startswith("model.")
        for key, origin in recipe.origins.items()
    )
    return (recipe.name or "a model") + (", changed" if changed else "")


def _row(entrant: Entrant, ours: Entrant, matmul: float) -> Row:
    contestant = entrant.contestant
    model, train = contestant.recipe.model, contestant.recipe.train
    tokens = train.batch_size * model.n_positions
    speed = Spread.of([tokens / seconds for seconds in entrant.turns])
    our_seconds, seconds = (statistics.median(one.turns) for one in (ours, entrant))
    work = flops_per_token(model, TrainingStep(context=model.n_positions), CAUSAL_EXACT).total
    losses, our_losses = (one.losses[: PARITY_STEPS + 1] for one in (entrant, ours))
    differences = [loss / our_loss - 1 for loss, our_loss in zip(losses, our_losses, strict=True)]
    return Row(
        key=contestant.key,
        name=contestant.name,
        settings=contestant.settings,
        tokens_per_second=speed,
        seconds_per_step=seconds,
        times=seconds / our_seconds,
        matmul_share=speed.median * work / matmul,
        losses=tuple(losses),
        loss_differences=tuple(differences),
        void=not abs(differences[-1]) <= PARITY,  # NaN is void
        peak_bytes=entrant.peak_bytes,
        start_seconds=entrant.start_seconds,
        notes=tuple(entrant.facts["notes"]),
    )
