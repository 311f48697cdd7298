"""The routes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gptfit.serve.body import read_body
from gptfit.serve.generation import Generation, Order, chat_order, completion_order
from gptfit.serve.guard import Guard
from gptfit.serve.metrics import CONTENT_TYPE, Metrics
from gptfit.serve.model import ServedModel
from gptfit.serve.openapi import describe, request_body
from gptfit.serve.options import ServerOptions
from gptfit.serve.protocol import Body, ChatRequest, CompletionRequest, parse
from gptfit.serve.refusal import RETRY, Refusal, json_response
from gptfit.serve.replies import ChatReply, CompletionReply, Reply
from gptfit.serve.worker import Worker

logger = logging.getLogger("gptfit.serve")

CLIENT_LEFT = 499
"""nginx's word for it; nobody receives it."""

OrderOf = Callable[[Body, ServedModel, ServerOptions], Order]
T = TypeVar("T")


class Api:
    """The endpoints for one model."""

    def __init__(self, model: ServedModel, worker: Worker, options: ServerOptions) -> None:
        self.metrics = Metrics()
        self._model, self._worker, self._options = model, worker, options

    def app(self) -> FastAPI:
        """The application, with what stands before it."""
        app = FastAPI(title="gptfit", docs_url=None, redoc_url=None, redirect_slashes=False)
        pages: dict[str, Callable[..., Any]] = {
            "/health": self.health,
            "/metrics": self.prometheus,
            "/v1/models": self.models,
            "/v1/models/{name:path}": self.model,
        }
        for path, endpoint in pages.items():
            app.add_api_route(path, endpoint, methods=["GET"], response_class=Response)
        for path, create, kind in (
            ("/v1/completions", self.complete, CompletionRequest),
            ("/v1/chat/completions", self.chat, ChatRequest),
        ):
            more = request_body(kind)
            app.add_api_route(
                path, create, methods=["POST"], response_class=Response, openapi_extra=more
            )
        describe(app)
        app.add_exception_handler(Refusal, _refused)
        app.add_exception_handler(HTTPException, _not_routed)
        app.add_exception_handler(ClientDisconnect, _left)
        app.add_exception_handler(Exception, _failed)
        app.add_middleware(Guard, options=self._options)
        app.add_middleware(Meter, metrics=self.metrics)
        return app

    async def health(self) -> Response:
        """Whether requests are taken."""
        if not self._worker.is_ready:
            raise Refusal(503, "the server is shutting down", headers=RETRY)
        return json_response({"status": "ok"})

    async def prometheus(self) -> Response:
        """Counts, for Prometheus."""
        worker = self._worker
        page = self.metrics.text(worker.queue_length, worker.slots_in_use, self._options.slots)
        return Response(page, headers={"Content-Type": CONTENT_TYPE})

    async def models(self) -> Response:
        """The one model."""
        return json_response({"object": "list", "data": [self._description]})

    async def model(self, name: str) -> Response:
        """The model under its id."""
        self._require_model(name)
        return json_response(self._description)

    async def complete(self, request: Request) -> Response:
        """Continue prompts."""
        return await self._answer(request, CompletionRequest, completion_order, CompletionReply)

    async def chat(self, request: Request) -> Response:
        """Continue a conversation, where the tokenizer carries a chat template."""
        return await self._answer(request, ChatRequest, chat_order, ChatReply)

    async def _answer(
        self, request: Request, kind: type[Body], order_of: OrderOf[Body], form: type[Reply]
    ) -> Response:
        def understand() -> tuple[Body, Order]:
            body = parse(kind, content)
            self._require_model(body.model)
            return body, order_of(body, self._model, self._options)

        content = await read_body(request)
        body, order = await asyncio.to_thread(understand)  # which takes a while for long texts
        generation = Generation(order, self._model, self._worker, self._options)
        reply = form(order, self._model)

        def end() -> None:
            generation.cancel()
            self.metrics.prompt_tokens += reply.prompt_tokens
            self.metrics.generated_tokens += reply.completion_tokens
            request.state.tokens = f"{reply.prompt_tokens}+{reply.completion_tokens} tokens"

        if body.stream:
            return EventStream(reply.events(generation, body.include_usage), end)
        try:
            return json_response(await _unless_left(request, reply.whole(generation)))
        finally:
            end()

    def _require_model(self, name: str | None) -> None:
        if name not in (None, self._model.id):
            raise Refusal(
                404,
                f"the model {name[:200]!r} is not served here; there is {self._model.id!r}",
                param="model",
                code="model_not_found",
            )

    @property
    def _description(self) -> dict[str, Any]:
        return {
            "id": self._model.id,
            "object": "model",
            "created": self._model.created,
            "owned_by": "gptfit",
            "max_model_len": self._model.context,
            "sha256": self._model.sha256,
        }


class EventStream(StreamingResponse):
    """Server-sent events; ``on_end`` is called however they end."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], on_end: Callable[[], None]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, headers=headers)
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them all, or as many as there is a reader for."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()


class Meter:
    """ASGI middleware: counts requests and says so in the log."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, start = 500, time.monotonic()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            seconds = time.monotonic() - start
            self._metrics.count(getattr(scope.get("route"), "path", "other"), status, seconds)
            tokens = scope.get("state", {}).get("tokens", "")
            client = (scope.get("client") or ("?",))[0]
            line = (client, scope["method"], scope["path"][:200], status, seconds, tokens)
            logger.info("%s %s %r %s %.2f s %s", *line)


async def _unless_left(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, given up when the client leaves."""

    async def leave() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(leave())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return error.response()


async def _not_routed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path[:200]}: {str(error.detail).lower()}"
    return Refusal(error.status_code, what, headers=error.headers).response()


async def _left(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_LEFT)


async def _failed(request: Request, error: Exception) -> Response:
    return Refusal(500, "the server failed; its log says why").response()
