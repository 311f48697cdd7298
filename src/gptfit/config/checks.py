"""What every section of a configuration shares: strict types, known names, all faults in one error.

A section is a frozen dataclass under ``@section``. Its ``rules()`` yields the faults that types
alone cannot show. Nothing is coerced except an int where a float is asked for.
"""

from __future__ import annotations

import functools
import math
import types
import typing
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from gptfit.errors import ConfigError, Problem, did_you_mean

AUTO: Any = type("Auto", (), {"__repr__": lambda self: "auto"})()
"""Default of a field that follows another one (``n_inner`` follows ``n_embd``)."""

Section = TypeVar("Section")


def section(cls: type[Section]) -> type[Section]:
    """Class decorator: unknown keyword arguments and aliases are handled before the dataclass's own init."""
    plain_init = cls.__init__

    @functools.wraps(plain_init)
    def checked_init(self: Any, **values: Any) -> None:
        known, problems = resolve_names(cls, values)
        try:
            plain_init(self, **known)
        except ConfigError as error:
            problems += error.problems
        if problems:
            raise ConfigError(problems)

    cls.__init__ = checked_init  # type: ignore[method-assign]
    return cls


def aliases_of(cls: type) -> Mapping[str, tuple[str, ...]]:
    """Other names that the section accepts, each with the fields it sets."""
    return getattr(cls, "ALIASES", {})


def resolve_names(cls: type, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """Replace aliases by field names; report unknown names and contradictions."""
    names = {field.name for field in fields(cls) if field.init}
    aliases = aliases_of(cls)
    known = {key: value for key, value in values.items() if key in names}
    problems = []
    for key, value in values.items():
        if key in names:
            continue
        if key not in aliases:
            problems.append(unknown_key(key, [*names, *aliases]))
            continue
        for name in aliases[key]:
            if name in values and values[name] != value:
                message = f"{key}={value!r} and {name}={values[name]!r} contradict each other"
                problems.append(Problem(name, message, f"give only {name}"))
            known[name] = value
    return known, problems


def unknown_key(key: str, names: Iterable[str]) -> Problem:
    """The problem of a key nobody knows, with the nearest one that exists."""
    names = list(names)
    fix = did_you_mean(key, names) or "known keys: " + ", ".join(sorted(names))
    return Problem(key, f"unknown key {key!r}", fix)


def check(self: Any) -> None:
    """Raise one ``ConfigError`` with every fault of types and rules; call it last in ``__post_init__``.

    The section's ``rules()`` yields problems; before it calculates with a field it asks ``sound``.
    """
    hints = hints_of(type(self))
    problems = []
    broken = set()
    for field in fields(self):
        value = getattr(self, field.name)
        if field.init and (problem := type_problem(field.name, value, hints[field.name])):
            problems.append(problem)
            broken.add(field.name)
        elif hints[field.name] is float:
            object.__setattr__(self, field.name, float(value))
    problems += [problem for problem in self.rules() if problem.field not in broken]
    if problems:
        raise ConfigError(problems)


@functools.cache
def hints_of(cls: Hashable) -> dict[str, Any]:
    """The section's annotations as types."""
    return get_type_hints(cls)


def type_problem(name: str, value: Any, hint: Any) -> Problem | None:
    """A problem unless ``value`` is strictly of the type ``hint``: "12" is no int, neither is True."""
    if matches(value, hint):
        if isinstance(value, float) and not math.isfinite(value):
            return Problem(name, f"{name}={value} is not a finite number")
        return None
    return Problem(name, f"{name}={value!r} must be {describe(hint)}", _type_fix(name, value, hint))


def matches(value: Any, hint: Any) -> bool:
    """Strict ``isinstance`` for the few types that sections use."""
    options = get_args(hint)
    if get_origin(hint) in (types.UnionType, typing.Union):
        return any(matches(value, option) for option in options)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(matches(item, options[0]) for item in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def describe(hint: Any) -> str:
    """``int | None`` as people say it."""
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
    words[type(None)] = "null"
    if get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join(describe(option) for option in get_args(hint))
    if get_origin(hint) is tuple:
        return "a list of " + describe(get_args(hint)[0]).split()[-1] + "s"
    return words[hint]


def _type_fix(name: str, value: Any, hint: Any) -> str:
    if isinstance(value, str) and not matches("", hint):
        try:
            number = float(value)
        except ValueError:
            return ""
        if math.isfinite(number):
            return f"write {name}={value.strip()} without quotes"
    if isinstance(value, float) and value.is_integer() and matches(1, hint):
        return f"write {name}={int(value)}"
    if isinstance(value, bool) and matches(1, hint):
        return f"write a number, not {str(value).lower()}"
    return ""


def sound(self: Any, *names: str) -> bool:
    """Whether these fields have the right type, so that a rule may calculate with them."""
    hints = hints_of(type(self))
    return all(type_problem(name, getattr(self, name), hints[name]) is None for name in names)


def at_least(self: Any, minimum: float, *names: str) -> Iterator[Problem]:
    """Fields that must not be smaller than ``minimum``."""
    for name in names:
        value = getattr(self, name)
        if sound(self, name) and value is not None and value < minimum:
            yield Problem(
                name, f"{name}={value} must be at least {minimum}", _default_fix(self, name)
            )


def positive(self: Any, *names: str) -> Iterator[Problem]:
    """Fields that must be greater than zero."""
    for name in names:
        value = getattr(self, name)
        if sound(self, name) and value is not None and value <= 0:
            yield Problem(name, f"{name}={value} must be positive", _default_fix(self, name))


def at_most(self: Any, limits: Mapping[str, float]) -> Iterator[Problem]:
    """Fields that must not exceed a limit."""
    for name, limit in limits.items():
        value = getattr(self, name)
        if sound(self, name) and value is not None and value > limit:
            yield Problem(name, f"{name}={value} is beyond {limit:,}", f"use at most {limit}")


def fraction(self: Any, *names: str) -> Iterator[Problem]:
    """Fields in [0, 1), such as dropout: 1 would drop everything."""
    for name in names:
        value = getattr(self, name)
        if sound(self, name) and not 0 <= value < 1:
            yield Problem(name, f"{name}={value} must be in [0, 1)", _default_fix(self, name))


def one_of(self: Any, name: str, choices: Iterable[str]) -> Iterator[Problem]:
    """A field that must be one of some words."""
    value = getattr(self, name)
    choices = list(choices)
    if sound(self, name) and value is not None and value not in choices:
        fix = did_you_mean(value, choices) or "choose one of " + ", ".join(choices)
        yield Problem(name, f"{name}={value!r} is not known", fix)


def _default_fix(self: Any, name: str) -> str:
    default = next(field.default for field in fields(self) if field.name == name)
    return "" if default in (MISSING, AUTO, None) else f"the default is {default}"
