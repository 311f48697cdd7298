"""The verbs that make a model: fit, train, prepare."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptfit.cli.console import print_json, stderr, stdout, table
from gptfit.cli.overrides import SETTINGS, parse_duration, split_overrides
from gptfit.config import DataConfig, Recipe
from gptfit.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gptfit.data import TextSource, TokenDataset
    from gptfit.plan.lint import Finding
    from gptfit.train.forecast import Figures, Fitted
    from gptfit.train.loop import Outcome, Trainer

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Out = Annotated[Path | None, typer.Option(help="The run folder. [default: runs/NAME]")]


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    app.command("fit", context_settings=SETTINGS)(fit)
    app.command("train", context_settings=SETTINGS)(train)
    app.command("prepare", context_settings=SETTINGS)(prepare)


def fit(
    text: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TEXT]... [KEY=VALUE]...",
            help="Files, folders, globs or - for stdin. Without any: the Python language reference.",
        ),
    ] = None,
    time: Annotated[str, typer.Option(help="How long to train: 90s, 2m, 1h30m.")] = "2m",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Choose tokenizer and model for a text, this machine and a time; train; show the result."""
    from gptfit.cli.linting import heed
    from gptfit.train.fit import fit as choose

    paths, overrides = split_overrides(text or [])
    seconds = parse_duration(time)
    source = open_text(paths, Recipe.resolve(overrides=overrides).data)
    console = stderr()
    fitted = choose(
        out or free_folder(source.name),
        source,
        seconds,
        overrides,
        lambda reason: console.print(f"• {reason}", soft_wrap=True),
        lambda recipe, dataset: _warn_of_wishes(heed(recipe, dataset), recipe),
    )
    run_to_end(fitted.trainer, as_json, fitted)


def _warn_of_wishes(warnings: Sequence[Finding], recipe: Recipe) -> None:
    """Of what the user has set; what fit chose, it has measured."""
    from gptfit.cli.linting import print_warnings

    wishes = {key for key, origin in recipe.origins.items() if origin == "command line"}
    print_warnings([one for one in warnings if wishes & {one.field, f"model.{one.field}"}])


