"""Floating-point operations of training, per token. A multiply-add counts two.

Only matrix products are counted, as everywhere in the field: the rest is a per cent at most and is
bound by memory, not by arithmetic. Letters: T context, C n_embd, F n_inner, L n_layer, V vocab_size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gptfit.config import GPT2Config
from gptfit.plan.step import RECOMPUTED, SDPA, TrainingStep

SCORES = "attention scores"
PROJECTIONS = "projections"
FEED_FORWARD = "feed-forward"
HEAD = "head"

MODEL, CAUSAL_EXACT, HARDWARE = "model", "causal-exact", "hardware"
CONVENTIONS = {
    MODEL: "every query counts all T keys, and nothing counts twice: PaLM's and nanoGPT's",
    CAUSAL_EXACT: "a query counts only the keys that it may look at, (T + 1)/2 on average",
    HARDWARE: "as model, with what the backward pass computes again and the padded vocabulary",
}

Components = Mapping[str, int]


@dataclass(frozen=True)
class Flops:
    """Operations per token by component. ``recompute`` is forward work that backward repeats."""

    convention: str
    forward: Components = field(hash=False)
    backward: Components = field(hash=False)
    recompute: Components = field(hash=False)

    @property
    def total(self) -> int:
        """Of one token through forward, backward and recomputation."""
        return sum(sum(part.values()) for part in (self.forward, self.backward, self.recompute))


def flops_per_token(config: GPT2Config, step: TrainingStep, convention: str = MODEL) -> Flops:
    """Training's operations per token in one of the ``CONVENTIONS``.

    >>> config = GPT2Config()
    >>> step = TrainingStep(context=1024)
    >>> [flops_per_token(config, step, name).total // 10**6 for name in CONVENTIONS]
    [854, 797, 873]
    """
    vocab, T = config.vocab_size, step.context
    if convention == HARDWARE:
        vocab = -(-vocab // step.vocab_multiple) * step.vocab_multiple
    forward = _forward(config, T + 1 if convention == CAUSAL_EXACT else 2 * T, vocab)
    return Flops(
        convention,
        forward,
        {name: 2 * count for name, count in forward.items()},
        _recomputed(config, step, forward) if convention == HARDWARE else {},
    )


def training_flops_per_token(config: GPT2Config) -> int:
    """Forward and backward of one token at full context: 6 per weight, 12·L·T·C for attention.

    The convention ``model`` (Chowdhery et al. 2022, appendix B). nanoGPT's figure counts biases and
    norms as weights too, 0.1 % more.

    >>> training_flops_per_token(GPT2Config()) // 10**6
    854
    """
    return flops_per_token(config, TrainingStep(context=config.n_positions)).total


def _forward(config: GPT2Config, twice_keys: int, vocab: int) -> dict[str, int]:
    """2 per weight, and 4·C per key that a query looks at: its score, and the sum of the values."""
    L, C, F = config.n_layer, config.n_embd, config.n_inner
    return {
        SCORES: 2 * L * C * twice_keys,
        PROJECTIONS: 2 * L * 4 * C * C,
        FEED_FORWARD: 2 * L * 2 * C * F,
        HEAD: 2 * vocab * C,
    }


def _recomputed(config: GPT2Config, step: TrainingStep, forward: Components) -> dict[str, int]:
    """What backward computes again: flash attention's scores, checkpointed blocks, the head's chunks."""
    scores = forward[SCORES] // 2 if _is_flash(config, step) else 0
    blocks = {name: forward[name] for name in (SCORES, PROJECTIONS, FEED_FORWARD)}
    if config.resid_pdrop == 0:
        # torch.utils.checkpoint stops at the last tensor that backward needs, which is the input of
        # the block's last product; with dropout it is the mask, behind that product.
        blocks[FEED_FORWARD] //= 2
    repeated = {
        name: count * step.checkpointed_blocks // config.n_layer for name, count in blocks.items()
    }
    repeated[SCORES] += scores
    repeated[HEAD] = forward[HEAD] if step.loss == RECOMPUTED else 0
    return repeated


def _is_flash(config: GPT2Config, step: TrainingStep) -> bool:
    """Flash attention stores no scores and computes them twice; the CPU has none with dropout."""
    has_kernel = step.device_kind != "cpu" or config.attn_pdrop == 0
    return step.attention == SDPA and has_kernel
