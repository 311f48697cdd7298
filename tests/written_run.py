"""Run folders written by hand: what training leaves, without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gptfit.config import Recipe
from gptfit.train.events import Evaluated, Event, MetricsFile, Saved, Started, Stepped

BITS_PER_NAT = 1.5


def write_run(
    run: Path, events: list[Event], *overrides: str, tokenizer: str = "one", signed: bool = False
) -> Path:
    """A run with these events, a checkpoint, and a lock that was given back unless ``signed``."""
    checkpoint = run / "checkpoints/step-000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    (run / "checkpoints/last.json").write_text('{"folder": "step-000001"}', encoding="utf-8")
    budget = [] if any("max_" in word for word in overrides) else ["max_steps=40"]
    Recipe.resolve(overrides=["n_layer=1", "n_head=2", "n_embd=16", *budget, *overrides]).save(
        run / "recipe.toml"
    )
    holder = {"pid": 2**22 + 1, "host": "elsewhere", "since": "2026-01-01"} if signed else None
    (run / ".lock").write_text(json.dumps(holder) if holder else "", encoding="utf-8")
    metrics = MetricsFile(run / "metrics.jsonl")
    for event in events:
        metrics.append(event)
    return run


def started(step: int = 0, metrics_bytes: int = 0) -> Started:
    return Started(step, metrics_bytes, "cpu", "float32", 1000)


def stepped(step: int, loss: float = 2.0, of: int = 40, **changes: Any) -> Stepped:
    values: dict[str, Any] = {
        "learning_rate": 1e-3,
        "grad_norm": 1.0,
        "tokens": step * 100,
        "epoch": 0.5,
        "tokens_per_second": 500.0,
        "elapsed_seconds": step * 0.5,
        "progress": step / of,
        "model_flops_utilization": None,
    }
    return Stepped(step=step, loss=loss, **values | changes)


def evaluated(step: int, loss: float, bits: bool = True) -> Evaluated:
    size = loss * BITS_PER_NAT if bits else None
    return Evaluated(step, loss, size, 10, 20, is_best=True, elapsed_seconds=step * 0.5)


def saved(step: int) -> Saved:
    return Saved(step, f"step-{step:06d}")


def told(*losses: float, every: int = 10) -> list[Event]:
    """Steps, evaluations and checkpoints, one of each for a loss."""
    events: list[Event] = [started()]
    for number, loss in enumerate(losses, 1):
        step = number * every
        events += [stepped(step, loss - 0.1), evaluated(step, loss), saved(step)]
    return events
