"""Pictures of the results, as PNG or SVG by the name of the file."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gptfit.bench.challenge import REFERENCE, ChallengeResult
from gptfit.bench.contestant import GPTFIT, HUGGING_FACE, NANOGPT, TUNED
from gptfit.bench.races import RaceResult
from gptfit.bench.steps import PARITY, Row, StepResult
from gptfit.plan.picture import BLUE, GREY, ORANGE, SKY, VERMILION, YELLOW
from gptfit.plan.quantities import significant

COLOURS = {
    GPTFIT: VERMILION,
    HUGGING_FACE + TUNED: ORANGE,
    HUGGING_FACE: YELLOW,
    NANOGPT + TUNED: BLUE,
    NANOGPT: SKY,
}
TITLE: dict[str, Any] = {"loc": "left", "fontsize": 11, "parse_math": False}
LETTER = 0.0095
"""The width of one beside a bar, as a share of the panel's."""
BARS: dict[str, Any] = {"height": 0.62, "edgecolor": "white"}


def draw_step(results: Sequence[StepResult], path: Path) -> None:
    """Tokens per second of everybody; below, how far their losses are from gptfit's."""
    (result,) = results
    peers = result.rows[1:]
    heights = [1.2 + 0.55 * len(result.rows), 2.8][: 2 if peers else 1]
    with _figure(path, heights) as panels:
        _speeds(panels[0], result)
        if peers:
            _differences(panels[1], peers)


def draw_sweep(results: Sequence[StepResult], path: Path) -> None:
    """Tokens per second over the batch, a line for each contestant."""
    with _figure(path, [4.6]) as (axes,):
        for key, colour in COLOURS.items():
            rows = [(one.batch_size, row) for one in results for row in one.rows if row.key == key]
            sound = [(batch, row.tokens_per_second) for batch, row in rows if not row.void]
            if not sound:
                continue
            batches = [batch for batch, _ in sound]
            speeds = [speed.median for _, speed in sound]
            spread = _whiskers([speed for _, speed in sound])
            style = {"color": colour, "marker": "o", "markersize": 5, "capsize": 3}
            axes.errorbar(batches, speeds, yerr=spread, label=rows[0][1].name, **style)
        first = results[0]
        batches = [one.batch_size for one in results]
        axes.set_xscale("log", base=2)
        axes.set_xticks(batches, [str(batch) for batch in batches])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set(xlabel="batch (sequences of one step)", ylabel="tokens per second")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        size = f"{first.parameters:,} parameters, context {first.context:,}"
        where = f"{first.device}, {first.setting.cpu}"
        axes.set_title(f"Training {first.model}, {size}\n{where}", **TITLE)
        axes.legend(frameon=False)


def draw_race(results: Sequence[RaceResult], path: Path) -> None:
    """Wall time of both programs, and the loss that they end with."""
    (result,) = results
    finishes = (result.ours, result.theirs)
    names = [one.name for one in finishes]
    colours = [COLOURS[GPTFIT], COLOURS[NANOGPT]]
    with _figure(path, [2.2, 2.2]) as (times, losses):
        seconds = [one.seconds for one in finishes]
        times.barh(names, [one.median for one in seconds], color=colours, **BARS)
        _rounds(times, [one.values for one in seconds])
        for place, wall in enumerate(seconds):
            behind = f", {significant(result.times)} times as long" if place else ""
            _beside(times, max(wall.values), place, f"{wall.median:,.1f} s{behind}")
        times.set_xlim(0, 1.35 * max(max(one.values) for one in seconds))
        times.set_xlabel("wall time, from the start of the program to its end (seconds)")
        times.set_title(f"{result.case}: {result.source}\n{result.text}", **TITLE)
        for place, one in enumerate(finishes):
            losses.plot(one.losses, [place] * len(one.losses), "o", color=colours[place])
            _beside(losses, max(one.losses), place, f"{one.loss:.4f}")
        losses.axvline(result.target, color="black", linestyle="--", linewidth=1.2)
        losses.set_yticks(range(len(names)), names)
        losses.set_ylim(-0.6, len(names) - 0.4)
        losses.margins(x=0.2)
        losses.set_xlabel("nats per character over the whole validation split; dashed: to reach")
        for axes in (times, losses):
            axes.invert_yaxis()


