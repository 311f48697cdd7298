"""Clients that leave, and a server that does."""

from __future__ import annotations

from collections.abc import Callable

import httpx2
import openai
import pytest

from gptfit.errors import ConfigError
from gptfit.serve import ServedModel, ServerOptions, listen, serve
from running_server import Running, running

ENDLESS = {"prompt": "the cat", "max_tokens": 10**9, "logit_bias": {"279": -100}}
"""Without the end of text."""


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves(start: Callable[..., Running], stream: bool) -> None:
    server = start(slots=1, queue=1, max_tokens=10**9)
    with httpx2.Client(base_url=server.url) as client:
        if stream:
            with client.stream(
                "POST", "/v1/completions", json=ENDLESS | {"stream": True}
            ) as answer:
                lines = answer.iter_lines()  # which closes the answer when nobody holds it
                next(lines)
                assert server.gauge("slots_in_use") == 1
        else:
            with pytest.raises(httpx2.ReadTimeout):
                client.post("/v1/completions", json=ENDLESS, timeout=0.3)
    server.wait_until_idle()
    assert server.complete(prompt="sit", max_tokens=3).status_code == 200


def test_places(start: Callable[..., Running]) -> None:
    server = start(slots=1, queue=1, max_tokens=10**9)
    body = ENDLESS | {"stream": True}
    with server.http.stream("POST", "/v1/completions", json=body | {"n": 2}) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert (server.gauge("slots_in_use"), server.gauge("queue_length")) == (1, 1)
        with pytest.raises(openai.RateLimitError, match="2 of 2 places are taken") as caught:
            server.openai.completions.create(model="tiny", prompt="sit")
        assert caught.value.response.headers["retry-after"] == "1"
    server.wait_until_idle()
    assert server.complete(prompt="sit", max_tokens=3).status_code == 200
    page = server.http.get("/metrics").text
    assert 'gptfit_requests_total{path="/v1/completions",status="429"} 1' in page
    assert 'gptfit_requests_total{path="/v1/completions",status="200"} 2' in page
    assert server.gauge("prompt_tokens_total") == 3


def test_draining(model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptfit.serve.server.GRACE_SECONDS", 0.5)
    with running(model, max_tokens=10**9) as server:
        kept = httpx2.Client(base_url=server.url)
        with (
            kept,
            kept.stream("POST", "/v1/completions", json=ENDLESS | {"stream": True}) as answer,
        ):
            lines = answer.iter_lines()
            next(lines)
            server.interrupt.is_set = True
            last = [line for line in lines if line][-1]
        assert '"the server is shutting down"' in last
        assert '"type":"server_error"' in last
        server.thread.join(30)
        with pytest.raises(httpx2.ConnectError):
            server.http.get("/health")


def test_caches_that_do_not_fit(model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr("gptfit.serve.server.Engine", refuse)
    options = ServerOptions(port=0, slots=1000)
    with listen(options) as listener, pytest.raises(ConfigError, match="slots=1000: their key"):
        serve(model, options, listener)
