"""Requests that nobody should send: sound ones with one to four of their parts gone wrong."""

from __future__ import annotations

import json
import random
from typing import Any

Request = tuple[str, str, dict[bytes, bytes], bytes]
"""Method, path, headers, body."""

STRANGE: list[Any] = [
    None, True, False, 0, -1, 1, 2, 0.0, -0.5, 1.5, 1e-320, 1e308, 2**31, 2**63, -(2**63), 2**64,
    10**30, 10**400, "", "a", "0", "-1", "true", "NaN", "\x00", "\ud800", "\udfff\ud800", "😀", "\ufeff",
    "a" * 5000, "<|endoftext|>", "../../etc/passwd", "%00", "'; --", [], [[]], [None], [0], [1, 2, 3],
    [279], [280], [-1], [2**40], [1, "a"], ["a", "b"], [["a"]], [[1], [2, 3]], [0] * 60, ["x"] * 100,
    {}, {"a": 1}, {"1": 5}, {"279": -100}, {"-1": 0}, {"1": float("nan")}, {"1e3": 1}, {"": {}},
    {"include_usage": True}, {"include_usage": 1}, {"type": "text"}, float("nan"), float("inf"),
    [{"role": "user", "content": "hi"}], [{"role": 1}], [{"role": "user", "content": [{}]}],
]  # fmt: skip
FIELDS = [
    "model", "prompt", "messages", "n", "best_of", "temperature", "top_p", "top_k", "min_p", "seed",
    "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "stop", "max_tokens",
    "max_completion_tokens", "stream", "stream_options", "logprobs", "top_logprobs", "echo", "suffix",
    "user", "tools", "response_format", "unheard_of", "__proto__", "", "prompt\x00",
]  # fmt: skip
PATHS = [
    "/v1/completions/", "/v1/chat", "/v1/models", "/v1/models/tiny", "/v1/models/%ff%00", "/v1/models/",
    "/", "//", "/health", "/metrics", "/openapi.json", "/docs", "/v1/%2e%2e/", "/" + "a" * 3000, "/?a=%zz",
]  # fmt: skip
METHODS = ["GET", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "POST", "BREW"]
HEADERS = [
    {"Content-Type": "text/plain"}, {"Content-Type": "application/json; charset=utf-16"},
    {"Content-Type": ""}, {"Authorization": "Bearer \xff"}, {"Origin": "http://evil.example"},
    {"Origin": "null"}, {"Host": "evil.example"}, {"Host": "[::1"}, {"Host": "a:b:c"},
    {"Accept": "x" * 2000}, {"Accept-Encoding": "gzip, br"}, {"Expect": "100-continue"},
    {"Content-Encoding": "gzip"}, {"Upgrade": "websocket", "Connection": "Upgrade"}, {"Cookie": "\x80"},
]  # fmt: skip


def strange_request(rng: random.Random) -> Request:
    """One of them; a few are in order, by chance."""
    if rng.random() < 0.1:
        content = rng.randbytes(rng.randrange(50)) if rng.random() < 0.5 else b""
        return rng.choice(METHODS), rng.choice(PATHS), {}, content
    chat = rng.random() < 0.3
    path = "/v1/chat/completions" if chat else "/v1/completions"
    values: dict[str, Any] = {"model": "tiny", "max_tokens": rng.choice([1, 2, 5])}
    if chat:
        values["messages"] = [{"role": "user", "content": "the cat"}]
    else:
        values["prompt"] = rng.choice(["the cat", "", [1, 2], ["sit", "12"], "😀" * 5])
    for _ in range(rng.choice([0, 1, 1, 2, 4])):
        values[rng.choice(FIELDS)] = rng.choice(STRANGE)
    headers = {"Content-Type": "application/json"}
    if rng.random() < 0.1:
        headers |= rng.choice(HEADERS)
    raw = {name.encode(): value.encode("latin-1") for name, value in headers.items()}
    return "POST", path, raw, _spoiled(rng, json.dumps(values).encode())


def _spoiled(rng: random.Random, content: bytes) -> bytes:
    """The text of a body, in one of ten cases not quite."""
    ways = {
        0: lambda: content[: rng.randrange(len(content))],
        1: lambda: bytes([*content[:20], rng.randrange(256), *content[21:]]),
        2: lambda: content[:-1] + b', "n": 1, "n": "x"}',
        3: lambda: b"[" * rng.choice([10, 1000, 100_000]) + content,
        4: lambda: content.decode().encode(rng.choice(["utf-16", "utf-32", "utf-8-sig"])),
        5: lambda: content + b"\x00",
    }
    way = ways.get(rng.randrange(60))
    return way() if way else content
