"""The light verbs: show, presets, new. None of them imports torch or numpy."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from gptfit.cli.console import print_json, stderr, stdout, table
from gptfit.cli.overrides import SETTINGS, split_overrides
from gptfit.config import Recipe, find_preset, presets
from gptfit.config.presets import Preset, name_claims
from gptfit.errors import ConfigError
from gptfit.plan.flops import Flops, flops_per_token
from gptfit.plan.params import LETTERS, ParameterCount, count_parameters
from gptfit.plan.quantities import BYTES, FLOPS, text_of
from gptfit.plan.step import TrainingStep

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    app.command("show", context_settings=SETTINGS)(show)
    app.command("presets")(list_presets)
    app.command("new", context_settings=SETTINGS)(new)


def show(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="WHAT [KEY=VALUE]...",
            help="A preset, a recipe or config file, a run, or a checkpoint folder; then changes.",
        ),
    ],
    formula: Annotated[
        bool, typer.Option("--formula", help="Show how the count comes about.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show a configuration: values with their origins, parameters, memory and work of training."""
    recipe, kind = read_recipe(what)
    count = count_parameters(recipe.model)
    if as_json:
        values = {
            "recipe": recipe.to_dict(),
            "origins": recipe.origins,
            "parameters": asdict(count),
            "training_memory": training_memory(count),
            "flops_per_token": asdict(flops_of(recipe)),
        }
        print_json(values)
        return
    console = stdout()
    title = f"{recipe.name or what[0]} ({kind}), {count.total:,} parameters\n"
    console.print(title, style="bold", soft_wrap=True)
    console.print(_values_table(recipe))
    console.print()
    console.print(_parameters_table(recipe, count, formula))
    if formula:
        console.print(f"\n{LETTERS}, u 1 if untied else 0")
    console.print(f"\n{_conventions(count)}")
    console.print(f"{_training(recipe, count)}", soft_wrap=True)


def read_recipe(arguments: list[str]) -> tuple[Recipe, str]:
    """The recipe that a word on the command line means, with its overrides, and what it was."""
    paths, overrides = split_overrides(arguments)
    if len(paths) != 1:
        raise ConfigError(f"expected one preset, file or folder, got {', '.join(paths) or 'none'}")
    path = Path(paths[0])
    if (path / "recipe.toml").is_file():
        return Recipe.resolve(file=path / "recipe.toml", overrides=overrides), "run"
    if (path / "config.json").is_file():
        return Recipe.resolve(file=path / "config.json", overrides=overrides), "checkpoint"
    if path.is_dir():
        raise ConfigError(f"{path} holds neither a recipe.toml nor a config.json")
    if path.is_file():
        return Recipe.resolve(file=path, overrides=overrides), "file"
    try:
        preset = find_preset(paths[0])
    except ConfigError as error:
        if path.suffix in (".json", ".toml") or path.name != paths[0]:
            raise ConfigError(f"{path}: no such file, and no preset has that name") from None
        raise error
    if note := preset.note(paths[0]):
        stderr().print(f"note: {note}", soft_wrap=True)
    return Recipe.resolve(preset=preset.name, overrides=overrides), "preset"


def _values_table(recipe: Recipe) -> Any:
    result = table("field", "value", "origin")
    for key, origin in recipe.origins.items():
        section, _, name = key.partition(".")
        value = getattr(getattr(recipe, section), name)
        result.add_row(key, _shown(value), origin, style="dim" if origin == "default" else "")
    return result


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return str(value) or '""'


def _parameters_table(recipe: Recipe, count: ParameterCount, formula: bool) -> Any:
    columns = ["component", *(["formula", "numbers"] if formula else []), "parameters", "share"]
    result = table(*columns, right=("parameters", "share"))
    for item in count.components:
        how = [item.formula, item.numbers] if formula else []
        result.add_row(item.name, *how, f"{item.count:,}", f"{item.count / count.total:.1%}")
    result.add_row("total", *([""] * (len(columns) - 3)), f"{count.total:,}", "", style="bold")
    return result


def _conventions(count: ParameterCount) -> str:
    return (
        f"tied {count.tied:,} · untied {count.untied:,} · without embeddings "
        f"{count.non_embedding:,} · without positions (nanoGPT's figure) {count.without_positions:,}"
    )


def training_memory(count: ParameterCount) -> dict[str, int]:
    """Bytes that training holds whatever the batch: everything in float32, AdamW with two moments."""
    shares = {"weights_bytes": 4, "gradients_bytes": 4, "optimizer_bytes": 8}
    parts = {name: size * count.total for name, size in shares.items()}
    return parts | {"total_bytes": sum(parts.values())}


