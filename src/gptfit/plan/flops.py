"""Floating-point operations of training."""

from __future__ import annotations

from gptfit.config import GPT2Config
from gptfit.plan.params import count_parameters


def training_flops_per_token(config: GPT2Config) -> int:
    """Forward and backward of one token at full context: 6 per weight, 12·L·T·C for attention.

    The convention of PaLM's appendix B (Chowdhery et al. 2022), which nanoGPT prints too: attention
    counts as if it were not causal, recomputation not at all.

    >>> training_flops_per_token(GPT2Config()) // 10**6
    855
    """
    matmul_weights = count_parameters(config).untied - config.vocab_size * config.n_embd
    matmul_weights -= config.n_positions * config.n_embd
    attention = 12 * config.n_layer * config.n_positions * config.n_embd
    return 6 * matmul_weights + attention
