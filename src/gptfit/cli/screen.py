"""A plan on one screen: the verdict, where the memory goes, how fast, and what would help."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gptfit.cli.console import table
from gptfit.plan.interval import Interval
from gptfit.plan.memory.tape import ALLOCATOR
from gptfit.plan.quantities import BYTES, COUNT, FLOPS, SECONDS, WORDS, significant, text_of

if TYPE_CHECKING:
    from gptfit.plan.memory import Remedy
    from gptfit.plan.plan import Plan
    from gptfit.plan.step import TrainingStep

COLOURS = {"FITS": "green", "TIGHT": "yellow", "NO": "red"}
EXPLAINED = {
    "FITS": "it fits, with the least favourable figures too",
    "TIGHT": "it may fit; the estimate's upper end does not",
    "NO": "it does not fit",
}
WIDTH = 100
BAR_WIDTH = 44
EIGHTHS = " ▏▎▍▌▋▊▉█"
INDENT = 15


def print_plan(console: Console, plan: Plan, next_command: str) -> None:
    """The whole screen, at most 30 lines of 100 columns."""
    console.print(_headline(plan))
    console.print(_shape(plan), style="dim", soft_wrap=True)
    console.print(f"\nat the peak, in the {plan.ledger.peak.name}", style="bold")
    console.print(_memory(plan))
    console.print()
    for name, text in _facts(plan):
        console.print(_fact(name, text), soft_wrap=True)
    # Not wrapped: it is there to be copied.
    console.print(Text.assemble((f"{'next':{INDENT}}", "bold"), next_command), soft_wrap=True)


def _fact(name: str, text: str) -> Text:
    """Name and text, wrapped beside the name."""
    lines = textwrap.wrap(text, WIDTH - INDENT, break_long_words=False)
    return Text.assemble((f"{name:{INDENT}}", "bold"), ("\n" + " " * INDENT).join(lines))


def _headline(plan: Plan) -> Text:
    colour = f"bold {COLOURS[plan.verdict]}"
    text = f"  {plan.recipe_name} on {plan.device.name}: {EXPLAINED[plan.verdict]}"
    return Text.assemble((plan.verdict, colour), (text, "bold"))


def _shape(plan: Plan) -> str:
    text = f"{plan.parameters:,} parameters · {step_text(plan.step)}"
    return text if plan.device.bfloat16 is not False else f"{text} · no bfloat16 here"


def step_text(step: TrainingStep) -> str:
    """How the step is computed, in words; what is usual goes without saying."""
    batch = f"batch {step.micro_batch_size} × {step.context:,} tokens"
    if step.grad_accum_steps > 1:
        batch += f" × {step.grad_accum_steps} accumulated"
    words = [
        batch,
        step.dtype,
        "compiled" if step.compiled else "eager",
        f"{step.attention} attention",
        step.optimizer,
        f"{step.checkpointed_blocks} blocks checkpointed" if step.checkpointed_blocks else "",
        f"loss in {step.loss_chunks} chunks" if step.loss_chunks > 1 else "",
        f"{step.parallel} × {step.world_size}" if step.world_size > 1 else "",
    ]
    return " · ".join(word for word in words if word)


def print_verification(console: Console, phases: Mapping[str, Mapping[str, float]]) -> None:
    """The ledger's tensors beside those of a traced step."""
    rows = table(
        "phase", "ledger", "traced step", "error", right=("ledger", "traced step", "error")
    )
    for name, phase in phases.items():
        sizes = (text_of(phase[key], BYTES) for key in ("ledger_bytes", "traced_bytes"))
        rows.add_row(name, *sizes, f"{phase['error']:+.2%}")
    console.print()
    console.print(rows)


def components(plan: Plan) -> dict[str, float]:
    """Bytes by component at the peak, largest first; with the last they add up to the best total."""
    peak = plan.ledger.peak
    rows = sorted(peak.components().items(), key=lambda item: -item[1])
    return dict(rows) | {ALLOCATOR: plan.ledger.total.best - peak.bytes}


