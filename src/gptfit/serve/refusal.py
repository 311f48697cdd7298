"""The one shape in which the server says no: OpenAI's error object."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

RETRY = {"Retry-After": "1"}
FINAL = {"x-should-retry": "false"}
"""The openai client would otherwise repeat what takes too long."""


class Refusal(Exception):
    """An answer other than 200. ``param`` is the field at fault, ``code`` a word for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers

    @property
    def body(self) -> dict[str, Any]:
        """The error object."""
        kinds = {429: "rate_limit_error"}
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": kinds.get(self.status, kind),
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> Response:
        """The error object as an answer."""
        return json_response(self.body, self.status, self.headers)


def json_response(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """``value`` as JSON."""
    return Response(to_json(value), status, headers, media_type="application/json")


def to_json(value: Any) -> str:
    """Compact JSON in ASCII: half a character of somebody's prompt can be written too."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
