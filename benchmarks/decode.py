"""Generation by gptfit and by Hugging Face in turns, beside what reading the weights allows.

    python benchmarks/decode.py --rounds 5 [--preset gpt2] [--contestants NAME,...] [--out FILE.json]

Each contestant runs in a process of its own, with the same random weights, and continues the same
prompts greedily. Tokens per second are those of all rows together, from the call to the last token, so
the prompt is in it. "limit" is how often a second the memory, as measured in the same turns by
reading a large array with all threads, could give the weights once: bytes of the matrices and of the
head, 2 a weight in 16 bits, 1 in int8.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from gptfit.config import GPT2Config, Recipe
from gptfit.data import Tokenizer
from gptfit.formats.hf import load_model, save_model
from gptfit.generate import Engine, Request, SamplingOptions, with_weights
from gptfit.model import GPT2

PROMPT, NEW = 32, 256
OURS = ("float32", "float16", "int8")
GPTFIT = [f"gptfit {weights}" for weights in OURS]
BATCHED = [f"gptfit {weights} batch 8" for weights in OURS]
PEERS = [
    f"huggingface {dtype}{how}" for dtype in ("float32", "bfloat16") for how in ("", " compiled")
]
BANDWIDTH = "memory"
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
READ_BYTES, READS = 2**29, 64


def prompts(rows: int) -> list[list[int]]:
    """The same for everybody; every row another one."""
    return [[(7 + 31 * row + 3 * place) % 1000 for place in range(PROMPT)] for row in range(rows)]


def ours(folder: Path, weights: str, rows: int) -> Callable[[], list[list[int]]]:
    """Generates with gptfit's engine."""
    model = with_weights(load_model(folder).eval(), weights)

    def generate() -> list[list[int]]:
        engine = Engine(model, rows, capacity=PROMPT + NEW)
        greedy = SamplingOptions(temperature=0)
        live = [
            engine.add(Request(prompt=prompt, max_new_tokens=NEW, options=greedy))
            for prompt in prompts(rows)
        ]
        while engine.rows:
            engine.step()
        return [row.ids[PROMPT:] for row in live]

    return generate


def theirs(folder: Path, dtype: str, compiled: bool) -> Callable[[], list[list[int]]]:
    """Generates with transformers; compiled with a static cache, as its documentation says."""
    from transformers import GPT2LMHeadModel

    model: Any = GPT2LMHeadModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    if compiled:
        model.generation_config.cache_implementation = "static"
        model.forward = torch.compile(model.forward, fullgraph=True)
    ids = torch.tensor(prompts(1))

    def generate() -> list[list[int]]:
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW,
                min_new_tokens=NEW,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
            )
        return [out[0, PROMPT:].tolist()]

    return generate


def reader() -> Callable[[], list[list[int]]]:
    """Reads a large array, for about as long as a text takes."""
    array = torch.ones(READ_BYTES // 4)

    def read() -> list[list[int]]:
        for _ in range(READS):
            array.max()
        return []

    return read


def contestant(name: str, folder: Path, questions: Connection) -> None:
    """The process of one: at each question a turn, answered by its seconds and its tokens."""
    words = name.split()
    if name == BANDWIDTH:
        run = reader()
    elif words[0] == "gptfit":
        run = ours(folder, words[1], 8 if "batch" in words else 1)
    else:
        run = theirs(folder, words[1], "compiled" in words)
    run()
    questions.send("ready")
    while questions.recv():
        started = time.perf_counter()
        tokens = run()
        questions.send((time.perf_counter() - started, tokens))


def measure(names: list[str], folder: Path, rounds: int) -> tuple[dict[str, list[float]], Any]:
    """Seconds of each turn, and the tokens of the last."""
    spawn = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for name in names:
        here, there = spawn.Pipe()
        spawn.Process(target=contestant, args=(name, folder, there), daemon=True).start()
        print(f"starting {name}", file=sys.stderr)
        here.recv()  # one after the other: what is compiled now would disturb a turn
        pipes[name] = here
    seconds: dict[str, list[float]] = {name: [] for name in names}
    tokens = {}
    for _ in range(rounds):
        for name, pipe in pipes.items():
            pipe.send(True)
            taken, tokens[name] = pipe.recv()
            print(f"{name}: {taken:.2f} s", file=sys.stderr)
            seconds[name].append(taken)
    for pipe in pipes.values():
        pipe.send(False)
    return seconds, tokens


def results(seconds: dict[str, list[float]], tokens: Any, read: int) -> dict[str, Any]:
    """Speeds of all, and what they are of the best peer and of the limit of ``read`` weights."""
    bandwidth = READS * READ_BYTES / statistics.median(seconds.pop(BANDWIDTH))
    best_peer = max(
        (NEW / statistics.median(times) for name, times in seconds.items() if name in PEERS),
        default=float("nan"),
    )
    rows = []
    for name, times in seconds.items():
        count = sum(map(len, tokens[name]))
        speed = count / statistics.median(times)
        limit = bandwidth / (read * BYTES[name.split()[1]])
        rows.append(
            {
                "contestant": name,
                "tokens_per_second": speed,
                "least": count / max(times),
                "most": count / min(times),
                "of_best_huggingface": speed / best_peer,
                "limit": limit,
                "of_limit": speed / limit,
            }
        )
    return {"bandwidth": bandwidth, "rows": rows}


def table(stored: dict[str, Any]) -> str:
    """The rows, as the lab book has them."""
    lines = ["| contestant | tokens/s | least to most | × best of Hugging Face | of limit |"]
    lines.append("|---|---|---|---|---|")
    for row in stored["rows"]:
        lines.append(
            f"| {row['contestant']} | {row['tokens_per_second']:.1f} | {row['least']:.1f} to "
            f"{row['most']:.1f} | {row['of_best_huggingface']:.2f} | {row['of_limit']:.0%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Make the model, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="gpt2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--contestants", default=",".join([*GPTFIT, *PEERS, *BATCHED]))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    config: GPT2Config = Recipe.resolve(arguments.preset).model
    names = [BANDWIDTH, *arguments.contestants.split(",")]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = GPT2(config, generator=torch.Generator().manual_seed(0))
        save_model(folder, model)
        Tokenizer.char("abc").save(folder)
        read = sum(
            layer.weight.numel() for layer in model.modules() if hasattr(layer, "in_features")
        )
        del model
        seconds, tokens = measure(names, folder, arguments.rounds)
    stored = results(seconds, tokens, read)
    same = tokens.get(GPTFIT[0]) == tokens.get(PEERS[0])
    print(f"{arguments.preset}, {torch.get_num_threads()} threads, prompt {PROMPT}, {NEW} new;")
    print(f"the memory gives {stored['bandwidth'] / 1e9:.1f} GB/s; greedy tokens of gptfit float32")
    print(f"and of Hugging Face float32 are {'the same' if same else 'NOT the same'}\n")
    print(table(stored))
    if arguments.out:
        arguments.out.write_text(json.dumps(stored, indent=2) + "\n")


if __name__ == "__main__":
    main()
