"""How results and errors reach the person: data on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import sys
from io import TextIOWrapper
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gptfit.errors import GptfitError

PIPED_WIDTH = 120


def stdout() -> Console:
    """For results."""
    return _console(sys.stdout.isatty(), quiet=not is_main())


def stderr() -> Console:
    """For progress and remarks."""
    return _console(sys.stderr.isatty(), stderr=True, quiet=not is_main())


def is_main() -> bool:
    """Of the processes that torchrun has started together, one speaks."""
    return os.environ.get("RANK", "0") == "0"


def _console(is_terminal: bool, stderr: bool = False, quiet: bool = False) -> Console:
    # No markup: what is printed holds names and texts of other people, brackets included.
    width = None if is_terminal else PIPED_WIDTH
    return QuietlyBroken(stderr=stderr, quiet=quiet, width=width, highlight=False, markup=False)


class QuietlyBroken(Console):
    """Falls silent when its reader leaves; a training must not end because `head` has seen enough."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    if is_main():
        knows_all = sys.stdout.encoding.lower() == "utf-8"
        print(json.dumps(value, indent=2, ensure_ascii=not knows_all))


def spare_unknown_letters() -> None:
    """Where the terminal's alphabet lacks a letter, print a question mark rather than fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def warn(text: str) -> None:
    """One line that stands out."""
    stderr().print(f"warning: {text}", style="yellow", soft_wrap=True)


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """A table without frames; ``right`` names the columns of numbers."""
    result = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        result.add_column(column, justify="right" if column in right else "left")
    return result


class CommandGroup(typer.core.TyperGroup):
    """Turns gptfit's own errors into one line and an exit code; anything else is a bug's traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except GptfitError as error:
            if ctx.params.get("debug"):
                raise
            if _is_first_to_fail():
                console = _console(sys.stderr.isatty(), stderr=True)
                console.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            stderr().print("interrupted")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            sys.stderr.close()  # the reader has left; there is nobody to tell
            raise typer.Exit(0) from None


def _is_first_to_fail() -> bool:
    """An error that all processes meet, or that ends the others too, is told once."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return True
    from gptfit.train.processes import is_first_to_fail

    return is_first_to_fail()
