"""The formulas against torch's own counter, on the meta device."""

from __future__ import annotations

import functools
import random
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from gptfit.config import GPT2Config
from gptfit.model import GPT2
from gptfit.plan.flops import (
    CAUSAL_EXACT,
    CONVENTIONS,
    HARDWARE,
    HEAD,
    MODEL,
    SCORES,
    flops_per_token,
    training_flops_per_token,
)
from gptfit.plan.step import EAGER, RECOMPUTED, SDPA, WHOLE, TrainingStep
from random_configs import random_config


def flash_attention(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A GPU's kernel; on the meta device torch would take the composite."""
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True)[0]


def counted(config: GPT2Config, step: TrainingStep) -> tuple[int, int]:
    """(forward, all) operations of one micro-batch, as torch counts them."""
    with torch.device("meta"):
        model = GPT2(config, step.vocab_multiple)
        ids = torch.zeros(step.micro_batch_size, step.context, dtype=torch.long)
    for block in model.h[: step.checkpointed_blocks]:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    if step.loss == RECOMPUTED:
        model.loss = functools.partial(checkpoint, model.loss, use_reentrant=False)
    attention = flash_attention if step.attention == SDPA else F.scaled_dot_product_attention
    with (
        patch.object(F, "scaled_dot_product_attention", attention),
        FlopCounterMode(display=False) as counter,
    ):
        loss = model(ids, ids)
        forward = counter.get_total_flops()
        loss.backward()
    return forward, counter.get_total_flops()


def test_gpt2_small_is_the_published_count() -> None:
    """291,648,307,200 forward and 894,272,274,432 with a flash backward, batch 1."""
    config = GPT2Config(bias=False)
    step = TrainingStep(context=1024)
    flops = flops_per_token(config, step, HARDWARE)
    assert sum(flops.forward.values()) * 1024 == 291_648_307_200
    assert flops.total * 1024 == 894_272_274_432
    assert counted(config, step) == (291_648_307_200, 894_272_274_432)


@pytest.mark.parametrize("seed", range(40))
def test_random_steps_match_torch_s_counter(seed: int) -> None:
    draw = random.Random(seed)
    dropout = draw.choice([0.0, 0.1])
    config = random_config(seed, reorder_and_upcast_attn=False, resid_pdrop=dropout)
    step = TrainingStep(
        micro_batch_size=draw.randint(1, 3),
        context=draw.randint(2, config.n_positions),
        attention=draw.choice([SDPA, EAGER]),
        checkpointed_blocks=draw.randint(0, config.n_layer),
        loss=draw.choice([WHOLE, RECOMPUTED]),
        vocab_multiple=draw.choice([1, 64]),
    )
    flops = flops_per_token(config, step, HARDWARE)
    forward = sum(flops.forward.values()) * step.tokens
    assert counted(config, step) == (forward, flops.total * step.tokens)


def test_model_convention_is_palm_s() -> None:
    config = GPT2Config()
    step = TrainingStep(context=1024, checkpointed_blocks=12, vocab_multiple=64)
    flops = flops_per_token(config, step, MODEL)
    weights = 12 * 12 * 768**2 + 50257 * 768
    assert flops.total == 6 * weights + 12 * 12 * 1024 * 768
    assert training_flops_per_token(config) == flops.total
    assert flops.recompute == {}


def test_causal_exact_counts_the_visible_keys() -> None:
    config = GPT2Config(n_positions=5)
    step = TrainingStep(context=5)
    full, causal = (flops_per_token(config, step, name) for name in (MODEL, CAUSAL_EXACT))
    visible, all_keys = 1 + 2 + 3 + 4 + 5, 5 * 5
    assert causal.forward[SCORES] * all_keys == full.forward[SCORES] * visible
    assert causal.forward[HEAD] == full.forward[HEAD]


def test_recomputation_is_only_the_hardware_s() -> None:
    config = GPT2Config(resid_pdrop=0.0)
    plain = TrainingStep(context=1024, attention=EAGER)
    assert flops_per_token(config, plain, HARDWARE) == replace(
        flops_per_token(config, plain, MODEL),
        convention=HARDWARE,
        recompute=dict.fromkeys(flops_per_token(config, plain).forward, 0),
    )
    chunked = replace(plain, loss=RECOMPUTED)
    extra = flops_per_token(config, chunked, HARDWARE).recompute
    assert sum(extra.values()) == 2 * 50257 * 768


def test_cpu_has_no_flash_attention_with_dropout() -> None:
    step = TrainingStep(context=64, device_kind="cpu")
    for dropout, recomputed in ((0.0, True), (0.1, False)):
        flops = flops_per_token(GPT2Config(attn_pdrop=dropout), step, HARDWARE)
        assert bool(flops.recompute[SCORES]) is recomputed


def test_every_convention_is_explained() -> None:
    assert set(CONVENTIONS) == {MODEL, CAUSAL_EXACT, HARDWARE}
    assert all(CONVENTIONS.values())
