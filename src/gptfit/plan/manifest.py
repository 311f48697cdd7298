"""The manifest: the one list of a configuration's tensors.

Parameter counts, weight files, weight decay, initialisation and pictures all read this list, so none
of them can disagree with the model (``tests/plan/test_manifest.py`` holds it against the module).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from gptfit.config import GPT2Config

TOKEN_EMBEDDING = "token embedding"
POSITION_EMBEDDING = "position embedding"
ATTENTION = "attention"
FEED_FORWARD = "feed-forward"
LAYER_NORM = "layer norm"
OUTPUT_HEAD = "output head"


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the model: its name and shape in ours, and all that others must know of it.

    ``shape`` is ``(out, in)`` for matrices; Hugging Face stores those with ``transposed_in_hf`` the
    other way round (its Conv1D). Initial values are drawn from N(``init_mean``, ``init_std``²).
    A tensor with ``tied_to`` shares the memory of another and counts no parameters.
    """

    name: str
    shape: tuple[int, ...]
    component: str
    init_mean: float = 0.0
    init_std: float = 0.0
    transposed_in_hf: bool = False
    tied_to: str | None = None

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def decayed(self) -> bool:
        """Whether weight decay applies: to matrices and embeddings, never to biases and norms."""
        return len(self.shape) > 1


def manifest(config: GPT2Config) -> tuple[TensorSpec, ...]:
    """All tensors of the language model, in the order of its ``state_dict``.

    >>> sum(spec.numel for spec in manifest(GPT2Config()) if not spec.tied_to)
    124439808
    """
    return tuple(_tensors(config))


def _tensors(config: GPT2Config) -> Iterator[TensorSpec]:
    C, std = config.n_embd, config.initializer_range
    yield TensorSpec("wte.weight", (config.vocab_size, C), TOKEN_EMBEDDING, init_std=std)
    yield TensorSpec("wpe.weight", (config.n_positions, C), POSITION_EMBEDDING, init_std=std)
    for layer in range(config.n_layer):
        yield from _block(config, f"h.{layer}")
    yield from _layer_norm(config, "ln_f")
    tied_to = "wte.weight" if config.tie_word_embeddings else None
    shape = (config.vocab_size, C)
    yield TensorSpec("lm_head.weight", shape, OUTPUT_HEAD, init_std=std, tied_to=tied_to)


def _block(config: GPT2Config, prefix: str) -> Iterator[TensorSpec]:
    C, F = config.n_embd, config.n_inner
    # Each block adds twice to the residual stream; scaling those writers keeps its variance at
    # initialisation independent of depth (Radford et al. 2019, section 2.3).
    writer = 1 / math.sqrt(2 * config.n_layer)
    yield from _layer_norm(config, f"{prefix}.ln_1")
    yield from _linear(config, f"{prefix}.attn.c_attn", 3 * C, C, ATTENTION)
    yield from _linear(config, f"{prefix}.attn.c_proj", C, C, ATTENTION, writer)
    yield from _layer_norm(config, f"{prefix}.ln_2")
    yield from _linear(config, f"{prefix}.mlp.c_fc", F, C, FEED_FORWARD)
    yield from _linear(config, f"{prefix}.mlp.c_proj", C, F, FEED_FORWARD, writer)


def _linear(
    config: GPT2Config, name: str, out: int, into: int, component: str, scale: float = 1.0
) -> Iterator[TensorSpec]:
    std = config.initializer_range * scale
    yield TensorSpec(f"{name}.weight", (out, into), component, init_std=std, transposed_in_hf=True)
    if config.bias:
        yield TensorSpec(f"{name}.bias", (out,), component)


def _layer_norm(config: GPT2Config, name: str) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.weight", (config.n_embd,), LAYER_NORM, init_mean=1.0)
    if config.bias:
        yield TensorSpec(f"{name}.bias", (config.n_embd,), LAYER_NORM)
