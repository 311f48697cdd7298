"""torch.compile, where it pays within the run, with a cache that outlives it."""

from __future__ import annotations

import os
import time

import torch

from gptfit.config import Recipe
from gptfit.model import GPT2
from gptfit.plan.calibration import cache_folder
from gptfit.train.device import Device

PAYS_FROM_SECONDS = 180.0
PAYS_FROM_TOKENS = 30_000_000
"""On a GPU: compiling takes about a minute and halves the time of a step. On a CPU it saves less than
a tenth (docs/lab-book.md), so there it is done on request only."""


def wants_compilation(recipe: Recipe, device: Device) -> bool:
    """What ``run.compile`` asks for; ``auto`` is by the length of the run."""
    if recipe.run.compile != "auto":
        return recipe.run.compile == "on"
    if device.torch_device.type != "cuda":
        return False
    train, context = recipe.train, recipe.model.n_positions
    steps = train.max_steps or 0
    tokens = train.max_tokens or steps * train.batch_size * context
    return (train.max_seconds or 0.0) >= PAYS_FROM_SECONDS or tokens >= PAYS_FROM_TOKENS


def compile_blocks(
    model: GPT2, device: Device, micro_batch_size: int, backend: str = "inductor"
) -> str:
    """Compile one block, which all blocks share, and the loss; try them on one batch.

    The names of the parameters stay, and other wrappers may follow. Returns what came of it in a
    line; where it does not work, as without a C++ compiler, the model stays as it was.
    """
    started = time.perf_counter()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))
    plain_loss = model.loss
    for block in model.h:
        block.compile(dynamic=False, backend=backend)
    model.loss = torch.compile(plain_loss, dynamic=False, backend=backend)  # type: ignore[method-assign]
    try:
        _try(model, device, micro_batch_size)
    except Exception as error:
        for block in model.h:
            block._compiled_call_impl = None
        model.loss = plain_loss  # type: ignore[method-assign]
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        return f"not compiled, which works all the same ({type(error).__name__}: {reason})"
    return f"compiled in {time.perf_counter() - started:.0f} s"


def _try(model: GPT2, device: Device, micro_batch_size: int) -> None:
    """Forward and backward, which is when kernels are made; leaves no gradients."""
    shape = (micro_batch_size, model.config.n_positions)
    tokens = torch.zeros(shape, dtype=torch.int64, device=device.torch_device)
    with device.autocast():
        loss = model(tokens, tokens)
    loss.backward()
    model.zero_grad(set_to_none=True)
