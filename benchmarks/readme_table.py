"""README's table of speed, from the results that ``gptfit bench ... --out FILE.json`` has written.

    gptfit bench step --nanogpt DIR --contestants huggingface-tuned,nanogpt --steps 1 --out step.json
    gptfit bench recipe --data input.txt --nanogpt DIR --rounds 2 --out recipe.json
    gptfit bench challenge --data input.txt --out challenge.json
    python benchmarks/decode.py --out decode.json
    python benchmarks/readme_table.py

reads them in ``benchmarks/results/``; ``input.txt`` is tinyshakespeare.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).with_name("results")


def result(case: str) -> dict[str, Any]:
    """The one result of a case. What has not passed is not shown."""
    stored = json.loads((RESULTS / f"{case}.json").read_text(encoding="utf-8"))
    if not stored["passed"]:
        raise SystemExit(f"{case}.json has not passed; measure it again")
    (found,) = stored["results"]
    return found


def recipe() -> Iterator[str]:
    """nanoGPT's recipe by the wall clock."""
    race = result("recipe")
    ours, theirs = (
        f"{race[side]['seconds']['median']:.1f} s, {median(race[side]['losses']):.3f}"
        for side in ("ours", "theirs")
    )
    what = f"nanoGPT's CPU recipe, start to end, to nanoGPT's final loss of {race['target']:.3f}"
    yield f"| {what} | {ours} | nanoGPT {theirs} | {race['times']:.1f} |"


def step() -> Iterator[str]:
    """Tokens per second, a line for each peer."""
    measured = result("step")
    ours, *peers = measured["rows"]
    what = f"GPT-2 {measured['parameters'] / 1e6:.0f}M, context {measured['context']:,}, tokens/s"
    for row in peers:
        speeds = [f"{one['tokens_per_second']['median']:.0f}" for one in (ours, row)]
        peer = f"{row['name']} ({row['settings']}) {speeds[1]}"
        yield f"| {what} | {speeds[0]} | {peer} | {row['times']:.1f} |"


def challenge() -> Iterator[str]:
    """What fit makes of tinyshakespeare."""
    found = result("challenge")
    reference, _, _ = found["reference"].partition(" (")
    what = f"tinyshakespeare, `gptfit fit --time {found['time']}`, nats/character"
    yield f"| {what} | {found['nats_per_character']:.3f} | {reference} | |"


def decode() -> Iterator[str]:
    """Generated tokens per second, beside the best that Hugging Face has."""
    stored = json.loads((RESULTS / "decode.json").read_text(encoding="utf-8"))
    speed = {row["contestant"]: row["tokens_per_second"] for row in stored["rows"]}
    peers = {name: rate for name, rate in speed.items() if name.startswith("huggingface")}
    best = max(peers, key=peers.__getitem__)
    settings = best.removeprefix("huggingface ").replace(" ", ", ")
    for weights in ("float16", "int8"):
        ours = speed[f"gptfit {weights}"]
        yield (
            f"| GPT-2 124M writes 256 tokens, {weights} weights, tokens/s | {ours:.0f} | "
            f"Hugging Face ({settings}) {peers[best]:.0f} | {ours / peers[best]:.1f} |"
        )


def table() -> str:
    """The whole table."""
    head = ("| | gptfit | peer | ratio |", "|---|---|---|---|")
    return "\n".join((*head, *recipe(), *step(), *challenge(), *decode()))


if __name__ == "__main__":
    print(table())
