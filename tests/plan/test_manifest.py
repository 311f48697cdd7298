"""The manifest against the module, and the published counts."""

from __future__ import annotations

import math

import pytest
import torch

from gptfit.config import GPT2Config
from gptfit.model import GPT2
from gptfit.plan.manifest import manifest
from gptfit.plan.params import count_parameters
from random_configs import random_config


@pytest.mark.parametrize("seed", range(200))
def test_manifest_is_the_state_dict_of_the_model(seed: int) -> None:
    config = random_config(seed)
    with torch.device("meta"):
        model = GPT2(config)
    state = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert {spec.name: spec.shape for spec in manifest(config)} == state
    assert count_parameters(config).total == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_published_sizes(name: str, count: int) -> None:
    config = GPT2Config.from_preset(name)
    with torch.device("meta"):
        model = GPT2(config)
    assert count_parameters(config).total == count == sum(p.numel() for p in model.parameters())


def test_nanogpt_bias_free_default() -> None:
    assert count_parameters(GPT2Config(bias=False)).total == 124_337_664


def test_untied_sizes() -> None:
    count = count_parameters(GPT2Config(tie_word_embeddings=False))
    assert count.total == count.untied == 163_037_184
    assert count.tied == 124_439_808


@pytest.mark.parametrize("seed", range(40))
def test_formulas_give_the_counts(seed: int) -> None:
    for component in count_parameters(random_config(seed)).components:
        arithmetic = component.numbers.replace("·", "*").replace("²", "**2")
        assert eval(arithmetic, {"__builtins__": {}}) == component.count, component


def test_other_conventions() -> None:
    count = count_parameters(GPT2Config())
    assert count.without_positions == 124_439_808 - 1024 * 768
    assert count.non_embedding == 124_439_808 - (1024 + 50257) * 768


def test_initial_values_follow_the_manifest() -> None:
    config = GPT2Config(vocab_size=500, n_positions=64, n_embd=128, n_head=4, n_layer=8)
    model = GPT2(config, pad_vocab_to_multiple=64)
    for spec in manifest(config):
        rows = model.get_parameter(spec.name)[: spec.shape[0]]
        if not spec.init_std:
            assert (rows == spec.init_mean).all(), spec.name
        else:
            assert rows.std().item() == pytest.approx(spec.init_std, rel=0.05), spec.name
    writers = {spec.init_std for spec in manifest(config) if spec.name.endswith("c_proj.weight")}
    assert writers == {0.02 / math.sqrt(2 * 8)}
    assert (model.wte.weight[500:] == 0).all()
