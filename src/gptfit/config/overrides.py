"""Command-line overrides: ``n_layer=6``, ``train.lr=3e-4``, ``--n-layer 6``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, get_origin

from gptfit.config import checks
from gptfit.config.checks import AUTO, shown
from gptfit.config.sections import SECTIONS
from gptfit.errors import ConfigError, Problem, did_you_mean

Values = dict[str, dict[str, Any]]
"""Section name -> field name or alias -> value."""

ASSIGNMENT = re.compile(r"(?:--)?([A-Za-z][\w.-]*)=(.*)", re.DOTALL)
FLAG = re.compile(r"--([A-Za-z][\w.-]*)")
NULLS = ("none", "null")


def parse_overrides(args: Sequence[str]) -> list[str]:
    """The leftovers of a command line as ``key=value`` strings, keys with underscores.

    >>> parse_overrides(["n_layer=6", "--train.lr=3e-4", "--n-head", "6"])
    ['n_layer=6', 'train.lr=3e-4', 'n_head=6']
    """
    overrides, problems = [], []
    rest = list(args)
    while rest:
        word = rest.pop(0)
        if match := ASSIGNMENT.fullmatch(word):
            key, value = match.groups()
        elif not (match := FLAG.fullmatch(word)):
            problems.append(Problem("", f"{shown(word)} is no override", "write key=value"))
            continue
        elif not rest or _is_option(rest[0]):
            problems.append(Problem(match[1], f"{word} has no value", f"write {word}=..."))
            continue
        else:
            key, value = match[1], rest.pop(0)
        overrides.append(f"{key.replace('-', '_')}={value}")
    if problems:
        raise ConfigError(problems, "command line")
    return overrides


def _is_option(word: str) -> bool:
    return bool(FLAG.fullmatch(word) or ASSIGNMENT.fullmatch(word))


def read_overrides(
    overrides: Mapping[str, Any] | Sequence[str],
) -> tuple[Values, list[Problem]]:
    """Each override in its section, text read by the type of its field; unknown keys as problems.

    Of a key that is given twice, the later value counts, as everywhere on a command line.
    """
    values: Values = {title: {} for title in SECTIONS}
    problems = []
    for key, value, is_text in _pairs(overrides):
        place = locate(key)
        if isinstance(place, Problem):
            problems.append(place)
            continue
        title, word = place
        if is_text:
            value = meant(title, word, value)
            value = literal(value, hint_of(title, word)) if isinstance(value, str) else value
        values[title][word] = value
    return values, problems


def _pairs(overrides: Mapping[str, Any] | Sequence[str]) -> Iterator[tuple[str, Any, bool]]:
    if isinstance(overrides, Mapping):
        yield from ((key, value, False) for key, value in overrides.items())
        return
    for override in parse_overrides(overrides):
        key, _, text = override.partition("=")
        yield key, text, True


def words_of(title: str) -> list[str]:
    """Every word that a section understands."""
    return [*checks.names_of(SECTIONS[title]), *checks.aliases_of(SECTIONS[title])]


def locate(key: str) -> tuple[str, str] | Problem:
    """The section and the word of ``train.lr`` or ``lr``.

    >>> locate("lr"), locate("model.n_layer")
    (('train', 'lr'), ('model', 'n_layer'))
    """
    title, dot, word = key.replace("-", "_").rpartition(".")
    if dot and title not in SECTIONS:
        fix = did_you_mean(title[:60], SECTIONS) or "sections: " + ", ".join(SECTIONS)
        return Problem(key, f"{shown(key)} is in no known section", fix)
    for place in [title] if dot else SECTIONS:
        if word in words_of(place):
            return place, word
    return _unknown(key, word, [title] if dot else SECTIONS)


def _unknown(key: str, word: str, titles: Iterable[str]) -> Problem:
    elsewhere = {w: fix for t in titles for w, fix in SECTIONS[t].ELSEWHERE.items()}
    known = [known for title in titles for known in words_of(title)]
    fix = elsewhere.get(word) or did_you_mean(word[:60], known)
    return Problem(key, f"unknown key {shown(key)}", fix or "`gptfit show gpt2` lists all keys")


def field_of(title: str, word: str) -> str:
    """The field that a word names, the first one where an alias sets several."""
    return checks.aliases_of(SECTIONS[title]).get(word, (word,))[0]


def hint_of(title: str, word: str) -> Any:
    """The declared type of the field that a word names; None for an unknown word."""
    return checks.hints_of(SECTIONS[title]).get(field_of(title, word))


def meant(title: str, word: str, value: Any) -> Any:
    """What the words "none" and "auto" stand for, where a text has no null; any other value as it is.

    >>> meant("train", "max_steps", "none"), meant("model", "n_inner", "auto"), meant("run", "dtype", "auto")
    (None, auto, 'auto')
    """
    said = value.lower() if isinstance(value, str) else ""
    follows = field_of(title, word) in SECTIONS[title].FOLLOWS
    if said == "auto" and follows:
        return AUTO
    nullable = follows or type(None) in checks.options_of(hint_of(title, word))
    return None if said in NULLS and nullable else value


def literal(text: str, hint: Any) -> Any:
    """``text`` as the nearest value of the type ``hint``; what is none stays text, for the type check.

    >>> literal("3e-4", float), literal("6", int | None), literal("six", int)
    (0.0003, 6, 'six')
    """
    options = checks.options_of(hint)
    if get_origin(hint) is tuple:
        return _strings(text)
    if bool in options:
        return {"true": True, "false": False}.get(text.lower(), text)
    if str in options:
        return text
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _strings(text: str) -> Any:
    """``a.txt`` as one path, ``["a.txt", "b.txt"]`` as a list of them."""
    if text.startswith("["):
        try:
            return tuple(json.loads(text))
        except (ValueError, RecursionError):
            return text
    return (text,)
