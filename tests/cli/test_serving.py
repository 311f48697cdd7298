"""gptfit serve: a real process, from its first line to its exit code."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from command_line import call
from gptfit.formats.locate import find_model


class Process:
    """A running gptfit serve."""

    def __init__(self, *arguments: str, **variables: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gptfit", "serve", *arguments, "--port", "0", "--device", "cpu"],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | variables,
        )
        assert self.process.stderr is not None
        self.said = ""
        while not (found := re.search(r"url +(\S+)/v1\n(?:.*\n)*.*try", self.said)):
            line = self.process.stderr.readline()
            assert line, self.said
            self.said += line
        self.client = httpx2.Client(base_url=found[1], timeout=60)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        _, rest = self.process.communicate(timeout=30)
        self.said += rest
        self.client.close()
        return self.process.returncode


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def run(*arguments: object, **variables: str) -> Process:
        started.append(Process(*map(str, arguments), **variables))
        return started[-1]

    yield run
    for process in started:
        process.process.kill()
        process.process.communicate()


def test_from_start_to_end(run: Path, start: Callable[..., Process]) -> None:
    server = start(run, "--verbose")
    assert "serving run, " in server.said
    assert " parameters, context 16, on cpu" in server.said
    assert "slots  8, and 32 may wait" in server.said
    assert "no: the tokenizer carries no chat template" in server.said
    tried = re.search(r"try    curl (\S+) -H '(\S+): (\S+)' -d '(.*)'", server.said)
    assert tried is not None
    url, name, value, body = tried.groups()
    answer = server.client.post(url, content=body, headers={name: value})
    assert answer.json()["usage"]["completion_tokens"] == 16
    # What is under way when the signal comes is finished.
    long = {"prompt": "All", "max_tokens": 1000, "stream": True}
    with server.client.stream("POST", "/v1/completions", json=long) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("data: ")
        server.process.send_signal(signal.SIGTERM)
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert server.end() == 0
    assert re.search(r"127\.0\.0\.1 POST '/v1/completions' 200 .* \d+\+16 tokens", server.said)


def test_ctrl_c(run: Path, start: Callable[..., Process]) -> None:
    server = start(run)
    assert "GET" not in server.said
    assert server.end(signal.SIGINT) == 130
    assert "Traceback" not in server.said


def test_token_from_the_environment(run: Path, start: Callable[..., Process]) -> None:
    server = start(run, "--host", "0.0.0.0", GPTFIT_TOKEN="open-sesame")
    assert "open   to who has the token, unencrypted" in server.said
    assert 'Authorization: Bearer $GPTFIT_TOKEN"' in server.said
    assert "open-sesame" not in server.said
    assert server.client.get("/v1/models").status_code == 401
    key = {"Authorization": "Bearer open-sesame"}
    assert server.client.get("/v1/models", headers=key).status_code == 200
    assert server.end() == 0


def test_without_tokenizer(run: Path, start: Callable[..., Process], tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((find_model(run) / name).read_bytes())
    server = start(tmp_path, "--name", "bare")
    assert "no tokenizer: prompts and answers are token ids" in server.said
    answer = server.client.post("/v1/completions", json={"prompt": [0], "max_tokens": 2})
    assert len(answer.json()["choices"][0]["token_ids"]) == 2
    assert server.end() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "host=0.0.0.0 opens the model to everybody"),
        (["--host", "0.0.0.0", "--token", ""], "the token must be printable"),
        (["--token", "a b"], "the token must be printable"),
        (["--host", "no.such.host.invalid", "--insecure"], "cannot listen on"),
        (["--slots", "0"], "slots=0 must be at least 1"),
        (["--timeout", "nan"], "not a finite number"),
        (["--port", "99999"], "port=99999 is beyond 65,535"),
        (["--weights", "int3"], "weights=int3 is not known"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refused_at_the_start(run: Path, arguments: list[str], message: str) -> None:
    result = call("serve", run, "--port", "0", *arguments)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err


def test_no_such_model(tmp_path: Path) -> None:
    result = call("serve", tmp_path / "nothing", "--port", "0")
    assert result.code == 2
    assert "no such run or checkpoint folder" in result.err


def test_port_in_use(run: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = call("serve", run, "--port", port)
    assert result.code == 2
    assert f"port {port}: Address already in use; choose another --port" in result.err
