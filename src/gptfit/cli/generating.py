"""The verb that writes text: generate."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptfit.cli.console import print_json, stderr
from gptfit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from gptfit.data import Tokenizer
    from gptfit.generate import SamplingOptions
    from gptfit.generate.text import Writer
    from gptfit.model import GPT2

FLOAT_HELP = "auto, float32, float16 or int8; auto takes float16 for a large model on a CPU."


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    app.command("generate")(generate)


def generate(
    model: Annotated[str, typer.Argument(help="A run, a checkpoint folder, or a hub id.")],
    prompt: Annotated[
        str | None, typer.Option(help="The text to continue; - reads it from stdin.")
    ] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="Read the prompt from a file.")] = None,
    ids: Annotated[
        str | None, typer.Option(help="Continue token ids, such as 15496,11, and print ids.")
    ] = None,
    interactive: Annotated[
        bool,
        typer.Option("--interactive", "-i", help="Keep a session: it goes on where you write."),
    ] = False,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", min=1)] = 200,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Only the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Only the likeliest tokens up to p.")] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Only tokens at least p times as likely as the likeliest.")
    ] = None,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1, tokens that occurred become less likely.")
    ] = 1.0,
    logit_bias: Annotated[
        list[str] | None, typer.Option(help="ID=BIAS; -100 forbids a token, 100 forces it.")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text; may be given several times.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Sample i draws from seed + i.")] = 0,
    samples: Annotated[int, typer.Option(min=1, max=256, help="How many texts.")] = 1,
    truncate: Annotated[
        str,
        typer.Option(help="Which end of a prompt beyond the context goes: left, right or error."),
    ] = "left",
    lookup: Annotated[
        int,
        typer.Option(
            min=0, max=64, help="Try up to N tokens at once that the text has had before."
        ),
    ] = 0,
    weights: Annotated[str, typer.Option(help=FLOAT_HELP)] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Continue a prompt with a trained model.

    Past the context window, the later half of it is kept and read again.
    """
    from gptfit.generate import SamplingOptions
    from gptfit.generate.text import Writer, encode_prompt, truncated

    options = SamplingOptions(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        logit_bias=read_bias(logit_bias or []),
        seed=seed,
    )
    text = read_prompt(prompt, prompt_file)
    began = time.monotonic()
    if ids is not None:
        if text or interactive or stop:
            raise ConfigError("--ids takes no text: no --prompt, --interactive or --stop")
        network = load_network(model, device, weights)
        fitting = truncated(read_ids(ids), network.config.n_positions, truncate)
        _print_ids(model, network, fitting, max_new_tokens, options, samples, lookup, as_json)
        return
    network, tokenizer = load(model, device, weights)
    loaded = time.monotonic()
    if interactive:
        if as_json or samples > 1:
            raise ConfigError("--interactive writes one text for a reader: no --json or --samples")
        writer = Writer(network, tokenizer, lookup=lookup)
        Session(writer, options, max_new_tokens, stop or []).run(text)
        return
    whole = encode_prompt(tokenizer, text)
    prompt_ids = truncated(whole, network.config.n_positions, truncate)
    capacity = len(prompt_ids) + max_new_tokens
    writer = Writer(network, tokenizer, samples, capacity=capacity, lookup=lookup)
    pieces = writer.write(prompt_ids, max_new_tokens, options, samples=samples, stop=stop or [])
    timed = Timed(pieces)
    if as_json:
        for _ in timed:
            pass
        written = [
            {"text": one.text, "ids": one.ids, "finish_reason": one.finish_reason}
            for one in writer.completions
        ]
        values = {"model": model, "prompt": text, "prompt_tokens": len(whole), "samples": written}
        print_json(values | {"load_seconds": loaded - began} | timed.values(writer))
    elif samples == 1:
        _stream(text, timed)
    else:
        for _ in timed:
            pass
        for number, one in enumerate(writer.completions, start=1):
            print(f"--- {number} of {samples} ---\n{text}{one.text}")
    _note(writer.engine.slid or len(prompt_ids) < len(whole), network)


@dataclass
class Timed:
    """An iterator that knows when its first item came, and its last."""

    pieces: Iterator[list[str]]

    def __iter__(self) -> Iterator[list[str]]:
        self.began = self.first = self.last = time.monotonic()
        for count, piece in enumerate(self.pieces):
            self.last = time.monotonic()
            if count == 0:
                self.first = self.last
            yield piece

    def values(self, writer: Writer) -> dict[str, Any]:
        """Seconds to the first token, and tokens per second of all texts together after it."""
        later = sum(max(0, len(one.ids) - 1) for one in writer.completions)
        seconds = self.last - self.first
        return {
            "first_token_seconds": self.first - self.began,
            "tokens_per_second": later / seconds if seconds > 0 and later else None,
        }


