"""A request's body: bounded in size and time before anything looks into it."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from gptfit.serve.options import BODY_SECONDS, MAX_BODY_BYTES
from gptfit.serve.refusal import Refusal

MAX_DISCARDED_BYTES = 2**24
"""So much of a body that is too large is still taken off the line: who sends does not listen yet."""
CLOSE = {"Connection": "close"}


async def read_body(request: Request) -> bytes:
    """The body of a JSON request, or a ``Refusal``."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(
            415,
            f"the body is declared as {kind[:100] or 'nothing'}; send it with "
            "Content-Type: application/json",
        )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > MAX_DISCARDED_BYTES:
        raise _too_large()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _read(request)
    except TimeoutError:
        message = f"the body did not come within {BODY_SECONDS:g} s"
        raise Refusal(408, message, code="timeout", headers=CLOSE) from None


async def _read(request: Request) -> bytes:
    parts, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= MAX_BODY_BYTES:
            parts.append(chunk)
        else:
            parts.clear()
        if size > MAX_DISCARDED_BYTES:
            break
    if size > MAX_BODY_BYTES:
        raise _too_large()
    return b"".join(parts)


def _too_large() -> Refusal:
    message = f"the body is larger than {MAX_BODY_BYTES:,} bytes"
    return Refusal(413, message, code="body_too_large", headers=CLOSE)
