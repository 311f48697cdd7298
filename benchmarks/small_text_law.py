"""The constants of the law of small texts: the trainings that they are fitted to, and the fit.

    python benchmarks/small_text_law.py [--train TEXT...]

Without ``--train`` the stored runs (small_text_runs.jsonl) are fitted again, in a second, and the
constants of ``gptfit.plan.scaling.SMALL_TEXT`` are printed with what they make of each run. With it the
runs are trained anew on the texts named, "embedded" among them, which takes hours on two cores.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gptfit.plan.least_squares import non_negative_least_squares
from gptfit.plan.scaling import CAUSES, GAIN, SMALL_TEXT, UNTRAINED, Facts, PilotRun, TextLaw

SET = ("context",)
"""Not fitted: at these lengths nothing of it is seen."""
RUNS = Path(__file__).with_name("small_text_runs.jsonl")


def train(path: str, settings: dict[str, Any]) -> dict[str, Any]:
    """One run with fit's settings; ``settings`` are those of the recipe."""
    from gptfit.config import Recipe
    from gptfit.data import TextSource, compressed_bits
    from gptfit.plan.params import count_parameters
    from gptfit.train import run as runs
    from gptfit.train.interrupt import Interrupt

    text = TextSource.embedded() if path == "embedded" else TextSource.from_paths([path])
    by_muon = settings["optimizer"] == "muon"
    rate = 4e-3 if by_muon else round(0.032 / settings["n_embd"] ** 0.5, 5)
    values = {
        "muon_learning_rate": 0.04, "muon_momentum": 0.9,
        "tokenizer": "bpe", "n_head": max(1, settings["n_embd"] // 64), "lr": rate, "min_lr": rate / 20,
        "schedule": "linear", "warmup_steps": max(50, settings["max_steps"] // 20), "beta2": 0.99,
        "eval_interval": settings["max_steps"] // 8, "eval_tokens": 16384, "sample_interval": 0,
        "bias": "false", "dropout": 0, "device": "cpu",
    } | settings  # fmt: skip
    recipe = Recipe.resolve(overrides=[f"{key}={value}" for key, value in values.items()])
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        with runs.new_run(run):
            dataset = runs.prepare_data(run, recipe.data, text)
            trainer = runs.start(run, recipe, dataset)
        outcome = trainer.run(lambda event: None, Interrupt())
        assert outcome.best is not None
        return {
            "text": Path(path).name,
            "settings": settings,
            "weights": count_parameters(trainer.recipe.model).non_embedding,
            "unique_tokens": len(dataset.train),
            "tokens_per_byte": len(dataset.train) / (0.9 * text.total_bytes),
            "compressed_bits": compressed_bits(text, 0.1),
            "bits_per_byte": trainer.bits_per_byte(outcome.best),
        }


def facts_of(run: dict[str, Any]) -> Facts:
    """What the law reads of a stored run."""
    settings = run["settings"]
    step_tokens = settings["batch_size"] * settings["n_positions"]
    return Facts(
        width=settings["n_embd"],
        depth=settings["n_layer"],
        weights=run["weights"],
        context=settings["n_positions"],
        vocab_size=settings["bpe_vocab_size"],
        tokens=settings["max_steps"] * step_tokens,
        unique_tokens=run["unique_tokens"],
        tokens_per_byte=run["tokens_per_byte"],
        step_tokens=step_tokens,
        gain=GAIN[settings["optimizer"]],
    )


def fitted_to(runs: list[dict[str, Any]]) -> TextLaw:
    """The law by these runs alone."""
    causes = [cause for cause in CAUSES if getattr(SMALL_TEXT, cause) and cause not in SET]
    losses = np.array([run["bits_per_byte"] / run["compressed_bits"] for run in runs])
    h = (losses - SMALL_TEXT.E) / (UNTRAINED - losses)
    features = [SMALL_TEXT.features(facts_of(run)) for run in runs]
    matrix = np.array([[row[cause] for cause in causes] for row in features])
    known = sum(
        getattr(SMALL_TEXT, cause) * np.array([row[cause] for row in features]) for cause in SET
    )
    fitted = non_negative_least_squares(matrix, h - known)
    return replace(SMALL_TEXT, **dict(zip(causes, map(float, fitted), strict=True)))


def main() -> None:
    """Fit and print; train first if asked."""
    runs = [json.loads(line) for line in RUNS.read_text(encoding="utf-8").splitlines()]
    if "--train" in sys.argv:
        wanted = {(run["text"], json.dumps(run["settings"])) for run in runs}
        for path in sys.argv[sys.argv.index("--train") + 1 :]:
            for name, settings in sorted(wanted):
                if name == Path(path).name:
                    print(json.dumps(train(path, json.loads(settings))), flush=True)
        return
    by_muon = [run for run in runs if run["settings"]["optimizer"] == "muon"]
    law = fitted_to([run for run in runs if run not in by_muon])
    law = law.fitted(
        [PilotRun(facts_of(run), run["compressed_bits"], run["bits_per_byte"]) for run in by_muon]
    )
    print("| text | settings | bits/byte | law | error |\n|---|---|---|---|---|")
    errors = []
    for run in runs:
        expected = float(law.bits_per_byte(facts_of(run), run["compressed_bits"]))
        errors.append(expected / run["bits_per_byte"] - 1)
        words = " ".join(f"{key}={value}" for key, value in run["settings"].items())
        print(
            f"| {run['text']} | {words} | {run['bits_per_byte']:.4f} | {expected:.4f} | {errors[-1]:+.1%} |"
        )
    print(f"\nroot mean square error {np.sqrt(np.mean(np.square(errors))):.1%}")
    print(", ".join(f"{cause}={getattr(law, cause):.3g}" for cause in CAUSES if cause not in SET))


if __name__ == "__main__":
    main()