@dataclass
class Session:
    """A text that the reader and the model write in turns."""

    writer: Writer
    options: SamplingOptions
    max_new_tokens: int
    stop: list[str]

    def run(self, text: str) -> None:
        """Until the input ends. Ctrl-C ends the model's turn, or at the prompt the session."""
        from gptfit.generate.text import encode_prompt, truncated

        tokenizer, n_positions = self.writer.tokenizer, self.writer.engine.capacity
        say = stderr().print
        say(
            "write, and the model goes on; an empty line lets it go on, /new begins anew, Ctrl-D ends"
        )
        turn = 0
        while True:
            try:
                line = input("> ")
            except (EOFError, KeyboardInterrupt):
                print()
                return
            if line == "/new":
                text = ""
                continue
            try:
                ids = truncated(encode_prompt(tokenizer, text + line), n_positions)
            except DataError as error:
                say(f"{error}", markup=False)
                continue
            text += line
            options = self.options.replace(seed=self.options.seed + turn)
            pieces = self.writer.write(ids, self.max_new_tokens, options, stop=self.stop)
            try:
                for piece in pieces:
                    print(piece[0], end="", flush=True)
            except KeyboardInterrupt:
                pieces.close()  # type: ignore[attr-defined]
            print()
            text += self.writer.completions[0].text
            turn += 1


def read_prompt(prompt: str | None, prompt_file: Path | None) -> str:
    """The prompt of ``--prompt``, ``--prompt-file`` or stdin; empty when none is given."""
    if prompt is not None and prompt_file is not None:
        raise ConfigError("give --prompt or --prompt-file, not both")
    if prompt_file is None and prompt != "-":
        return prompt or ""
    name = "standard input" if prompt_file is None else str(prompt_file)
    try:
        raw = sys.stdin.buffer.read() if prompt_file is None else prompt_file.read_bytes()
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror}") from None


def read_ids(ids: str) -> list[int]:
    """The token ids of ``--ids``, apart by commas or spaces."""
    try:
        return [int(token) for token in ids.replace(",", " ").split()]
    except ValueError:
        raise ConfigError(f"--ids={ids[:40]} are no token ids; write them as 15496,11") from None


def read_bias(pairs: list[str]) -> dict[int, float]:
    """The ``--logit-bias`` options."""
    bias = {}
    for pair in pairs:
        token, _, value = pair.partition("=")
        try:
            bias[int(token)] = float(value)
        except ValueError:
            raise ConfigError(
                f"--logit-bias={pair[:40]} is not ID=BIAS, such as 198=-100"
            ) from None
    return bias


def load(model: str, device: str, weights: str = "float32") -> tuple[GPT2, Tokenizer]:
    """Model and tokenizer of whatever the user named."""
    from gptfit.data import Tokenizer
    from gptfit.formats.locate import find_model

    folder = find_model(model)
    try:
        tokenizer = Tokenizer.load(folder)
    except DataError as error:
        raise DataError(f"{error}; without one the model takes and gives --ids only") from None
    return load_network(model, device, weights), tokenizer


def load_network(model: str, device: str, weights: str = "float32") -> GPT2:
    """The model alone."""
    from gptfit.formats.locate import find_model
    from gptfit.train.inference import load_for_inference

    return load_for_inference(find_model(model), device, weights)


def _stream(prompt: str, pieces: Timed) -> None:
    shown = prompt
    for piece in pieces:
        print(shown + piece[0], end="", flush=True)
        shown = ""
    print()


def _print_ids(
    model: str,
    network: GPT2,
    ids: list[int],
    max_new_tokens: int,
    options: SamplingOptions,
    samples: int,
    lookup: int,
    as_json: bool,
) -> None:
    from gptfit.generate.engine import generate as generate_ids

    slid: list[bool] = []
    steps = list(
        generate_ids(
            network,
            [ids] * samples,
            max_new_tokens,
            options,
            lookup=lookup,
            on_slide=lambda: slid.append(True),
        )
    )
    texts = [[token for token in row if token is not None] for row in zip(*steps, strict=True)]
    if as_json:
        print_json({"model": model, "prompt_ids": ids, "samples": [{"ids": one} for one in texts]})
    else:
        for one in texts:
            print(*one)
    _note(bool(slid), network)


def _note(forgot: bool, network: GPT2) -> None:
    if forgot:
        context = network.config.n_positions
        stderr().print(
            f"note: past the context of {context} tokens; what came earlier was forgotten"
        )