def _memory(plan: Plan) -> Table:
    """A waterfall: each component's bar begins where the one above it ends.

    The width is the device's memory, or the plan's where that is more, or so little that no bar
    would show.
    """
    total, usable = plan.ledger.total.best, plan.usable_bytes
    full = max(total, usable) if total > usable / 10 else total
    rows = Table.grid(padding=(0, 2, 0, 0))
    rows.add_column(width=INDENT + 8)
    rows.add_column(width=BAR_WIDTH)
    rows.add_column(justify="right", no_wrap=True)
    rows.add_column(justify="right")
    start = 0.0
    for name, count in components(plan).items():
        bar = waterfall_bar(start / full, (start + count) / full, usable / full)
        rows.add_row(f"  {name}", bar, text_of(count, BYTES), f"{count / total:.0%}")
        start += count
    bar = waterfall_bar(0, total / full, usable / full, COLOURS[plan.verdict])
    rows.add_row("  total", bar, text_of(total, BYTES), "", style="bold")
    return rows


def waterfall_bar(start: float, end: float, limit: float, colour: str = "cyan") -> Text:
    """A bar from ``start`` to ``end``, shares of the width; red where it is beyond ``limit``.

    The resolution is an eighth of a column at the right end; anything positive shows.
    """
    first = min(round(start * BAR_WIDTH), BAR_WIDTH - 1)
    eighths = max(round((end * BAR_WIDTH - first) * 8), 1)
    blocks = EIGHTHS[-1] * (eighths // 8) + EIGHTHS[eighths % 8].strip()
    inside = max(round(limit * BAR_WIDTH) - first, 0)
    return Text.assemble(" " * first, (blocks[:inside], colour), (blocks[inside:], "red"))


def _facts(plan: Plan) -> Iterator[tuple[str, str]]:
    """The lines below the memory, name and text."""
    usable = text_of(plan.usable_bytes, BYTES)
    yield "memory", f"{text_of(plan.ledger.total, BYTES)} of {usable} usable"
    yield "largest batch", _largest_batch(plan)
    yield from _speed(plan)
    yield from _budget(plan)
    if plan.loss:
        yield "loss", _loss(plan)
    yield from _remedies(plan)
    for number, note in enumerate(plan.notes):
        yield "" if number else "note", note


def _largest_batch(plan: Plan) -> str:
    largest = plan.largest_micro_batch
    if not largest:
        return "not even one sequence fits"
    return f"{largest:,} sequences of {plan.step.context:,} tokens at once"


def _speed(plan: Plan) -> Iterator[tuple[str, str]]:
    flops = f"{text_of(plan.flops.total, FLOPS)} per token ({plan.flops.convention})"
    if plan.time is None:
        yield "step time", f"unknown; {flops}"
        return
    basis = "measured on this device" if plan.time.calibrated else "estimated from its peaks"
    yield "step time", f"{text_of(plan.time.seconds, SECONDS)}, {basis}"
    utilization = plan.time.model_flops_utilization
    mfu = f", {utilization:.0%} of the peak (MFU)" if utilization is not None else ""
    rate = text_of(plan.time.tokens_per_second, COUNT)
    yield "tokens/second", f"{rate}{mfu}, {flops}"


def _budget(plan: Plan) -> Iterator[tuple[str, str]]:
    budget = plan.budget
    if budget is None:
        return
    seconds = budget.hours.times(3600)
    yield (
        "training",
        (
            f"{text_of(seconds, SECONDS)} for {text_of(budget.tokens, WORDS)} tokens, "
            f"{significant(budget.steps)} steps"
        ),
    )
    spent = []
    if budget.kilowatt_hours:
        spent.append(_with_unit(budget.kilowatt_hours, "kWh"))
    if budget.cost:
        spent.append(_with_unit(budget.cost, budget.currency))
    if spent:
        yield "energy, cost", " · ".join(spent)


def _with_unit(interval: Interval, unit: str) -> str:
    return text_of(interval, ((1, unit),))


def _loss(plan: Plan) -> str:
    assert plan.loss is not None
    loss = plan.loss
    note = f"; {loss.note}" if loss.note else ""
    return f"{text_of(loss.nats_per_token, COUNT)} nats/token by {loss.law}{note}"


def _remedies(plan: Plan) -> Iterator[tuple[str, str]]:
    """The change that helps most; the three that do where the plan does not fit for certain."""
    shown = plan.remedies[: 1 if plan.verdict == "FITS" else 3]
    for number, remedy in enumerate(shown):
        yield "" if number else "helps most", _remedy(remedy)


def _remedy(remedy: Remedy) -> str:
    cost = f"; {remedy.cost}" if remedy.cost else ""
    return f"{remedy.name}: saves {text_of(remedy.saves_bytes, BYTES)}{cost}"
