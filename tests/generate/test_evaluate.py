"""The validation loss is the mean over every token after the first, whatever the windows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gptfit.generate import evaluate
from gptfit.model import GPT2
from random_configs import random_config


@pytest.mark.parametrize("length", [2, 9, 17, 64, 65, 66, 331])
def test_equals_window_by_window(length: int) -> None:
    model = GPT2(random_config(5, n_positions=16, vocab_size=11, resid_pdrop=0.5))
    tokens = np.random.default_rng(0).integers(0, 11, length).astype(np.uint16)
    model.eval()
    total = 0.0
    ids = torch.from_numpy(tokens.astype(np.int64))
    with torch.no_grad():
        for start in range(0, length - 1, 16):
            window = ids[start : start + 17]
            total += F.cross_entropy(
                model(window[None, :-1])[0], window[1:], reduction="sum"
            ).item()
    model.train()
    result = evaluate(model, tokens)
    assert result.tokens == length - 1
    assert result.loss == pytest.approx(total / (length - 1), abs=1e-5)
    assert model.training
    assert result.perplexity == pytest.approx(math.exp(result.loss))


def test_limit_and_bits_per_byte() -> None:
    model = GPT2(random_config(5, n_positions=16, vocab_size=11))
    tokens = np.zeros(1000, dtype=np.uint16)
    result = evaluate(model, tokens, max_tokens=100)
    assert result.tokens == 100
    assert result.bits_per_byte(0.5) == pytest.approx(result.loss / math.log(2) / 2)


def test_draws_no_random_numbers() -> None:
    model = GPT2(random_config(5, n_positions=16, vocab_size=11, attn_pdrop=0.5))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    evaluate(model, np.zeros(100, dtype=np.uint16))
    assert torch.equal(before, torch.get_rng_state())
