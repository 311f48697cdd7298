"""The other half of plan: which model to train on a text, in a time, on a device."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from gptfit.cli.console import print_json, stderr, stdout, table
from gptfit.cli.devices import is_here
from gptfit.cli.overrides import parse_duration, split_overrides
from gptfit.config import Recipe
from gptfit.errors import ConfigError, Problem
from gptfit.plan.hardware import DeviceSpec
from gptfit.plan.picture import draw_search
from gptfit.plan.quantities import BYTES, COUNT, SECONDS, significant, text_of

if TYPE_CHECKING:
    from gptfit.plan.lattice import Machine
    from gptfit.plan.plan import Price
    from gptfit.plan.search import Candidate, SearchResult

PARETO_SHOWN = 4
GIVEN_BY_DATA = ("model.vocab_size", "model.bos_token_id", "model.eos_token_id")


@dataclass(frozen=True)
class Question:
    """The command line of a search: what is fixed, the text, the time, where, and for how much."""

    what: Sequence[str]
    data: Sequence[str]
    time: str | None
    device: DeviceSpec
    price: Price | None
    out: Path | None
    pilot: str | None = None

    def recipe(self) -> Recipe:
        """What is set already and no longer searched."""
        paths, overrides = split_overrides(self.what)
        if paths:
            message = f"{paths[0]} and --data {self.data[0]}: plan one model, or search for one"
            raise ConfigError(message)
        return Recipe.resolve(overrides=overrides)

    def seconds(self) -> float:
        """The time to train."""
        if self.time is None:
            raise ConfigError("--data needs the time to train: --time 8h")
        return parse_duration(self.time)

    def next_command(self) -> str:
        """How to get from the search to a model."""
        text = shlex.join(self.data)
        if self.out:
            return f"gptfit train {shlex.quote(str(self.out))} --data {text}"
        if is_here(self.device):
            return f"gptfit fit {text} --time {self.time}"
        return "write the recipe, with --out recipe.toml"


def answer(question: Question, picture: Path | None, as_json: bool) -> None:
    """Search, and show what was found."""
    if question.out:
        require_new(question.out)
    result, found = search_models(question)
    if question.out:
        found.save(question.out, leave_out=GIVEN_BY_DATA)
    if as_json:
        print_json(asdict(result) | {"recipe": found.to_dict()})
    else:
        print_search(stdout(), result, question)
    if picture:
        title = f"{found.name} on {question.device.name}: least loss by memory and time"
        draw_search(result, picture, question.device.usable_bytes, title)
        stderr().print(f"drew {picture}", soft_wrap=True)


def search_models(question: Question) -> tuple[SearchResult, Recipe]:
    """The candidates for the text, and the recipe of the first. Here, the costs are measured ones."""
    from gptfit.cli.training import open_text
    from gptfit.data import vocabularies
    from gptfit.plan.scaling import law_for
    from gptfit.train.calibrate import this_machine as measured_machine
    from gptfit.train.fit import find, recipe_for
    from gptfit.train.pilot import fit_to_pilots

    console = stderr()
    recipe, seconds, device = question.recipe(), question.seconds(), question.device

    def say(line: str) -> None:
        console.print(f"• {line}", soft_wrap=True)

    text = open_text(list(question.data), recipe.data)
    say(f"text: {text.description}, {text.total_bytes:,} bytes")
    choices = vocabularies(text, recipe.data)
    if is_here(device):
        machine = measured_machine(recipe.override({"run.device": device.kind}), say)
        usable = min(machine.usable_bytes, device.usable_bytes)
        machine = replace(machine, usable_bytes=usable)
    else:
        machine = machine_of(device, recipe)
    law = law_for(text.total_bytes)
    if question.pilot:
        if not is_here(device):
            raise ConfigError(f"--pilot trains on {device.name}, which is not here; leave it out")
        shortly = parse_duration(question.pilot)
        law = fit_to_pilots(law, recipe, text, choices, machine, shortly, seconds, say)
    result = find(recipe, text, choices, machine, seconds, law)
    best = result.best[0]
    tokenizer = next(choice for choice in choices if choice.size == best.vocab_size)
    tokenized = recipe.override(tokenizer.values, "search")
    return result, recipe_for(best, tokenized, best.seconds).named(text.name)


def machine_of(device: DeviceSpec, recipe: Recipe) -> Machine:
    """A device that is not here, with the costs of its roofline."""
    from gptfit.plan.lattice import Machine
    from gptfit.plan.plan import dtype_of
    from gptfit.plan.step import TrainingStep
    from gptfit.plan.time import roofline

    dtype = dtype_of(recipe, device)
    costs = roofline(device, TrainingStep(context=1, device_kind=device.kind, dtype=dtype))
    if costs is None:
        message = f"the speed of {device.name} in {dtype} is not known"
        raise ConfigError(Problem("device", message, "choose another: gptfit devices"))
    return Machine(device.torch_kind, device.usable_bytes, dtype, costs)


def require_new(path: Path) -> None:
    """Refuse what cannot be written before anything is searched."""
    if path.suffix not in (".toml", ".json"):
        raise ConfigError(f"{path}: a recipe file ends in .toml or .json")
    if path.exists():
        raise ConfigError(f"{path} exists; give another name")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: the folder {path.parent} does not exist")


def print_search(console: Console, result: SearchResult, question: Question) -> None:
    """The ranked few, cheaper ones, what would help, and what to do."""
    asked = question.seconds()
    time = text_of(asked, SECONDS)
    console.print(
        f"{question.device.name} in {time}: best of {result.fitting:,} that fit", style="bold"
    )
    console.print(
        f"{result.considered:,} candidates in {text_of(result.search_seconds, SECONDS)}, ranked by "
        f"{result.law}",
        style="dim",
        soft_wrap=True,
    )
    console.print()
    console.print(_ranking(result.best))
    if cheaper := _cheaper(result):
        console.print("\nwith less time or memory", style="bold")
        console.print(_cheaper_table(cheaper))
    console.print()
    for line in _remarks(result, asked, question.price):
        console.print(line, soft_wrap=True)
    console.print(f"next: {question.next_command()}", soft_wrap=True)


def _ranking(candidates: Sequence[Candidate]) -> Table:
    sizes = ("bits/byte", "parameters", "layers", "width", "context", "vocab", "batch")
    right = (*sizes, "tokens/s", "epochs", "memory")
    rows = table(*right, "limited by", right=right)
    for one in candidates:
        rows.add_row(
            f"{one.bits_per_byte:.3f}",
            significant(one.parameters),
            str(one.n_layer),
            str(one.n_embd),
            str(one.n_positions),
            f"{one.vocab_size:,}",
            f"{one.micro_batch_size} × {one.grad_accum_steps}",
            text_of(one.tokens_per_second, COUNT),
            significant(one.epochs),
            text_of(one.memory_bytes, BYTES),
            one.binding,
        )
    return rows


def _cheaper(result: SearchResult) -> list[Candidate]:
    """Some of the Pareto set, evenly from its whole range."""
    first = result.best[0]
    others = sorted(
        (one for one in result.pareto if one.bits_per_byte > first.bits_per_byte),
        key=lambda one: one.bits_per_byte,
    )
    return others[:: max(1, -(-len(others) // PARETO_SHOWN))]


def _cheaper_table(candidates: Sequence[Candidate]) -> Table:
    right = ("bits/byte", "time", "memory", "parameters")
    rows = table(*right, right=right)
    for one in candidates:
        rows.add_row(
            f"{one.bits_per_byte:.3f}",
            text_of(one.seconds, SECONDS),
            text_of(one.memory_bytes, BYTES),
            significant(one.parameters),
        )
    return rows


def _remarks(result: SearchResult, asked: float, price: Price | None) -> Iterator[str]:
    best = result.best[0]
    if best.seconds < asked:
        yield (
            f"the best takes only {text_of(best.seconds, SECONDS)}: after {significant(best.epochs)} "
            "passes over this text more would make it worse"
        )
    helps = [one for one in result.helps if one.bits_per_byte < best.bits_per_byte - 5e-4]
    if helps:
        yield (
            "more of it: "
            + " · ".join(f"{one.change} {one.bits_per_byte:.3f}" for one in helps)
            + " bits/byte"
        )
    if price:
        cost = best.seconds / 3600 * price.per_hour
        yield f"cost: {significant(cost)} {price.currency}"
