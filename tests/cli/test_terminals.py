"""Terminals that cannot show everything, readers that leave, and machines without a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from written_run import told, write_run

VERBS = [
    ["plan", "gpt2", "--device", "rtx4090"],
    ["show", "gpt2", "--formula"],
    ["lint", "gpt2"],
    ["runs", "RUN"],
]
ENVIRONMENTS = {
    "LANG=C": {"LC_ALL": "C", "LANG": "C"},
    "code page": {"PYTHONIOENCODING": "cp1252"},
    "ASCII without colour": {
        "PYTHONIOENCODING": "ascii",
        "NO_COLOR": "1",
        "TERM": "xterm-256color",
    },
}


ALL_VERBS = """
import sys
from gptfit.cli import main

for words in {calls!r}:
    sys.argv = ["gptfit", *words]
    try:
        main()
    except SystemExit as end:
        assert not end.code, (words, end.code)
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "é ▏", told(3.0))


def words_of(verb: list[str], run: Path) -> list[str]:
    return [str(run) if word == "RUN" else word for word in verb]


def command(verb: list[str], run: Path) -> list[str]:
    return [sys.executable, "-m", "gptfit", *words_of(verb, run)]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_terminals_of_few_letters(environment: str, run: Path) -> None:
    program = ALL_VERBS.format(calls=[words_of(verb, run) for verb in VERBS])
    variables = os.environ | ENVIRONMENTS[environment]
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, env=variables)
    assert result.returncode == 0, result.stderr
    assert b"\x1b" not in result.stdout + result.stderr
    for said in (b"FITS", b"token embedding", b"interrupted"):
        assert said in result.stdout, said


def test_json_loses_nothing_on_a_terminal_of_few_letters(run: Path) -> None:
    variables = os.environ | ENVIRONMENTS["code page"]
    result = subprocess.run(
        command(["runs", "RUN", "--json"], run), capture_output=True, env=variables
    )
    assert json.loads(result.stdout)[0]["name"] == "é ▏"


@pytest.mark.parametrize("verb", [*VERBS, ["show", "gpt2", "--json"]], ids=" ".join)
def test_readers_that_leave(verb: list[str], run: Path) -> None:
    """As ``| head -c 1`` does."""
    with subprocess.Popen(
        command(verb, run), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        told = process.stderr.read()
    assert process.returncode == 0, told
    assert b"Traceback" not in told
    assert b"BrokenPipe" not in told


NO_NETWORK = """
import socket

def refuse(*arguments, **keywords):
    raise AssertionError("the network was asked")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
"""


def test_without_a_network(tmp_path: Path) -> None:
    """Everything that does not name a model of the hub."""
    out = str(tmp_path / "run")
    small = ["n_layer=1", "n_embd=16", "n_head=2", "n_positions=16", "sample_tokens=5"]
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 90, encoding="utf-8")
    text = str(tmp_path / "text.txt")
    calls = [
        *VERBS[:3],
        ["prepare", text, "--out", str(tmp_path / "data"), "bpe_vocab_size=270"],
        ["train", "tiny-char", *small, "max_steps=2", "--data", text, "--out", out, "device=cpu"],
        ["generate", out, "-n", "5"],
        ["plot", out, "--out", str(tmp_path / "a.svg")],
        ["runs", out],
    ]
    variables = {**os.environ, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", NO_NETWORK + ALL_VERBS.format(calls=calls)],
        capture_output=True,
        text=True,
        env=variables,
    )
    assert result.returncode == 0, result.stderr
    assert "finished" in result.stdout