def train(
    recipe: Annotated[
        list[str] | None,
        typer.Argument(metavar="RECIPE [KEY=VALUE]...", help="A preset or a recipe file."),
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Text, or a folder made by prepare (or nanoGPT).")
    ] = None,
    out: Out = None,
    resume: Annotated[Path | None, typer.Option(help="Continue this run instead.")] = None,
    time: Annotated[
        str | None,
        typer.Option(help="End after this time (90s, 2m, 1h30m); with --resume, this much more."),
    ] = None,
    ignore: Annotated[
        str, typer.Option(metavar="CODES", help="Leave these rules of gptfit lint out: D03,R01.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Train a model from scratch by a recipe, or take up a run where it stopped."""
    from gptfit.cli.configs import read_recipe
    from gptfit.cli.linting import heed, print_warnings
    from gptfit.train import run as runs
    from gptfit.train.loop import require_end

    seconds = parse_duration(time) if time else None
    if resume is not None:
        paths, overrides = split_overrides(recipe or [])
        if paths or data or out:
            raise ConfigError(f"--resume {resume} brings its own recipe, data and folder")
        run_to_end(runs.resume(resume, overrides, seconds), as_json)
        return
    wanted, _ = read_recipe(recipe or [])
    if seconds:
        wanted = wanted.override({"train.max_seconds": seconds})
    require_end(wanted.train)
    if data:
        wanted = wanted.override({"data.text": data})
    if runs.is_prepared(wanted.data.text):  # resuming opens it again, from wherever that is called
        wanted = wanted.override({"data.text": [str(Path(wanted.data.text[0]).resolve())]})
    run = out or free_folder(wanted.name or "run")
    with runs.new_run(run):
        dataset = _dataset(run, wanted)
        kind = {"data.tokenizer": dataset.tokenizer.kind}
        if runs.is_prepared(wanted.data.text) and dataset.tokenizer.kind != "file":
            wanted = wanted.override(kind, "the prepared data")
        warnings = heed(runs.with_vocabulary(wanted, dataset.tokenizer), dataset, ignore)
        trainer = runs.start(run, wanted, dataset)
    print_warnings(warnings)
    run_to_end(trainer, as_json)


def _dataset(run: Path, recipe: Recipe) -> TokenDataset:
    """The prepared folder that the recipe names, or its text, prepared into the run."""
    from gptfit.data import TokenDataset
    from gptfit.train.run import is_prepared, prepare_data

    if not is_prepared(recipe.data.text):
        source = open_text([], recipe.data)
        stderr().print(f"text: {source.description}, {source.total_bytes:,} bytes", soft_wrap=True)
        return prepare_data(run, recipe.data, source)
    fixed = [f"data.{name}" for name in ("tokenizer", "bpe_vocab_size", "val_fraction")]
    if asked := [name for name in fixed if recipe.origins[name] == "command line"]:
        raise ConfigError(
            f"{recipe.data.text[0]} is prepared already, so {', '.join(asked)} cannot change; "
            "leave it out, or give the text itself"
        )
    dataset = TokenDataset.open(Path(recipe.data.text[0]))
    for note in dataset.notes:
        stderr().print(f"note: {note}", soft_wrap=True)
    return dataset


def prepare(
    text: Annotated[
        list[str],
        typer.Argument(
            metavar="TEXT... [KEY=VALUE]...", help="Files, folders, globs or - for stdin."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder for tokens and tokenizer.")],
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="auto, char, bpe, gpt2, a tokenizer.json, or a folder with GPT-2's vocabulary files."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn text into token files, which train takes by --data (and nanoGPT too)."""
    from gptfit.data import make_tokenizer
    from gptfit.data import prepare as prepare_tokens

    paths, overrides = split_overrides(text)
    overrides += [f"data.tokenizer={tokenizer}"] if tokenizer else []
    recipe = Recipe.resolve(overrides=overrides)
    given = {key for key, origin in recipe.origins.items() if origin == "command line"}
    if others := sorted(key for key in given if not key.startswith("data.")):
        raise ConfigError(f"prepare makes tokens; {', '.join(others)} has no effect on them")
    data = recipe.data
    source = open_text(paths, data)
    with stderr().status("tokenizing"):
        made = make_tokenizer(data.tokenizer, data.bpe_vocab_size, source, data.val_fraction)
        dataset = prepare_tokens(source, made, out, data.val_fraction)
    if as_json:
        print_json(_dataset_values(dataset))
        return
    stdout().print(
        f"{out}: {dataset.train.size:,} training and {dataset.val.size:,} validation tokens, "
        f"vocabulary {dataset.tokenizer.vocab_size:,} ({dataset.tokenizer.kind})\n{dataset.split}",
        soft_wrap=True,
    )


def _dataset_values(dataset: TokenDataset) -> dict[str, Any]:
    return {
        "folder": str(dataset.folder),
        "train_tokens": int(dataset.train.size),
        "val_tokens": int(dataset.val.size),
        "vocab_size": dataset.tokenizer.vocab_size,
        "tokenizer": dataset.tokenizer.kind,
        "split": dataset.split,
    }


def open_text(paths: list[str], data: DataConfig) -> TextSource:
    """The text that the command line or the recipe names; without either, the embedded corpus."""
    from gptfit.data import TextSource

    if paths and data.text:
        raise ConfigError(f"the text is named twice: {paths[0]} and text={data.text[0]}")
    names = paths or list(data.text)
    return TextSource.from_paths(names, data.json_field) if names else TextSource.embedded()


def free_folder(name: str) -> Path:
    """``runs/NAME``, or with the first free number behind it."""
    base = Path("runs") / name
    number = 1
    while (folder := base if number == 1 else base.with_name(f"{name}-{number}")).exists():
        number += 1
    return folder


def run_to_end(trainer: Trainer, as_json: bool, fitted: Fitted | None = None) -> None:
    """Train with a progress line, draw the curve, hold a forecast to account, say what to do next."""
    from gptfit.cli.progress import ProgressView
    from gptfit.train.interrupt import Interrupt
    from gptfit.train.picture import draw_loss

    console, run = stderr(), trainer.run_folder
    with Interrupt() as interrupt, ProgressView(console) as view:
        outcome = trainer.run(view, interrupt)
    came = fitted.came(outcome) if fitted and not outcome.interrupted else None
    if as_json:
        compared = (
            {"forecast": asdict(fitted.forecast), "came": asdict(came)} if fitted and came else {}
        )
        print_json(_outcome_values(trainer, outcome) | compared)
    else:
        _print_summary(trainer, outcome)
        if fitted and came:
            _print_comparison(fitted.forecast, came)
    try:
        draw_loss(run, run / "loss.png")
    except OSError as error:
        console.print(
            f"warning: {run}/loss.png cannot be written ({error.strerror})", style="yellow"
        )
    if outcome.interrupted:
        if as_json:
            console.print(f"resume: {_resume_command(trainer, outcome)}", soft_wrap=True)
        raise typer.Exit(130)


def _outcome_values(trainer: Trainer, outcome: Outcome) -> dict[str, Any]:
    bits = trainer.bits_per_byte(outcome.best) if outcome.best else None
    run = {"run": str(trainer.run_folder), "interrupted": outcome.interrupted}
    return run | asdict(outcome) | {"bits_per_byte": bits}


def _print_summary(trainer: Trainer, outcome: Outcome) -> None:
    from gptfit.cli.progress import clock

    run, out = trainer.run_folder, stdout()
    verb = "stopped and saved" if outcome.interrupted else "done"
    out.print(f"\n{verb} after {outcome.step:,} steps in {clock(outcome.elapsed_seconds)}")
    if outcome.best:
        bits = trainer.bits_per_byte(outcome.best)
        out.print(
            f"best model (step {outcome.best_step:,}): {outcome.best.loss:.4f} nats/token"
            + (f", {bits:.3f} bits/byte" if bits else "")
            + f" over the whole validation split of {outcome.best.tokens:,} tokens",
            style="bold",
            soft_wrap=True,
        )
    model = "best" if outcome.best_step is not None else "last"
    lines = [
        ("model", f"{run}/checkpoints/{model}"),
        ("curve", f"{run}/loss.png"),
        ("resume" if outcome.interrupted else "longer", _resume_command(trainer, outcome)),
        ("sample", f"gptfit generate {shlex.quote(str(run))}"),
        ("load", f'AutoModelForCausalLM.from_pretrained("{run}/checkpoints/{model}")'),
    ]
    for name, text in lines:
        out.print(f"  {name:<8}{text}", soft_wrap=True)


def _print_comparison(forecast: Figures, came: Figures) -> None:
    """What fit predicted and what came of it."""
    rows = [
        ("bits/byte", forecast.bits_per_byte, came.bits_per_byte, "{:.3f}"),
        ("tokens/s", forecast.tokens_per_second, came.tokens_per_second, "{:,.0f}"),
        ("seconds", forecast.seconds, came.seconds, "{:,.0f}"),
        ("MiB of memory", forecast.memory_bytes / 2**20, came.memory_bytes / 2**20, "{:,.0f}"),
    ]
    result = table("", "predicted", "came", "ratio", right=("predicted", "came", "ratio"))
    for name, predicted, value, form in rows:
        if predicted and value:
            ratio = f"{value / predicted:.2f}"
            result.add_row(f"  {name}", form.format(predicted), form.format(value), ratio)
    stdout().print(result)


def _resume_command(trainer: Trainer, outcome: Outcome) -> str:
    """How to go on: to the end after an interrupt, else for as long again."""
    words = ["gptfit", "train", "--resume", str(trainer.run_folder)]
    train = trainer.recipe.train
    if not outcome.interrupted:
        if train.max_seconds is not None:
            words += ["--time", f"{max(1, round(outcome.elapsed_seconds))}s"]
        budgets = {"max_steps": train.max_steps, "max_tokens": train.max_tokens}
        words += [f"{name}={2 * value}" for name, value in budgets.items() if value is not None]
    return shlex.join(words)
