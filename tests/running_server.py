"""A real server in a thread, and clients of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import openai

from gptfit.serve import ServedModel, ServerOptions, address, listen, serve
from gptfit.train.interrupt import Interrupt


class Running:
    """A server, and clients of it."""

    def __init__(self, url: str, interrupt: Interrupt, thread: threading.Thread) -> None:
        self.url, self.interrupt, self.thread = url, interrupt, thread
        self.http = httpx2.Client(base_url=url, timeout=60)
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)

    def complete(self, **body: object) -> httpx2.Response:
        return self.http.post("/v1/completions", json=body)

    def gauge(self, name: str) -> float:
        """A value of /metrics."""
        lines = self.http.get("/metrics").text.splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith(f"gptfit_{name} ")))

    def wait_until_idle(self) -> None:
        while self.gauge("slots_in_use") or self.gauge("queue_length"):
            pass


@contextmanager
def running(model: ServedModel, **options: object) -> Iterator[Running]:
    """A server on a free port until the end of the block."""
    chosen = ServerOptions(**{"port": 0, "slots": 3, "queue": 4, **options})  # type: ignore[arg-type]
    interrupt, ready = Interrupt(), threading.Event()
    with listen(chosen) as listener:
        thread = threading.Thread(
            target=serve, args=(model, chosen, listener, ready.set, interrupt), daemon=True
        )
        server = Running(address(listener), interrupt, thread)
        thread.start()
        assert ready.wait(30)
        with server.http, server.openai:
            yield server
        interrupt.is_set = True
        thread.join(30)
        assert not thread.is_alive()
