"""The process: a socket, an event loop, a thread that computes, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from gptfit.config.checks import shown
from gptfit.errors import ConfigError
from gptfit.generate.engine import Engine
from gptfit.model.out_of_memory import is_out_of_memory
from gptfit.serve.app import Api
from gptfit.serve.model import ServedModel
from gptfit.serve.options import BODY_SECONDS, GRACE_SECONDS, ServerOptions
from gptfit.serve.worker import Worker
from gptfit.train.interrupt import Interrupt

MAX_CONNECTIONS = 768
"""A process usually may have 1024 files open."""
STALLED_MILLISECONDS = 120_000
"""So long a client may take nothing of what was sent."""


def listen(options: ServerOptions) -> socket.socket:
    """A listening socket; what connects before the model is loaded waits. Raises ``ConfigError``."""
    try:
        family = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((options.host, options.port), family=family, backlog=1024)
    except (OSError, UnicodeError) as error:
        reason = str(getattr(error, "strerror", None) or error).partition(" (while")[0]
        raise ConfigError(
            f"cannot listen on {shown(options.host)} port {options.port}: {reason}; choose another "
            "--port (0 takes a free one) or --host"
        ) from None


def address(listener: socket.socket) -> str:
    """The URL under which a client on this machine reaches the server."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    model: ServedModel,
    options: ServerOptions,
    listener: socket.socket,
    on_ready: Callable[[], None] = lambda: None,
    interrupt: Interrupt | None = None,
) -> int:
    """Answer requests until a signal comes; the exit code.

    Requests under way are then finished, for ``GRACE_SECONDS`` at most; a second Ctrl-C leaves at once.
    """
    logging.getLogger("uvicorn.error").setLevel(
        logging.ERROR
    )  # strangers' bad requests are no news
    worker = Worker(_engine(model, options.slots), options.queue)
    config = uvicorn.Config(
        Api(model, worker, options).app(),
        http=PatientProtocol,
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=int(GRACE_SECONDS) + 1,
    )
    interrupt = interrupt or Interrupt()
    worker.start()
    with interrupt:
        try:
            asyncio.run(Server(config, worker, interrupt, on_ready).serve(sockets=[listener]))
        finally:
            worker.close()
    return interrupt.exit_code


def _engine(model: ServedModel, slots: int) -> Engine:
    try:
        return Engine(model.network, slots, vocab_size=model.vocab_size)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ConfigError(
            f"slots={slots}: their key-value caches do not fit the memory; use fewer"
        ) from None


class Server(uvicorn.Server):
    """Ends by a flag, with exit code 0, where uvicorn would send itself the signal once more."""

    def __init__(
        self,
        config: uvicorn.Config,
        worker: Worker,
        interrupt: Interrupt,
        on_ready: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._worker, self._interrupt, self._on_ready = worker, interrupt, on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self._on_ready()

    async def on_tick(self, counter: int) -> bool:
        """Whether to end; asked ten times a second."""
        if self._interrupt.is_set:
            self._worker.drain(GRACE_SECONDS)
            return True
        return await super().on_tick(counter)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the interrupt's."""
        yield


class PatientProtocol(H11Protocol):
    """Patient, but not without end: uvicorn waits for a request's head for ever."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Wait for a request, unless there are too many connections."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        else:
            # asyncio does this only for sockets that were made with the protocol's number. Without it a
            # response's second packet waits for the first one's receipt: 40 ms.
            line = transport.get_extra_info("socket")
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
                line.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_MILLISECONDS)
            self._wait_for_head()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._wait_for_head()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        before = self.cycle

        def give_up() -> None:
            if self.cycle is before:
                self.transport.close()

        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(BODY_SECONDS, give_up)
