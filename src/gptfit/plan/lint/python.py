"""``gptfit.lint``: the rules for callers in Python."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptfit.config import GPT2Config, Recipe
from gptfit.errors import ConfigError
from gptfit.plan.lint.rules import Finding, hard_findings
from gptfit.plan.lint.rules import lint as lint_subject
from gptfit.plan.lint.subject import DataFacts, Pretrained, Program, Subject

if TYPE_CHECKING:
    from gptfit.plan.hardware import DeviceSpec


def lint(
    what: Subject | Recipe | GPT2Config | Mapping[str, Any] | str | Path,
    *,
    data: DataFacts | None = None,
    device: DeviceSpec | str | None = None,
    pretrained: Pretrained | GPT2Config | None = None,
    program: Program | str | None = None,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
) -> list[Finding]:
    """What is wrong with a configuration, worst first: a preset, a file, a dict in any dialect, or ours.

    A dict or file that cannot run gives its faults as findings too.

    >>> [finding.code for finding in lint({"n_embd": 768, "n_head": 10, "model_type": "gpt2"})]
    ['A01']
    >>> [finding.code for finding in lint("gpt2", program="huggingface", select=["R02"])]
    ['R02']
    """
    if isinstance(what, Subject):
        return lint_subject(what, select, ignore)
    try:
        recipe = _recipe(what)
    except ConfigError as error:
        if not any(problem.field for problem in error.problems):
            raise
        return hard_findings(error)
    if isinstance(device, str):
        from gptfit.plan.hardware import find_device

        device = find_device(device)
    subject = Subject(
        recipe=recipe,
        data=data,
        device=device,
        pretrained=Pretrained(pretrained) if isinstance(pretrained, GPT2Config) else pretrained,
        program=Program.named(program) if isinstance(program, str) else program,
    )
    return lint_subject(subject, select, ignore)


def _recipe(what: Recipe | GPT2Config | Mapping[str, Any] | str | Path) -> Recipe:
    if isinstance(what, Recipe):
        return what
    if isinstance(what, GPT2Config):
        return Recipe(model=what)
    if isinstance(what, Mapping):
        return Recipe.from_dict(what)
    path = Path(what)
    if path.is_dir():
        return Recipe.load(
            path / ("recipe.toml" if (path / "recipe.toml").is_file() else "config.json")
        )
    return Recipe.load(path) if path.suffix else Recipe.resolve(preset=str(what))
