"""The verb that answers over HTTP: serve."""

from __future__ import annotations

import json
import logging
import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from gptfit.cli.console import stderr
from gptfit.cli.generating import FLOAT_HELP

if TYPE_CHECKING:
    from gptfit.serve import ServedModel, ServerOptions


def register(app: typer.Typer) -> None:
    """Add the verb of this file."""
    app.command("serve")(serve)


def serve(
    model: Annotated[str, typer.Argument(help="A run, a checkpoint folder, or a hub id.")],
    host: Annotated[
        str, typer.Option(help="Another than 127.0.0.1 needs a token or --insecure.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="GPTFIT_TOKEN",
            show_envvar=True,
            help="What clients send as their API key. On the command line others can read it.",
        ),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Serve other machines without a token.")
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A further name by which clients address the server."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The model's id, instead of the last part of its path.")
    ] = None,
    slots: Annotated[int, typer.Option(help="So many texts are written at once.")] = 8,
    queue: Annotated[int, typer.Option(help="So many more wait; the rest is sent away.")] = 32,
    max_tokens: Annotated[int, typer.Option(help="The most that one text may have.")] = 4096,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="The longest that a request may take.")
    ] = 600,
    weights: Annotated[str, typer.Option(help=FLOAT_HELP)] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    verbose: Annotated[bool, typer.Option("--verbose", help="A line for each request.")] = False,
) -> None:
    """Serve a trained model over HTTP, as OpenAI's API has it."""
    from gptfit.serve import ServedModel, ServerOptions, address, listen
    from gptfit.serve import serve as run

    options = ServerOptions(
        host=host,
        port=port,
        token=token,
        insecure=insecure,
        hosts=tuple(allow_host or ()),
        slots=slots,
        queue=queue,
        max_tokens=max_tokens,
        timeout=timeout,
    )
    if verbose:
        logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
        logging.getLogger("gptfit.serve").setLevel(logging.INFO)
    with listen(options) as listener:
        url = address(listener)
        served = ServedModel.load(model, device, name, weights)
        code = run(served, options, listener, on_ready=lambda: _welcome(served, options, url))
    raise typer.Exit(code)


def _welcome(model: ServedModel, options: ServerOptions, url: str) -> None:
    """What a person needs who has just started it."""
    from gptfit.plan.params import count_parameters
    from gptfit.serve.options import is_loopback

    config = model.network.config
    body = {"model": model.id, "prompt": _example(model)}
    key = ' -H "Authorization: Bearer $GPTFIT_TOKEN"' if options.token else ""
    lines = [
        f"serving {model.id}, {count_parameters(config).total:,} parameters, context "
        f"{config.n_positions:,}, on {model.network.wpe.weight.device}",
        f"  url    {url}/v1",
        f"  slots  {options.slots}, and {options.queue} may wait",
        f"  chat   {'yes' if model.template else 'no: the tokenizer carries no chat template'}",
        f"  try    curl {url}/v1/completions -H 'Content-Type: application/json'{key} -d "
        f"{shlex.quote(json.dumps(body))}",
    ]
    if model.tokenizer is None:
        lines.insert(1, "  note   no tokenizer: prompts and answers are token ids")
    if not is_loopback(options.host):
        who = "everybody who reaches it" if options.token is None else "who has the token"
        lines.insert(1, f"  open   to {who}, unencrypted: put TLS before it")
    for line in lines:
        stderr().print(line, soft_wrap=True)


def _example(model: ServedModel) -> str | list[int]:
    """A prompt that the model can read."""
    text = "Once upon a time"
    if model.tokenizer is None:
        return [0]
    if letters := model.tokenizer.characters:
        return "".join(letter for letter in text if letter in letters) or letters[0]
    return text
