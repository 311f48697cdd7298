"""The loss curve of a run, drawn from its metrics file."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

from gptfit.train.events import MetricsFile


def draw_loss(run: Path, path: Path) -> None:
    """Training and validation loss over steps, as a PNG at ``path``."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    events = MetricsFile(run / "metrics.jsonl").read()
    steps = [event for event in events if event["event"] == "step"]
    evaluations = [event for event in events if event["event"] == "evaluation"]
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    _line(axes, steps, color="#9db4d0", linewidth=1.2, label="training")
    _line(
        axes,
        evaluations,
        color="#d1495b",
        linewidth=1.8,
        marker="o",
        markersize=4,
        label="validation",
    )
    if evaluations:
        _mark_best(axes, min(evaluations, key=lambda event: event["loss"]))
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.set_title(run.resolve().name, parse_math=False)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # a name in a script the font lacks
        figure.savefig(path, dpi=130)
    plt.close(figure)


def _mark_best(axes: Any, best: dict[str, Any]) -> None:
    note = f"best {best['loss']:.3f} nats/token"
    if best["bits_per_byte"]:
        note += f"\n{best['bits_per_byte']:.3f} bits/byte"
    axes.annotate(
        note,
        (best["step"], best["loss"]),
        textcoords="offset points",
        xytext=(-8, 28),
        ha="right",
        color="#d1495b",
        arrowprops={"arrowstyle": "-", "color": "#d1495b", "linewidth": 0.8},
    )


def _line(axes: Any, events: list[dict[str, Any]], **style: Any) -> None:
    points = [(event["step"], event["loss"]) for event in events if math.isfinite(event["loss"])]
    axes.plot(*zip(*points, strict=True), **style) if points else None
