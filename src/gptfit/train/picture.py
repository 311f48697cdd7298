"""Loss curves of runs, drawn from their metrics files."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptfit.config import Recipe
from gptfit.errors import CheckpointError, ConfigError
from gptfit.formats.locate import METRICS, RECIPE, find_checkpoint
from gptfit.plan.picture import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION
from gptfit.plan.quantities import WORDS, Unit
from gptfit.train.events import Evaluated, MetricsFile, Stepped

COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
DASHES = ("-", "--", ":", "-.")
MOST_CURVES = len(COLOURS) * len(DASHES)
X_AXES = ("steps", "tokens", "seconds")
CLOCK: Sequence[Unit] = ((10800, "hours"), (180, "minutes"), (1, "seconds"))
SMOOTHED_SHARE = 0.02
FAINT = 0.35
DRAWN_POINTS = 2000
NAME_LETTERS = 32
LABEL_HEIGHT = 1 / 24

Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """The losses of one run in nats per token, each with its place on the x axis.

    ``bits_per_nat`` makes bits per byte of them, None where the size of the text is not known.
    ``tokenizer`` is the content of its file, by which runs are compared.
    """

    run: Path
    training: list[Point]
    validation: list[Point]
    bits_per_nat: float | None
    tokenizer: bytes | None

    @classmethod
    def read(cls, run: Path, x: str = "steps") -> Curve:
        """From the run's folder. Raises ``CheckpointError`` where that is none."""
        try:
            events = MetricsFile(run / METRICS).read()
        except OSError as error:
            raise CheckpointError(
                f"{run} is no run that has begun: {METRICS}: {error.strerror}"
            ) from None
        place = _place(run, x)
        try:
            return cls(
                run,
                _points(events, Stepped.kind, place),
                _points(events, Evaluated.kind, place),
                next((bits for event in events if (bits := _bits_per_nat(event))), None),
                _tokenizer(run),
            )
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{run / METRICS} is damaged: an event lacks {error}") from None

    @property
    def best(self) -> Point:
        """Where the validation loss is least."""
        return min(self.validation, key=lambda point: point[1])


def _place(run: Path, x: str) -> Callable[[dict[str, Any]], float]:
    """Where an event lies on the x axis."""
    if x == "seconds":
        return lambda event: float(event["elapsed_seconds"])
    if x == "steps":
        return lambda event: float(event["step"])
    recipe = Recipe.load(run / RECIPE)
    tokens_per_step = recipe.train.batch_size * recipe.model.n_positions
    return lambda event: float(event["step"] * tokens_per_step)


def _points(
    events: list[dict[str, Any]], kind: str, place: Callable[[dict[str, Any]], float]
) -> list[Point]:
    return [
        (place(event), float(event["loss"]))
        for event in events
        if event["event"] == kind and math.isfinite(event["loss"])
    ]


def _bits_per_nat(event: dict[str, Any]) -> float | None:
    if event["event"] != Evaluated.kind or not event["bits_per_byte"] or not event["loss"]:
        return None
    return float(event["bits_per_byte"] / event["loss"])


def _tokenizer(run: Path) -> bytes | None:
    try:
        return (find_checkpoint(run) / "tokenizer.json").read_bytes()
    except (CheckpointError, OSError):
        return None


def draw_loss(run: Path, path: Path) -> None:
    """Training and validation loss of one run over steps, as a PNG at ``path``."""
    draw_curves([Curve.read(run)], path)


def compare(runs: Sequence[Path], path: Path, x: str = "steps") -> bool:
    """Draw the curves of several runs; True where that had to be in bits per byte.

    Nats per token say nothing across tokenizers, bits per byte do. Raises ``ConfigError`` for more
    runs than can be told apart, ``CheckpointError`` for one without an evaluation.
    """
    if len(runs) > MOST_CURVES:
        raise ConfigError(f"{len(runs)} curves cannot be told apart; choose up to {MOST_CURVES}")
    curves = [Curve.read(run, x) for run in runs]
    for curve in curves:
        if not curve.validation:
            raise CheckpointError(
                f"{curve.run} has no evaluation yet, so there is nothing to compare; wait for its "
                "first, or make eval_interval smaller"
            )
    in_bits = len(curves) > 1 and (
        None in (made := {curve.tokenizer for curve in curves}) or len(made) > 1
    )
    if in_bits and (unknown := [str(c.run) for c in curves if c.bits_per_nat is None]):
        raise CheckpointError(
            f"the runs have different tokenizers, and the bits per byte of {', '.join(unknown)} are "
            "not known; plot it alone"
        )
    draw_curves(curves, path, x, in_bits)
    return in_bits


