"""Who is let in."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import openai
import pytest

from gptfit.errors import ConfigError
from gptfit.serve import ServedModel, ServerOptions, address, listen
from running_server import Running, running

TOKEN = "s3cret-Token"


@pytest.fixture(scope="module")
def known(model: ServedModel) -> Iterator[Running]:
    """A server that knows one more name of itself."""
    with running(model, hosts=("my.box",)) as server:
        yield server


@pytest.fixture(scope="module")
def with_token(model: ServedModel) -> Iterator[Running]:
    with running(model, token=TOKEN) as server:
        yield server


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "LOCALHOST:1234"}, 200),
        ({"Host": "192.168.1.7:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "my.box"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example:80"}, 403),
        ({"Host": "localhost@evil.example"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": "localhost", "Origin": "http://localhost"}, 200),
        ({"Host": "localhost:99", "Origin": "http://localhost:99"}, 200),
        ({"Host": "my.box", "Origin": "https://my.box"}, 200),
        ({"Host": "localhost", "Origin": "http://localhost:3000"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
    ],
    ids=str,
)
def test_host_and_origin(known: Running, headers: dict[str, str], status: int) -> None:
    for path in ("/health", "/v1/models", "/nowhere"):
        answer = known.http.get(path, headers=headers)
        assert answer.status_code == (404 if (path, status) == ("/nowhere", 200) else status)
        if status == 403:
            assert answer.json()["error"]["code"] in ("host_not_allowed", "origin_not_allowed")


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer {TOKEN}", 200),
        ("", 401),
        ("Bearer", 401),
        (f"Bearer {TOKEN}x", 401),
        (f"Bearer {TOKEN[:-1]}", 401),
        (f"Basic {TOKEN}", 401),
        (TOKEN, 401),
        (b"Bearer \xff\xfe", 401),
    ],
)
def test_token(with_token: Running, authorization: str | bytes, status: int) -> None:
    client, headers = with_token.http, {b"Authorization": authorization}
    for path in ("/v1/models", "/metrics"):
        assert client.get(path, headers=headers).status_code == status  # type: ignore[arg-type]
    answer = client.post("/v1/completions", json={"prompt": "a"}, headers=headers)  # type: ignore[arg-type]
    assert answer.status_code == status
    if status == 401:
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
    assert client.get("/health").status_code == 200


def test_openai_client_and_token(with_token: Running) -> None:
    with pytest.raises(openai.AuthenticationError, match="missing or wrong token"):
        with_token.openai.models.list()
    assert with_token.openai.with_options(api_key=TOKEN).models.list().data[0].id == "tiny"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.com"])
def test_open_to_others(host: str) -> None:
    with pytest.raises(ConfigError, match=f"host={host} opens the model to everybody"):
        ServerOptions(host=host)
    assert ServerOptions(host=host, token=TOKEN).host == host
    assert ServerOptions(host=host, insecure=True).token is None


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "LocalHost"])
def test_loopback_needs_no_token(host: str) -> None:
    assert ServerOptions(host=host).token is None


@pytest.mark.parametrize("token", ["", " ", "two words", "line\n", "schlüssel"])
def test_unusable_tokens(token: str) -> None:
    with pytest.raises(ConfigError, match="printable ASCII without spaces"):
        ServerOptions(host="0.0.0.0", token=token)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"port": 70_000}, "port=70000 is beyond"),
        ({"port": -1}, "port=-1 must be at least 0"),
        ({"slots": 0}, "slots=0 must be at least 1"),
        ({"queue": -1}, "queue=-1 must be at least 0"),
        ({"timeout": 0}, "timeout=0.0 must be positive"),
        ({"timeout": float("nan")}, "not a finite number"),
        ({"host": ""}, "names no address"),
    ],
    ids=str,
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServerOptions(**options)  # type: ignore[arg-type]


def test_addresses_that_cannot_be_had() -> None:
    with listen(ServerOptions(port=0)) as listener:
        port = listener.getsockname()[1]
        assert address(listener) == f"http://127.0.0.1:{port}"
        with pytest.raises(ConfigError, match=f"port {port}: .*in use; choose another --port"):
            listen(ServerOptions(port=port))
    for host in ("no.such.host.invalid", "192.0.2.1", "a" * 300, "..\ud800"):
        with pytest.raises(ConfigError, match="cannot listen on"):
            listen(ServerOptions(host=host, insecure=True))


def test_all_addresses(start: Callable[..., Running]) -> None:
    server = start(host="0.0.0.0", insecure=True)
    assert server.url.startswith("http://127.0.0.1:")
    assert server.http.get("/health").status_code == 200
    assert server.http.get("/health", headers={"Host": "evil.example"}).status_code == 403
