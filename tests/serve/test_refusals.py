"""Whatever comes in, the answer is text or an error object of OpenAI's, and the server lives."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Callable
from typing import Any

import openai
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from gptfit.data import Tokenizer
from gptfit.serve import ServedModel, body
from running_server import Running
from strange_requests import strange_request

JSON = {"Content-Type": "application/json"}


def refusal(answer: Any, status: int = 400) -> dict[str, Any]:
    """The error object of an answer with this status."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return dict(error)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"max_tokens": 0}, "max_tokens", "must be at least 1"),
        ({"max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
        ({"max_tokens": 10**9}, "max_tokens", "more than the 4096"),
        ({"max_tokens": 10**400}, "max_tokens", "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens", "valid integer"),
        ({"max_tokens": 5.5}, "max_tokens", "valid integer"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"temperature": "1"}, "temperature", "valid number"),
        ({"temperature": True}, "temperature", "valid number"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"top_k": 0}, "top_k", "greater than or equal to 1"),
        ({"min_p": 2}, "min_p", "less than or equal to 1"),
        ({"repetition_penalty": 0}, "repetition_penalty", "greater than"),
        ({"presence_penalty": 3}, "presence_penalty", "less than or equal to 2"),
        ({"n": 10**9}, "n", "less than or equal to 128"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 50}, "n", "50 continuations, and this server takes 7"),
        ({"prompt": ["a"] * 8}, "n", "8 continuations"),
        ({"best_of": 4}, "best_of", "best_of=4 is not supported"),
        ({"suffix": "end"}, "suffix", "suffix is not supported"),
        ({"stop": ["x"] * 1000}, "stop", "at most 4 stop strings, not 1000"),
        ({"stop": ["x", ""]}, "stop", "1 to 256 characters"),
        ({"stop": "x" * 257}, "stop", "1 to 256 characters"),
        ({"stop": [1]}, "stop", "a string or a list of strings"),
        ({"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias", "at most 300"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "'x' is no token id"),
        ({"logit_bias": {"280": 1}}, "logit_bias", "outside the vocabulary of 280"),
        ({"logit_bias": {"1": 101}}, "logit_bias", "from -100 to 100"),
        ({"logit_bias": {"1": None}}, "logit_bias", "from -100 to 100"),
        ({"logprobs": 6}, "logprobs", "less than or equal to 5"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"seed": 2**63}, "seed", "less than or equal to"),
        ({"stream_options": {}}, "stream_options", "needs stream=true"),
        ({"stream": "yes"}, "stream", "valid boolean"),
        ({"prompt": []}, "prompt", "must be a string"),
        ({"prompt": [[]]}, "prompt", "at least one"),
        ({"prompt": None}, "prompt", "must be a string"),
        ({"prompt": [1, "a"]}, "prompt", "must be a string"),
        ({"prompt": [1.5]}, "prompt", "must be a string"),
        ({"prompt": [280]}, "prompt", "token id 280 is outside the vocabulary of 280"),
        ({"prompt": [-1]}, "prompt", "token id -1 is outside"),
        ({"prompt": [10**400]}, "prompt", "outside the vocabulary"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, dict) else "",
)
def test_bad_fields(server: Running, fields: dict[str, Any], param: str, message: str) -> None:
    error = refusal(server.complete(**{"prompt": "the cat", **fields}))
    assert error["param"] == param
    assert message in error["message"]
    assert len(error["message"]) < 500


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[1]",
        b"null",
        b'"text"',
        b"{",
        b'{"prompt": "a", }',
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": 1e400}',
        b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
        b'{"prompt": ' + b"[" * 100_000,
        b'{"x": ' * 5000 + b"1" + b"}" * 5000,
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "stop": "\\udc00"}',
        b'{"prompt": "\xff"}',
        b'\xef\xbb\xbf{"prompt": "a"}',
        '{"prompt": "a"}'.encode("utf-16"),
        b'{"prompt": "a\x00"}',
        b"\x00" * 1000,
    ],
    ids=lambda content: repr(content[:24]),
)
def test_bodies_that_are_no_request(server: Running, content: bytes) -> None:
    for path in ("/v1/completions", "/v1/chat/completions"):
        refusal(server.http.post(path, content=content, headers=JSON))


def test_what_looks_bad_and_is_not(server: Running) -> None:
    for content in (
        b'{"prompt": "a\\u0000b", "max_tokens": 1}',
        b'{"prompt": "a", "prompt": "b", "max_tokens": 1}',  # the last one counts
        b'{"prompt": "a", "max_tokens": 1, "user": "me", "unheard_of": [1]}',
        b'{"prompt": "", "max_tokens": 1, "temperature": null, "stop": null, "n": null}',
        b'{"prompt": "a", "max_tokens": 1, "temperature": 1e-300, "top_p": 5e-324, "best_of": 1, "suffix": null}',
    ):
        answer = server.http.post("/v1/completions", content=content, headers=JSON)
        assert answer.status_code == 200, answer.text


