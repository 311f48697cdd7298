"""Training to the end, and what is shown of it then."""

from __future__ import annotations

import shlex
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from gptfit.cli.console import print_json, stderr, stdout, table, warn
from gptfit.errors import CheckpointError

if TYPE_CHECKING:
    from gptfit.train.events import Listener
    from gptfit.train.forecast import Figures, Fitted
    from gptfit.train.loop import Outcome, Trainer


def run_to_end(trainer: Trainer, as_json: bool, fitted: Fitted | None = None) -> None:
    """Train with a progress line, draw the curve, hold a forecast to account, say what to do next."""
    from gptfit.cli.progress import ProgressView
    from gptfit.train.interrupt import Interrupt
    from gptfit.train.picture import draw_loss

    console, run = stderr(), trainer.run_folder
    if trainer.lock and trainer.lock.note:
        warn(trainer.lock.note)
    view = ProgressView(console)
    with _also_tracked(trainer, view) as listener, Interrupt() as interrupt, view:
        outcome = trainer.run(listener, interrupt)
    came = fitted.came(outcome) if fitted and not outcome.interrupted else None
    if as_json:
        compared = (
            {"forecast": asdict(fitted.forecast), "came": asdict(came)} if fitted and came else {}
        )
        print_json(_outcome_values(trainer, outcome) | compared)
    else:
        _print_summary(trainer, outcome)
        if fitted and came:
            _print_comparison(fitted.forecast, came)
    if not trainer.world.is_main:
        return
    try:
        draw_loss(run, run / "loss.png")
    except (OSError, CheckpointError) as error:
        warn(f"{run}/loss.png was not drawn ({error})")
    if outcome.interrupted:
        if as_json:
            console.print(f"resume: {_resume_command(trainer, outcome)}", soft_wrap=True)
        if trainer.world.size == 1:  # torchrun would start again what has failed
            raise typer.Exit(interrupt.exit_code)


def _also_tracked(trainer: Trainer, listener: Listener) -> AbstractContextManager[Listener]:
    """The listener, and behind it the sinks that the recipe names."""
    from gptfit.train.sinks import tracked

    if not trainer.world.is_main:
        return nullcontext(listener)
    return tracked(listener, trainer.run_folder, trainer.recipe, trainer.state.step, warn)


def _outcome_values(trainer: Trainer, outcome: Outcome) -> dict[str, Any]:
    bits = trainer.bits_per_byte(outcome.best) if outcome.best else None
    run = {"run": str(trainer.run_folder), "interrupted": outcome.interrupted}
    return run | asdict(outcome) | {"bits_per_byte": bits}


def _print_summary(trainer: Trainer, outcome: Outcome) -> None:
    from gptfit.cli.progress import clock

    run, out = trainer.run_folder, stdout()
    verb = "stopped and saved" if outcome.interrupted else "done"
    out.print(f"\n{verb} after {outcome.step:,} steps in {clock(outcome.elapsed_seconds)}")
    if outcome.best:
        bits = trainer.bits_per_byte(outcome.best)
        out.print(
            f"best model (step {outcome.best_step:,}): {outcome.best.loss:.4f} nats/token"
            + (f", {bits:.3f} bits/byte" if bits else "")
            + f" over the whole validation split of {outcome.best.tokens:,} tokens",
            style="bold",
            soft_wrap=True,
        )
    model = "best" if outcome.best_step is not None else "last"
    lines = [
        ("model", f"{run}/checkpoints/{model}"),
        ("curve", f"{run}/loss.png"),
        ("resume" if outcome.interrupted else "longer", _resume_command(trainer, outcome)),
        ("sample", f"gptfit generate {shlex.quote(str(run))}"),
        ("load", f'AutoModelForCausalLM.from_pretrained("{run}/checkpoints/{model}")'),
    ]
    for name, text in lines:
        out.print(f"  {name:<8}{text}", soft_wrap=True)


def _print_comparison(forecast: Figures, came: Figures) -> None:
    """What fit predicted and what came of it."""
    rows = [
        ("bits/byte", forecast.bits_per_byte, came.bits_per_byte, "{:.3f}"),
        ("tokens/s", forecast.tokens_per_second, came.tokens_per_second, "{:,.0f}"),
        ("seconds", forecast.seconds, came.seconds, "{:,.0f}"),
        ("MiB of memory", forecast.memory_bytes / 2**20, came.memory_bytes / 2**20, "{:,.0f}"),
    ]
    result = table("", "predicted", "came", "ratio", right=("predicted", "came", "ratio"))
    for name, predicted, value, form in rows:
        if predicted and value:
            ratio = f"{value / predicted:.2f}"
            result.add_row(f"  {name}", form.format(predicted), form.format(value), ratio)
    stdout().print(result)


def _resume_command(trainer: Trainer, outcome: Outcome) -> str:
    """How to go on: to the end after an interrupt, else for as long again."""
    words = ["gptfit", "train", "--resume", str(trainer.run_folder)]
    train = trainer.recipe.train
    if not outcome.interrupted:
        if train.max_seconds is not None:
            words += ["--time", f"{max(1, round(outcome.elapsed_seconds))}s"]
        budgets = {"max_steps": train.max_steps, "max_tokens": train.max_tokens}
        words += [f"{name}={2 * value}" for name, value in budgets.items() if value is not None]
    return shlex.join(words)
