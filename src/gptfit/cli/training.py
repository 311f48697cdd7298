"""The verbs that make a model: fit, train, prepare."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptfit.cli.console import print_json, stderr, stdout
from gptfit.cli.overrides import SETTINGS, parse_duration, split_overrides
from gptfit.errors import ConfigError

if TYPE_CHECKING:
    from gptfit.config import Recipe
    from gptfit.data import TextSource, TokenDataset
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
    from gptfit.train.fit import fit as choose_and_start

    paths, overrides = split_overrides(text or [])
    seconds = parse_duration(time)
    source = open_text(paths)
    console = stderr()
    trainer = choose_and_start(
        out or free_folder(source.name),
        source,
        seconds,
        overrides,
        lambda reason: console.print(f"• {reason}", soft_wrap=True, markup=False),
    )
    run_to_end(trainer, as_json)


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
    time: Annotated[str | None, typer.Option(help="End after this time: 90s, 2m, 1h30m.")] = None,
    as_json: Json = False,
) -> None:
    """Train a model from scratch by a recipe, or take up a run where it stopped."""
    from gptfit.cli.configs import read_recipe
    from gptfit.train import run as runs

    arguments = [*(recipe or []), *([f"max_seconds={parse_duration(time)}"] if time else [])]
    if resume is not None:
        paths, overrides = split_overrides(arguments)
        if paths or data or out:
            raise ConfigError(f"--resume {resume} brings its own recipe, data and folder")
        run_to_end(runs.resume(resume, overrides), as_json)
        return
    wanted, _ = read_recipe(arguments)
    texts = tuple(data) if data else wanted.data.text
    if is_prepared(texts):  # resuming opens it again, from wherever that is called
        texts = (str(Path(texts[0]).resolve()),)
    run = out or free_folder(wanted.name or "run")
    _print_warnings(wanted)
    with runs.new_run(run):
        dataset = _dataset(run, texts, wanted)
        trainer = runs.start(run, wanted.override({"data.text": texts}), dataset)
    run_to_end(trainer, as_json)


def _dataset(run: Path, texts: tuple[str, ...], recipe: Recipe) -> TokenDataset:
    """The prepared folder that ``texts`` names, or the text itself, prepared into the run."""
    from gptfit.data import TokenDataset
    from gptfit.train.run import prepare_data

    if is_prepared(texts):
        dataset = TokenDataset.open(Path(texts[0]))
        for note in dataset.notes:
            stderr().print(f"note: {note}", soft_wrap=True, markup=False)
        return dataset
    source = open_text(list(texts), recipe.data.json_field)
    stderr().print(f"text: {source.description}, {source.total_bytes:,} bytes", soft_wrap=True)
    return prepare_data(run, recipe.data, source)


def _print_warnings(recipe: Recipe) -> None:
    from gptfit.plan.lint import WARNING, lint

    for finding in lint(recipe):
        if finding.severity == WARNING:
            text = f"[yellow]warning[/] {finding.field}: {finding.message}; {finding.fix}"
            stderr().print(text, soft_wrap=True)


def prepare(
    text: Annotated[
        list[str],
        typer.Argument(
            metavar="TEXT... [KEY=VALUE]...", help="Files, folders, globs or - for stdin."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder for tokens and tokenizer.")],
    tokenizer: Annotated[
        str, typer.Option(help="auto, char, bpe, gpt2, or the path of a tokenizer.json.")
    ] = "auto",
    as_json: Json = False,
) -> None:
    """Turn text into token files, which train takes by --data (and nanoGPT too)."""
    from gptfit.config import Recipe
    from gptfit.data import make_tokenizer
    from gptfit.data import prepare as prepare_tokens

    paths, overrides = split_overrides(text)
    data = Recipe.resolve(overrides=[f"data.tokenizer={tokenizer}", *overrides]).data
    source = open_text(paths, data.json_field)
    with stderr().status("tokenizing"):
        made = make_tokenizer(data.tokenizer, data.bpe_vocab_size, source)
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


def open_text(paths: list[str], json_field: str = "text") -> TextSource:
    """The text that the command line names; the embedded corpus when it names none."""
    from gptfit.data import TextSource

    return TextSource.from_paths(paths, json_field) if paths else TextSource.embedded()


def is_prepared(texts: tuple[str, ...]) -> bool:
    """Whether ``--data`` names a folder of token files rather than text."""
    return len(texts) == 1 and (Path(texts[0]) / "train.bin").is_file()


def free_folder(name: str) -> Path:
    """``runs/NAME``, or with the first free number behind it."""
    base = Path("runs") / name
    number = 1
    while (folder := base if number == 1 else base.with_name(f"{name}-{number}")).exists():
        number += 1
    return folder


def run_to_end(trainer: Trainer, as_json: bool) -> None:
    """Train with a progress line, draw the curve, and say what to do next."""
    from gptfit.cli.progress import ProgressView
    from gptfit.train.interrupt import Interrupt
    from gptfit.train.picture import draw_loss

    console, run = stderr(), trainer.run_folder
    with Interrupt() as interrupt, ProgressView(console) as view:
        outcome = trainer.run(view, interrupt)
    draw_loss(run, run / "loss.png")
    if as_json:
        bits = trainer.bits_per_byte(outcome.best)
        print_json({"run": str(run), **asdict(outcome), "bits_per_byte": bits})
    else:
        _print_summary(trainer, outcome)
    if outcome.interrupted:
        raise typer.Exit(130)


def _print_summary(trainer: Trainer, outcome: Outcome) -> None:
    from gptfit.cli.progress import clock

    run, out = trainer.run_folder, stdout()
    verb = "stopped" if outcome.interrupted else "done"
    out.print(f"\n[bold]{verb}[/] after {outcome.step:,} steps in {clock(outcome.elapsed_seconds)}")
    if not outcome.interrupted:
        bits = trainer.bits_per_byte(outcome.best)
        out.print(
            f"best model (step {outcome.best_step:,}): [bold]{outcome.best.loss:.4f}[/] nats/token"
            + (f", {bits:.3f} bits/byte" if bits else "")
            + f" over the whole validation split of {outcome.best.tokens:,} tokens",
            soft_wrap=True,
        )
    lines = [
        ("model", f"{run}/checkpoints/best"),
        ("curve", f"{run}/loss.png"),
        ("resume" if outcome.interrupted else "longer", _resume_command(trainer, outcome)),
        ("sample", f"gptfit generate {run}"),
        ("load", f'AutoModelForCausalLM.from_pretrained("{run}/checkpoints/best")'),
    ]
    for name, text in lines:
        out.print(f"  {name:<8}{text}", soft_wrap=True, markup=False)


def _resume_command(trainer: Trainer, outcome: Outcome) -> str:
    command = f"gptfit train --resume {trainer.run_folder}"
    if outcome.interrupted:
        return command
    train = trainer.recipe.train
    if train.max_seconds is not None:
        return f"{command} --time {round(2 * train.max_seconds)}s"
    if train.max_steps is not None:
        return f"{command} max_steps={2 * train.max_steps}"
    return f"{command} max_tokens={2 * (train.max_tokens or 0)}"
