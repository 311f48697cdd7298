"""The command line: argument parsing and printing, nothing else. Each verb imports what it runs."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from gptfit.cli import (
    benching,
    configs,
    devices,
    evaluating,
    generating,
    history,
    linting,
    planning,
    serving,
    training,
)
from gptfit.cli.console import CommandGroup, spare_unknown_letters

app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Fit a GPT-2 to your data, your machine and your time.",
    epilog="Start with: gptfit fit my-text.txt --time 2m",
)


def _version(wanted: bool) -> None:
    if wanted:
        from gptfit import __version__

        print(f"gptfit {__version__}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Options before the verb."""


for module in (
    training,
    generating,
    serving,
    evaluating,
    history,
    configs,
    planning,
    devices,
    linting,
    benching,
):
    module.register(app)


def main() -> None:
    """The ``gptfit`` command."""
    # OpenMP reads this once, when torch is loaded. Its threads wait for each other by spinning; when
    # another program has taken a core they spin through its whole time slice, at every operation.
    # Giving up the wait sooner costs nothing on an idle machine: see benchmarks/spinning.py.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed before the start, as by >&-
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    spare_unknown_letters()
    app()
