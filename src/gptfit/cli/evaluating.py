"""The verb that measures models on a text: eval."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptfit.cli.console import print_json, stderr, stdout, table
from gptfit.cli.generating import load
from gptfit.config import RunConfig
from gptfit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from gptfit.data import TextSource, TokenDataset, Tokenizer
    from gptfit.generate.held_out import HeldOut
    from gptfit.model import GPT2

PLAIN_INTERVAL_SECONDS = 5.0


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    app.command("eval")(evaluate)


@dataclass(frozen=True)
class Request:
    """What is asked of each model."""

    stride: int | None
    max_tokens: int | None
    truncate: bool
    device: str
    dtype: str
    weights: str


@dataclass(frozen=True)
class Score:
    """``loss`` in nats per token, over ``tokens`` of ``of_tokens`` scored; they spell ``bytes``."""

    model: str
    loss: float
    perplexity: float
    bits_per_byte: float | None
    tokens: int
    of_tokens: int
    bytes: int | None
    context: int
    stride: int
    dtype: str
    weights: str

    @property
    def label(self) -> str:
        """The model, and its weights where they are not its own."""
        return self.model if self.weights == "float32" else f"{self.model} ({self.weights})"


def evaluate(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL", help="Runs, checkpoint folders, or hub ids.")
    ],
    data: Annotated[
        str,
        typer.Option(
            help="UTF-8 text (a file, a folder, or - for stdin), or a folder of tokens made by "
            "prepare, of which the validation split counts."
        ),
    ],
    stride: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="How far the window moves, 1 to the context. Of each window the last N tokens are "
            "scored, so each has context - N tokens or more before it: small is exact and slow. By "
            "default half the context: twice the work of windows that do not overlap, and no "
            "token past the first window is judged on less than half of what the model can see.",
        ),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Score the first N tokens only.")
    ] = None,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Score the first context window only.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    weights: Annotated[
        str,
        typer.Option(
            metavar="NAME,...", help="float32, float16 or int8; several are scored one by one."
        ),
    ] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score models on a text: nats per token, perplexity, bits per byte.

    A window slides over the text and scores every token but the first exactly once. The bits of the
    scored tokens are divided by the bytes that these tokens spell.
    """
    if truncate and (stride or max_tokens):
        raise ConfigError("--truncate scores one window only; leave out --stride and --max-tokens")
    settings = RunConfig(device=device, dtype=dtype)
    request = Request(stride, max_tokens, truncate, settings.device, settings.dtype, "")
    opened = _open(data)
    scores: list[Score] = []
    try:
        for name, kind in product(models, weights.split(",")):
            scores.append(_score(name, opened, replace(request, weights=kind)))
    finally:  # hours may have gone into what is known when a later model fails
        if scores:
            _show(sorted(scores, key=_order), data, as_json)


def _open(data: str) -> TextSource | TokenDataset:
    from gptfit.data import TextSource, TokenDataset
    from gptfit.train.run import is_prepared

    if not is_prepared([data]):
        text = TextSource.from_paths([data])
        _ = text.summary  # reads it all: what is no text is told before a model is loaded
        return text
    dataset = TokenDataset.open(data)
    for note in dataset.notes:
        stderr().print(f"note: {note}", soft_wrap=True)
    return dataset


def _score(name: str, data: TextSource | TokenDataset, request: Request) -> Score:
    from gptfit.generate import evaluate_sliding
    from gptfit.generate.sliding import half_the_context
    from gptfit.train.device import choose_device

    network, tokenizer = _load(name, request)
    where = choose_device(network.wpe.weight.device.type, request.dtype, network.config)
    context = network.config.n_positions
    stride = request.stride or half_the_context(context)
    if stride > context:
        raise ConfigError(
            f"--stride {stride} would leave tokens out: the context of {name} is {context}; choose "
            f"1 to {context}"
        )
    limit = context if request.truncate else request.max_tokens
    try:
        text = _read(data, tokenizer)
        of_tokens = len(text.tokens) - 1
        with _progress(name, min(of_tokens, limit or of_tokens)) as tell:
            found = evaluate_sliding(network, text.tokens, stride, limit, where.autocast(), tell)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    size = text.bytes_of_targets(found.tokens)
    return Score(
        model=name,
        loss=found.loss,
        perplexity=found.perplexity,
        bits_per_byte=found.bits_per_byte(found.tokens / size) if size else None,
        tokens=found.tokens,
        of_tokens=of_tokens,
        bytes=size,
        context=context,
        stride=stride,
        dtype=where.dtype_name,
        weights=request.weights,
    )


