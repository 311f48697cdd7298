"""What every section of a configuration shares: strict types, known names, all faults in one error.

A section is a frozen dataclass under ``@section``. Its ``rules()`` yields the faults that types
alone cannot show. Nothing is coerced except an int where a float is asked for and a list where a
tuple is.
"""

from __future__ import annotations

import functools
import math
import reprlib
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, Self, TypeVar, get_args, get_origin, get_type_hints

from gptfit.errors import ConfigError, Problem, did_you_mean

AUTO: Any = type("Auto", (), {"__repr__": lambda self: "auto"})()
"""Default of a field that follows another one (``n_inner`` follows ``n_embd``)."""

T = TypeVar("T")
Follows = Mapping[str, tuple[str, Callable[[Any], Any]]]

# A file with ten thousand misspelt keys needs no ten thousand suggestions.
MAX_UNKNOWN_KEYS = 20


def section(cls: type[T]) -> type[T]:
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


@dataclass(frozen=True, kw_only=True)
class Section:
    """Base of the sections with fields that follow others, as ``FOLLOWS`` says, until they are given."""

    following: frozenset[str] = field(init=False, repr=False, compare=False)
    """Names of the fields that were not given and follow others."""

    FOLLOWS: ClassVar[Follows] = {}
    """Each following field with the field it follows and how its value comes from that one's."""

    ALIASES: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Other names that the section accepts, each with the fields it sets."""

    ELSEWHERE: ClassVar[Mapping[str, str]] = {}
    """Words of other programs that are no field here, each with what to use instead."""

    def __post_init__(self) -> None:
        following = {name for name in self.FOLLOWS if getattr(self, name) is AUTO}
        object.__setattr__(self, "following", frozenset(following))
        for name in following:
            leader, rule = self.FOLLOWS[name]
            if sound(self, leader):
                object.__setattr__(self, name, rule(getattr(self, leader)))
        check(self)

    def rules(self) -> Iterator[Problem]:
        """The faults that types alone cannot show."""
        yield from ()

    def given(self) -> dict[str, Any]:
        """The fields that do not follow others: ``type(config)(**config.given()) == config``."""
        return {name: getattr(self, name) for name in names_of(self) if name not in self.following}

    def replace(self, **changes: Any) -> Self:
        """A copy with changes, checked again; what followed a changed field goes on following it."""
        known, problems = resolve_names(type(self), changes)
        if problems:
            raise ConfigError(problems)
        return type(self)(**(self.given() | known))


def names_of(cls: Any) -> list[str]:
    """The fields of a section that can be given, in their order."""
    return [item.name for item in fields(cls) if item.init]


def aliases_of(cls: type) -> Mapping[str, tuple[str, ...]]:
    """Other names that the section accepts, each with the fields it sets."""
    return getattr(cls, "ALIASES", {})


def resolve_names(cls: type, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """Replace aliases by field names; report unknown names and contradictions."""
    names, aliases = names_of(cls), aliases_of(cls)
    known = {key: value for key, value in values.items() if key in names}
    given_as = {key: key for key in known}
    problems = []
    for key, value in values.items():
        if key not in aliases or key in names:
            continue
        for name in aliases[key]:
            first = given_as.setdefault(name, key)
            if first != key and known[name] != value:
                message = (
                    f"{key}={shown(value)} and {first}={shown(known[name])} contradict each other"
                )
                problems.append(Problem(name, message, f"give only {name}"))
            known.setdefault(name, value)
    strangers = [key for key in values if key not in names and key not in aliases]
    problems += unknown_keys(strangers, [*names, *aliases], getattr(cls, "ELSEWHERE", {}))
    return known, problems


def unknown_keys(
    keys: Iterable[str], names: Iterable[str], elsewhere: Mapping[str, str] | None = None
) -> list[Problem]:
    """One problem for each key nobody knows, with the nearest one that exists."""
    keys, names = list(keys), list(names)
    problems = []
    for key in keys[:MAX_UNKNOWN_KEYS]:
        fix = (elsewhere or {}).get(key) or did_you_mean(str(key)[:60], names)
        fix = fix or "known keys: " + ", ".join(sorted(names))
        problems.append(Problem(str(key), f"unknown key {shown(key)}", fix))
    if len(keys) > MAX_UNKNOWN_KEYS:
        problems.append(Problem("", f"{len(keys) - MAX_UNKNOWN_KEYS} more unknown keys"))
    return problems


def check(self: Any) -> None:
    """Raise one ``ConfigError`` with every fault of types and rules; call it last in ``__post_init__``.

    The section's ``rules()`` yields problems; before it calculates with a field it asks ``sound``.
    A field that follows is never blamed: the fault is in the one that it follows.
    """
    hints = hints_of(self.__class__)
    problems = []
    blameless = set(getattr(self, "following", ()))
    for name in names_of(self):
        value = getattr(self, name)
        if isinstance(value, list) and get_origin(hints[name]) is tuple:
            value = tuple(value)
            object.__setattr__(self, name, value)
        if name in blameless:
            continue
        if problem := type_problem(name, value, hints[name]):
            problems.append(problem)
            blameless.add(name)
        elif isinstance(value, int) and wants_float(hints[name]):
            object.__setattr__(self, name, float(value))
    problems += [problem for problem in self.rules() if problem.field not in blameless]
    if problems:
        raise ConfigError(problems)


def hints_of(cls: Any) -> dict[str, Any]:
    """The section's annotations as types."""
    return _hints(cls)


