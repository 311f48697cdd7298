"""What is answered: OpenAI's objects, whole or in chunks."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from gptfit.serve.generation import Generation, Order
from gptfit.serve.logprobs import Logprobs, joined
from gptfit.serve.model import ServedModel
from gptfit.serve.refusal import Refusal, to_json
from gptfit.serve.worker import Delta


@dataclass(frozen=True)
class Piece:
    """What a choice has gained, as its reader sees it."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: dict[str, list[Any]] | None = None
    finish_reason: str | None = None

    @property
    def is_visible(self) -> bool:
        """Whether there is anything to tell."""
        entries = self.logprobs["tokens"] if self.logprobs else []
        return bool(self.text or self.token_ids or entries or self.finish_reason)

    @classmethod
    def join(cls, pieces: list[Piece]) -> Piece:
        """All of a choice's pieces as one."""
        logprobs = [piece.logprobs for piece in pieces if piece.logprobs is not None]
        return cls(
            "".join(piece.text for piece in pieces),
            [token for piece in pieces for token in piece.token_ids],
            joined(logprobs) if logprobs else None,
            pieces[-1].finish_reason,
        )


class Choice:
    """One continuation under way."""

    def __init__(self, order: Order, index: int, model: ServedModel) -> None:
        prompt, tells_ids = index // order.n, model.tokenizer is None
        self.opening = Piece(
            order.echo[prompt] if order.echo is not None else "",
            order.prompts[prompt] if order.echo is not None and tells_ids else [],
        )
        self._tells_ids = tells_ids
        self._logprobs = Logprobs(model.tokenizer) if order.logprobs is not None else None
        self._shown = len(self.opening.text)

    def gain(self, delta: Delta) -> Piece:
        """What a delta adds for the reader."""
        self._shown += len(delta.text)
        logprobs = None
        if self._logprobs is not None:
            if delta.prompt:
                self._logprobs.push_prompt(delta.prompt, self.opening.text)
            if delta.token is not None:
                self._logprobs.push(delta.token)
            # A stop string takes its tokens along.
            everything = delta.finish_reason == "length" or self._tells_ids
            logprobs = self._logprobs.take(None if everything else self._shown)
        ids = [delta.token.id] if delta.token is not None and self._tells_ids else []
        return Piece(delta.text, ids, logprobs, delta.finish_reason)


class Reply:
    """The envelope of an answer; children say what a choice looks like in it."""

    prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(self, order: Order, model: ServedModel) -> None:
        self._order, self._model = order, model
        self._id = f"{self.prefix}-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self.prompt_tokens = sum(len(prompt) for prompt in order.prompts)
        self.completion_tokens = 0

    async def whole(self, generation: Generation) -> dict[str, Any]:
        """The answer when everything is there."""
        choices = self._choices()
        pieces = [[choice.opening] for choice in choices]
        async for index, delta in generation.deltas():
            self._count(delta)
            pieces[index].append(choices[index].gain(delta))
        told = [self._whole(index, Piece.join(parts)) for index, parts in enumerate(pieces)]
        return self._envelope(self.whole_object, told) | {"usage": self._usage}

    async def events(self, generation: Generation, include_usage: bool) -> AsyncIterator[str]:
        """The answer as server-sent events, while it comes into being."""
        more = {"usage": None} if include_usage else {}

        def event(choices: list[Any], **changes: Any) -> str:
            return (
                f"data: {to_json(self._envelope(self.chunk_object, choices) | more | changes)}\n\n"
            )

        try:
            choices = self._choices()
            for index, choice in enumerate(choices):
                for opening in self._openings(index, choice.opening):
                    yield event([opening])
            async for index, delta in generation.deltas():
                self._count(delta)
                if (piece := choices[index].gain(delta)).is_visible:
                    yield event([self._chunk(index, piece)])
            if include_usage:
                yield event([], usage=self._usage)
            yield "data: [DONE]\n\n"
        except Refusal as refusal:
            yield f"data: {to_json(refusal.body)}\n\n"

    def _choices(self) -> list[Choice]:
        count = len(self._order.prompts) * self._order.n
        return [Choice(self._order, index, self._model) for index in range(count)]

    def _count(self, delta: Delta) -> None:
        self.completion_tokens += delta.token is not None

    @property
    def _usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }

    def _envelope(self, kind: str, choices: list[Any]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model.id,
            "system_fingerprint": self._model.fingerprint,
            "choices": choices,
        }

    def _openings(self, index: int, opening: Piece) -> list[dict[str, Any]]:
        """The chunks before the first token."""
        raise NotImplementedError

    def _whole(self, index: int, piece: Piece) -> dict[str, Any]:
        """A choice."""
        raise NotImplementedError

    def _chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        """What a choice has gained."""
        raise NotImplementedError


class CompletionReply(Reply):
    """``/v1/completions``; ``token_ids`` are told where there is no tokenizer to make them text."""

    prefix = "cmpl"
    whole_object = chunk_object = "text_completion"

    def _openings(self, index: int, opening: Piece) -> list[dict[str, Any]]:
        return [self._whole(index, opening)] if opening.is_visible else []

    def _whole(self, index: int, piece: Piece) -> dict[str, Any]:
        choice = {
            "index": index,
            "text": piece.text,
            "logprobs": piece.logprobs,
            "finish_reason": piece.finish_reason,
        }
        return choice if self._model.tokenizer else choice | {"token_ids": piece.token_ids}

    _chunk = _whole


class ChatReply(Reply):
    """``/v1/chat/completions``."""

    prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def _openings(self, index: int, opening: Piece) -> list[dict[str, Any]]:
        return [_chat_choice(index, "delta", {"role": "assistant", "content": ""}, None)]

    def _whole(self, index: int, piece: Piece) -> dict[str, Any]:
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        return _chat_choice(index, "message", message, piece.finish_reason)

    def _chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        delta = {"content": piece.text} if piece.text else {}
        return _chat_choice(index, "delta", delta, piece.finish_reason)


def _chat_choice(
    index: int, key: str, message: dict[str, Any], finish_reason: str | None
) -> dict[str, Any]:
    return {"index": index, key: message, "logprobs": None, "finish_reason": finish_reason}
