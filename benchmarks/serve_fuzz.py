"""20,000 requests that nobody should send, then schemathesis: no answer 5xx, no growing memory.

Starts ``gptfit serve`` on a model with random weights, sends it the requests of
``tests/strange_requests.py`` from several clients at once, and prints the answers by status and how the
server's resident memory grew after a warm-up. schemathesis then makes its own from ``/openapi.json``; it
brings a plugin of pytest along, so let it live in an environment of its own and name its command.

    python benchmarks/serve_fuzz.py --schemathesis DIR/bin/schemathesis [--requests 20000] [--seed 0]

Exit code 1 for an answer 5xx, none at all, memory grown by 5 %, or a finding of schemathesis. Linux.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
from serve_process import Server, make_model, serving

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from strange_requests import strange_request

CLIENTS = 8
GROWTH = 0.05


def send(server: Server, seeds: Iterable[int]) -> Counter[str]:
    """The answers to one strange request for each seed, by status."""
    with httpx2.Client(base_url=server.url, timeout=120) as client:

        def ask(seed: int) -> str:
            method, path, headers, content = strange_request(random.Random(seed))
            try:
                answer = client.request(method, path, headers=headers, content=content)
            except httpx2.HTTPError as error:
                print(f"seed {seed}: {method} {path[:40]} {headers}: {error!r}", flush=True)
                return "no answer"
            if answer.status_code >= 500:
                print(f"seed {seed}: {answer.status_code} {answer.text[:200]}", flush=True)
            return str(answer.status_code)

        with ThreadPoolExecutor(CLIENTS) as pool:
            return Counter(pool.map(ask, seeds))


def growth(server: Server, before: int, title: str) -> bool:
    """Whether the memory stayed; prints how far it did."""
    after = server.rss_bytes
    share = after / before - 1
    print(f"{title}: {before / 2**20:.1f} -> {after / 2**20:.1f} MiB, {share:+.2%}", flush=True)
    return share < GROWTH


def main() -> None:
    """Print counts, growth and verdict."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--warm-up", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--schemathesis", default="schemathesis", help="its command")
    parser.add_argument("--examples", type=int, default=300, help="of schemathesis, for each route")
    wish = parser.parse_args()
    found_at = shutil.which(wish.schemathesis)
    if found_at is None:
        sys.exit(f"{wish.schemathesis}: no such command; pip install schemathesis elsewhere")
    with tempfile.TemporaryDirectory(prefix="gptfit-fuzz-") as name:
        with serving(make_model(Path(name)), "--max-tokens=64") as server:
            first = wish.seed * 10**9
            send(server, range(first, first + wish.warm_up))
            before = server.rss_bytes
            first += wish.warm_up
            statuses = send(server, range(first, first + wish.requests))
            for status, count in sorted(statuses.items()):
                print(f"{status:>10} {count:>7,}")
            flat = growth(server, before, "memory, strange requests")
            checks = (
                "--checks=not_a_server_error,content_type_conformance,response_schema_conformance"
            )
            examples = [f"--max-examples={wish.examples}", f"--seed={wish.seed}"]
            location = f"{server.url}/openapi.json"
            command = [str(Path(found_at).absolute()), "run", location, checks, *examples]
            environment = {"NO_COLOR": "1"} | os.environ
            found = subprocess.run(command, env=environment, cwd=name).returncode
            flat &= growth(server, before, "memory, and schemathesis")
        ended = server.process.returncode
    answered = not any(status[0] in "5n" for status in statuses)
    print(f"answers {'in order' if answered else 'AMISS'}; memory {'flat' if flat else 'GROWN'}")
    print(f"schemathesis {'found nothing' if not found else 'FOUND FAULTS'}; exit code {ended}")
    sys.exit(not (answered and flat and not found and ended == 0))


if __name__ == "__main__":
    main()
