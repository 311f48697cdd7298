"""What a model makes of given tokens: how likely each is, and the states behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
import torch
from torch import Tensor

from gptfit.errors import ConfigError, DataError
from gptfit.generate.evaluate import without_dropout
from gptfit.generate.sliding import log_probabilities, require_known, windows_of
from gptfit.model import GPT2

Ids = Sequence[int] | np.ndarray | Tensor


@torch.no_grad()
def score(model: GPT2, ids: Ids, stride: int | None = None) -> Tensor:
    """Log-probability in nats of each of the ids (N,) but the first, given those before it.

    Returns (N - 1,), float32, on the CPU; minus its mean is the loss. Up to the context of the model
    every id is seen with all before it; a longer text is scored in ``SlidingWindows`` of this
    ``stride``, half the context where it is None. Raises ``DataError`` for fewer than two ids and
    for ids outside the vocabulary, ``ConfigError`` for a stride that is not 1 to the context.
    """
    windows = windows_of(model, _sequence(ids), stride)
    with without_dropout(model):
        return torch.cat(list(log_probabilities(model, windows)))


@overload
def hidden_states(model: GPT2, ids: Ids, layer: None = None) -> tuple[Tensor, ...]: ...


@overload
def hidden_states(model: GPT2, ids: Ids, layer: int) -> Tensor: ...


@torch.no_grad()
def hidden_states(model: GPT2, ids: Ids, layer: int | None = None) -> Tensor | tuple[Tensor, ...]:
    """Hidden states of the ids (T,), each (T, C), on the model's device.

    A tuple of n_layer + 1, as the ``hidden_states`` of transformers: the embeddings, then what each
    block gives out; the last one is behind the final norm. With ``layer`` one of them: 0 is the
    embeddings, -1 the last, of which the logits are made. Raises ``DataError`` for more ids than the
    context holds, none, or ids outside the vocabulary, ``ConfigError`` for a layer that is not there.
    """
    config, tokens = model.config, _sequence(ids)
    if layer is not None and not -config.n_layer - 1 <= layer <= config.n_layer:
        raise ConfigError(
            f"layer={layer} must be between 0 (the embeddings) and {config.n_layer}, or count from "
            "the end: -1 is the last"
        )
    if not 1 <= tokens.size <= config.n_positions:
        raise DataError(
            f"{tokens.size} tokens are not between 1 and the context of {config.n_positions}; give a "
            "part of them"
        )
    require_known(tokens, config.vocab_size)
    states: list[Tensor] = []
    hooks = [
        block.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
        for block in model.h
    ]
    try:
        with without_dropout(model):
            idx = torch.from_numpy(tokens.astype(np.int64)).to(model.wpe.weight.device)
            states.append(model.hidden(idx[None]))
    finally:
        for hook in hooks:
            hook.remove()
    every = tuple(state[0] for state in states)
    return every if layer is None else every[layer]


def _sequence(ids: Ids) -> np.ndarray:
    tokens = ids.cpu().numpy() if isinstance(ids, Tensor) else np.asarray(ids)
    if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "iu"):
        raise DataError(
            f"ids are one row of whole numbers, (N,); these are {tokens.dtype} {tokens.shape}"
        )
    return tokens
