"""The errors a user can cause. Each message names the field or file, the value, the rule and the way out.

Anything else that escapes from gptfit is our bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class GptfitError(Exception):
    """Base of every error that the user, not gptfit, can put right."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One fault of a configuration: the field it is in, what is wrong, and what to write instead."""

    field: str
    message: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.message}; {self.fix}" if self.fix else self.message


class ConfigError(GptfitError, ValueError):
    """A configuration that cannot run. ``problems`` holds every fault found, not only the first."""

    def __init__(self, problems: str | Problem | Sequence[Problem], source: str = "") -> None:
        if isinstance(problems, str):
            problems = Problem("", problems)
        if isinstance(problems, Problem):
            problems = [problems]
        self.problems = tuple(problems)
        self.source = source
        super().__init__(self._text())

    def _text(self) -> str:
        prefix = f"{self.source}: " if self.source else ""
        if len(self.problems) == 1:
            return f"{prefix}{self.problems[0]}"
        lines = [f"{prefix}{len(self.problems)} problems:"]
        return "\n".join(lines + [f"  - {problem}" for problem in self.problems])

    def within(self, source: str) -> ConfigError:
        """The same problems, reported as found in ``source`` (a file, a flag)."""
        return type(self)(self.problems, source)


class DataError(GptfitError, ValueError):
    """Text, token files or a tokenizer that cannot be used."""


class CheckpointError(GptfitError, ValueError):
    """Weights or a run folder that cannot be used."""


class MissingDependencyError(GptfitError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs {package}; install it with: pip install 'gptfit[{extra}]'"
        )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``did you mean 'n_head'?``, or an empty string when nothing is near."""
    from difflib import get_close_matches

    near = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else ""
