"""Telling paths from ``key=value`` settings in what a command line leaves over."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gptfit.config.overrides import locate, parse_overrides
from gptfit.errors import ConfigError, did_you_mean

OPTIONS = ["--data", "--force", "--formula", "--help", "--json", "--out", "--preset", "--resume"]
OPTIONS += [
    "--time",
    "--tokenizer",
    "--device",
    "--memory",
    "--batch-size",
    "--tokens",
    "--price",
    "--style",
]
OPTIONS += ["--compile", "--calibrate", "--pilot", "--verify", "--picture", "--explain", "--fix"]
OPTIONS += ["--contestants", "--list", "--nanogpt", "--recipe", "--rounds", "--steps", "--sweep"]
OPTIONS += ["--from", "--ignore", "--program", "--sarif", "--select", "--x"]
OPTIONS += ["--init-from", "--new-data"]
SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Typer context settings of verbs that take overrides."""


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(paths, overrides as key=value): ``n_layer=6``, ``--n_layer=6`` and ``--n-layer 6`` all count."""
    paths, settings = [], []
    rest = iter(arguments)
    for argument in rest:
        if argument.startswith("--"):
            _require_known(argument)
            settings.append(argument)
            if "=" not in argument and (value := next(rest, None)) is not None:
                settings.append(value)
        elif re.match(r"[A-Za-z_][\w.]*=", argument):
            settings.append(argument)
        else:
            paths.append(argument)
    return paths, parse_overrides(settings)


def _require_known(argument: str) -> None:
    """Hint at an option of some verb where that is nearer than any key."""
    word = argument.partition("=")[0]
    if isinstance(locate(word.removeprefix("--")), tuple):
        return
    if near := did_you_mean(word, OPTIONS):
        raise ConfigError(f"no such option: {word}; {near}")


def parse_duration(text: str) -> float:
    """Seconds of ``90``, ``90s``, ``2m``, ``1h30m``.

    >>> parse_duration("1h30m"), parse_duration("90")
    (5400.0, 90.0)
    """
    number = r"(\d{1,9}(?:\.\d+)?)"
    parts = re.fullmatch(rf"(?:{number}h)?(?:{number}m)?(?:{number}s)?", text)
    plain = re.fullmatch(number, text)
    if plain:
        total = float(plain[1])
    elif text and parts:
        hours, minutes, seconds = (float(part or 0) for part in parts.groups())
        total = hours * 3600 + minutes * 60 + seconds
    else:
        raise ConfigError(f"--time {text!r} is no duration; write 90s, 2m or 1h30m")
    if total <= 0:
        raise ConfigError("--time must be positive")
    return total
