"""The candidates of a search: every combination of sizes and options, with its memory and its time.

One numpy array a column, one row a candidate; nothing here is a loop over candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptfit.config import GPT2Config, Recipe
from gptfit.config.recipe import is_given
from gptfit.errors import ConfigError, Problem
from gptfit.plan.memory import training_peak_bytes
from gptfit.plan.memory.case import Case, letters_of_sizes
from gptfit.plan.memory.overhead import overhead_of
from gptfit.plan.rules_of_thumb import step_law_batch
from gptfit.plan.scaling import GAIN
from gptfit.plan.step import (
    ADAMW,
    CHUNKED,
    MUON,
    WHOLE,
    TrainingStep,
    usual_vocab_multiple,
)
from gptfit.plan.time import Costs

Columns = dict[str, Any]

LAYERS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 36, 48)
WIDTHS = (64, 128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024, 1152, 1280, 1536, 1792, 2048)
CONTEXTS = (32, 64, 128, 256, 512, 1024, 2048)
MICRO_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
LOSS_CHUNKS = (1, 8)
ASPECT = (20, 260)
"""Width over depth. Models of the same size train alike within wide bounds (Kaplan et al. 2020, section
3.1), and in minutes a wide one of two layers learns as much as a deep one (docs/lab-book.md)."""
MOST_MICRO_BATCHES = 512
BATCH_FACTOR = {ADAMW: 1, MUON: 2}
"""Muon's steps cost more and make more of a larger batch (arXiv 2505.02222, docs/lab-book.md)."""


@dataclass(frozen=True)
class Text:
    """What a search knows of a text: its size, the tokens that each vocabulary makes of a byte, and
    the bits that bzip2 makes of one.
    """

    train_bytes: float
    tokens_per_byte: Mapping[int, float]
    compressed_bits: float


@dataclass(frozen=True)
class Machine:
    """A device: its memory, the precision it trains in, and what work costs on it."""

    kind: str
    usable_bytes: float
    dtype: str
    costs: Costs


@dataclass(frozen=True)
class Lattice:
    """The axes. An axis of one value is a wish of the user; ``batch_size`` and ``heads`` too."""

    layers: Sequence[int] = LAYERS
    widths: Sequence[int] = WIDTHS
    contexts: Sequence[int] = CONTEXTS
    micro_batches: Sequence[int] = MICRO_BATCHES
    loss_chunks: Sequence[int] = LOSS_CHUNKS
    checkpointing: Sequence[bool] = (False, True)
    optimizer: str = MUON
    heads: int | None = None
    batch_size: int | None = None
    aspect: tuple[float, float] = ASPECT

    @classmethod
    def around(cls, recipe: Recipe) -> Lattice:
        """What the recipe leaves open; a value that somebody has set is not searched."""
        model, train, run = recipe.model, recipe.train, recipe.run
        axes: dict[str, Any] = {
            "model.n_layer": ("layers", (model.n_layer,)),
            "model.n_embd": ("widths", (model.n_embd,)),
            "model.n_positions": ("contexts", (model.n_positions,)),
            "model.n_head": ("heads", model.n_head),
            "train.batch_size": ("batch_size", train.batch_size),
            "train.micro_batch_size": ("micro_batches", (train.micro_batch_size,)),
            "run.loss_chunks": ("loss_chunks", (run.loss_chunks,)),
            "run.checkpointed_blocks": ("checkpointing", (run.checkpointed_blocks > 0,)),
        }
        asked = {axis: value for key, (axis, value) in axes.items() if is_asked(recipe, key)}
        return cls(optimizer=train.optimizer, **asked)


def is_asked(recipe: Recipe, key: str) -> bool:
    """Whether somebody has set this value."""
    return is_given(recipe.origins[key])


