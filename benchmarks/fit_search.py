"""Whether fit's search beats the simple rules that it replaced, at equal time.

For each text and seed both train a model, in turn, in processes of their own: the rules climb a ladder
of six sizes as long as a probe says that time and text allow the next; the search is ``gptfit fit``.
Prints the bits per byte of the best checkpoints on the whole validation split, and their differences;
and for the search what it predicted.

    python benchmarks/fit_search.py [--time 2m] [--seeds 3] [TEXT...]

Without a text: the embedded one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# The rules as they were. (n_layer, n_embd, n_head, n_positions), small to large.
LADDER = (
    (2, 64, 2, 64),
    (4, 128, 4, 128),
    (4, 256, 4, 128),
    (6, 384, 6, 256),
    (8, 512, 8, 256),
    (12, 768, 12, 512),
)
BATCH_SIZE = 16
TOKENS_PER_PARAMETER = 0.4
PARAMETERS_PER_TOKEN = 30
EPOCHS_WITHOUT_DROPOUT = 20
EVALUATIONS = 8
PROBE_SECONDS = 1.5


def by_rules(run: Path, paths: list[str], seconds: float, seed: int) -> float:
    """Bits per byte of the model that the ladder gives."""
    from gptfit.config import Recipe
    from gptfit.data import TextSource
    from gptfit.plan.params import count_parameters
    from gptfit.plan.step import TrainingStep
    from gptfit.train import run as runs
    from gptfit.train.calibrate import step_seconds
    from gptfit.train.device import choose_device
    from gptfit.train.interrupt import Interrupt

    end = time.perf_counter() + 0.95 * seconds
    text = TextSource.from_paths(paths) if paths else TextSource.embedded()
    base = Recipe.resolve(overrides=[f"seed={seed}", "device=cpu"])
    with runs.new_run(run):
        dataset = runs.prepare_data(run, base.data, text)
        chosen = None
        for n_layer, n_embd, n_head, n_positions in LADDER:
            recipe = base.override(
                {
                    "model.n_layer": n_layer,
                    "model.n_embd": n_embd,
                    "model.n_head": n_head,
                    "model.n_positions": n_positions,
                    "model.bias": False,
                    "model.dropout": 0.0,
                    "train.batch_size": BATCH_SIZE,
                    "train.learning_rate": round(0.032 / math.sqrt(n_embd), 5),
                }
            )
            recipe = runs.with_vocabulary(recipe, dataset.tokenizer)
            weights = count_parameters(recipe.model).non_embedding
            if chosen and weights > PARAMETERS_PER_TOKEN * len(dataset.train):
                break
            device = choose_device("cpu", "auto", recipe.model)
            step = TrainingStep.gptfit(recipe, "cpu", device.dtype_name)
            duration = step_seconds(recipe.model, step, device, PROBE_SECONDS)
            seen = (end - time.perf_counter()) / duration * step.tokens
            if chosen and seen < TOKENS_PER_PARAMETER * weights:
                break
            chosen = recipe, duration, step.tokens
        assert chosen is not None
        recipe, duration, tokens = chosen
        left = max(seconds / 2, end - time.perf_counter())
        steps = max(1, round(left / duration))
        repeats = steps * tokens / len(dataset.train) > EPOCHS_WITHOUT_DROPOUT
        recipe = recipe.override(
            {
                "train.max_seconds": round(left, 1),
                "train.schedule": "linear",
                "train.min_lr": recipe.train.learning_rate / 20,
                "train.warmup_steps": min(200, max(50, steps // 20), steps // 4),
                "train.beta2": 0.99,
                "train.eval_interval": max(1, steps // EVALUATIONS),
                "train.eval_tokens": max(4096, steps * tokens // 25),
                "train.sample_interval": 0,
                "model.resid_pdrop": 0.1 if repeats else 0.0,
                "model.embd_pdrop": 0.1 if repeats else 0.0,
            }
        )
        trainer = runs.start(run, recipe, dataset)
    outcome = trainer.run(lambda event: None, Interrupt())
    assert outcome.best is not None
    bits = trainer.bits_per_byte(outcome.best)
    assert bits is not None
    return bits


def by_search(run: Path, paths: list[str], seconds: float, seed: int) -> dict[str, object]:
    """What ``gptfit fit --json`` prints."""
    command = [sys.executable, "-m", "gptfit", "fit", *paths, "--time", f"{seconds:.0f}s"]
    command += ["--out", str(run), "--json", f"seed={seed}", "device=cpu", "sample_interval=0"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, object] = json.loads(result.stdout)
    return found


def main() -> None:
    """Run all, in turn, and print the table."""
    from gptfit.cli.overrides import parse_duration

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", nargs="*")
    parser.add_argument("--time", default="2m")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rules", type=Path, help=argparse.SUPPRESS)  # in a process of its own
    asked = parser.parse_args()
    seconds = parse_duration(asked.time)
    if asked.rules:
        print(by_rules(asked.rules, asked.texts, seconds, asked.seeds))
        return
    environment = {"GOMP_SPINCOUNT": "10000"} | os.environ
    print("| text | seed | rules | search | difference | predicted | total time |")
    print("|---|---|---|---|---|---|---|")
    for text in asked.texts or [""]:
        differences = []
        for seed in range(1, asked.seeds + 1):
            with tempfile.TemporaryDirectory() as folder:
                paths = [text] if text else []
                command = [sys.executable, __file__, *paths, "--time", asked.time]
                command += ["--seeds", str(seed), "--rules", f"{folder}/rules"]
                output = subprocess.run(
                    command, env=environment, capture_output=True, text=True, check=True
                )
                rules = float(output.stdout)
                found = by_search(Path(folder) / "search", paths, seconds, seed)
            bits = float(found["bits_per_byte"])
            differences.append(bits - rules)
            print(
                f"| {Path(text).name or 'embedded'} | {seed} | {rules:.4f} | {bits:.4f} | "
                f"{bits - rules:+.4f} | {found['forecast']['bits_per_byte']:.3f} | "
                f"{found['came']['seconds']:.0f} s of {seconds:.0f} |",
                flush=True,
            )
        print(f"mean difference {statistics.mean(differences):+.4f}")


if __name__ == "__main__":
    main()
