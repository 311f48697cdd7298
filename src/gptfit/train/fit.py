"""Choosing a model for a text, a machine and a time, by a measured probe and a few simple rules."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gptfit.config import Recipe
from gptfit.data import TextSource, TokenDataset
from gptfit.errors import DataError
from gptfit.model import GPT2
from gptfit.plan.params import count_parameters
from gptfit.train import run as runs
from gptfit.train.device import choose_device
from gptfit.train.loop import Trainer
from gptfit.train.optimizer import make_optimizer

# (n_layer, n_embd, n_head, n_positions), small to large.
LADDER = (
    (2, 64, 2, 64),
    (4, 128, 4, 128),
    (4, 256, 4, 128),
    (6, 384, 6, 256),
    (8, 512, 8, 256),
    (12, 768, 12, 512),
)
BATCH_SIZE = {"cpu": 16, "cuda": 64, "mps": 32}
TOKENS_PER_PARAMETER = 0.4
"""A model that the time does not let see this many tokens per weight is beaten by a smaller one."""
PARAMETERS_PER_TOKEN = 30
"""A model with more weights than this per token of the text learns it by heart."""
EPOCHS_WITHOUT_DROPOUT = 20
"""Drawing the masks costs a CPU a third of its speed; below this it costs more than it gives."""
SHORTEST_CONTEXT = 8
PROBE_SECONDS = 1.5
EVALUATIONS = 8
Say = Callable[[str], None]


@dataclass(frozen=True)
class Probe:
    """A candidate and how long one of its steps takes here."""

    recipe: Recipe
    step_seconds: float

    def tokens_in(self, seconds: float) -> float:
        """Tokens that training sees in this time."""
        tokens_per_step = self.recipe.train.batch_size * self.recipe.model.n_positions
        return seconds / self.step_seconds * tokens_per_step


def fit(run: Path, text: TextSource, seconds: float, overrides: Sequence[str], say: Say) -> Trainer:
    """A trainer for the best model that ``text`` and ``seconds`` allow on this machine.

    Tells ``say`` what was chosen and why. ``overrides`` win over every choice. The whole call and
    the training together are meant to take ``seconds``.
    """
    end = time.perf_counter() + 0.95 * seconds  # the rest is for the last evaluation
    base = Recipe.resolve(overrides=overrides)
    with runs.new_run(run):
        dataset = _prepare(run, text, base, say)
        probe = _choose(base, overrides, dataset, end - time.perf_counter(), say)
        left = max(seconds / 2, end - time.perf_counter())
        recipe = _schedule(probe, dataset, left, text.name).override(overrides)
        _explain(recipe, probe, dataset, left, say)
        return runs.start(run, recipe, dataset)


def _prepare(run: Path, text: TextSource, base: Recipe, say: Say) -> TokenDataset:
    say(f"text: {text.description}, {text.total_bytes:,} bytes")
    dataset = runs.prepare_data(run, base.data, text)
    if len(dataset.train) < 8 * SHORTEST_CONTEXT or len(dataset.val) <= SHORTEST_CONTEXT:
        raise DataError(
            f"{text.description} has {len(dataset.train)} training and {len(dataset.val)} validation "
            "tokens, too few to learn from; use more text"
        )
    why = "as asked"
    if base.data.tokenizer == "auto":
        why = {
            "char": "because the text is too short to learn longer tokens from",
            "bpe": "learned from the text, sized for it",
        }[dataset.tokenizer.kind]
    kind = {"char": "characters", "bpe": "byte-level BPE"}
    tokenizer = kind.get(dataset.tokenizer.kind, base.data.tokenizer)
    say(f"tokenizer: {dataset.tokenizer.vocab_size:,} tokens of {tokenizer}, {why}")
    say(f"data: {len(dataset.train):,} training tokens, {len(dataset.val):,} for validation")
    return dataset


def _choose(
    base: Recipe, overrides: Sequence[str], dataset: TokenDataset, seconds: float, say: Say
) -> Probe:
    """The largest rung of the ladder that the time and the text support, measured on the way up."""
    chosen: Probe | None = None
    for rung in LADDER:
        recipe = _candidate(base, rung, dataset, overrides)
        if chosen and chosen.recipe.model == recipe.model:
            break  # the overrides leave nothing to choose
        if chosen and _weights(recipe) > PARAMETERS_PER_TOKEN * len(dataset.train):
            say("size: a larger model would learn this text by heart")
            break
        probe = _probe(recipe)
        if chosen and probe.tokens_in(seconds) < TOKENS_PER_PARAMETER * _weights(recipe):
            say(f"size: a larger model ({_shape(recipe)}) would see too few tokens in the time")
            break
        chosen = probe
    assert chosen is not None
    return chosen


def _candidate(
    base: Recipe, rung: tuple[int, int, int, int], dataset: TokenDataset, overrides: Sequence[str]
) -> Recipe:
    n_layer, n_embd, n_head, n_positions = rung
    while n_positions > SHORTEST_CONTEXT and not _holds(dataset, n_positions):
        n_positions //= 2
    kind = choose_device(base.run.device, "float32", base.model).torch_device.type
    values = {
        "model.n_layer": n_layer,
        "model.n_embd": n_embd,
        "model.n_head": n_head,
        "model.n_positions": n_positions,
        "model.bias": False,
        "model.dropout": 0.0,
        "train.batch_size": BATCH_SIZE[kind],
        "train.learning_rate": round(0.032 / math.sqrt(n_embd), 5),  # 2e-3 at width 256
    }
    recipe = base.override(values, "fit").override(overrides)
    return runs.with_vocabulary(recipe, dataset.tokenizer)


def _probe(recipe: Recipe) -> Probe:
    """Time real steps on random tokens; the first ones, which set up kernels and memory, are left out."""
    device = choose_device(recipe.run.device, recipe.run.dtype, recipe.model)
    model = GPT2(recipe.model, runs.vocab_multiple(recipe, device)).to(device.torch_device)
    optimizer = make_optimizer(model, recipe.train)
    shape = (recipe.train.micro_batch_size, recipe.model.n_positions + 1)
    tokens = torch.randint(recipe.model.vocab_size, shape, device=device.torch_device)
    durations: list[float] = []
    while sum(durations) < PROBE_SECONDS or len(durations) < 4:
        started = time.perf_counter()
        for _ in range(recipe.train.grad_accum_steps):
            with device.autocast():
                loss = model(tokens[:, :-1], tokens[:, 1:])
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # waits for the device
        durations.append(time.perf_counter() - started)
    return Probe(recipe, statistics.median(durations[len(durations) // 2 :]))


def _schedule(probe: Probe, dataset: TokenDataset, seconds: float, name: str) -> Recipe:
    """Budget, warm-up, intervals and dropout for the model that was chosen."""
    steps = max(1, round(seconds / probe.step_seconds))
    epochs = probe.tokens_in(seconds) / len(dataset.train)
    values = {
        "train.max_seconds": round(seconds, 1),
        "train.schedule": "linear",
        "train.min_lr": probe.recipe.train.learning_rate / 20,
        # A shorter warm-up at these rates leaves the model on a plateau for the rest of the run.
        "train.warmup_steps": min(200, max(50, steps // 20), steps // 4),
        "train.beta2": 0.99,
        "train.eval_interval": max(1, steps // EVALUATIONS),
        "train.eval_tokens": max(4096, round(probe.tokens_in(seconds) / 25)),
        "train.log_interval": max(1, min(20, steps // 50)),
        "train.sample_interval": max(1, steps // EVALUATIONS) * (EVALUATIONS // 2),
        "run.sample_tokens": 120,
        # Attention dropout would take the fused attention kernel away from a CPU.
        "model.resid_pdrop": 0.1 if epochs > EPOCHS_WITHOUT_DROPOUT else 0.0,
        "model.embd_pdrop": 0.1 if epochs > EPOCHS_WITHOUT_DROPOUT else 0.0,
    }
    return probe.recipe.override(values, "fit").named(name)


def _explain(recipe: Recipe, probe: Probe, dataset: TokenDataset, seconds: float, say: Say) -> None:
    tokens = probe.tokens_in(seconds)
    rate = tokens / seconds
    total = count_parameters(recipe.model).total
    say(f"model: {_shape(recipe)}, {total:,} parameters")
    say(
        f"time: one step takes {1000 * probe.step_seconds:,.0f} ms here ({rate:,.0f} tokens/s), so "
        f"about {seconds / probe.step_seconds:,.0f} steps and "
        f"{tokens / len(dataset.train):.1f} epochs in {seconds:.0f} s"
    )
    if recipe.model.resid_pdrop:
        say(
            f"dropout: {recipe.model.resid_pdrop:g}, because the text is seen more than "
            f"{EPOCHS_WITHOUT_DROPOUT} times"
        )


def _holds(dataset: TokenDataset, n_positions: int) -> bool:
    """Whether the text has a few windows for training and one for validation."""
    return n_positions * 8 <= len(dataset.train) and n_positions < len(dataset.val)


def _weights(recipe: Recipe) -> int:
    """Parameters without the embeddings."""
    return count_parameters(recipe.model).non_embedding


def _shape(recipe: Recipe) -> str:
    model = recipe.model
    return f"{model.n_layer} layers, {model.n_embd} wide, {model.n_head} heads, context {model.n_positions}"
