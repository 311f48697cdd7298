"""Writing repairs into the text of a configuration file, in its own words and with its comments."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from gptfit.config import Recipe
from gptfit.config.checks import AUTO, aliases_of
from gptfit.config.files import write_toml
from gptfit.config.overrides import NULLS
from gptfit.config.sections import SECTIONS
from gptfit.errors import ConfigError, Problem
from gptfit.plan.lint.rules import Changes, Finding, recipe_part, rounds

Path = tuple[str, ...]
"""Where a value stands in a document: ``("train", "beta2")``, or ``("n_embd",)`` in a model file."""

ABSENT: Any = object()
"""Value of a key that is to be taken out."""


def repaired(
    text: str, suffix: str, examine: Callable[[dict[str, Any]], list[Finding]], source: str
) -> tuple[str, list[Finding]]:
    """The text with every repair that its form can say, and the findings that are left.

    ``examine`` gives the findings of a parsed document. A repair that would not be read back as it
    was meant is left out, so that nothing is written that means something else.
    """
    for _ in rounds():
        before = text
        for finding in examine(parsed(text, suffix)):
            if finding.fixable:
                text = _with_repair(text, suffix, finding, source)
        if text == before:
            break
    return text, examine(parsed(text, suffix))


def parsed(text: str, suffix: str) -> dict[str, Any]:
    """The document in a JSON or TOML text."""
    values: dict[str, Any] = json.loads(text) if suffix == ".json" else tomllib.loads(text)
    return values


def _with_repair(text: str, suffix: str, finding: Finding, source: str) -> str:
    document = parsed(text, suffix)
    known = {key for table in (document, *document.values()) for key in _keys(table)}
    renames = {old: new for old, new in finding.renames.items() if new not in known}
    edits = dict(_edits(document, finding.changes))
    after = edited(_renamed(text, renames), suffix, edits)
    return after if _means(after, suffix, document, finding, source) else text


def _keys(table: Any) -> Iterable[str]:
    return table if isinstance(table, dict) else ()


def _means(text: str, suffix: str, before: dict[str, Any], finding: Finding, source: str) -> bool:
    """Whether the text says what the recipe before it says with the changes.

    Where that recipe could not be built, one problem less is what was meant.
    """
    try:
        after = parsed(text, suffix)
    except ValueError:
        return False
    if problems := _problems(before, source):
        return len(_problems(after, source)) < len(problems)
    if _problems(after, source):
        return False
    wanted = Recipe.from_dict(before, source).override(recipe_part(finding.changes))
    return wanted == Recipe.from_dict(after, source)


def _problems(document: dict[str, Any], source: str) -> tuple[Problem, ...]:
    try:
        Recipe.from_dict(document, source)
    except ConfigError as error:
        return error.problems
    return ()


def _edits(document: Mapping[str, Any], changes: Changes) -> Iterator[tuple[Path, Any]]:
    """New values by place; changes that the document has no section for are left out."""
    for title, cls in SECTIONS.items():
        wanted = {
            key.partition(".")[2]: value
            for key, value in changes.items()
            if key.startswith(f"{title}.")
        }
        place = _table_of(document, title)
        if not wanted or place is None:
            continue
        table = _lookup(document, place)
        for word, value in _in_words_of(table, aliases_of(cls), wanted).items():
            yield (*place, word), value


def _table_of(document: Mapping[str, Any], title: str) -> Path | None:
    """Where a section's keys stand: under its name, in nanoGPT's model_args, or at the top."""
    if any(isinstance(document.get(name), dict) for name in SECTIONS) or "preset" in document:
        return (title,)
    if isinstance(document.get("model_args"), dict):
        return ("model_args",) if title == "model" else None
    return () if title == "model" else None


def _lookup(document: Mapping[str, Any], place: Path) -> Mapping[str, Any]:
    for key in place:
        document = document.get(key, {})
    return document


def _in_words_of(
    table: Mapping[str, Any], aliases: Mapping[str, tuple[str, ...]], wanted: dict[str, Any]
) -> dict[str, Any]:
    """The changes under the words that the table uses already.

    A word for several fields keeps standing for all of them only while they stay equal.
    """
    result = dict(wanted)
    for alias, names in aliases.items():
        changed = {name: wanted[name] for name in names if name in wanted}
        if alias not in table or not changed:
            continue
        for name in changed:
            result.pop(name)
        values = [changed.get(name, table[alias]) for name in names]
        if all(value == values[0] for value in values):
            result[alias] = values[0]
        else:
            result |= {alias: ABSENT} | dict(zip(names, values, strict=True))
    return result


def _renamed(text: str, renames: Mapping[str, str]) -> str:
    """The text with keys spelt right, where they stand."""
    for field, right in renames.items():
        wrong = re.escape(field.rpartition(".")[2])
        text = re.sub(rf"(?m)(^\s*|[\"'.,{{\s]){wrong}(?=[\"']?\s*[:=])", rf"\g<1>{right}", text)
    return text


def edited(text: str, suffix: str, edits: Mapping[Path, Any]) -> str:
    """The text with these values; everything else in it stays as it is, in TOML with its comments."""
    if not edits:
        return text
    return _edited_json(text, edits) if suffix == ".json" else _edited_toml(text, edits)


def _edited_json(text: str, edits: Mapping[Path, Any]) -> str:
    document = json.loads(text)
    for path, value in edits.items():
        table = document
        for key in path[:-1]:
            table = table.setdefault(key, {})
        if value is ABSENT:
            table.pop(path[-1], None)
        else:
            table[path[-1]] = "auto" if value is AUTO else value
    indent = re.search(r"\n([ \t]+)\S", text)
    written = json.dumps(document, indent=indent[1] if indent else None, ensure_ascii=False)
    return written + ("\n" if text.endswith("\n") else "")


def _edited_toml(text: str, edits: Mapping[Path, Any]) -> str:
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    for path, value in edits.items():
        start, end = _table_lines(lines, path[:-1])
        number = next((i for i in range(start, end) if _is_key(lines[i], path[-1])), None)
        if value is ABSENT:
            del lines[slice(number, number + 1) if number is not None else slice(0)]
            continue
        new = _toml_line(path[-1], value)
        if number is None:
            while end > start and not lines[end - 1].strip():
                end -= 1
            lines.insert(end, new)
        else:
            lines[number] = new.rstrip("\n") + _comment(lines[number]) + "\n"
    return "".join(lines)


def _table_lines(lines: list[str], table: Path) -> tuple[int, int]:
    """First and last line (exclusive) of a table's keys; a missing table is added at the end."""
    headers = [i for i, line in enumerate(lines) if re.match(r"\s*\[", line)]
    start = 0
    if table:
        name = re.compile(rf"\s*\[\s*{re.escape('.'.join(table))}\s*\]\s*(#.*)?$")
        found = next((i for i in headers if name.match(lines[i])), None)
        if found is None:
            lines += ["\n", f"[{'.'.join(table)}]\n"]
            return len(lines), len(lines)
        start = found + 1
    return start, next((i for i in headers if i >= start), len(lines))


def _is_key(line: str, key: str) -> bool:
    return re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line) is not None


def _toml_line(key: str, value: Any) -> str:
    value = "auto" if value is AUTO else NULLS[0] if value is None else value
    return write_toml({key: value})


def _comment(line: str) -> str:
    """The comment behind a value, with the space before it. No repaired value holds a "#"."""
    match = re.search(r"\s+#[^\"']*$", line.rstrip("\n"))
    return match[0] if match else ""


def inline_ignores(text: str) -> list[str]:
    """The codes that comments such as ``# lint: ignore A10, R02`` leave out, in the whole file.

    >>> inline_ignores("n_embd = 100  # lint: ignore A14, A12")
    ['A14', 'A12']
    """
    found = re.findall(r"#\s*lint:\s*ignore\s+([A-Z]\d*(?:[\s,]+[A-Z]\d+)*)", text)
    return [code for codes in found for code in re.split(r"[\s,]+", codes)]
