"""Token log-probabilities and hidden states of given ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gptfit.errors import ConfigError, DataError
from gptfit.formats.hf import save_model
from gptfit.generate import evaluate, hidden_states, score
from gptfit.model import GPT2
from random_configs import random_config

IDS = [1, 4, 0, 2, 2, 3, 1]


def model_of(seed: int = 0, n_positions: int = 16) -> GPT2:
    config = random_config(
        seed, n_positions=n_positions, initializer_range=0.3, embd_pdrop=0.4, attn_pdrop=0.4
    )
    return GPT2(config, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n_positions", [4, 16], ids=["longer than the context", "inside it"])
def test_minus_the_mean_is_the_loss(n_positions: int) -> None:
    model = model_of(n_positions=n_positions)
    found = score(model, IDS, n_positions)
    assert found.shape == (len(IDS) - 1,)
    assert found.dtype == torch.float32
    expected = evaluate(model, np.array(IDS, dtype=np.uint16)).loss
    assert -found.mean().item() == pytest.approx(expected, abs=1e-5)
    assert model.training


@pytest.mark.parametrize("kind", [tuple, torch.tensor, np.array], ids=["tuple", "tensor", "array"])
def test_ids_in_any_form(kind: type) -> None:
    model = model_of()
    assert torch.equal(score(model, kind(IDS)), score(model, IDS))
    assert torch.equal(hidden_states(model, kind(IDS), -1), hidden_states(model, IDS, -1))


@pytest.mark.parametrize("seed", range(10))
def test_hidden_states_equal_those_of_transformers(seed: int, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = model_of(seed)
    save_model(tmp_path, model)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, attn_implementation="eager")
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor([IDS]), output_hidden_states=True).hidden_states
    found = hidden_states(model, IDS)
    assert len(found) == len(expected) == model.config.n_layer + 1
    for ours, one in zip(found, expected, strict=True):
        assert ours.shape == (len(IDS), model.config.n_embd)
        torch.testing.assert_close(ours, one[0], atol=1e-5, rtol=0)


def test_layers_are_those_of_the_tuple() -> None:
    model = model_of()
    every = hidden_states(model, IDS)
    for layer in range(-len(every), len(every)):
        assert torch.equal(hidden_states(model, IDS, layer), every[layer])
    logits = model.eval().logits(every[-1])
    assert torch.equal(logits, model(torch.tensor([IDS]))[0])


def test_leaves_the_model_as_it_was() -> None:
    model = model_of()
    hidden_states(model, IDS)
    assert model.training
    assert not any(block._forward_pre_hooks for block in model.h)
    hidden_states(model, IDS, -1).requires_grad_()  # a probe may be trained on it


def test_refusals() -> None:
    model = model_of(n_positions=8)
    last = model.config.n_layer
    for layer in (last + 1, -last - 2):
        with pytest.raises(ConfigError, match=f"layer={layer} must be between 0 .* and {last}"):
            hidden_states(model, IDS, layer)
    for length in (0, 9):
        with pytest.raises(DataError, match=f"{length} tokens are not between 1 and .* of 8"):
            hidden_states(model, [1] * length)
    for length in (0, 1):
        with pytest.raises(DataError, match=f"{length} tokens hold nothing to predict"):
            score(model, [1] * length)
    for wrong in (-1, model.config.vocab_size):
        for function in (score, hidden_states):
            with pytest.raises(DataError, match=f"token id {wrong} is outside the model's"):
                function(model, [1, wrong, 2])
    for shape in ([[1, 2]], [0.5, 1.5], 3):
        with pytest.raises(DataError, match="one row of whole numbers"):
            score(model, shape)
