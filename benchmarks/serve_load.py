"""200 requests at the same moment, and places for 32: who is served gets the text that is his.

Starts ``gptfit serve`` on a model with random weights, sends all requests from threads that wait for
each other, half of them streaming, and compares every text with what the engine writes for that
prompt and seed alone. Further rounds follow until each of the requests has been served once.

    python benchmarks/serve_load.py [--requests 200] [--slots 8] [--queue 24] [--model DIR]

Exit code 1 where a text differs, an answer is neither 200 nor 429, or a 429 has no Retry-After.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
from serve_process import make_model, serving

WORDS = ["the", "cat", "and", "hat", "don't", "sit", "12", "345", "😀", "end"]


def make_requests(count: int, seed: int) -> list[dict[str, Any]]:
    """Prompts of any length up to the context, many with the same beginning."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        words = " ".join(rng.choices(WORDS, k=rng.randrange(1, 20)))
        found.append(
            {
                "prompt": f"the cat and {words}" if number % 2 else words,
                "seed": rng.randrange(2**40),
                "max_tokens": rng.choice([20, 50, 100, 200]),
                "temperature": rng.choice([0, 0.7, 1.0, 1.5]),
                "top_p": rng.choice([0.9, 1.0]),
                "stream": number % 4 < 2,
            }
        )
    return found


def expected(folder: Path, requests: list[dict[str, Any]]) -> list[str]:
    """What the engine writes for each of them, alone."""
    from gptfit.generate import SamplingOptions, generate_text
    from gptfit.serve import ServedModel

    model = ServedModel.load(str(folder), "cpu")
    assert model.tokenizer is not None
    texts = []
    for request in requests:
        names = ("seed", "temperature", "top_p")
        options = SamplingOptions(**{name: request[name] for name in names})
        pieces = generate_text(
            model.network, model.tokenizer, request["prompt"], request["max_tokens"], options
        )
        texts.append("".join(piece for (piece,) in pieces))
    return texts


def answer(client: httpx2.Client, request: dict[str, Any]) -> tuple[int, str]:
    """Status and text of an answer; of a 429 the Retry-After instead."""
    response = client.post("/v1/completions", json=request)
    if response.status_code != 200:
        return response.status_code, response.headers.get("retry-after", "")
    if not request["stream"]:
        return 200, response.json()["choices"][0]["text"]
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    return 200, "".join(chunk["choices"][0]["text"] for chunk in chunks)


def main() -> None:
    """Print a line for each round, then the verdict."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--queue", type=int, default=24)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    wish = parser.parse_args()
    faults = Counter[str]()
    with tempfile.TemporaryDirectory(prefix="gptfit-load-") as name:
        folder = wish.model or make_model(Path(name))
        requests = make_requests(wish.requests, wish.seed)
        texts = expected(folder, requests)
        waiting, rounds = list(range(len(requests))), 0
        with serving(folder, f"--slots={wish.slots}", f"--queue={wish.queue}") as server:
            limits = httpx2.Limits(max_connections=None)
            client = httpx2.Client(base_url=server.url, timeout=300, limits=limits)
            while waiting:
                rounds += 1
                together = threading.Barrier(len(waiting))

                def ask(index: int, together: threading.Barrier = together) -> tuple[int, str]:
                    together.wait()
                    return answer(client, requests[index])

                with ThreadPoolExecutor(len(waiting)) as pool:
                    answers = list(pool.map(ask, waiting))
                statuses = Counter(status for status, _ in answers)
                print(f"round {rounds}: {len(waiting)} at once, {dict(statuses)}", flush=True)
                for index, (status, text) in zip(waiting, answers, strict=True):
                    faults["another text"] += status == 200 and text != texts[index]
                    faults["429 without Retry-After"] += status == 429 and text != "1"
                    faults["another status"] += status not in (200, 429)
                pairs = zip(waiting, answers, strict=True)
                waiting = [index for index, (status, _) in pairs if status != 200]
            client.close()
        faults["exit code"] += server.process.returncode != 0
    found = {fault: count for fault, count in faults.items() if count}
    print(f"{wish.requests} requests served in {rounds} rounds; faults: {found or 'none'}")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
