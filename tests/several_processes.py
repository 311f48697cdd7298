"""Several processes of one test, forked from a server that has loaded what they need."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["shared_work", "gptfit.train.processes", "torch._dynamo"])


def together(size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``work(*arguments)`` returns in each of ``size`` processes, in the order of their ranks.

    Its module lies directly in ``tests``, where each process can import it.
    """
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
    }
    processes, results = [], []
    for rank in range(size):
        ours, theirs = CONTEXT.Pipe()
        environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        process = CONTEXT.Process(target=_work, args=(environment, theirs, work, arguments))
        process.start()
        theirs.close()
        processes.append((process, ours))
    for process, ours in processes:
        try:
            results.append(ours.recv())
        except EOFError:
            results.append(None)
        process.join(60)
        assert process.exitcode is not None, "a process hangs"
    return results


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _work(
    environment: dict[str, str], answer: Connection, work: Callable[..., Any], arguments: Any
) -> None:
    os.environ.update(environment)
    answer.send(work(*arguments))
