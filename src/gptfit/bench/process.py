"""Contestants in processes of their own, so that no setting of one reaches another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptfit.bench.contestant import GPTFIT, Contestant
from gptfit.errors import GptfitError

SPINNING = ("GOMP_SPINCOUNT", "10000")
"""What the ``gptfit`` command sets for itself, and so for whatever it starts."""
FAREWELL_SECONDS = 20.0


class BenchError(GptfitError):
    """A process of a benchmark broke down."""

    exit_code = 1


def environment(is_ours: bool) -> dict[str, str]:
    """This one's, in which only gptfit has what its command sets. Nobody looks for a network."""
    name, value = SPINNING
    values = {**os.environ, "HF_HUB_OFFLINE": "1"}
    if is_ours:
        values.setdefault(name, value)
    elif values.get(name) == value:
        del values[name]
    return values


class Driven:
    """A contestant that waits in its process for the next question; both speak lines of JSON."""

    def __init__(self, contestant: Contestant, folder: Path) -> None:
        self.contestant = contestant
        self._log = folder / f"{contestant.key}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gptfit.bench.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment(contestant.code == GPTFIT),
                cwd=folder,
            )

    def ask(self, **question: Any) -> dict[str, Any]:
        """The answer. Raises ``BenchError`` if the process is gone."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            raise BenchError(f"{self.contestant.name} {how_it_ended(code, self._log)}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Driven:
        return self

    def __exit__(self, *exception: object) -> None:
        """The end of its input ends it."""
        with self._process:
            if exception[0] is not None:
                self._process.kill()
            assert self._process.stdin is not None
            try:
                self._process.stdin.close()
                self._process.wait(FAREWELL_SECONDS)
            except (BrokenPipeError, subprocess.TimeoutExpired):
                self._process.kill()


def run_to_end(command: Sequence[str], name: str, folder: Path, is_ours: bool) -> tuple[float, str]:
    """(seconds from its start to its end, what it printed on stdout) of a whole program."""
    out, log = folder / f"{name}.out", folder / f"{name}.log"
    with out.open("wb") as stdout, log.open("wb") as stderr:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=stdout, stderr=stderr, cwd=folder, env=environment(is_ours)
        )
        try:
            code = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        seconds = time.perf_counter() - started
    if code:
        raise BenchError(f"{name} {how_it_ended(code, log)}")
    return seconds, out.read_text(encoding="utf-8", errors="replace")


def how_it_ended(code: int, log: Path) -> str:
    """In words, with the last thing that the program said."""
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = f": {said[-1].strip()[:300]}" if said else ""
    if code >= 0:
        return f"ended with exit code {code}{last}"
    hint = " (the system kills what takes too much memory)" if code == -signal.SIGKILL else ""
    return f"was ended by {signal.Signals(-code).name}{hint}{last}"