_hints = functools.cache(get_type_hints)


def options_of(hint: Any) -> tuple[Any, ...]:
    """``int | None`` as ``(int, NoneType)``; any other type alone."""
    return get_args(hint) if get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def wants_float(hint: Any) -> bool:
    """Whether an int is only accepted because it is a number."""
    return float in options_of(hint) and int not in options_of(hint)


def type_problem(name: str, value: Any, hint: Any) -> Problem | None:
    """A problem unless ``value`` is strictly of the type ``hint``: "12" is no int, neither is True."""
    if not matches(value, hint):
        fix = _type_fix(name, value, hint)
        return Problem(name, f"{name}={shown(value)} must be {describe(hint)}", fix)
    if wants_float(hint) and value is not None and not _finite(value):
        return Problem(name, f"{name}={shown(value)} is not a finite number")
    return None


def matches(value: Any, hint: Any) -> bool:
    """Strict ``isinstance`` for the few types that sections use."""
    options = options_of(hint)
    if len(options) > 1:
        return any(matches(value, option) for option in options)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(matches(item, get_args(hint)[0]) for item in value)
    if get_origin(hint) is Mapping:
        key_hint, value_hint = get_args(hint)
        return isinstance(value, Mapping) and all(
            matches(key, key_hint) and matches(item, value_hint) for key, item in value.items()
        )
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def describe(hint: Any) -> str:
    """``int | None`` as people say it."""
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
    words[type(None)] = "null"
    if len(options_of(hint)) > 1:
        return " or ".join(describe(option) for option in options_of(hint))
    if get_origin(hint) is tuple:
        return "a list of " + describe(get_args(hint)[0]).split()[-1] + "s"
    if get_origin(hint) is Mapping:
        key, value = (describe(part).split()[-1] + "s" for part in get_args(hint))
        return f"a table of {key} with {value}"
    return words[hint]


def shown(value: Any) -> str:
    """``repr`` cut to a readable length: a value of a hostile file may be huge or deeply nested."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"about 2**{value.bit_length() - 1}"
    return _brief.repr(value)


_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = _brief.maxlong = 80
_brief.maxlevel = 3


def _finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an int beyond every float
        return False


def _type_fix(name: str, value: Any, hint: Any) -> str:
    if isinstance(value, str):
        return _string_fix(name, value.strip(), hint)
    if isinstance(value, float) and value.is_integer() and matches(1, hint):
        return f"write {name}={shown(int(value))}"
    if isinstance(value, bool) and matches(1, hint):
        return f"write a number, not {str(value).lower()}"
    return ""


def _string_fix(name: str, text: str, hint: Any) -> str:
    if get_origin(hint) is tuple:
        return f"write {name}=[{shown(text)}]"
    if matches(True, hint) and text.lower() in ("true", "false"):
        return f"write {name}={text.lower()} without quotes"
    try:
        number = float(text)
    except ValueError:
        return ""
    if not math.isfinite(number) or not matches(1, hint):
        return ""
    return f"write {name}={text[:40]} without quotes"


def sound(self: Any, *names: str) -> bool:
    """Whether these fields have the right type, so that a rule may calculate with them."""
    hints = hints_of(self.__class__)
    return all(type_problem(name, getattr(self, name), hints[name]) is None for name in names)


def at_least(self: Any, minimum: float, *names: str) -> Iterator[Problem]:
    """Fields that must not be smaller than ``minimum``."""
    for name in names:
        value = getattr(self, name)
        if sound(self, name) and value is not None and value < minimum:
            yield Problem(
                name, f"{name}={shown(value)} must be at least {minimum}", _default_fix(self, name)
            )


def positive(self: Any, *names: str) -> Iterator[Problem]:
    """Fields that must be greater than zero."""
    for name in names:
        value = getattr(self, name)
        if sound(self, name) and value is not None and value <= 0:
            yield Problem(name, f"{name}={shown(value)} must be positive", _default_fix(self, name))


def at_most(self: Any, limits: Mapping[str, float]) -> Iterator[Problem]:
    """Fields that must not exceed a limit."""
    for name, limit in limits.items():
        value = getattr(self, name)
        if sound(self, name) and value is not None and value > limit:
            yield Problem(
                name, f"{name}={shown(value)} is beyond {limit:,}", f"use at most {limit}"
            )


def fraction(self: Any, *names: str) -> Iterator[Problem]:
    """Fields in [0, 1), such as dropout: 1 would drop everything."""
    for name in names:
        value = getattr(self, name)
        if sound(self, name) and not 0 <= value < 1:
            yield Problem(
                name, f"{name}={shown(value)} must be in [0, 1)", _default_fix(self, name)
            )


def one_of(self: Any, name: str, choices: Iterable[str]) -> Iterator[Problem]:
    """A field that must be one of some words."""
    value = getattr(self, name)
    choices = list(choices)
    if sound(self, name) and value is not None and value not in choices:
        fix = did_you_mean(value[:60], choices) or "choose one of " + ", ".join(choices)
        yield Problem(name, f"{name}={shown(value)} is not known", fix)


def _default_fix(self: Any, name: str) -> str:
    default = next(field.default for field in fields(self) if field.name == name)
    return "" if default in (MISSING, AUTO, None) else f"the default is {default}"
