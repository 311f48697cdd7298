"""A run's events on the terminal: a live line where there is one, plain lines elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gptfit.train.events import (
    Evaluated,
    Event,
    MicroBatchHalved,
    NonFinite,
    Sampled,
    Saved,
    SaveFailed,
    Started,
    Stepped,
)

PLAIN_INTERVAL_SECONDS = 5.0
SAMPLE_LINES = 8


class ProgressView:
    """A listener for ``Trainer.run``; enter it to own the live line."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = Live(console=console, refresh_per_second=4, transient=True)
        self.last_printed_seconds = -PLAIN_INTERVAL_SECONDS

    def __enter__(self) -> ProgressView:
        if sys.stderr.isatty():
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.live.is_started:
            self.live.stop()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Stepped):
            self._on_step(event)
        elif isinstance(event, Evaluated):
            self._on_evaluation(event)
        elif isinstance(event, Sampled):
            self._on_sample(event)
        elif isinstance(event, Started):
            resumed = f", resumed after step {event.step}" if event.step else ""
            self.console.print(
                f"training {event.parameters:,} parameters on {event.device} "
                f"in {event.dtype}{resumed}"
            )
            if event.compilation:
                self.console.print(f"torch.compile: {event.compilation}", soft_wrap=True)
        elif isinstance(event, SaveFailed | NonFinite | MicroBatchHalved):
            self.console.print(f"warning: {trouble_text(event)}", style="yellow", soft_wrap=True)
        else:
            assert isinstance(event, Saved)

    def _on_step(self, event: Stepped) -> None:
        if self.live.is_started:
            self.live.update(_live_line(event, self.console.width))
        elif event.elapsed_seconds - self.last_printed_seconds >= PLAIN_INTERVAL_SECONDS:
            self.last_printed_seconds = event.elapsed_seconds
            self.console.print(step_text(event))

    def _on_evaluation(self, event: Evaluated) -> None:
        bits = f", {event.bits_per_byte:.3f} bits/byte" if event.bits_per_byte else ""
        part = f" on {event.tokens:,} tokens" if event.tokens < event.of_tokens else ""
        self.console.print(
            Text.assemble(
                f"step {event.step:>6,}  ",
                (f"validation {event.loss:.4f}", "bold"),
                f" nats/token{bits}{part}",
                (" (best)" if event.is_best else "", "green"),
            )
        )

    def _on_sample(self, event: Sampled) -> None:
        text = Text(event.text, style="dim", overflow="ellipsis", no_wrap=True)
        text.stylize("not dim", 0, len(event.prompt))
        lines = text.split("\n")[:SAMPLE_LINES]
        self.console.print(*(Text("    ").append_text(line) for line in lines), sep="\n")


def step_text(event: Stepped) -> str:
    """One step as one line."""
    elapsed, progress = event.elapsed_seconds, event.progress
    parts = [
        f"step {event.step:>6,}",
        f"loss {event.loss:.4f}",
        f"{clock(elapsed / progress - elapsed)} left" if progress else "",
        f"{event.tokens_per_second:,.0f} tok/s",
        f"lr {event.learning_rate:.1e}",
        f"MFU {mfu:.1%}" if (mfu := event.model_flops_utilization) is not None else "",
        f"{clock(elapsed)} elapsed",
    ]
    return "  ".join(part for part in parts if part)


def trouble_text(event: SaveFailed | NonFinite | MicroBatchHalved) -> str:
    """What happened, and what was done about it."""
    if isinstance(event, SaveFailed):
        return f"{event.message}; training goes on"
    if isinstance(event, MicroBatchHalved):
        return (
            f"memory ran out after step {event.step:,}: from here on micro_batch_size="
            f"{event.micro_batch_size}, {event.grad_accum_steps} of them in a step, which sees as "
            "many tokens as before"
        )
    where = "the evaluation" if event.batch is None else f"batch {event.batch:,}"
    action = {
        "stop": "training stops",
        "skip": "that batch is skipped",
        "rewind": "back to the last checkpoint, on from the batches after it",
    }
    what = f"{where} after step {event.step:,} gave no finite number; {action[event.action]}"
    return "; ".join((what, *event.damaged))


def _live_line(event: Stepped, width: int) -> Table:
    """A bar in whatever room the step leaves on the line."""
    text = f"{event.progress:4.0%}  {step_text(event)}"
    grid = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=1.0, completed=event.progress, width=max(4, width - len(text) - 2))
    grid.add_row(bar, Text(text, overflow="ellipsis", no_wrap=True))
    return grid


def clock(seconds: float) -> str:
    """65 -> 1:05, 3700 -> 1:01:40."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
