"""The verb bench: gptfit's training against its peers', in one run."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptfit.cli.bench_tables import print_challenge, print_race, print_steps
from gptfit.cli.configs import read_recipe
from gptfit.cli.console import print_json, stderr, stdout, table
from gptfit.cli.overrides import SETTINGS, parse_duration, split_overrides
from gptfit.config import Recipe
from gptfit.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from gptfit.data import TextSource

CASES = {
    "step": "training tokens per second on one model: gptfit, Hugging Face, nanoGPT",
    "recipe": "nanoGPT's CPU recipe on a text, to the loss that nanoGPT ends with, by the wall clock",
    "challenge": "the validation loss that gptfit fit reaches in five minutes",
    "baby": "nanoGPT's GPU recipe to a validation loss of 1.4697, by the wall clock; needs CUDA",
}
TAKES = {
    "step": {"nanogpt", "rounds", "steps", "contestants", "sweep"},
    "recipe": {"nanogpt", "rounds", "recipe"},
    "challenge": {"time"},
    "baby": {"nanogpt", "rounds", "recipe"},
}
"""The options of each case beside --data, --out and --json."""
DEFAULT_MODEL = "gpt2"


def register(app: typer.Typer) -> None:
    """Add the verb of this file."""
    app.command("bench", context_settings=SETTINGS)(bench)


@dataclass(frozen=True)
class Asked:
    """The command line of one case."""

    words: list[str]
    overrides: list[str]
    data: list[str]
    nanogpt: Path | None
    rounds: int | None
    steps: int | None
    contestants: str | None
    sweep: str | None
    recipe: str | None
    time: str | None


def bench(
    case: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CASE] [MODEL] [KEY=VALUE]...",
            help="step (default), recipe, challenge or baby; step takes a preset or a recipe file.",
        ),
    ] = None,
    list_cases: Annotated[bool, typer.Option("--list", help="List the cases.")] = False,
    data: Annotated[
        list[str] | None, typer.Option(help="Text.", show_default="the Python language reference")
    ] = None,
    nanogpt: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A checkout of nanoGPT, whose code is executed."),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(min=1, help="Turns of each.", show_default="5; of whole programs 1"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of a turn.", show_default="5 seconds' worth")
    ] = None,
    contestants: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Against whom: huggingface-tuned,huggingface,nanogpt-tuned,nanogpt.",
            show_default="all",
        ),
    ] = None,
    sweep: Annotated[
        str | None, typer.Option(metavar="BATCHES", help="Measure at each batch: 8,16,32.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="gptfit's recipe against nanoGPT's: a preset or a file.")
    ] = None,
    time: Annotated[str | None, typer.Option(help="Of the challenge.", show_default="5m")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write JSON, and a PNG beside it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train side by side with Hugging Face and nanoGPT, in turns: medians, ratios, equal losses."""
    if list_cases:
        _list(as_json)
        return
    words, overrides = split_overrides(case or [])
    name = words[0] if words else "step"
    if name not in CASES:
        fix = did_you_mean(name, CASES) or f"choose from {', '.join(CASES)}"
        raise ConfigError(f"no case is called {name!r}; {fix}")
    options = {
        "nanogpt": nanogpt,
        "rounds": rounds,
        "steps": steps,
        "contestants": contestants,
        "sweep": sweep,
        "recipe": recipe,
        "time": time,
    }
    given = {option for option, value in options.items() if value is not None}
    if useless := sorted(given - TAKES[name]):
        raise ConfigError(f"--{useless[0]} has no effect on the case {name}; leave it out")
    if out:
        _require_new(out)
    asked = Asked(words[1:], overrides, data or [], **options)  # type: ignore[arg-type]
    if "-" in asked.data:
        raise ConfigError("several programs read the text; give a file, not standard input")
    with tempfile.TemporaryDirectory(prefix="gptfit-bench-") as folder:
        results, failures = RUN[name](name, asked, Path(folder))
    passed = not failures and all(result.passed for result in results)
    values = {
        "case": name,
        "passed": passed,
        "failures": failures,
        "results": [asdict(result) for result in results],
    }
    # A loss that is not a number becomes null, which every reader of JSON knows.
    values = json.loads(json.dumps(values), parse_constant=lambda name: None)
    _hand_over(results, values, out, as_json)
    if not passed:
        raise typer.Exit(1)


def _list(as_json: bool) -> None:
    if as_json:
        print_json([{"case": name, "about": about} for name, about in CASES.items()])
        return
    rows = table("case", "about")
    for name, about in CASES.items():
        rows.add_row(name, about)
    stdout().print(rows)


def _require_new(out: Path) -> None:
    if out.suffix != ".json":
        raise ConfigError(f"{out}: the result is JSON; a name that ends in .json")
    for path in (out, out.with_suffix(".png")):
        if path.exists():
            raise ConfigError(f"{path} exists; give another name")
    if not out.parent.is_dir():
        raise ConfigError(f"{out}: the folder {out.parent} does not exist")
    if not os.access(out.parent, os.W_OK):
        raise ConfigError(f"{out}: the folder {out.parent} cannot be written to")


def _say(line: str) -> None:
    stderr().print(f"• {line}", soft_wrap=True)


Found = tuple[Sequence[Any], list[str]]
"""Results of a case, and why there are not more of them."""