def _load(name: str, request: Request) -> tuple[GPT2, Tokenizer]:
    try:
        return load(name, request.device, request.weights)
    except DataError as error:
        raise DataError(
            f"{name} has no tokenizer that can be used, so it cannot read the data: {error}"
        ) from None


def _read(data: TextSource | TokenDataset, tokenizer: Tokenizer) -> HeldOut:
    from gptfit.data import TextSource
    from gptfit.generate.held_out import HeldOut

    if not isinstance(data, TextSource):
        return HeldOut.of_dataset(data, tokenizer)
    with stderr().status("tokenizing"):
        return HeldOut.of_text(data, tokenizer)


@contextmanager
def _progress(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Takes how many tokens have been scored; a bar on a terminal, now and then a line elsewhere."""
    if not sys.stderr.isatty():
        yield _lines(name, total)
        return
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr(), transient=True) as bar:
        task = bar.add_task(name, total=total)
        yield lambda scored: bar.update(task, completed=scored)


def _lines(name: str, total: int) -> Callable[[int], None]:
    from gptfit.cli.progress import clock

    start = printed = time.monotonic()

    def tell(scored: int) -> None:
        nonlocal printed
        now = time.monotonic()
        if now - printed >= PLAIN_INTERVAL_SECONDS and scored < total:
            printed = now
            left = clock((now - start) * (total - scored) / scored)
            text = f"{name}: {scored:,} of {total:,} tokens scored, {left} left"
            stderr().print(text, soft_wrap=True)

    return tell


def _order(score: Score) -> float:
    return math.inf if score.bits_per_byte is None else score.bits_per_byte


def _show(scores: list[Score], data: str, as_json: bool) -> None:
    """The scores, of which the best come first."""
    best = scores[0].model if scores[0].bits_per_byte is not None else None
    if as_json:
        print_json({"data": data, "best": best, "models": [_values(score) for score in scores]})
    else:
        _print_table(scores)
    for note in dict.fromkeys(_notes(scores)):
        stderr().print(f"note: {note}", soft_wrap=True)


def _values(score: Score) -> dict[str, Any]:
    finite = score.perplexity if math.isfinite(score.perplexity) else None
    return asdict(score) | {"perplexity": finite}


def _print_table(scores: list[Score]) -> None:
    numbers = ("bits/byte", "nats/token", "perplexity", "tokens")
    rows = table("model", *numbers, "", right=numbers)
    rows.columns[0].overflow = "fold"  # long paths differ at their ends
    for score in scores:
        bits = score.bits_per_byte
        is_best = len(scores) > 1 and bits is not None and bits == scores[0].bits_per_byte
        rows.add_row(
            score.label,
            "-" if bits is None else f"{bits:.4f}",
            f"{score.loss:.4f}",
            f"{score.perplexity:,.2f}" if score.perplexity < 1e6 else f"{score.perplexity:.2e}",
            f"{score.tokens:,}",
            "best" if is_best else "",
            style="bold" if is_best else "",
        )
    out = stdout()
    out.print(rows)
    windows = dict.fromkeys(f"{score.context:,}, stride {score.stride:,}" for score in scores)
    out.print(
        f"windows of {' and of '.join(windows)}: each token but the first once", soft_wrap=True
    )
    if len(scores) > 1:
        out.print(
            "sorted by bits per byte, which compares models of different tokenizers; nats per token "
            "and perplexity compare models of the same tokenizer only",
            soft_wrap=True,
        )


def _notes(scores: list[Score]) -> Iterator[str]:
    for score in scores:
        if left := score.of_tokens - score.tokens:
            yield f"{score.model}: the last {left:,} of {score.of_tokens:,} tokens were left out"
        if score.bytes is None:
            yield (
                f"{score.model}: bits per byte are not known, for its tokenizer does not give the "
                "text back byte by byte"
            )
    full = {score.model: score.loss for score in scores if score.weights == "float32"}
    for score in scores:
        if score.weights != "float32" and score.model in full:
            more = score.loss / full[score.model] - 1
            yield f"{score.label}: the loss is {more:+.3%} off that with float32 weights"
    limited = any(score.tokens < score.of_tokens for score in scores)
    if limited and len({score.bytes for score in scores}) > 1:
        yield "the models were scored on different lengths of the text; compare with care"