def draw_curves(
    curves: Sequence[Curve], path: Path, x: str = "steps", in_bits: bool = False
) -> None:
    """Validation loss as lines, the smoothed training loss faint below them, names beside them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure  # pyplot would load a window system's half

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    unit, unit_name = _x_unit(curves, x)
    scaled = [_scaled(curve, unit, in_bits) for curve in curves]
    for number, curve in enumerate(scaled):
        _draw(axes, curve, _style(number))
    _frame(axes, scaled)
    _name(axes, scaled)
    axes.set(xlabel=unit_name, ylabel=f"loss ({'bits per byte' if in_bits else 'nats per token'})")
    with warnings.catch_warnings():
        # a name in a script that the font lacks
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        figure.savefig(path, dpi=130)


def _x_unit(curves: Sequence[Curve], x: str) -> Unit:
    if x == "steps":
        return 1, "step"
    end = max((at for c in curves for at, _ in c.training + c.validation), default=0.0)
    units = CLOCK if x == "seconds" else WORDS
    size, name = next((unit for unit in units if end >= unit[0]), units[-1])
    return size, f"time ({name})" if x == "seconds" else f"{name} tokens".strip()


def _scaled(curve: Curve, unit: float, in_bits: bool) -> Curve:
    """The curve as it is drawn: in the units of the axes, its training smoothed."""
    times = curve.bits_per_nat if in_bits and curve.bits_per_nat else 1.0
    training, validation = (
        [(at / unit, loss * times) for at, loss in points]
        for points in (_smoothed(curve.training), curve.validation)
    )
    return Curve(curve.run, training, validation, curve.bits_per_nat, curve.tokenizer)


def _smoothed(points: list[Point]) -> list[Point]:
    """A running mean over a fixed share of the points, and no more of them than can be seen."""
    keep = 1 - 1 / max(1.0, SMOOTHED_SHARE * len(points))
    total, weight = 0.0, 0.0
    means = []
    for at, loss in points:
        total, weight = keep * total + loss, keep * weight + 1
        means.append((at, total / weight))
    stride = max(1, len(means) // DRAWN_POINTS)
    return means[::-stride][::-1]  # the last point is always shown


def _style(number: int) -> dict[str, Any]:
    dashes = DASHES[number // len(COLOURS) % len(DASHES)]
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": dashes}


def _draw(axes: Any, curve: Curve, style: dict[str, Any]) -> None:
    if curve.training:
        axes.plot(*zip(*curve.training, strict=True), **style, alpha=FAINT, linewidth=1.2)
    if curve.validation:
        few = len(curve.validation) <= 40
        mark = {"marker": "o", "markersize": 3.5} if few else {}
        axes.plot(*zip(*curve.validation, strict=True), **style, **mark, linewidth=1.9)
        axes.plot(*curve.best, marker="*", markersize=13, markeredgecolor="white", **style)


def _frame(axes: Any, curves: Sequence[Curve]) -> None:
    """Room for all evaluations; the fall before the first ones would flatten everything else."""
    losses = [loss for c in curves for _, loss in c.training + c.validation]
    ends = [c.validation[at][1] for c in curves if len(c.validation) > 1 for at in (0, -1)]
    if ends and max(ends) > min(losses):
        span = max(ends) - min(losses)
        axes.set_ylim(min(losses) - 0.06 * span, max(ends) + 0.12 * span)
    axes.set_xlim(left=0)


def _name(axes: Any, curves: Sequence[Curve]) -> None:
    """Each curve's name and least loss beside its end; what is thick, faint and starred."""
    low, high = axes.get_ylim()
    # A line to a point beyond the frame would take the room of the picture.
    ends = [
        (at, min(max(loss, low), high))
        for at, loss in ((c.validation or c.training or [(0.0, 0.0)])[-1] for c in curves)
    ]
    heights = _spread([_height(axes, loss) for _, loss in ends], LABEL_HEIGHT)
    names = _names([curve.run for curve in curves])
    for number, (curve, end, height) in enumerate(zip(curves, ends, heights, strict=True)):
        colour = _style(number)["color"]
        axes.annotate(
            _best_of_one(curve) if len(curves) == 1 else _best_of_many(curve, names[number]),
            end,
            (1.03, height),
            textcoords="axes fraction",
            va="center",
            fontsize=9,
            color=colour,
            parse_math=False,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.5,
                "alpha": 0.6,
                "relpos": (0, 0.5),
                "shrinkB": 3,
            },
        )
    if len(curves) == 1:
        axes.set_title(names[0], loc="left", fontsize=11, parse_math=False)
    axes.legend(handles=_handles(curves), frameon=False)


def _best_of_one(curve: Curve) -> str:
    if not curve.validation:
        return "not evaluated yet"
    text = f"best {curve.best[1]:.3f}\nnats/token"
    bits = curve.bits_per_nat
    return text if bits is None else f"{text}\n{curve.best[1] * bits:.3f}\nbits/byte"


def _best_of_many(curve: Curve, name: str) -> str:
    return f"{name}: {curve.best[1]:.3f}"


def _handles(curves: Sequence[Curve]) -> list[Any]:
    from matplotlib.lines import Line2D

    grey: dict[str, Any] = {"color": "#444444"}
    best = "best" if len(curves) == 1 else "best, the number beside the name"
    return [
        Line2D([], [], **grey, linewidth=1.9, label="validation"),
        Line2D([], [], **grey, linewidth=1.2, alpha=FAINT, label="training, smoothed"),
        Line2D([], [], **grey, marker="*", markersize=10, linestyle="none", label=best),
    ]


def _height(axes: Any, loss: float) -> float:
    """Where a loss lies between the bottom of the axes, 0, and their top, 1."""
    low, high = axes.get_ylim()
    return min(1.0, max(0.0, (loss - low) / (high - low)))


def _names(runs: Sequence[Path]) -> list[str]:
    """The folders' names, with as much of their paths as tells them apart."""
    names = [run.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run) for run in runs]
    return [name if len(name) <= NAME_LETTERS else f"…{name[1 - NAME_LETTERS :]}" for name in names]


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """The heights, moved no further than it takes to have ``gap`` of 0 to 1 for each.

    >>> _spread([0.5, 0.1, 0.5], 0.25)
    [0.375, 0.125, 0.625]
    """

    def bottom(group: list[float]) -> float:
        return min(max(0.0, (sum(group) / len(group)) - gap * len(group) / 2), 1 - gap * len(group))

    groups: list[list[float]] = []  # of neighbours that touch, around their mean
    for height in sorted(heights):
        groups.append([height])
        while len(groups) > 1 and bottom(groups[-2]) + gap * len(groups[-2]) > bottom(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    placed = [bottom(group) + gap * (n + 0.5) for group in groups for n in range(len(group))]
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    return [height for _, height in sorted(zip(order, placed, strict=True))]
