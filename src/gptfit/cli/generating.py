"""The verb that writes text: generate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptfit.cli.console import print_json, stderr
from gptfit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gptfit.data import Tokenizer
    from gptfit.model import GPT2


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    app.command("generate")(generate)


def generate(
    model: Annotated[str, typer.Argument(help="A run, a checkpoint folder, or a hub id.")],
    prompt: Annotated[
        str | None, typer.Option(help="The text to continue; - reads it from stdin.")
    ] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="Read the prompt from a file.")] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", min=1)] = 200,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Only the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Only the likeliest tokens up to p.")] = None,
    seed: Annotated[int, typer.Option(help="Sample i draws from seed + i.")] = 0,
    samples: Annotated[int, typer.Option(min=1, max=256, help="How many texts.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Continue a prompt with a trained model."""
    from gptfit.generate import SamplingOptions, generate_text

    options = SamplingOptions(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    text = read_prompt(prompt, prompt_file)
    network, tokenizer = load(model, device)
    slid: list[bool] = []
    pieces = generate_text(
        network,
        tokenizer,
        text,
        max_new_tokens,
        options,
        samples=samples,
        on_slide=lambda: slid.append(True),
    )
    if as_json:
        texts = ["".join(parts) for parts in zip(*pieces, strict=True)]
        print_json({"model": model, "prompt": text, "samples": texts})
    elif samples == 1:
        _stream(text, pieces)
    else:
        for number, parts in enumerate(zip(*pieces, strict=True), start=1):
            print(f"--- {number} of {samples} ---\n{text}{''.join(parts)}")
    if slid:
        context = network.config.n_positions
        stderr().print(
            f"note: past the context of {context} tokens; what came earlier was forgotten"
        )


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


def load(model: str, device: str) -> tuple[GPT2, Tokenizer]:
    """Model and tokenizer of whatever the user named."""
    from gptfit.config import RunConfig
    from gptfit.data import Tokenizer
    from gptfit.formats.hf import load_config, load_model
    from gptfit.formats.integrity import MANIFEST, verify
    from gptfit.formats.locate import find_model
    from gptfit.train.device import choose_device

    folder = find_model(model)
    if (folder / MANIFEST).is_file():
        verify(folder, without="training")
    config = load_config(folder)
    where = choose_device(RunConfig(device=device).device, "float32", config).torch_device
    return load_model(folder, where).eval(), Tokenizer.load(folder)


def _stream(prompt: str, pieces: Iterator[list[str]]) -> None:
    shown = prompt
    for piece in pieces:
        print(shown + piece[0], end="", flush=True)
        shown = ""
    print()