def test_long_prompt(server: Running) -> None:
    for prompt in ("sit " * 500, [1] * 49):
        with pytest.raises(openai.BadRequestError) as caught:
            server.openai.completions.create(model="tiny", prompt=prompt)
        assert caught.value.code == "context_length_exceeded"
        assert "context is 48 tokens, but the prompt has" in caught.value.message
    assert "has 49" in caught.value.message
    assert server.complete(prompt=[1] * 48, max_tokens=3).status_code == 200


def test_a_prompt_of_which_no_token_is_made(
    start: Callable[..., Running], model: ServedModel
) -> None:
    words = Backend(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    server = start(ServedModel("words", model.network, Tokenizer(words.to_str())))
    assert server.complete(prompt="a b", max_tokens=3).status_code == 200
    for prompt in (" \n ", ""):
        assert "no token of this prompt" in refusal(server.complete(prompt=prompt))["message"]


def test_other_paths_methods_and_types(server: Running) -> None:
    assert "/v2: not found" in refusal(server.http.get("/v2"), 404)["message"]
    refusal(server.http.get("/v1/completions"), 405)
    refusal(server.http.post("/health"), 405)
    refusal(server.http.get("/v1/models/../../etc/passwd"), 404)
    assert refusal(server.complete(model="gpt-4", prompt="a"), 404)["code"] == "model_not_found"
    for kind in ("text/plain", "multipart/form-data", ""):
        answer = server.http.post("/v1/completions", content=b"{}", headers={"Content-Type": kind})
        assert "Content-Type: application/json" in refusal(answer, 415)["message"]


def test_large_bodies(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def chunks() -> Any:
        yield from [b" " * 100_000] * 12

    big = b'{"prompt": "' + b"a" * 10_000_000 + b'"}'
    for content in (big, chunks()):
        answer = server.http.post("/v1/completions", content=content, headers=JSON)
        assert refusal(answer, 413)["code"] == "body_too_large"
    monkeypatch.setattr(body, "MAX_DISCARDED_BYTES", 2_000_000)
    with _connected(server) as line:
        line.sendall(_head(3_000_000))
        assert line.recv(1000).startswith(b"HTTP/1.1 413")
    assert server.complete(prompt="a").status_code == 200


def _connected(server: Running) -> socket.socket:
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=30)


def _head(length: int) -> bytes:
    return (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % length
    )


def _all(line: socket.socket) -> bytes:
    return b"".join(iter(lambda: line.recv(10_000), b""))


def test_half_requests(start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptfit.serve.body.BODY_SECONDS", 0.3)
    monkeypatch.setattr("gptfit.serve.server.BODY_SECONDS", 0.3)
    server = start()
    with _connected(server) as silent, _connected(server) as head, _connected(server) as half:
        head.sendall(b"POST /v1/compl")
        half.sendall(_head(100) + b'{"prompt"')
        assert server.complete(prompt="a").status_code == 200  # others are not kept waiting
        assert _all(silent) == b""
        assert _all(head) == b""
        assert b"did not come within" in _all(half)
    with _connected(server) as line:
        line.sendall(b"\x16\x03\x01 not HTTP\r\n\r\n")
        assert _all(line).startswith(b"HTTP/1.1 400")
    with _connected(server) as line:
        line.sendall(_head(100) + b"{")  # and leaves
    with _connected(server) as line:
        chunked = _head(100).replace(b"Content-Length: 100", b"Transfer-Encoding: chunked")
        line.sendall(chunked + b"zz\r\n")
        assert b"HTTP/1.1 400" in _all(line)
    assert server.complete(prompt="a").status_code == 200


def test_time_limit(start: Callable[..., Running]) -> None:
    server = start(timeout=0.2, slots=1, max_tokens=10**6)
    request = {"model": "tiny", "prompt": "the cat", "max_tokens": 10**6}
    request |= {"logit_bias": {"279": -100}}  # without the end of text
    with pytest.raises(openai.APIStatusError, match="longer than this server allows") as caught:
        server.openai.completions.create(**request)  # type: ignore[call-overload]
    assert caught.value.status_code == 408
    assert caught.value.response.headers["x-should-retry"] == "false"
    with pytest.raises(openai.APIError, match="longer than this server allows"):
        list(server.openai.completions.create(**request, stream=True))  # type: ignore[call-overload]
    server.wait_until_idle()


def test_failing_model(model: ServedModel, start: Callable[..., Running]) -> None:
    server = start()
    bias = model.network.wpe.weight.data.clone()
    try:
        model.network.wpe.weight.data[:] = float("nan")
        error = refusal(server.complete(prompt="a"), 500)
        assert "NaN or infinity" in error["message"]
    finally:
        model.network.wpe.weight.data[:] = bias
    assert server.complete(prompt="sit").status_code == 200


@pytest.mark.parametrize("seed", range(3))
def test_strange_requests(server: Running, seed: int) -> None:
    rng, seen = random.Random(seed), set()
    for _ in range(100):
        method, path, headers, content = strange_request(rng)
        answer = server.http.request(method, path, headers=headers, content=content)
        assert answer.status_code < 500, (method, path, headers, content)
        seen.add(answer.status_code)
        if answer.status_code >= 400 and method != "HEAD":
            assert "message" in json.loads(answer.content)["error"]
    assert {200, 400, 404} <= seen
    server.wait_until_idle()