def flops_of(recipe: Recipe) -> Flops:
    """Operations per token at full context, in the convention of PaLM and nanoGPT."""
    return flops_per_token(recipe.model, TrainingStep(context=recipe.model.n_positions))


def _training(recipe: Recipe, count: ParameterCount) -> str:
    memory, flops = training_memory(count), flops_of(recipe)
    forward, both = (text_of(n, FLOPS) for n in (sum(flops.forward.values()), flops.total))
    return (
        f"training holds 16 bytes per parameter (weights 4, gradients 4, AdamW's moments 8): "
        f"{text_of(memory['total_bytes'], BYTES)}, and activations: gptfit plan\n"
        f"forward {forward}, forward and backward {both} per token"
    )


def list_presets(as_json: Json = False) -> None:
    """List the presets with their exact parameter counts."""
    if as_json:
        rows = [(preset, count_parameters(preset.config)) for preset in presets()]
        print_json([_preset_values(preset, count) for preset, count in rows])
        return
    right = ("parameters", "layers", "heads", "width", "context", "vocab")
    result = table("preset", *right, "about", right=right)
    for preset in presets():
        config, count = preset.config, count_parameters(preset.config)
        sizes = (
            config.n_layer,
            config.n_head,
            config.n_embd,
            config.n_positions,
            config.vocab_size,
        )
        off = _name_is_off(preset, count.total)
        about = Text.assemble((off, "yellow"), preset.description)
        result.add_row(preset.name, f"{count.total:,}", *map(str, sizes), about)
    stdout().print(result)
    stderr().print(
        "\nSee one with: gptfit show NAME; train one with: gptfit train NAME --data FILE"
    )


def _preset_values(preset: Preset, count: ParameterCount) -> dict[str, Any]:
    return {
        "name": preset.name,
        "aliases": list(preset.aliases),
        "description": preset.description,
        "source": preset.source,
        "parameters": count.total,
        "model": preset.config.to_dict(),
    }


def _name_is_off(preset: Preset, total: int) -> str:
    claim = name_claims(preset)
    if claim is None or abs(total / claim - 1) <= 0.05:
        return ""
    return f"Really {total / 1e6:.0f}M. "


def new(
    path: Annotated[
        list[str],
        typer.Argument(metavar="FILE [KEY=VALUE]...", help="The .toml or .json file to write."),
    ],
    preset: Annotated[str | None, typer.Option(help="The preset to start from.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write a recipe file: from flags, or by asking when there is a terminal and nothing is given."""
    paths, overrides = split_overrides(path)
    if len(paths) != 1:
        raise ConfigError(f"expected one file to write, got {', '.join(paths) or 'none'}")
    target = Path(paths[0])
    if target.suffix not in (".toml", ".json"):
        raise ConfigError(f"{target}: a recipe file ends in .toml or .json")
    if target.exists() and not force:
        raise ConfigError(f"{target} exists; give another name, or --force to replace it")
    if preset is None and not overrides and sys.stdin.isatty():
        preset, overrides = _ask()
    recipe = Recipe.resolve(preset=preset, overrides=overrides)
    name = shlex.quote(str(target))
    recipe.save(target, preset, _given_by_data(recipe))
    stderr().print(
        f"wrote {target}: {count_parameters(recipe.model).total:,} parameters. Look: gptfit show "
        f"{name}; train: gptfit train {name} --data FILE{'' if recipe.train.has_end else ' --time 2m'}",
        soft_wrap=True,
    )


def _given_by_data(recipe: Recipe) -> list[str]:
    """The vocabulary follows from the text, unless the user has set it."""
    names = [f"model.{name}" for name in ("vocab_size", "bos_token_id", "eos_token_id")]
    return [name for name in names if recipe.origins[name] != "command line"]


QUESTIONS = (
    ("n_layer", "layers"),
    ("n_head", "attention heads"),
    ("n_embd", "width (a multiple of the heads)"),
    ("n_positions", "context length in tokens"),
    ("dropout", "dropout"),
    ("max_steps", "training steps"),
)


def _ask() -> tuple[str, list[str]]:
    names = ", ".join(preset.name for preset in presets())
    stderr().print(f"presets: {names}")
    name = typer.prompt("start from preset", default="nanogpt-shakespeare-char-cpu", err=True)
    base = Recipe.resolve(preset=name)
    answers = []
    for key, question in QUESTIONS:
        section = base.train if hasattr(base.train, key) else base.model
        current = _shown(getattr(section, key))
        answer = typer.prompt(f"{question}, {key}", default=current, err=True)
        if answer != current:
            answers.append(f"{key}={answer}")
    return name, answers
