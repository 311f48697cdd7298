"""Findings as a SARIF 2.1.0 log, which code hosts and editors show at the lines they are about."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gptfit.plan.lint.rules import ERROR, HINT, RULES, WARNING, Finding, Rule

SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
LEVELS = {ERROR: "error", WARNING: "warning", HINT: "note"}


def sarif(findings: Iterable[Finding], version: str, file: Path | None = None) -> dict[str, Any]:
    """One run of the tool; ``file`` is what was linted, if it is a file."""
    text = file.read_text(encoding="utf-8") if file is not None else ""
    rules = list(RULES.values())
    driver = {"name": "gptfit lint", "version": version, "rules": [_rule(rule) for rule in rules]}
    codes = [rule.code for rule in rules]
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": driver},
                "results": [_result(finding, codes, file, text) for finding in findings],
            }
        ],
    }


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.code,
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": rule.why},
        "help": {"text": f"Source: {rule.source}"},
        "defaultConfiguration": {"level": LEVELS[rule.severity]},
    }


def _result(finding: Finding, codes: list[str], file: Path | None, text: str) -> dict[str, Any]:
    words = f"{finding.message}; {finding.fix}" if finding.fix else finding.message
    location: dict[str, Any] = {
        "logicalLocations": [{"fullyQualifiedName": finding.field, "kind": "member"}]
    }
    if file is not None:
        location["physicalLocation"] = {
            "artifactLocation": {"uri": quote(file.as_posix())},
            "region": {"startLine": line_of(text, finding.field)},
        }
    result = {
        "ruleId": finding.code,
        "level": LEVELS[finding.severity],
        "message": {"text": words},
        "locations": [location],
    }
    return result | ({"ruleIndex": codes.index(finding.code)} if finding.code in codes else {})


def line_of(text: str, field: str) -> int:
    """The line that gives the field, counted from 1; the first one where none does.

    >>> line_of('{\\n  "n_layer": 6\\n}', "model.n_layer")
    2
    """
    name = re.escape(field.rpartition(".")[2])
    for number, line in enumerate(text.splitlines(), start=1):
        if re.match(rf"[\s{{,]*[\"']?{name}[\"']?\s*[:=]", line):
            return number
    return 1
