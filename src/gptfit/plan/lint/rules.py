"""What a rule is, and what it finds.

A rule is a small function that yields advice. It names what it looks at as its parameters (see
``Subject``) and is not asked where one of them is missing: a rule on data is silent without data.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gptfit.config.sections import SECTIONS
from gptfit.errors import ConfigError, Problem, did_you_mean
from gptfit.plan.lint.subject import Subject

ERROR, WARNING, HINT = "error", "warning", "hint"
SEVERITIES = (ERROR, WARNING, HINT)

Changes = Mapping[str, Any]
"""New values by dotted name: ``model.n_head``, ``train.beta2``, ``run.dtype``, ``step.loss``,
``program.tf32``."""


@dataclass(frozen=True)
class Advice:
    """What a rule yields: ``message`` says what and why, ``fix`` what to do, ``changes`` repairs it.

    Without ``fix`` the changes are the fix. ``severity`` and ``field`` replace those of the rule.
    """

    message: str
    fix: str = ""
    changes: Changes = dataclasses.field(default_factory=dict)
    severity: str | None = None
    field: str | None = None


@dataclass(frozen=True)
class Finding:
    """One remark on a subject. ``renames`` are misspelt keys with the right ones."""

    code: str
    severity: str
    field: str
    message: str
    fix: str
    source: str = ""
    changes: Changes = dataclasses.field(default_factory=dict)
    renames: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def fixable(self) -> bool:
        """Whether the finding brings its own repair."""
        return bool(self.changes or self.renames)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = dict(vars(self))
        return values | {"changes": dict(self.changes), "renames": dict(self.renames)}


@dataclass(frozen=True)
class Refusal:
    """What the configuration itself refuses: the fields and words of its problem, and a repair."""

    fields: str
    words: str
    repair: Callable[[Problem], Changes] | None = None
    rename: Callable[[Problem], Mapping[str, str]] | None = None

    def covers(self, problem: Problem) -> bool:
        """Whether this is the problem meant."""
        name = problem.field.rpartition(".")[2]
        return bool(re.fullmatch(self.fields, name) and re.search(self.words, problem.message))


@dataclass(frozen=True)
class Rule:
    """``title`` says what it looks for, ``why`` the reason; ``check`` is None for a mere refusal."""

    code: str
    severity: str
    field: str
    title: str
    source: str
    why: str = ""
    check: Callable[..., Iterator[Advice]] | None = None
    refusal: Refusal | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """The parts of a subject without which the rule is silent."""
        if self.check is None:
            return ()
        code = self.check.__code__
        return code.co_varnames[: code.co_argcount]

    def findings(self, subject: Subject) -> Iterator[Finding]:
        """What the rule has to say about this subject."""
        given = {name: getattr(subject, name) for name in self.needs}
        if self.check is None or any(value is None for value in given.values()):
            return
        for advice in self.check(**given):
            yield Finding(
                self.code,
                advice.severity or self.severity,
                advice.field or self.field,
                advice.message,
                advice.fix or assignments(advice.changes),
                self.source,
                advice.changes,
            )

    def refused(self, problem: Problem) -> Finding:
        """The configuration's own problem under this rule's code."""
        assert self.refusal is not None
        repair, rename = self.refusal.repair, self.refusal.rename
        return Finding(
            self.code,
            ERROR,
            problem.field,
            problem.message,
            problem.fix,
            self.source,
            repair(problem) if repair else {},
            rename(problem) if rename else {},
        )


RULES: dict[str, Rule] = {}


def rule(
    code: str,
    severity: str,
    field: str,
    title: str,
    source: str,
    refusal: Refusal | None = None,
) -> Callable[[Callable[..., Iterator[Advice]]], Callable[..., Iterator[Advice]]]:
    """File the decorated function in ``RULES``; its docstring is the reason that is explained."""

    def register(check: Callable[..., Iterator[Advice]]) -> Callable[..., Iterator[Advice]]:
        why = " ".join((check.__doc__ or "").split())
        _file(Rule(code, severity, field, title, source, why, check, refusal))
        return check

    return register


def refused(code: str, field: str, title: str, source: str, why: str, refusal: Refusal) -> None:
    """File a rule that the configuration itself enforces: nothing that breaks it can be built."""
    _file(Rule(code, ERROR, field, title, source, why, None, refusal))


def _file(new: Rule) -> None:
    assert new.code not in RULES, new.code
    RULES[new.code] = new


def assignments(changes: Changes) -> str:
    """``n_head=12 beta2=0.99``: the changes as one would type them.

    >>> assignments({"model.tie_word_embeddings": True, "train.min_lr": None})
    'tie_word_embeddings=true min_lr=none'
    """
    return " ".join(f"{name.partition('.')[2]}={spelled(value)}" for name, value in changes.items())


def spelled(value: Any) -> str:
    """A value as a command line takes it."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def lint(subject: Subject, select: Iterable[str] = (), ignore: Iterable[str] = ()) -> list[Finding]:
    """All findings, worst first. ``select`` and ``ignore`` hold codes or their beginnings: R02, A.

    A training step that the model cannot take is reported whatever is selected.
    """
    findings = [_hard_finding(problem) for problem in subject.problems]
    findings += [
        finding for rule in chosen_rules(select, ignore) for finding in rule.findings(subject)
    ]
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def hard_findings(error: ConfigError) -> list[Finding]:
    """The problems of a configuration that cannot run, each under the code of its rule.

    A problem without a rule of its own, such as a string where a number must be, has the code E.
    """
    return [_hard_finding(problem) for problem in error.problems]


