"""How long a fresh `gptfit generate` takes to its first token, beside what loading the model takes.

    python benchmarks/first_token.py [--preset gpt2] [--rounds 5]

Seconds from the start of the process to its end after one token, and how many of them it spent reading
the weights and packing them; the difference is start-up, the prompt and the token.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from gptfit.config import Recipe
from gptfit.data import Tokenizer
from gptfit.formats.hf import save_model
from gptfit.model import GPT2


def main() -> None:
    """Save a model of random weights, start the command in turns, print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="gpt2")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    config = Recipe.resolve(arguments.preset).model
    wall, load = [], []
    with tempfile.TemporaryDirectory() as folder:
        model = GPT2(config, generator=torch.Generator().manual_seed(0))
        save_model(Path(folder), model, Tokenizer.char("abcdefghijklmnopqrstuvwxyz "))
        command = [sys.executable, "-m", "gptfit", "generate", folder, "--json"]
        for _ in range(arguments.rounds):
            started = time.perf_counter()
            done = subprocess.run(
                [*command, "--prompt", "a cold start", "-n", "1"], capture_output=True, check=True
            )
            wall.append(time.perf_counter() - started)
            load.append(json.loads(done.stdout)["load_seconds"])
    rest = [total - part for total, part in zip(wall, load, strict=True)]
    for name, seconds in (("process", wall), ("model load", load), ("the rest", rest)):
        print(f"{name:10}  {statistics.median(seconds):.2f} s, at most {max(seconds):.2f} s")


if __name__ == "__main__":
    main()
