"""Equality with transformers on random weights: logits, gradients, generated tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2LMHeadModel
from transformers import GPT2Config as HFConfig

from gptfit.config import GPT2Config
from gptfit.config.dialects import to_hf
from gptfit.formats.hf import hf_name, load_model, save_model
from gptfit.generate import SamplingOptions, generate
from gptfit.model import GPT2
from gptfit.plan.manifest import manifest
from random_configs import random_config

LOGITS_ATOL = 1e-5
GRADIENTS_ATOL = 1e-4
SEEDS = range(44)  # twice through the list of activations


def wakened(model: GPT2, seed: int) -> GPT2:
    """Give biases and norms values too, so that none of them can be forgotten unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def our_model(seed: int) -> GPT2:
    model = GPT2(random_config(seed))
    model.init_weights(torch.Generator().manual_seed(seed))
    return wakened(model, seed)


def tokens(config: GPT2Config, batch_size: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(config.vocab_size, (batch_size, config.n_positions), generator=generator)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("seed", SEEDS)
def test_saved_by_us_loaded_by_transformers(seed: int, attention: str, tmp_path: Path) -> None:
    ours = our_model(seed)
    save_model(tmp_path, ours)
    if attention == "sdpa" and ours.config.reorder_and_upcast_attn:
        attention = "eager"  # transformers ignores the flag elsewhere
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=attention)
    idx = tokens(ours.config)
    with torch.no_grad():
        difference = (ours(idx) - theirs(idx).logits).abs().max().item()
    assert difference <= LOGITS_ATOL


@pytest.mark.parametrize("seed", SEEDS)
def test_saved_by_transformers_loaded_by_us(seed: int, tmp_path: Path) -> None:
    config = random_config(seed, bias=True)
    torch.manual_seed(seed)
    theirs = GPT2LMHeadModel(HFConfig(**to_hf(config), attn_implementation="eager")).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path).eval()
    assert ours.config == config
    idx = tokens(config)
    with torch.no_grad():
        difference = (ours(idx) - theirs(idx).logits).abs().max().item()
    assert difference <= LOGITS_ATOL


@pytest.mark.parametrize("seed", SEEDS)
def test_loss_and_gradients(seed: int, tmp_path: Path) -> None:
    ours = our_model(seed)
    save_model(tmp_path, ours)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    idx = tokens(ours.config)
    loss = ours(idx[:, :-1], idx[:, 1:])
    loss.backward()
    their_loss = theirs(idx, labels=idx).loss
    their_loss.backward()
    assert loss.item() == pytest.approx(their_loss.item(), abs=LOGITS_ATOL)
    gradients = dict(theirs.named_parameters())
    for spec in manifest(ours.config):
        if not spec.tied_to:
            gradient = gradients[hf_name(spec)].grad
            gradient = gradient.t() if spec.transposed_in_hf else gradient
            difference = (ours.get_parameter(spec.name).grad - gradient).abs().max().item()
            assert difference <= GRADIENTS_ATOL, spec.name


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("seed", range(0, 44, 4))
def test_greedy_tokens(seed: int, use_cache: bool, tmp_path: Path) -> None:
    ours = GPT2(random_config(seed, n_positions=60))
    ours.init_weights(torch.Generator().manual_seed(seed))
    wakened(ours, seed)
    save_model(tmp_path, ours)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    prompt = tokens(ours.config, 1)[:, :6]
    want = theirs.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=50,
        do_sample=False,
        use_cache=use_cache,
        eos_token_id=None,
        pad_token_id=0,
    )[0, 6:].tolist()
    greedy = SamplingOptions(temperature=0)
    steps = generate(ours, [prompt[0].tolist()], 50, greedy, use_cache=use_cache)
    assert [step[0] for step in steps] == want
    assert len(want) == 50


@pytest.mark.parametrize("seed", range(12))
def test_left_padded_batch_equals_transformers_one_by_one(seed: int, tmp_path: Path) -> None:
    ours = our_model(seed)
    save_model(tmp_path, ours)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    idx = tokens(ours.config)
    mask = torch.ones_like(idx, dtype=torch.bool)
    mask[0, :3] = mask[1, :5] = False
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        batched = ours(idx, mask=mask, positions=positions)
        for row in range(len(idx)):
            alone = theirs(idx[row : row + 1, mask[row]]).logits[0]
            assert (batched[row, mask[row]] - alone).abs().max().item() <= LOGITS_ATOL
