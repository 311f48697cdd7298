"""Where the server listens, whom it lets in, and how much it takes on."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from gptfit.config import checks
from gptfit.config.checks import Section, section
from gptfit.errors import Problem

MAX_BODY_BYTES = 2**20
BODY_SECONDS = 10.0
"""So long a request's head may take, and so long its body."""
GRACE_SECONDS = 7.0
"""So long running requests may go on after SIGTERM; with what comes after it, less than ten."""


@section
@dataclass(frozen=True, kw_only=True)
class ServerOptions(Section):
    """``slots`` continuations are computed at once, ``queue`` more may wait.

    ``max_tokens`` and ``timeout`` (seconds, waiting included) bound what one request may cost.
    ``hosts`` are further names under which browsers and clients may address the server.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    insecure: bool = False
    hosts: tuple[str, ...] = ()
    slots: int = 8
    queue: int = 32
    max_tokens: int = 4096
    timeout: float = 600.0

    def rules(self) -> Iterator[Problem]:
        """Nobody opens a server to a network by accident."""
        yield from checks.at_least(self, 1, "slots", "max_tokens")
        yield from checks.at_least(self, 0, "port", "queue")
        yield from checks.positive(self, "timeout")
        yield from checks.at_most(self, {"port": 65535, "slots": 1024, "queue": 65536})
        if self.token is not None and not _is_sound(self.token):
            yield Problem(
                "token",
                "the token must be printable ASCII without spaces, and not empty",
                'make one with: python -c "import secrets; print(secrets.token_urlsafe())"',
            )
        if not self.host:
            yield Problem("host", "host='' names no address", "use 127.0.0.1 or 0.0.0.0")
        elif not is_loopback(self.host) and self.token is None and not self.insecure:
            yield Problem(
                "host",
                f"host={self.host} opens the model to everybody who can reach this machine",
                "set a token by GPTFIT_TOKEN or --token, or say --insecure",
            )

    @property
    def places(self) -> int:
        """How many continuations may be under way or wait."""
        return self.slots + self.queue

    @property
    def known_hosts(self) -> frozenset[str]:
        """The names under which the server may be addressed; addresses always may."""
        names = {self.host, "localhost", *self.hosts}
        if not is_loopback(self.host):
            names.add(socket.gethostname())
        return frozenset(name.lower() for name in names)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _is_sound(token: str) -> bool:
    return token.isascii() and token.isprintable() and bool(token) and " " not in token
