"""Pictures of a plan and of a search, as SVG or PNG by the name of the file."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptfit.plan.memory.tape import ALLOCATOR
from gptfit.plan.quantities import BYTES, COUNT, SECONDS, Unit, text_of
from gptfit.plan.scaling import BESIROGLU

if TYPE_CHECKING:
    from gptfit.plan.plan import Plan
    from gptfit.plan.search import SearchResult

# Okabe and Ito's colours, told apart by colour-blind readers too (jfly.uni-koeln.de/color).
BLUE, ORANGE, GREEN, VERMILION = "#0072b2", "#e69f00", "#009e73", "#d55e00"
SKY, PURPLE, YELLOW, GREY = "#56b4e9", "#cc79a7", "#f0e442", "#bbbbbb"
COLOURS = {
    "weights": BLUE,
    "gradients": SKY,
    "optimizer": PURPLE,
    "autocast cache": YELLOW,
    "activations": GREEN,
    "logits and loss": ORANGE,
    "transients": VERMILION,
    "KV cache": "#44aa99",
    "communication buffers": "#882255",
    ALLOCATOR: GREY,
}
LINE_COLOURS = (GREEN, BLUE, PURPLE, ORANGE, SKY)

TITLE: dict[str, Any] = {"loc": "left", "fontsize": 11, "parse_math": False}
LIMIT: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1.2}
STAR: dict[str, Any] = {
    "marker": "*",
    "markersize": 14,
    "linestyle": "none",
    "color": VERMILION,
    "markeredgecolor": "white",
    "zorder": 3,
}

Point = tuple[float, float]
Lines = Mapping[str, Sequence[Point]]
"""Points by the name of their line, such as the budget that they spend."""


def draw_plan(plan: Plan, path: Path) -> None:
    """Memory by phase; below it, where a law foresees the loss, what other sizes would reach."""
    with _figure(path, panels=2 if plan.loss and plan.budget else 1) as panels:
        memory_by_phase(panels[0], plan)
        if plan.loss and plan.budget:
            work = 6 * plan.parameters * plan.budget.tokens
            chosen = (float(plan.parameters), plan.loss.nats_per_token.best)
            loss_by_size(panels[1], same_work(work), chosen)
            panels[1].set_title("The same work on other sizes of model", **TITLE)


def draw_search(result: SearchResult, path: Path, usable_bytes: float, title: str = "") -> None:
    """The least loss for each memory, a line for each time of the Pareto set."""
    fronts: dict[str, list[Point]] = {}
    for one in sorted(result.pareto, key=lambda one: -one.seconds):
        line = fronts.setdefault(_short(one.seconds, SECONDS), [])
        line.append((one.memory_bytes, one.bits_per_byte))
    best = result.best[0]
    with _figure(path) as (axes,):
        loss_by_memory(axes, fronts, (best.memory_bytes, best.bits_per_byte), usable_bytes)
        axes.set_title(title, **TITLE)


def memory_by_phase(axes: Any, plan: Plan) -> None:
    """What each phase of the step holds, stacked by component, against what the device has."""
    total, usable = plan.ledger.total, plan.usable_bytes
    overhead = {ALLOCATOR: total.best - plan.ledger.peak.bytes}
    stacks = {phase.name: phase.components() | overhead for phase in plan.ledger.phases}
    unit, unit_name = _unit(max(total.high, 1))
    _stack(axes, stacks, unit)
    peak = list(stacks).index(plan.ledger.peak.name)
    spread = [[(total.best - total.low) / unit], [(total.high - total.best) / unit]]
    beside = peak + 0.24  # of the number
    axes.errorbar(beside, total.best / unit, yerr=spread, color="black", capsize=4, linewidth=1.2)
    top = total.high
    if usable < 3 * top:
        axes.axhline(usable / unit, **LIMIT)
        text = f"usable on {plan.device.name}: {text_of(usable, BYTES)}"
        axes.annotate(
            text,
            (0, usable / unit),
            (2, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            fontsize=9,
        )
        top = max(top, usable)
    axes.set_ylim(0, top / unit * 1.12)
    axes.set_ylabel(f"memory ({unit_name})")
    axes.set_title(_memory_title(plan), **TITLE)
    handles, labels = axes.get_legend_handles_labels()
    place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
    axes.legend(handles[::-1], labels[::-1], frameon=False, **place)


def loss_by_size(axes: Any, lines: Lines, chosen: Point | None = None) -> None:
    """(parameters, nats per token), a line for each budget; where it turns is its best size."""
    _lines(axes, lines, of_interest=1.7)
    if chosen:
        label = f"planned: {_millions(chosen[0])} parameters, {chosen[1]:.4g}"
        axes.plot(*chosen, **STAR, label=label)
    _axes_in_words(axes.xaxis, _millions)
    axes.set(xlabel="parameters", ylabel="expected loss (nats per token)")
    axes.legend(frameon=False)


def loss_by_memory(
    axes: Any, fronts: Lines, chosen: Point | None = None, usable_bytes: float | None = None
) -> None:
    """(bytes, bits per byte) of what nothing smaller beats, a line for each time."""
    _lines(axes, fronts, of_interest=1.4)
    if chosen:
        label = f"best: {text_of(chosen[0], BYTES)}, {chosen[1]:.4g}"
        axes.plot(*chosen, **STAR, label=label)
    if usable_bytes:
        axes.axvline(usable_bytes, **LIMIT)
        axes.annotate(
            f"usable: {text_of(usable_bytes, BYTES)}",
            (usable_bytes, 1),
            (-4, -4),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="right",
            va="top",
            rotation=90,
            fontsize=9,
        )
    _axes_in_words(axes.xaxis, lambda size: _short(size, BYTES), base=2)
    axes.set(xlabel="memory", ylabel="expected bits per byte")
    axes.legend(frameon=False)


def same_work(flops: float) -> dict[str, list[Point]]:
    """The loss of sizes around the best one for half, once and twice as much work of 6·N·D."""
    best = math.sqrt(flops / 6 / BESIROGLU.tokens_per_parameter(flops))
    sizes = [best * 2 ** (exponent / 4) for exponent in range(-16, 17)]
    return {
        name: [(size, BESIROGLU.loss(size, times * flops / 6 / size)) for size in sizes]
        for name, times in (("half the work", 0.5), ("the planned work", 1), ("twice the work", 2))
    }


def _lines(axes: Any, lines: Lines, of_interest: float) -> None:
    """Lines with their minima, up to ``of_interest`` times the least loss."""
    for colour, (label, points) in zip(LINE_COLOURS, lines.items(), strict=False):
        ordered = sorted(points)
        axes.plot(*zip(*ordered, strict=True), color=colour, linewidth=1.8, label=label)
        best = min(ordered, key=lambda point: point[1])
        axes.plot(*best, marker="o", markersize=5, color=colour)
    losses = [loss for points in lines.values() for _, loss in points]
    span = min(max(losses), of_interest * min(losses)) - min(losses) or min(losses) / 10
    axes.set_ylim(min(losses) - 0.1 * span, min(losses) + 1.05 * span)
    axes.set_xscale("log")


def _memory_title(plan: Plan) -> str:
    step = plan.step
    return (
        f"{plan.verdict}: {plan.recipe_name}, {plan.parameters:,} parameters, on {plan.device.name}\n"
        f"batch {step.micro_batch_size} × {step.context:,} tokens, {step.dtype}; "
        f"peak {text_of(plan.ledger.total, BYTES)} in {plan.ledger.peak.name}"
    )


def _stack(axes: Any, stacks: Mapping[str, Mapping[str, float]], unit: float) -> None:
    """One bar for each stack; the components in one order in all of them, the lasting ones below."""
    names = dict.fromkeys(name for stack in stacks.values() for name in stack)
    bottoms = [0.0] * len(stacks)
    for name in sorted(names, key=list(COLOURS).index):
        heights = [stack.get(name, 0.0) / unit for stack in stacks.values()]
        axes.bar(
            range(len(stacks)),
            heights,
            bottom=bottoms,
            width=0.62,
            color=COLOURS[name],
            edgecolor="white",
            linewidth=0.6,
            label=name,
        )
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    for place, height in enumerate(bottoms):
        label = text_of(height * unit, BYTES)
        axes.annotate(
            label, (place - 0.34, height), (0, 3), textcoords="offset points", ha="left", fontsize=8
        )
    axes.set_xticks(range(len(stacks)), [name.replace(" ", "\n", 1) for name in stacks])
    axes.tick_params(axis="x", length=0)


@contextmanager
def _figure(path: Path, panels: int = 1) -> Iterator[Any]:
    """Empty panels one above the other; they are written to ``path`` in the end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, grid = plt.subplots(
        panels, figsize=(9, 5 * panels), layout="constrained", squeeze=False
    )
    for axes in grid[:, 0]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
        axes.set_axisbelow(True)
    try:
        yield list(grid[:, 0])
        with warnings.catch_warnings():
            # a name in a script that the font lacks
            warnings.filterwarnings("ignore", "Glyph", UserWarning)
            figure.savefig(path, dpi=130)
    finally:
        plt.close(figure)


def _axes_in_words(axis: Any, text: Callable[[float], str], base: int = 10) -> None:
    """1, 2 and 5 of every decade, or powers of two, as ``text`` says them; not 10⁸."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(base, subs=(1, 2, 5) if base == 10 else (1,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))


def _millions(parameters: float) -> str:
    """1.3e6 -> 1.3M."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if parameters >= size:
            return f"{parameters / size:.3g}{letter}"
    return text_of(parameters, COUNT)


def _short(value: float, units: Sequence[Unit]) -> str:
    """Without digits that say nothing: 16 GiB, 2 minutes."""
    size, name = next((unit for unit in units if value >= unit[0]), units[-1])
    return f"{value / size:.3g} {name}"


def _unit(largest_bytes: float) -> tuple[float, str]:
    return next(unit for unit in BYTES if largest_bytes >= unit[0])