def _step(name: str, asked: Asked, folder: Path) -> Found:
    from gptfit.bench import contestant, steps
    from gptfit.bench.inputs import prepare_inputs
    from gptfit.bench.process import BenchError
    from gptfit.cli.training import open_text
    from gptfit.plan.params import count_parameters
    from gptfit.train.device import choose_device, usable_bytes
    from gptfit.train.run import is_prepared

    recipe = _model(asked)
    device = choose_device(recipe.run.device, recipe.run.dtype, recipe.model)
    kind, parameters = device.torch_device.type, count_parameters(recipe.model).total
    keys = asked.contestants.split(",") if asked.contestants else contestant.KEYS
    fields = []
    for one in _batches(recipe, asked.sweep):
        field, absent = contestant.assemble(one, kind, device.dtype_name, asked.nanogpt, keys)
        steps.require_room(field, kind, usable_bytes(device), parameters)
        fields.append((field, absent))
    paths = asked.data or list(recipe.data.text)
    text = Path(paths[0]) if is_prepared(paths) else open_text(asked.data, recipe.data)
    inputs = prepare_inputs(recipe, text, folder)
    for missing in absent:
        _say(f"without {missing.name}: {missing.reason}")
    results, failures = [], []
    for field, absent in fields:
        try:
            rounds = asked.rounds or 5
            results.append(steps.measure(field, absent, inputs, rounds, asked.steps, _say))
        except BenchError as error:
            batch = field[0].recipe.train.batch_size
            failures.append(f"batch {batch}: {error}")
            _say(failures[-1])
    if not results:
        raise BenchError(failures[0])
    return results, failures


def _model(asked: Asked) -> Recipe:
    """The model and the batch, with what makes the losses comparable."""
    from gptfit.bench.steps import comparable

    if len(asked.words) > 1:
        raise ConfigError(f"step measures one model, not {', '.join(asked.words)}")
    recipe, _ = read_recipe(asked.words or [DEFAULT_MODEL])
    defaults: dict[str, Any] = {}
    if recipe.origins["train.batch_size"] == "default":
        defaults["train.batch_size"] = 1
    if recipe.data.tokenizer == "gpt2":  # whose vocabulary may have to be fetched from a network
        defaults["data.tokenizer"] = "bpe"
    return comparable(recipe.override(defaults, "bench").override(asked.overrides))


def _batches(recipe: Recipe, sweep: str | None) -> list[Recipe]:
    """The recipe, once for each batch."""
    if sweep is None:
        return [recipe]
    try:
        sizes = [int(word) for word in sweep.split(",")]
    except ValueError:
        raise ConfigError(f"--sweep {sweep!r} names no batches; write 8,16,32") from None
    return [
        recipe.override({"train.batch_size": size, "train.micro_batch_size": size})
        for size in sizes
    ]


def _race(name: str, asked: Asked, folder: Path) -> Found:
    from gptfit.bench.contestant import NANOGPT_ADDRESS, require_checkout
    from gptfit.bench.races import NANOGPT_PROGRAM, RACES, run_race
    from gptfit.train.device import choose_device

    race = RACES[name]
    if asked.words:
        raise ConfigError(f"{name} takes its recipe by --recipe {asked.words[0]}")
    word = asked.recipe or race.recipe
    recipe, _ = read_recipe([word, *asked.overrides])
    try:
        choose_device(race.device, recipe.run.dtype, recipe.model)
    except ConfigError as error:
        raise ConfigError(f"{name} needs a GPU: {error.problems[0].message}") from None
    if asked.nanogpt is None:
        raise ConfigError(f"{name} needs nanoGPT: git clone {NANOGPT_ADDRESS}, then --nanogpt DIR")
    require_checkout(asked.nanogpt, NANOGPT_PROGRAM)
    text = _text(asked, recipe)
    if Path(word).exists():  # the program runs elsewhere
        word = str(Path(word).resolve())
    rounds, checkout = asked.rounds or 1, asked.nanogpt
    result = run_race(race, checkout, text, asked.data, word, asked.overrides, rounds, folder, _say)
    return [result], []


def _text(asked: Asked, recipe: Recipe) -> TextSource:
    """What whole programs are given to read."""
    from gptfit.cli.training import open_text

    if recipe.data.text:
        raise ConfigError(f"give the text by --data, not by text={recipe.data.text[0]}")
    return open_text(asked.data, recipe.data)


def _challenge(name: str, asked: Asked, folder: Path) -> Found:
    from gptfit.bench.challenge import take_challenge

    if asked.words:
        raise ConfigError(f"{name} lets fit choose the model; leave {asked.words[0]} out")
    time = asked.time or "5m"
    parse_duration(time)
    text = _text(asked, Recipe.resolve(overrides=asked.overrides))
    return [take_challenge(text, asked.data, time, asked.overrides, folder, _say)], []


def _hand_over(
    results: Sequence[Any], values: dict[str, Any], out: Path | None, as_json: bool
) -> None:
    """On the screen and, if asked, into files."""
    from gptfit.bench import picture

    if as_json:
        print_json(values)
    else:
        PRINT[values["case"]](results)
    if out is None:
        return
    out.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    drawing = out.with_suffix(".png")
    draw: dict[str, Callable[..., None]] = {
        "step": picture.draw_step if len(results) == 1 else picture.draw_sweep,
        "challenge": picture.draw_challenge,
    }
    draw.get(values["case"], picture.draw_race)(results, drawing)
    stderr().print(f"wrote {out} and {drawing}", soft_wrap=True)


RUN: dict[str, Callable[[str, Asked, Path], Found]] = {
    "step": _step,
    "recipe": _race,
    "challenge": _challenge,
    "baby": _race,
}
PRINT: dict[str, Callable[[Sequence[Any]], None]] = {
    "step": print_steps,
    "recipe": print_race,
    "challenge": print_challenge,
    "baby": print_race,
}
