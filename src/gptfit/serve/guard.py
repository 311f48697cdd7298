"""Who may talk to the server: looked at before anything else of a request is."""

from __future__ import annotations

import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gptfit.serve.options import ServerOptions
from gptfit.serve.refusal import Refusal

OPEN_PATHS = ("/health",)
"""What a load balancer asks without a token."""


class Guard:
    """ASGI middleware: the Host that was asked for, the Origin that asks, the token."""

    def __init__(self, app: ASGIApp, options: ServerOptions) -> None:
        self.app = app
        self._hosts = options.known_hosts
        self._token = options.token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        try:
            if scope["type"] == "http":
                self._check(Headers(scope=scope), scope["path"])
        except Refusal as refusal:
            await refusal.response()(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _check(self, headers: Headers, path: str) -> None:
        host, origin = headers.get("host", ""), headers.get("origin")
        # A page of somebody else can have its own name point here (DNS rebinding), but no address.
        name = _hostname(host)
        if name not in self._hosts and not _is_address(name):
            raise Refusal(
                403,
                f"this server does not answer to the host {host[:100]!r}; if that name is yours, "
                "start it with --allow-host",
                code="host_not_allowed",
            )
        own = {f"{scheme}://{host.lower()}" for scheme in ("http", "https")}
        if origin is not None and origin.lower() not in own:
            raise Refusal(
                403,
                f"pages of {origin[:100]!r} may not use this server",
                code="origin_not_allowed",
            )
        if self._token is not None and path not in OPEN_PATHS:
            self._check_token(headers.get("authorization", ""))

    def _check_token(self, authorization: str) -> None:
        scheme, _, given = authorization.partition(" ")
        expected = str(self._token).encode()
        same = hmac.compare_digest(given.strip().encode("latin-1"), expected)
        if not (same and scheme.lower() == "bearer"):
            raise Refusal(
                401,
                "a missing or wrong token; send it as Authorization: Bearer TOKEN (the api_key of "
                "the openai client)",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