def _hard_finding(problem: Problem) -> Finding:
    for candidate in RULES.values():
        if candidate.refusal is not None and candidate.refusal.covers(problem):
            return candidate.refused(problem)
    return Finding("E", ERROR, problem.field, problem.message, problem.fix)


def find_rule(code: str) -> Rule:
    """The rule of that code; ``ConfigError`` with the nearest one for an unknown one."""
    if code.upper() in RULES:
        return RULES[code.upper()]
    near = did_you_mean(code.upper()[:60], RULES) or "rules: " + ", ".join(RULES)
    raise ConfigError(f"there is no rule {code[:60]!r}; {near}")


def chosen_rules(select: Iterable[str] = (), ignore: Iterable[str] = ()) -> tuple[Rule, ...]:
    """The rules whose code begins with something selected and with nothing ignored."""
    wanted, unwanted = _prefixes(select), _prefixes(ignore)
    return tuple(
        rule
        for code, rule in RULES.items()
        if (not wanted or code.startswith(wanted)) and not (unwanted and code.startswith(unwanted))
    )


def _prefixes(codes: Iterable[str]) -> tuple[str, ...]:
    prefixes = tuple(code.upper() for code in codes)
    for prefix in prefixes:
        if prefix != "E" and not any(code.startswith(prefix) for code in RULES):
            find_rule(prefix)
    return prefixes


def rounds() -> range:
    """How often repairs are looked for: one may uncover the next, but none undoes another's (a test)."""
    return range(10)


def fix(
    subject: Subject, select: Iterable[str] = (), ignore: Iterable[str] = ()
) -> tuple[Subject, dict[str, Any]]:
    """The subject with every repair that the findings bring, and those changes."""
    select, ignore = list(select), list(ignore)
    made: dict[str, Any] = {}
    for _ in rounds():
        subject, changes = _repaired(subject, lint(subject, select, ignore))
        made |= changes
        if not changes:
            break
    return subject, made


def _repaired(subject: Subject, findings: list[Finding]) -> tuple[Subject, dict[str, Any]]:
    """One round. A repair is made whole or not at all, for its parts may only be right together; one
    that another has overtaken is left for the next round to be asked for again."""
    made: dict[str, Any] = {}
    for finding in findings:
        if made.keys() & finding.changes.keys():
            continue
        try:
            subject = subject.changed(finding.changes)
        except ConfigError:
            continue
        made |= finding.changes
    return subject, made


def recipe_part(changes: Changes) -> dict[str, Any]:
    """The changes that a recipe can say; the rest is up to another program."""
    return {key: value for key, value in changes.items() if key.partition(".")[0] in SECTIONS}
