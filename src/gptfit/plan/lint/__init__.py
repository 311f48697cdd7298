"""Advice: what is wrong, or could be better, with a configuration, its data, its device.

What cannot run is refused by the configuration itself; ``hard_findings`` gives those problems their
rules' codes. The rules lie by what they look at: ``architecture``, ``vocabulary`` and ``numerics`` (A),
``pretrained`` weights (P), ``data`` (D), ``training`` (T), ``memory`` and ``speed`` (R); how they work
is told in ``rules``.
"""

from gptfit.plan.lint import (
    architecture,
    data,
    memory,
    numerics,
    pretrained,
    speed,
    training,
    vocabulary,
)
from gptfit.plan.lint.python import lint
from gptfit.plan.lint.rules import (
    ERROR,
    HINT,
    RULES,
    WARNING,
    Advice,
    Finding,
    Rule,
    chosen_rules,
    find_rule,
    fix,
    hard_findings,
)
from gptfit.plan.lint.subject import PROGRAMS, DataFacts, Pretrained, Program, Subject

__all__ = [
    "ERROR",
    "HINT",
    "PROGRAMS",
    "RULES",
    "WARNING",
    "Advice",
    "DataFacts",
    "Finding",
    "Pretrained",
    "Program",
    "Rule",
    "Subject",
    "architecture",
    "chosen_rules",
    "data",
    "find_rule",
    "fix",
    "hard_findings",
    "lint",
    "memory",
    "numerics",
    "pretrained",
    "speed",
    "training",
    "vocabulary",
]
