"""The verbs that look back at runs: runs, plot."""

from __future__ import annotations

import math
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from gptfit.cli.console import print_json, stderr, stdout, table
from gptfit.errors import ConfigError

if TYPE_CHECKING:
    from gptfit.train.history import RunSummary

RUNS = Path("runs")
CURVES = Path("curves.png")
X_AXES = ("steps", "tokens", "seconds")
COLOURS = {"running": "green", "failed": "red", "stopped unexpectedly": "red", "unreadable": "red"}


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    app.command("runs")(list_runs)
    app.command("plot")(plot)


def list_runs(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FOLDER]...", help="Runs, or folders of runs.", show_default="runs"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List runs with status, loss and speed, the latest first."""
    from gptfit.train.history import list_runs as read_runs

    runs = read_runs(folders or [RUNS]) if folders or RUNS.exists() else []
    if as_json:
        print_json([asdict(run) for run in runs])
        return
    if not runs:
        where = " and ".join(map(str, folders or [RUNS]))
        stderr().print(f"no runs in {where} yet; start one: gptfit fit my-text.txt", soft_wrap=True)
        return
    numbers = ("step", "loss", "best", "bits/byte", "tokens/s", "parameters", "time")
    result = table("run", "status", *numbers, "updated", right=numbers)
    for run in runs:
        result.add_row(*_row(run))
    stdout().print(result)
    for run in runs:
        if run.fault:
            stdout().print(f"{run.folder}: {run.fault}", style="red", soft_wrap=True)


def _row(run: RunSummary) -> list[str | Text]:
    from gptfit.cli.progress import clock

    speed, size = run.tokens_per_second, run.parameters
    return [
        run.folder,
        Text(run.status, style=COLOURS.get(run.status, "")),
        _step(run),
        _loss(run.last_loss),
        _loss(run.best_loss),
        _loss(run.best_bits_per_byte),
        "-" if speed is None else f"{speed:,.0f}",
        "-" if size is None else f"{size:,}",
        "-" if run.elapsed_seconds is None else clock(run.elapsed_seconds),
        datetime.fromtimestamp(run.updated).strftime("%Y-%m-%d %H:%M"),
    ]


def _step(run: RunSummary) -> str:
    if run.step is None:
        return "-"
    share = f" ({run.progress:.0%})" if run.progress else ""
    return f"{run.step:,}" + (f"/{run.max_steps:,}" if run.max_steps else share)


def _loss(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.4f}"


def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    out: Annotated[Path, typer.Option(help="The picture: FILE.png or FILE.svg.")] = CURVES,
    x: Annotated[str, typer.Option(help=f"Along the x axis: {', '.join(X_AXES)}.")] = X_AXES[0],
) -> None:
    """Draw the loss curves of runs into one picture."""
    from gptfit.cli.planning import require_picture

    if x not in X_AXES:
        raise ConfigError(f"--x {x} is not known; choose from {', '.join(X_AXES)}")
    require_picture(out)
    from gptfit.train.picture import compare

    try:
        in_bits = compare(list(dict.fromkeys(runs)), out, x)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written ({error.strerror}); choose --out") from None
    why = "bits per byte: the runs have different tokenizers" if in_bits else "nats per token"
    stdout().print(f"drew {out}, in {why}", soft_wrap=True)