def draw_challenge(results: Sequence[ChallengeResult], path: Path) -> None:
    """The validation loss as time goes by."""
    (result,) = results
    with _figure(path, [4.2]) as (axes,):
        marks = [(mark.seconds, mark.nats_per_character) for mark in result.curve]
        if marks:
            axes.plot(*zip(*marks, strict=True), color=COLOURS[GPTFIT], marker="o", markersize=4)
        axes.axhline(REFERENCE, color="black", linestyle="--", linewidth=1.2)
        place = {
            "xycoords": ("axes fraction", "data"),
            "textcoords": "offset points",
            "ha": "right",
        }
        note = "nanoGPT on tiny Shakespeare, 3 minutes of an A100"
        axes.annotate(note, (1, REFERENCE), (-2, 4), fontsize=9, **place)
        axes.set_xlim(left=0)
        axes.set(xlabel="seconds of training", ylabel="nats per character (validation)")
        end = f"{result.nats_per_character:.4f} nats per character after {result.time}"
        axes.set_title(f"{end}: gptfit fit\n{result.text}", **TITLE)


def _speeds(axes: Any, result: StepResult) -> None:
    rows = result.rows
    speeds = [row.tokens_per_second for row in rows]
    for place, row in enumerate(rows):
        colour = GREY if row.void else COLOURS[row.key]
        hatch = "//" if row.void else None
        axes.barh(place, speeds[place].median, color=colour, hatch=hatch, **BARS)
        _beside(axes, max(speeds[place].values), place, _remark(row))
    middles, places = [speed.median for speed in speeds], range(len(rows))
    style = {"fmt": "none", "ecolor": "black", "capsize": 4, "linewidth": 1.2}
    axes.errorbar(middles, places, xerr=_whiskers(speeds), **style)
    _rounds(axes, [speed.values for speed in speeds])
    axes.set_yticks(places, [f"{row.name}\n{row.settings}" for row in rows], fontsize=9)
    axes.invert_yaxis()
    ends = [max(row.tokens_per_second.values) / (1 - LETTER * len(_remark(row))) for row in rows]
    axes.set_xlim(0, 1.05 * max(ends))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    rounds = len(speeds[0].values)
    axes.set_xlabel(f"tokens per second: median and quartiles of {rounds} rounds in turns")
    size = (
        f"{result.parameters:,} parameters, batch {result.batch_size} × {result.context:,} tokens"
    )
    where = f"{result.device}, {result.setting.cpu}"
    axes.set_title(f"Training {result.model}, {size}\n{where}", **TITLE)


def _remark(row: Row) -> str:
    speed = significant(row.tokens_per_second.median)
    if row.void:
        return f"{speed}, void: its loss is {row.loss_difference:+.1%} off"
    return speed if row.key == GPTFIT else f"{speed}, gptfit is {row.times:.2f} times as fast"


def _differences(axes: Any, peers: Sequence[Row]) -> None:
    """Losses against gptfit's, step by step; the last one decides."""
    for row in peers:
        off = [100 * difference for difference in row.loss_differences]
        axes.plot(off, color=COLOURS[row.key], linewidth=1.8, label=row.name)
    limit = 100 * PARITY
    _, highest = axes.get_ylim()
    axes.set_ylim(top=max(1.7 * limit, 1.35 * highest))  # room for the legend
    axes.axhspan(-limit, limit, color=GREY, alpha=0.25, linewidth=0)
    steps = len(peers[0].losses) - 1
    axes.plot([steps, steps], [-limit, limit], color="black", linewidth=2.5)
    axes.set_xlim(0, steps)
    axes.set_xticks(range(0, steps + 1, 5))
    axes.set(xlabel="steps from the same weights on the same batches", ylabel="loss off by (%)")
    axes.set_title(
        f"Loss against gptfit's; beyond ±{limit:g} % at the end a speed is void", **TITLE
    )
    axes.legend(frameon=False, fontsize=9, loc="upper left", ncols=len(peers))


def _whiskers(spreads: Sequence[Any]) -> list[list[float]]:
    return [[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]]


def _rounds(axes: Any, values: Sequence[Sequence[float]]) -> None:
    """Every single measurement, as a dot on its bar."""
    for place, row in enumerate(values):
        axes.plot(row, [place] * len(row), "o", color="black", markersize=2.5, alpha=0.6)


def _beside(axes: Any, value: float, place: int, text: str) -> None:
    axes.annotate(text, (value, place), (7, 0), textcoords="offset points", va="center", fontsize=9)


@contextmanager
def _figure(path: Path, heights: Sequence[float]) -> Iterator[list[Any]]:
    """Empty panels one above the other, of these heights in inches; written to ``path`` in the end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, grid = plt.subplots(
        len(heights),
        figsize=(9, sum(heights)),
        layout="constrained",
        squeeze=False,
        height_ratios=heights,
    )
    for axes in grid[:, 0]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", alpha=0.25)
        axes.set_axisbelow(True)
    try:
        yield list(grid[:, 0])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph", UserWarning)  # a script that the font lacks
            figure.savefig(path, dpi=130)
    finally:
        plt.close(figure)
