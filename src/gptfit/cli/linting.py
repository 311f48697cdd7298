"""The verb lint, and what train heeds of it."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from gptfit.cli.console import print_json, stderr, stdout
from gptfit.cli.lint_request import (
    Request,
    data_facts,
    facts_of,
    find_known_device,
    find_pretrained,
    hard_findings,
)
from gptfit.cli.overrides import SETTINGS, split_overrides
from gptfit.config import Recipe
from gptfit.config.files import read_config_file
from gptfit.config.overrides import locate
from gptfit.errors import ConfigError, Problem
from gptfit.plan import lint as linter
from gptfit.plan.lint import Finding, Program, Subject
from gptfit.plan.lint.rewrite import repaired
from gptfit.plan.lint.rules import recipe_part, rounds, spelled

if TYPE_CHECKING:
    from gptfit.data import TokenDataset

COLOURS = {linter.ERROR: "red", linter.WARNING: "yellow", linter.HINT: "cyan"}
EXIT_CODES = {linter.ERROR: 2, linter.WARNING: 1, linter.HINT: 0}


def register(app: typer.Typer) -> None:
    """Add the verb of this file."""
    app.command("lint", context_settings=SETTINGS)(lint)


def lint(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="WHAT [KEY=VALUE]...",
            help="A preset, a recipe or config file, a run, or a checkpoint folder; then changes.",
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="A folder made by prepare, or text, of which only the size is seen."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="The device it shall train on; see gptfit devices.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="MODEL", help="The weights that training starts from."),
    ] = None,
    program: Annotated[
        str | None, typer.Option(help=f"What trains: {', '.join(linter.PROGRAMS)}.")
    ] = None,
    select: Annotated[
        str, typer.Option(metavar="CODES", help="Only these rules, such as A,R02.")
    ] = "",
    ignore: Annotated[
        str, typer.Option(metavar="CODES", help="Not these rules, such as A10.")
    ] = "",
    fix: Annotated[
        bool, typer.Option("--fix", help="Repair the file in place and show the difference.")
    ] = False,
    explain: Annotated[
        str | None, typer.Option(metavar="CODE", help="Say what a rule is about, and why.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_sarif: Annotated[bool, typer.Option("--sarif", help="Print a SARIF 2.1.0 log.")] = False,
) -> None:
    """Say what is wrong with a configuration, its data, its device, and what would be better.

    Ends with 2 if there are errors, with 1 if there are warnings, else with 0. A TOML file may leave
    rules out by a comment: # lint: ignore A10, R02
    """
    if explain is not None:
        _explain(explain, as_json)
        return
    paths, overrides = split_overrides(what or [])
    request = Request(
        tuple(paths),
        tuple(overrides),
        data=data_facts(data or []),
        device=find_known_device(device),
        start=find_pretrained(start, bool(data)) if start else None,
        program=Program.named(program) if program else None,
        select=tuple(_codes(select)),
        ignore=tuple(_codes(ignore)),
    )
    if fix:
        findings = _repair(request, as_json)
    else:
        findings = request.findings()
        _print(findings, request.file, as_json, as_sarif)
    raise typer.Exit(max((EXIT_CODES[finding.severity] for finding in findings), default=0))


def _codes(text: str) -> list[str]:
    return [code.strip() for code in text.split(",") if code.strip()]


def heed(
    recipe: Recipe, dataset: TokenDataset, ignore: str = "", processes: int = 1
) -> list[Finding]:
    """Before training: the warnings; ``ConfigError`` with what the rules call errors."""
    from gptfit.plan.hardware import match_device, this_cpu
    from gptfit.train.device import choose_device, choose_parallel, shared

    chosen = choose_device(recipe.run.device, recipe.run.dtype, recipe.model)
    on_cpu = chosen.torch_device.type == "cpu"
    device = this_cpu() if on_cpu else match_device(chosen.name)
    program = None
    if processes > 1:
        program = Program(
            step=shared(recipe, choose_parallel(recipe, chosen, processes), processes)
        )
    weights = find_pretrained(recipe.run.init_from) if recipe.run.init_from else None
    subject = Subject(
        recipe=recipe,
        data=facts_of(dataset),
        device=device,
        program=program,
        pretrained=weights,
    )
    findings = linter.lint(subject, ignore=_codes(ignore))
    if errors := [finding for finding in findings if finding.severity == linter.ERROR]:
        raise ConfigError(
            [Problem(f.field, f"{f.code} {f.field}: {f.message}", f.fix) for f in errors]
        )
    return [finding for finding in findings if finding.severity == linter.WARNING]


def print_warnings(findings: list[Finding]) -> None:
    """One line each, on stderr."""
    for finding in findings:
        text = f"warning: {finding.field}: {finding.message}; {finding.fix} ({finding.code})"
        stderr().print(text, style="yellow", soft_wrap=True)


def _print(findings: list[Finding], file: Path | None, as_json: bool, as_sarif: bool) -> None:
    if as_sarif:
        from gptfit import __version__
        from gptfit.plan.lint.sarif import sarif

        print_json(sarif(findings, __version__, file))
    elif as_json:
        print_json([finding.to_dict() for finding in findings])
    else:
        _print_findings(findings)


def _print_findings(findings: list[Finding]) -> None:
    console = stdout()
    for finding in findings:
        text = f" {finding.code} {finding.field}: {finding.message}"
        text += f"; {finding.fix}" if finding.fix else ""
        colour = COLOURS[finding.severity]
        console.print(Text.assemble((finding.severity, colour), text), soft_wrap=True)
    if not findings:
        console.print("nothing to remark")
    elif fixable := sum(finding.fixable for finding in findings):
        stderr().print(f"{fixable} of {len(findings)} can be repaired by --fix")


def _explain(code: str, as_json: bool) -> None:
    rule = linter.find_rule(code)
    if as_json:
        names = ("code", "severity", "field", "title", "why", "source")
        print_json({name: getattr(rule, name) for name in names} | {"needs": rule.needs})
        return
    console = stdout()
    console.print(f"{rule.code} ({rule.severity}): {rule.title}", style="bold", soft_wrap=True)
    lines = {"why": rule.why, "field": rule.field, "source": rule.source}
    needs = [name for name in rule.needs if name != "subject"]
    lines["looks at"] = ", ".join(needs) or "the configuration itself, which refuses it"
    for name, text in lines.items():
        console.print(f"  {name:<9}{text}", soft_wrap=True)


def _repair(request: Request, as_json: bool) -> list[Finding]:
    """Repair the file, or say the overrides that would; returns the findings that are left."""
    if request.file is None:
        words, findings = _repaired_words(request)
        if as_json:
            left = [finding.to_dict() for finding in findings]
            print_json({"arguments": words, "findings": left})
        else:
            stdout().print(f"corrected: {shlex.join(words)}", soft_wrap=True)
            _print_findings(findings)
        return findings
    if request.overrides:
        raise ConfigError(
            "--fix writes into the file; leave the overrides out, or write them there"
        )
    return _repair_file(request, request.file, as_json)


def _repair_file(request: Request, file: Path, as_json: bool) -> list[Finding]:
    read_config_file(file)  # refuses what is no configuration, naming the file
    before = file.read_text(encoding="utf-8")
    suffix = file.suffix.lower()
    after, findings = repaired(before, suffix, request.findings_of, f"file {file}")
    difference = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), str(file), str(file)
    )
    if after != before:
        _write(file, after)
    if as_json:
        left = [finding.to_dict() for finding in findings]
        print_json({"difference": "".join(difference), "findings": left})
    else:
        stdout().print("".join(difference), end="", soft_wrap=True)
        _print_findings(findings)
    return findings


def _write(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        raise ConfigError(f"cannot be written ({error.strerror})", str(file)) from None


def _repaired_words(request: Request) -> tuple[list[str], list[Finding]]:
    """The command line with its overrides corrected, and what is left to say about it."""
    overrides = list(request.overrides)
    for _ in rounds():
        try:
            subject = request.subject(overrides)
        except ConfigError as error:
            before = list(overrides)
            for finding in hard_findings(error):
                overrides = _corrected(overrides, finding)
            if overrides == before:
                break
        else:
            _, made = linter.fix(subject, request.select, request.ignored)
            overrides = _assigned(overrides, recipe_part(made))
            break
    return [*request.paths, *overrides], request.findings(overrides)


def _corrected(overrides: list[str], finding: Finding) -> list[str]:
    for wrong, right in finding.renames.items():
        overrides = [_renamed(override, wrong, right) for override in overrides]
    return _assigned(overrides, finding.changes)


def _renamed(override: str, wrong: str, right: str) -> str:
    key, _, value = override.partition("=")
    return f"{right}={value}" if key == wrong or f"model.{key}" == wrong else override


def _assigned(overrides: list[str], changes: Mapping[str, Any]) -> list[str]:
    """The overrides with these values; a value that was given already is replaced where it stood."""
    places = {locate(key): f"{key}={spelled(value)}" for key, value in changes.items()}
    kept = [override for override in overrides if locate(override.partition("=")[0]) not in places]
    return kept + list(places.values())