def tabulate(text: Text, machine: Machine, seconds: float, lattice: Lattice) -> Columns:
    """All candidates: sizes, options, bytes of memory, seconds of a step, tokens of a step."""
    import numpy as np

    sizes = _sizes(text, lattice)
    parts = []
    for chunks in lattice.loss_chunks:
        for checkpointed in lattice.checkpointing:
            step = TrainingStep(
                context=0,
                device_kind=machine.kind,
                dtype=machine.dtype,
                optimizer=lattice.optimizer,
                loss=CHUNKED if chunks > 1 else WHOLE,
                loss_chunks=chunks,
                vocab_multiple=usual_vocab_multiple(machine.kind),
            )
            parts.append(_variant(sizes, step, checkpointed, machine, seconds, lattice))
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _sizes(text: Text, lattice: Lattice) -> Columns:
    """Sizes of the models and of the micro-batch, without the odd shapes."""
    import numpy as np

    axes = (
        lattice.layers,
        lattice.widths,
        lattice.contexts,
        tuple(text.tokens_per_byte),
        lattice.micro_batches,
    )
    columns = [axis.ravel() for axis in np.meshgrid(*map(np.array, axes), indexing="ij")]
    sizes = dict(zip("LCTVB", columns, strict=True))
    low, high = lattice.aspect
    aspect = sizes["C"] / sizes["L"]
    if len(lattice.layers) > 1 and len(lattice.widths) > 1:
        sizes = {key: column[(low <= aspect) & (aspect <= high)] for key, column in sizes.items()}
    if lattice.batch_size is not None:
        fills = lattice.batch_size % sizes["B"] == 0
        sizes = {key: column[fills] for key, column in sizes.items()}
    if lattice.heads is not None:
        divides = sizes["C"] % lattice.heads == 0
        sizes = {key: column[divides] for key, column in sizes.items()}
        if not divides.any():
            message = f"n_head={lattice.heads} divides none of the widths {list(lattice.widths)}"
            raise ConfigError(Problem("model.n_head", message, "give n_embd too"))
    heads = {width: lattice.heads or usual_heads(width) for width in lattice.widths}
    sizes["H"] = np.array([heads[width] for width in sizes["C"].tolist()])
    sizes["F"] = 4 * sizes["C"]
    per_byte = text.tokens_per_byte
    sizes["tokens_per_byte"] = np.array([per_byte[size] for size in sizes["V"].tolist()])
    return sizes


def usual_heads(width: int) -> int:
    """Heads of 64, or of 32 where the width is no multiple of 64, or the next that divide it.

    >>> usual_heads(768), usual_heads(96), usual_heads(100)
    (12, 3, 2)
    """
    most = width // 64 if width % 64 == 0 else max(1, width // 32)
    return next(heads for heads in range(most, 0, -1) if width % heads == 0)


def _variant(
    sizes: Columns,
    step: TrainingStep,
    checkpointed: bool,
    machine: Machine,
    seconds: float,
    lattice: Lattice,
) -> Columns:
    """The candidates that compute their step in this way."""
    import numpy as np

    rows = len(sizes["C"])
    free = {key: sizes[key] for key in "VTCFLHB"}
    free["k"] = sizes["L"] if checkpointed else np.zeros(rows, int)
    letters = letters_of_sizes(free, step, MODEL)
    letters["A"] = _accumulation(letters, machine.costs, seconds, lattice)
    return {
        **{key: letters[key] for key in "VTCLHBAkN"},
        "weights": letters["L"] * letters["G"],
        "tokens_per_byte": sizes["tokens_per_byte"],
        "gain": np.full(rows, GAIN[step.optimizer]),
        "step_seconds": sum(machine.costs.parts(letters).values()),
        "step_tokens": letters["n"] * letters["A"],
        "memory": _memory(letters, step),
        "dtype": np.full(rows, step.dtype),
        "chunks": np.full(rows, step.loss_chunks),
    }


MODEL = GPT2Config(bias=False, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
"""What the candidates have in common beside their sizes."""


def _accumulation(letters: Columns, costs: Costs, seconds: float, lattice: Lattice) -> Any:
    """Micro-batches that make up the batch that was asked for, or that suits the training."""
    import numpy as np

    if lattice.batch_size is not None:
        return np.maximum(1, lattice.batch_size // letters["B"])
    tokens = letters["n"]
    rate = tokens / sum(costs.parts(letters).values())
    wanted = step_law_batch(seconds * rate) * BATCH_FACTOR[lattice.optimizer] / tokens
    return np.clip(np.round(wanted), 1, MOST_MICRO_BATCHES).astype(int)


def _memory(letters: Columns, step: TrainingStep) -> Any:
    """The device's memory at the worst and least favourable, bytes."""
    overhead = overhead_of(Case(MODEL, step))
    return overhead.total(overhead.allocated(training_peak_bytes(letters, step, MODEL))).high
