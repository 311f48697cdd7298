"""The loss in chunks is the loss, and so are its gradients; recomputing blocks changes nothing."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gptfit.config import GPT2Config
from gptfit.errors import ConfigError
from gptfit.model import GPT2
from gptfit.model.loss import chunked_cross_entropy
from random_configs import random_config

LOSS_TOLERANCE = 1e-6  # relative
GRADIENT_TOLERANCE = 1e-5  # relative to the largest entry


def distance(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest entry."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def model_of(config: GPT2Config, multiple: int = 1, **options: Any) -> GPT2:
    model = GPT2(config, multiple, torch.Generator().manual_seed(0))
    model.spare_memory(**options)
    return model


def batch(config: GPT2Config, size: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, size, config.n_positions)
    inputs, targets = torch.randint(config.vocab_size, shape, generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < 0.2] = -100
    return inputs, targets


def loss_and_gradients(model: GPT2, *pair: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(7)
    model.zero_grad()
    loss = model(*pair)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients


@pytest.mark.parametrize("seed", range(24))
def test_chunks_equal_the_whole(seed: int) -> None:
    config = random_config(seed, resid_pdrop=0.1 * (seed % 2))
    draw = random.Random(seed)
    multiple, chunks = draw.choice([1, 8, 64]), draw.choice([2, 3, 7, 1000])
    whole = loss_and_gradients(model_of(config, multiple), *batch(config, seed=seed))
    parts = loss_and_gradients(
        model_of(config, multiple, loss_chunks=chunks), *batch(config, seed=seed)
    )
    assert distance(parts[0], whole[0]) < LOSS_TOLERANCE
    assert parts[1].keys() == whole[1].keys()
    # An entry is as exact as the sums it comes from: all of them end in the same loss.
    for name, gradient in whole[1].items():
        assert distance(parts[1][name], gradient) < GRADIENT_TOLERANCE, name


def test_gradients_follow_a_factor_on_the_loss() -> None:
    x, weight = torch.randn(5, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    targets = torch.tensor([0, 8, -100, 3, 3])
    (chunked_cross_entropy(x, weight, targets, 2, 9) * 0.25).backward()
    found = x.grad, weight.grad
    x.grad = weight.grad = None
    (F.cross_entropy(x @ weight.T, targets) * 0.25).backward()
    for gradient, expected in zip(found, (x.grad, weight.grad), strict=True):
        assert gradient is not None
        assert expected is not None
        assert distance(gradient, expected) < GRADIENT_TOLERANCE


def test_a_second_backward_pass_is_refused() -> None:
    x, weight = torch.randn(5, 4, requires_grad=True), torch.randn(9, 4)
    loss = chunked_cross_entropy(x, weight, torch.zeros(5, dtype=torch.int64), 2, 9)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_large_logits_do_not_overflow() -> None:
    x, weight = torch.full((2, 1), 1000.0), torch.tensor([[1.0], [-1.0]])
    assert chunked_cross_entropy(x, weight, torch.tensor([0, 1]), 2, 2).item() == 1000


def test_no_target_at_all_is_nan_as_in_torch() -> None:
    targets = torch.full((3,), -100)
    x, weight = torch.randn(3, 4), torch.randn(9, 4)
    assert math.isnan(F.cross_entropy(x @ weight.T, targets).item())
    assert math.isnan(chunked_cross_entropy(x, weight, targets, 2, 9).item())


def test_autocast_multiplies_in_bfloat16_and_sums_in_float32() -> None:
    config = random_config(3, vocab_size=97, n_embd=64, n_head=2, n_positions=32)
    pair = batch(config)
    exact = loss_and_gradients(model_of(config), *pair)
    with torch.autocast("cpu", torch.bfloat16):
        whole = loss_and_gradients(model_of(config), *pair)
        parts = loss_and_gradients(model_of(config, loss_chunks=3), *pair)
    assert parts[0].dtype == torch.float32
    assert distance(parts[0], whole[0]) < LOSS_TOLERANCE  # the same logits, summed the same way
    for name, gradient in exact[1].items():
        error, usual = distance(parts[1][name], gradient), distance(whole[1][name], gradient)
        assert error < 2 * usual + 2**-8, name  # 2**-8: one rounding to bfloat16


def test_evaluation_takes_no_gradients() -> None:
    config = random_config(1)
    model = model_of(config, loss_chunks=4).eval()
    pair = batch(config)
    with torch.inference_mode():
        loss = model(*pair)
    assert distance(loss, model_of(config).eval()(*pair)) < LOSS_TOLERANCE
    assert not loss.requires_grad


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_recomputed_blocks_change_nothing_even_with_dropout(blocks: int) -> None:
    config = random_config(
        4, n_layer=3, resid_pdrop=0.2, attn_pdrop=0.2, embd_pdrop=0.2, reorder_and_upcast_attn=False
    )
    pair = batch(config)
    plain = loss_and_gradients(model_of(config), *pair)
    again = loss_and_gradients(model_of(config, checkpointed_blocks=blocks), *pair)
    assert torch.equal(again[0], plain[0])
    for name, gradient in plain[1].items():
        assert torch.equal(again[1][name], gradient), name


def test_recomputed_blocks_run_once_more_and_only_in_training() -> None:
    config = random_config(4, n_layer=3)
    model = model_of(config, checkpointed_blocks=2)
    runs = [0, 0, 0]
    for layer, block in enumerate(model.h):
        block.register_forward_pre_hook(
            lambda *_, layer=layer: runs.__setitem__(layer, runs[layer] + 1)
        )
    loss_and_gradients(model, *batch(config))
    assert runs == [2, 2, 1]
    model.eval()(*batch(config)).backward()
    assert runs == [3, 3, 2]


def test_more_blocks_than_there_are_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"checkpointed_blocks=4 of n_layer=3; use at most 3"):
        model_of(random_config(4, n_layer=3), checkpointed_blocks=4)
