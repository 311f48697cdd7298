"""The verb plan. It imports torch only where it is asked to trace or to measure."""

from __future__ import annotations

import re
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptfit.cli.configs import read_recipe
from gptfit.cli.console import print_json, stderr, stdout
from gptfit.cli.devices import is_here
from gptfit.cli.overrides import SETTINGS, parse_duration
from gptfit.config import Recipe
from gptfit.errors import ConfigError, Problem, did_you_mean
from gptfit.plan import hardware
from gptfit.plan.hardware import DeviceSpec

if TYPE_CHECKING:
    from gptfit.plan.calibration import Calibration
    from gptfit.plan.plan import Plan, Price
    from gptfit.plan.step import TrainingStep

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
BATCH_OPTION = "--batch-size"
STYLES = ("gptfit", "nanogpt", "huggingface")
PICTURES = (".svg", ".png")
MULTIPLES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    app.command("plan", context_settings=SETTINGS)(plan)


def plan(
    what: Annotated[
        list[str] | None, typer.Argument(metavar="[WHAT] [KEY=VALUE]...", help="As for show.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Instead of WHAT: the text, for which the best model is searched."),
    ] = None,
    time: Annotated[str | None, typer.Option(help="Train for that long: 90s, 2m, 8h.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the recipe of the model that is found.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="The device: gptfit devices.", show_default="this machine's")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Use no more of the device than this: 8GB, 7.5GiB.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Sequences at once (the micro-batch).")
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(help="Train on that many tokens: 300M, 2.5e9.", show_default="the recipe's"),
    ] = None,
    price: Annotated[
        str | None, typer.Option(help='What an hour of the device costs: "2.50 USD".')
    ] = None,
    style: Annotated[
        str, typer.Option(help=f"Whose training step: {', '.join(STYLES)}.")
    ] = "gptfit",
    compiled: Annotated[
        bool, typer.Option("--compile", help="As if torch.compile made the step.")
    ] = False,
    pilot: Annotated[
        str | None,
        typer.Option(help="With --data: fit the law to three real runs of this length: 30s."),
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure this machine first, some ten seconds.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Trace a step (no memory used) and compare.")
    ] = False,
    picture: Annotated[Path | None, typer.Option(help="Draw it: FILE.svg or FILE.png.")] = None,
    as_json: Json = False,
) -> None:
    """Say before training whether a model fits a device, how fast it trains and for how much.

    With --data and --time it says which model to train: gptfit plan --data FILE --time 8h.
    """
    from gptfit.cli.screen import print_plan, print_verification
    from gptfit.cli.searching import Question, answer
    from gptfit.plan.picture import draw_plan
    from gptfit.plan.plan import plan as make_plan
    from gptfit.plan.plan import with_vocabulary

    if picture:
        require_picture(picture)
    spec = hardware.find_device(device) if device else hardware.this_device()
    if memory:
        spec = replace(spec, usable_bytes=min(spec.usable_bytes, parse_memory(memory)))
    money = parse_price(price) if price else None
    if data:
        answer(Question(what or [], data, time, spec, money, out, pilot), picture, as_json)
        return
    if out:
        raise ConfigError("--out is for the model that --data and --time find")
    seconds = parse_duration(time) if time else None
    recipe = with_choices(with_vocabulary(read_recipe(what or [])[0]), batch_size, seconds)
    step = step_of(recipe, spec, style, compiled)
    result = make_plan(
        recipe,
        spec,
        step=step,
        tokens=parse_tokens(tokens) if tokens else None,
        price=money,
        calibration=measured_here(spec, recipe, calibrate) if style == "gptfit" else None,
    )
    phases = verified(result, recipe) if verify else {}
    if as_json:
        print_json(asdict(result) | ({"verification": phases} if verify else {}))
    else:
        print_plan(stdout(), result, next_command(result, recipe, what or [], device, style))
        if verify:
            print_verification(stdout(), phases)
    if picture:
        draw_plan(result, picture)
        stderr().print(f"drew {picture}", soft_wrap=True)


def with_choices(recipe: Recipe, micro_batch_size: int | None, seconds: float | None) -> Recipe:
    """The recipe with this time and micro-batch, its batch rounded up to a multiple of that."""
    if seconds:
        recipe = recipe.override({"train.max_seconds": seconds}, "--time")
    if micro_batch_size is None:
        return recipe
    accumulated = -(-recipe.train.batch_size // micro_batch_size)
    sizes = {
        "train.batch_size": accumulated * micro_batch_size,
        "train.micro_batch_size": micro_batch_size,
    }
    return recipe.override(sizes, BATCH_OPTION)


def step_of(recipe: Recipe, device: DeviceSpec, style: str, compiled: bool) -> TrainingStep:
    """The training step of gptfit, of nanoGPT or of a plain Hugging Face loop on the device."""
    from gptfit.plan.plan import dtype_of
    from gptfit.plan.step import TrainingStep

    if style not in STYLES:
        fix = did_you_mean(style, STYLES) or f"choose one of {', '.join(STYLES)}"
        raise ConfigError(Problem("style", f"style={style!r} is not known", fix))
    if compiled and style == "gptfit":
        fix = "leave --compile out, or plan --style nanogpt or huggingface"
        raise ConfigError(Problem("compile", "gptfit's own step is not compiled", fix))
    dtype, kind = dtype_of(recipe, device), device.torch_kind
    step = TrainingStep.gptfit(recipe, kind, dtype)
    if style != "gptfit":
        theirs = TrainingStep.nanogpt if style == "nanogpt" else TrainingStep.huggingface
        step = replace(
            theirs(recipe.model, recipe.train.micro_batch_size),
            grad_accum_steps=recipe.train.grad_accum_steps,
            device_kind=kind,
            dtype=dtype,
        )
    return replace(step, compiled=compiled)


def measured_here(device: DeviceSpec, recipe: Recipe, again: bool) -> Calibration | None:
    """What was measured of this machine: now, where that is asked for, or at another time."""
    from gptfit.plan.calibration import Fingerprint, load
    from gptfit.plan.plan import dtype_of

    if again:
        from gptfit.train.calibrate import calibrate
        from gptfit.train.device import choose_device

        if not is_here(device):
            message = f"--calibrate measures the device it runs on, and {device.name} is not here"
            raise ConfigError(Problem("calibrate", message, "leave it out"))
        kind = device.torch_kind
        here = choose_device(kind, dtype_of(recipe, device), recipe.model)
        return calibrate(here, lambda line: stderr().print(f"• {line}", soft_wrap=True))
    if device.kind != hardware.CPU or not is_here(device):
        return None
    return load(Fingerprint.of_cpu(dtype_of(recipe, device)))


def verified(result: Plan, recipe: Recipe) -> dict[str, dict[str, float]]:
    """Bytes of each phase by the ledger and by a traced step, and the ledger's relative error."""
    from gptfit.train.verification import verify

    return {
        name: {"ledger_bytes": ours, "traced_bytes": traced, "error": ours / traced - 1}
        for name, (ours, traced) in verify(recipe.model, result.step).phases().items()
    }


def parse_tokens(text: str) -> float:
    """A number of tokens.

    >>> parse_tokens("300M"), parse_tokens("2.5e9"), parse_tokens("10_000")
    (300000000.0, 2500000000.0, 10000.0)
    """
    found = re.fullmatch(r"(\d[\d_,]*(?:\.\d+)?(?:e\d{1,2})?)([kmbgt]?)", text.strip().lower())
    count = float(re.sub("[_,]", "", found[1])) * MULTIPLES[found[2]] if found else 0.0
    if not 0 < count < 1e18:
        fix = "write a positive number, such as 300M or 2.5e9"
        raise ConfigError(Problem("tokens", f"tokens={text!r} is no number of tokens", fix))
    return count


def parse_memory(text: str) -> int:
    """Bytes of an amount of memory.

    >>> parse_memory("8GB"), parse_memory("0.5 GiB")
    (8000000000, 536870912)
    """
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*([KMGT])(i?)B", text.strip(), re.IGNORECASE)
    count = 0.0
    if found:
        count = float(found[1]) * (1024 if found[3] else 1000) ** (
            "KMGT".index(found[2].upper()) + 1
        )
    if count < 1:
        fix = "write an amount with its unit, such as 8GB or 7.5GiB"
        raise ConfigError(Problem("memory", f"memory={text!r} is no amount of memory", fix))
    return int(count)


def parse_price(text: str) -> Price:
    """Money for an hour of one device: ``2.50 USD``, ``USD 2.50``, ``€0.40/h``."""
    from gptfit.plan.plan import Price

    word, number = r"([^\d\s.,/+-]{1,10})", r"(\d{1,9}(?:\.\d{1,9})?)"
    found = re.fullmatch(
        rf"(?:{word}\s*{number}|{number}\s*{word})\s*(?:/\s*h(?:our)?)?", text.strip()
    )
    if not found:
        lacks = "has no currency" if re.fullmatch(number, text.strip()) else "is no price"
        fix = 'write amount and currency of one hour: --price "2.50 USD"'
        raise ConfigError(Problem("price", f"price={text!r} {lacks}", fix))
    return Price(float(found[2] or found[3]), found[1] or found[4])


def require_picture(path: Path) -> None:
    """Refuse what cannot be drawn before anything is computed."""
    if path.suffix.lower() not in PICTURES:
        raise ConfigError(f"{path}: a picture ends in {' or '.join(PICTURES)}")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: the folder {path.parent} does not exist")


def next_command(
    result: Plan, recipe: Recipe, what: list[str], device: str | None, style: str
) -> str:
    """What to run after reading the plan."""
    on = f" --device {shlex.quote(device)}" if device else ""
    on += f" --style {style}" if style != "gptfit" else ""
    again = f"gptfit plan {shlex.join(what)}{on}"
    if result.verdict != "FITS":
        return f"{again}{smaller(result, recipe, style)}"
    if style != "gptfit":
        return f"{again} --verify"
    batch = ""
    if recipe.origins["train.micro_batch_size"] == BATCH_OPTION:
        train = recipe.train
        batch = f" batch_size={train.batch_size} micro_batch_size={train.micro_batch_size}"
    data = "" if recipe.data.text else " --data FILE"
    end = "" if recipe.train.has_end else _end_of(result)
    return f"gptfit train {shlex.join(what)}{batch}{data}{end}"


def _end_of(result: Plan) -> str:
    """A budget for a recipe that has none: the tokens that were planned, or a trial."""
    return f" max_tokens={result.budget.tokens:.0f}" if result.budget else " --time 2m"


def smaller(result: Plan, recipe: Recipe, style: str) -> str:
    """What to add to the command so that it fits: a smaller batch, less held, else fewer layers."""
    if largest := largest_accumulated(result, recipe, result.step):
        return f" --batch-size {largest}"
    if style == "gptfit":
        thrifty = {"run.loss_chunks": 8, "run.checkpointed_blocks": recipe.model.n_layer}
        step = step_of(recipe.override(thrifty), result.device, style, result.step.compiled)
        if largest := largest_accumulated(result, recipe, step):
            words = " ".join(f"{key.partition('.')[2]}={value}" for key, value in thrifty.items())
            return f" {words} --batch-size {largest}"
    return f" n_layer={max(1, recipe.model.n_layer // 2)}"


def largest_accumulated(result: Plan, recipe: Recipe, step: TrainingStep) -> int:
    """The largest micro-batch that fits when it is only a part of the batch: gradients stay."""
    from gptfit.plan.memory import largest_micro_batch

    parts = replace(step, grad_accum_steps=max(2, step.grad_accum_steps))
    return largest_micro_batch(recipe.model, parts, result.usable_bytes, result.device)
