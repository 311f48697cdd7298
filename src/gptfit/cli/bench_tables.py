"""How the results of a benchmark are printed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gptfit.cli.console import stdout, table
from gptfit.plan.quantities import BYTES, SECONDS, significant, text_of

if TYPE_CHECKING:
    from gptfit.bench.challenge import ChallengeResult
    from gptfit.bench.races import RaceResult
    from gptfit.bench.steps import StepResult

ENVIRONMENT = (
    "threads are the machine's default for all; gptfit alone has what its command sets: "
    "GOMP_SPINCOUNT=10000, and malloc that keeps its pages"
)


def print_steps(results: Sequence[StepResult]) -> None:
    """A table for each batch, and of several what each contestant makes of its best one."""
    for result in results:
        _print_step(result)
    if len(results) > 1:
        _print_best(results)


def _print_step(result: StepResult) -> None:
    """A line for each contestant, and on what it was measured."""
    console = stdout()
    console.print(
        f"{result.model}: {result.parameters:,} parameters, batch {result.batch_size} × "
        f"{result.context:,} tokens",
        style="bold",
        soft_wrap=True,
    )
    right = ("tokens/s", "spread", "ms/step", "gptfit is", "of matmul", "loss", "off", "memory")
    rows = table("contestant", "computes in", *right, right=right)
    for row in result.rows:
        speed = row.tokens_per_second
        rows.add_row(
            row.name,
            _short(row.settings),
            significant(speed.median),
            f"{speed.share:.1%}",
            significant(1000 * row.seconds_per_step),
            "void" if row.void else f"{row.times:.2f} ×",
            f"{row.matmul_share:.0%}",
            f"{row.loss:.4f}",
            "" if row is result.rows[0] else f"{row.loss_difference:+.2%}",
            text_of(float(row.peak_bytes), BYTES),
            style="red" if row.void else "",
        )
    console.print(rows)
    for line in _remarks(result):
        console.print(line, soft_wrap=True)


def _short(settings: str) -> str:
    return settings.replace("float32", "fp32").replace("bfloat16", "bf16")


def _remarks(result: StepResult) -> list[str]:
    rate = result.matmul_flops_per_second.median / 1e12
    lines = [
        f"{result.device}, {result.setting.cpu}; matrix products {significant(rate)} TFLOP/s",
        f"data: {result.tokens}; loss: of one batch after {len(result.rows[0].losses) - 1} steps from "
        "the same weights on the same batches",
        ENVIRONMENT,
    ]
    lines += [f"{row.name}: {note}" for row in result.rows for note in row.notes]
    lines += [
        f"void: the loss of {row.name} is {row.loss_difference:+.2%} off gptfit's, so its speed says "
        "nothing"
        for row in result.rows
        if row.void
    ]
    return lines + [f"without {one.name}: {one.reason}" for one in result.absent]


def _print_best(results: Sequence[StepResult]) -> None:
    """Each contestant at the batch where it is fastest."""
    best: dict[str, tuple[float, int]] = {}
    for result in results:
        for row in result.rows:
            found = (row.tokens_per_second.median, result.batch_size)
            if not row.void:
                best[row.name] = max(best.get(row.name, found), found)
    rows = table("each at its best", "tokens/s", "batch", "gptfit is", right=("tokens/s", "batch"))
    ours = best["gptfit"][0]
    for name, (speed, batch) in best.items():
        rows.add_row(name, significant(speed), str(batch), f"{ours / speed:.2f} ×")
    stdout().print()
    stdout().print(rows)


def print_race(results: Sequence[RaceResult]) -> None:
    """Both programs, the ratio, and whether gptfit got there."""
    console, (result,) = stdout(), results
    console.print(f"{result.case}: {result.source}; {result.text}", style="bold", soft_wrap=True)
    right = ("wall time", "quartiles", "nats/character")
    rows = table("program", *right, right=right)
    for one in (result.ours, result.theirs):
        rows.add_row(
            one.name,
            f"{one.seconds.median:,.1f} s",
            f"{one.seconds.low:,.1f} - {one.seconds.high:,.1f} s",
            f"{one.loss:.4f}",
        )
    console.print(rows)
    for one in (result.ours, result.theirs):
        console.print(f"{one.name}: {one.command}", soft_wrap=True)
    verdict = "reached" if result.passed else "missed"
    console.print(
        f"nanoGPT takes {significant(result.times)} times as long; the loss to reach, "
        f"{result.target:.4f}, is {verdict}",
        style="bold" if result.passed else "bold red",
        soft_wrap=True,
    )
    console.print(
        "wall time is from a program's start to its end, gptfit's tokenizing included; losses are "
        "over the whole validation split, measured by gptfit",
        soft_wrap=True,
    )


def print_challenge(results: Sequence[ChallengeResult]) -> None:
    """The loss, the time, and what others publish."""
    console, (result,) = stdout(), results
    console.print(
        f"{result.nats_per_character:.4f} nats per character, {result.bits_per_byte:.4f} bits per "
        f"byte, after {result.time} of training and {result.steps:,} steps",
        style="bold",
        soft_wrap=True,
    )
    console.print(
        f"over the whole validation split of {result.text}; {text_of(result.seconds, SECONDS)} from "
        "the program's start to its end",
        soft_wrap=True,
    )
    console.print(result.reference, soft_wrap=True)
