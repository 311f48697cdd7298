"""What a checkpoint costs beside ``torch.save`` of the same tensors.

Saves the weights and moments of a model in turn by torch, by torch with fsync, by the store, and by the
store while it writes in the background; each times, of which the last is how long training stands still.
Medians, and their ratios to torch's.

    python benchmarks/checkpoints.py
    python benchmarks/checkpoints.py --model n_layer=2,n_embd=128,n_head=2 --rounds 2
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from gptfit.config import GPT2Config, Recipe
from gptfit.data import Tokenizer
from gptfit.model import GPT2
from gptfit.train.allocator import keep_freed_pages
from gptfit.train.checkpoint import CheckpointStore, TrainingState, checkpoint_bytes

WARM_UP = 2
"""Rounds until the system has pages for all files and copies; a run saves more often than that."""


def moments_of(model: GPT2) -> dict[str, torch.Tensor]:
    """Two for each parameter, as AdamW keeps them."""
    return {
        f"{moment}/{name}": torch.randn_like(parameter)
        for moment in ("exp_avg", "exp_avg_sq")
        for name, parameter in model.named_parameters()
    }


def by_torch(path: Path, model: GPT2, moments: dict[str, torch.Tensor], synced: bool) -> None:
    """In place, as most trainers do."""
    with path.open("wb") as file:
        torch.save({"model": model.state_dict(), "moments": moments}, file)
        if synced:
            file.flush()
            os.fsync(file.fileno())


def measure(config: GPT2Config, folder: Path, device: str, rounds: int) -> dict[str, list[float]]:
    """Seconds by way of saving, one for each round."""
    model = GPT2(config).to(device)
    moments = moments_of(model)
    tokenizer = Tokenizer.char("abc")
    stores = {}
    for name in ("atomic", "asynchronous"):
        (folder / name).mkdir()
        stores[name] = CheckpointStore(folder / name, 1, asynchronous=name == "asynchronous")

    def save(name: str, step: int) -> None:
        state = TrainingState(step, 0.0, None, None, "")
        stores[name].save(model, tokenizer, moments, state, is_best=False)

    ways: dict[str, Callable[[int], None]] = {
        "torch.save": lambda step: by_torch(folder / "plain.pt", model, moments, synced=False),
        "torch.save, fsync": lambda step: by_torch(folder / "synced.pt", model, moments, True),
        "atomic": lambda step: save("atomic", step),
        "asynchronous": lambda step: save("asynchronous", step),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for step in range(1, WARM_UP + rounds + 1):
        for name, way in ways.items():
            os.sync()  # what the one before has left to be written is not this one's
            started = time.perf_counter()
            way(step)
            times[name].append(time.perf_counter() - started)
            stores["asynchronous"].wait()
    for store in stores.values():
        assert all(written.error is None for written in store.finished())
    return {name: measured[WARM_UP:] for name, measured in times.items()}


def main() -> None:
    """Print the table and, on request, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="", help="changes to GPT-2 small: n_layer=2,n_embd=128")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, help="on the disk that is to be measured")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    overrides = [word for word in arguments.model.split(",") if word]
    config = Recipe.resolve(preset="gpt2", overrides=overrides).model
    keep_freed_pages()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        times = measure(config, Path(folder), arguments.device, arguments.rounds)
    medians = {name: statistics.median(measured) for name, measured in times.items()}
    print(f"{checkpoint_bytes(config, 'adamw') / 1e6:,.1f} MB, {arguments.rounds} rounds")
    print("| way | median | of torch.save | of torch.save, fsync |\n|---|---|---|---|")
    for name, median in medians.items():
        ratios = [median / medians[base] for base in ("torch.save", "torch.save, fsync")]
        print(f"| {name} | {median:.3f} s | {ratios[0]:.2f} | {ratios[1]:.2f} |")
    if arguments.json:
        arguments.json.write_text(json.dumps({"seconds": times}, indent=2) + "\n")


if __name__ == "__main__":
    main()
