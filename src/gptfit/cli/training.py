"""The verbs that make a model: fit, train, prepare."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptfit.cli.console import print_json, stderr, stdout, warn
from gptfit.cli.outcome import run_to_end
from gptfit.cli.overrides import SETTINGS, parse_duration, split_overrides
from gptfit.config import DataConfig, Recipe
from gptfit.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gptfit.data import TextSource, TokenDataset
    from gptfit.plan.lint import Finding
    from gptfit.train.loop import Trainer
    from gptfit.train.starting_point import StartingPoint
    from gptfit.train.world import World

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
AUTO = "auto"
TOKENIZER_FIELDS = ("data.tokenizer", "data.bpe_vocab_size")
Out = Annotated[Path | None, typer.Option(help="The run folder.", show_default="runs/NAME")]


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
    from gptfit.train.sinks import require_sinks
    from gptfit.train.world import is_alone

    if not is_alone():
        raise ConfigError("fit measures and searches in one process; torchrun is for train")
    paths, overrides = split_overrides(text or [])
    seconds = parse_duration(time)
    wanted = Recipe.resolve(overrides=overrides)
    require_sinks(wanted.run.track)
    source = open_text(paths, wanted.data)
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
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN|CHECKPOINT|auto",
            help="Continue this run, from its newest checkpoint or the one that is named. With auto: "
            "the run --out, by the given recipe, from its newest sound checkpoint or from the start.",
        ),
    ] = None,
    init_from: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Start from the weights of a run, folder or hub model."),
    ] = None,
    new_data: Annotated[
        bool, typer.Option("--new-data", help="Let the resumed run go on with other data.")
    ] = False,
    time: Annotated[
        str | None,
        typer.Option(
            help="End after this time (90s, 2m, 1h30m); with --resume RUN, this much more."
        ),
    ] = None,
    ignore: Annotated[
        str, typer.Option(metavar="CODES", help="Leave these rules of gptfit lint out: D03,R01.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Train a model by a recipe, from scratch or from weights, or take up a run where it stopped."""
    from gptfit.train import run as runs
    from gptfit.train.recovery import has_checkpoint
    from gptfit.train.sinks import require_sinks
    from gptfit.train.world import join

    seconds = parse_duration(time) if time else None
    if resume not in (None, AUTO):
        paths, overrides = split_overrides(recipe or [])
        if paths or out or init_from or (data and not new_data):
            raise ConfigError(
                f"--resume {resume} brings its own recipe, data and folder; for other data, add "
                "--new-data"
            )
        overrides += [f"data.text={_tokens(data)}"] if data else []
        with join() as world:
            trainer = runs.resume(Path(resume), overrides, seconds, world, new_data, warn)
            run_to_end(trainer, as_json)
        return
    if resume == AUTO and out is None:
        raise ConfigError("--resume auto needs --out RUN, the same folder each time")
    if new_data and resume is None:
        raise ConfigError("--new-data is for a run that is resumed")
    wanted = _wanted(recipe or [], data, init_from, seconds)
    require_sinks(wanted.run.track)
    with join() as world:
        world.micro_batch_size(wanted.train)
        run = world.of_main(lambda: out or free_folder(wanted.name or "run"))
        if resume == AUTO and world.of_main(lambda: has_checkpoint(run)):
            try:
                trainer = runs.resume_newest(run, wanted, world, new_data, warn)
            except runs.SpentError as done:
                stderr().print(str(done), soft_wrap=True)
                if as_json:
                    print_json({"run": str(run), "spent": True})
                return
        else:
            if resume == AUTO:
                stderr().print(f"{run} holds no checkpoint: it starts afresh", soft_wrap=True)
            trainer = _start(run, wanted, ignore, world)
        run_to_end(trainer, as_json)


def _wanted(
    words: list[str], data: list[str] | None, init_from: str | None, seconds: float | None
) -> Recipe:
    """The recipe that the command line asks for."""
    from gptfit.cli.configs import read_recipe
    from gptfit.train.budget import require_end
    from gptfit.train.run import is_prepared

    wanted, _ = read_recipe(words)
    if seconds:
        wanted = wanted.override({"train.max_seconds": seconds})
    require_end(wanted.train)
    if init_from:
        wanted = wanted.override({"run.init_from": init_from})
    if data:
        wanted = wanted.override({"data.text": data})
    if is_prepared(wanted.data.text):  # resuming opens it again, from wherever that is called
        wanted = wanted.override({"data.text": [str(Path(wanted.data.text[0]).resolve())]})
    return wanted


def _tokens(data: list[str]) -> str:
    """The folder of tokens that --data names; a run that goes on has its tokenizer already."""
    from gptfit.train.run import is_prepared

    if not is_prepared(data):
        raise ConfigError(
            f"--new-data takes a folder of tokens, which {' '.join(data)} is not; make one with the "
            "run's own tokenizer: gptfit prepare TEXT --out FOLDER --tokenizer RUN/data"
        )
    return str(Path(data[0]).resolve())


def _start(run: Path, wanted: Recipe, ignore: str, world: World) -> Trainer:
    """A new run; the main process makes its folder and its tokens, and warns."""
    from gptfit.cli.linting import heed, print_warnings
    from gptfit.train import run as runs

    origin = world.main_first(*[lambda: runs.starting_point(wanted)] * 2)
    with runs.new_run(run) if world.is_main else nullcontext():
        dataset = world.main_first(
            lambda: _dataset(run, wanted, origin), lambda: runs.open_dataset(run, wanted.data)
        )
        kind = {"data.tokenizer": dataset.tokenizer.kind}
        if (origin or runs.is_prepared(wanted.data.text)) and dataset.tokenizer.kind != "file":
            wanted = wanted.override(kind, "the weights" if origin else "the prepared data")
        known = runs.settled(wanted, dataset, origin)
        warnings = heed(known, dataset, ignore, world.size)
        trainer = runs.start(run, wanted, dataset, world)
    print_warnings(warnings)
    return trainer


def _dataset(run: Path, recipe: Recipe, origin: StartingPoint | None) -> TokenDataset:
    """The prepared folder that the recipe names, or its text, prepared into the run."""
    from gptfit.data import TokenDataset
    from gptfit.train.run import is_prepared, prepare_data

    if not is_prepared(recipe.data.text):
        if origin is not None:
            _require_unasked(recipe, f"{origin.name} has its tokenizer", TOKENIZER_FIELDS)
        source = open_text([], recipe.data)
        stderr().print(f"text: {source.description}, {source.total_bytes:,} bytes", soft_wrap=True)
        tokenizer = origin.tokenizer if origin else None
        return prepare_data(run, recipe.data, source, tokenizer=tokenizer)
    prepared = f"{recipe.data.text[0]} is prepared already"
    _require_unasked(recipe, prepared, (*TOKENIZER_FIELDS, "data.val_fraction"))
    dataset = TokenDataset.open(Path(recipe.data.text[0]))
    for note in dataset.notes:
        stderr().print(f"note: {note}", soft_wrap=True)
    return dataset


def _require_unasked(recipe: Recipe, reason: str, fields: tuple[str, ...]) -> None:
    if asked := [name for name in fields if recipe.origins[name] == "command line"]:
        raise ConfigError(
            f"{reason}, so {', '.join(asked)} cannot change; leave it out, or give the text itself"
        )


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
