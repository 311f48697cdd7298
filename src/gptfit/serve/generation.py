"""From a validated request to jobs, and from the jobs' thread back to asyncio."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, replace

from gptfit.config.checks import shown
from gptfit.errors import ConfigError, DataError
from gptfit.generate.engine import Request
from gptfit.generate.sampling import SamplingOptions
from gptfit.generate.text import StoppingStream, encode_prompt
from gptfit.serve.model import ServedModel
from gptfit.serve.options import ServerOptions
from gptfit.serve.protocol import ChatRequest, CompletionRequest, Prompt, Sampling
from gptfit.serve.refusal import Refusal
from gptfit.serve.worker import Delta, Job, Worker

DEFAULT_MAX_TOKENS = 16
"""OpenAI's, of completions."""


@dataclass(frozen=True)
class Order:
    """What a request asks for: its prompts, and how often and how each is continued.

    Sample j of a prompt draws from seed + j, whatever the other prompts are.
    """

    prompts: list[list[int]]
    n: int
    max_tokens: int
    options: SamplingOptions
    stop: list[str]
    logprobs: int | None = None
    echo: list[str] | None = None
    """The prompts' texts, where they come before their continuations."""

    @property
    def scores_prompt(self) -> bool:
        """Whether the prompts' tokens are told with their log-probabilities."""
        return self.echo is not None and self.logprobs is not None

    def requests(self, stop_ids: frozenset[int]) -> list[Request]:
        """The engine's, prompt by prompt."""
        return [
            Request(
                prompt=prompt,
                max_new_tokens=self.max_tokens,
                options=self.options.replace(seed=self.options.seed + sample),
                stop_ids=stop_ids,
                top_logprobs=self.logprobs,
            )
            for prompt in self.prompts
            for sample in range(self.n)
        ]


def completion_order(body: CompletionRequest, model: ServedModel, limits: ServerOptions) -> Order:
    """What a completion asks for, or a ``Refusal``."""
    _check_count(len(body.prompt) * (body.n or 1), limits)
    prompts = [_ids(prompt, model) for prompt in body.prompt]
    order = _order(body, prompts, DEFAULT_MAX_TOKENS, body.max_tokens, model, limits)
    echo = [_text(prompt, model) for prompt in body.prompt] if body.echo else None
    return replace(order, logprobs=body.logprobs, echo=echo)


def chat_order(body: ChatRequest, model: ServedModel, limits: ServerOptions) -> Order:
    """What a conversation asks for: by default all that the context has room for."""
    if model.template is None:
        raise Refusal(
            400,
            f"the tokenizer of {model.id!r} carries no chat template; use /v1/completions",
            code="no_chat_template",
        )
    _check_count(body.n or 1, limits)
    messages = [message.model_dump(exclude_none=True) for message in body.messages]
    try:
        text = model.template.render(messages)
    except DataError as error:
        raise Refusal(400, str(error), param="messages") from None
    prompt = _ids(text, model, "messages")
    wanted = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    room = max(1, min(model.context - len(prompt), limits.max_tokens))
    return _order(body, [prompt], room, wanted, model, limits)


def _order(
    body: Sampling,
    prompts: list[list[int]],
    usual: int,
    wanted: int | None,
    model: ServedModel,
    limits: ServerOptions,
) -> Order:
    max_tokens = min(usual, limits.max_tokens) if wanted is None else wanted
    if max_tokens > limits.max_tokens:
        raise Refusal(
            400,
            f"max_tokens={shown(max_tokens)} is more than the {limits.max_tokens} that this server "
            "allows",
            param="max_tokens",
        )
    for prompt in prompts:
        if len(prompt) > model.context:
            raise Refusal(
                400,
                f"this model's context is {model.context} tokens, but the prompt has {len(prompt)}; "
                "shorten it",
                param="messages" if isinstance(body, ChatRequest) else "prompt",
                code="context_length_exceeded",
            )
    if body.stop and model.tokenizer is None:
        raise Refusal(400, f"{model.id!r} has no tokenizer: no stop strings", param="stop")
    return Order(prompts, body.n or 1, max_tokens, _options(body, model), body.stop)


def _check_count(count: int, limits: ServerOptions) -> None:
    if count > limits.places:
        raise Refusal(
            400,
            f"the request asks for {count} continuations, and this server takes {limits.places} at "
            "a time (--slots and --queue); ask for fewer",
            param="n",
        )


def _options(body: Sampling, model: ServedModel) -> SamplingOptions:
    for token in body.logit_bias:
        if token >= model.vocab_size:
            message = f"token {token} is outside the vocabulary of {model.vocab_size}"
            raise Refusal(400, message, param="logit_bias")
    given = {name: getattr(body, name) for name in Sampling.SAMPLED}
    values = {name: value for name, value in given.items() if value is not None}
    seed = secrets.randbelow(2**48) if body.seed is None else body.seed
    try:
        return SamplingOptions(seed=seed, **values)
    except ConfigError as error:
        raise Refusal(400, str(error), param=error.problems[0].field) from None


def _ids(prompt: Prompt, model: ServedModel, param: str = "prompt") -> list[int]:
    if isinstance(prompt, str):
        return _encoded(prompt, model, param)
    for token in prompt:
        if not 0 <= token < model.vocab_size:
            message = f"token id {shown(token)} is outside the vocabulary of {model.vocab_size}"
            raise Refusal(400, message, param=param)
    return prompt


def _encoded(prompt: str, model: ServedModel, param: str) -> list[int]:
    if model.tokenizer is None:
        message = f"{model.id!r} has no tokenizer: give the prompt as token ids, as [1, 2, 3]"
        raise Refusal(400, message, param=param)
    try:
        ids = encode_prompt(model.tokenizer, prompt)
    except DataError as error:
        raise Refusal(400, str(error), param=param) from None
    if not ids:
        raise Refusal(400, "the tokenizer makes no token of this prompt", param=param)
    return ids


def _text(prompt: Prompt, model: ServedModel) -> str:
    if isinstance(prompt, str):
        return prompt
    return model.tokenizer.decode(prompt) if model.tokenizer else ""


class Generation:
    """The continuations of one order, as they come; to be cancelled in the end, whatever happened."""

    def __init__(
        self, order: Order, model: ServedModel, worker: Worker, limits: ServerOptions
    ) -> None:
        """Raises ``Refusal`` where there is no room."""
        self._deltas: asyncio.Queue[tuple[int, Delta]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._worker = worker
        deadline = time.monotonic() + limits.timeout
        self._jobs = [
            self._job(index, request, order, model, deadline)
            for index, request in enumerate(order.requests(model.stop_ids))
        ]
        worker.submit(self._jobs)

    def _job(
        self, index: int, request: Request, order: Order, model: ServedModel, deadline: float
    ) -> Job:
        def deliver(delta: Delta) -> None:
            with suppress(RuntimeError):  # the loop has closed: nobody waits
                self._loop.call_soon_threadsafe(self._deltas.put_nowait, (index, delta))

        text = StoppingStream(model.tokenizer, order.stop) if model.tokenizer else None
        return Job(request, text, deliver, deadline, order.scores_prompt)

    async def deltas(self) -> AsyncIterator[tuple[int, Delta]]:
        """Each delta with the number of its continuation. Raises the first ``Refusal``."""
        under_way = len(self._jobs)
        while under_way:
            index, delta = await self._deltas.get()
            if delta.refusal is not None:
                raise delta.refusal
            yield index, delta
            under_way -= delta.is_last

    def cancel(self) -> None:
        """Give the slots back."""
        self._worker.cancel(self._jobs)
