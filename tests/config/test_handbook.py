"""The configurations of "Best Practices for GPT2Config Arguments": those that run, and those that cannot."""

from __future__ import annotations

from typing import Any

import pytest

from gptfit.config import GPT2Config
from gptfit.errors import ConfigError

GPT2_SIZE = {"n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}

# Each block that builds a config, corrected where it could not run.
SNIPPETS: dict[str, dict[str, Any]] = {
    "custom tokenizer": GPT2_SIZE | {"vocab_size": 30000},
    "constrained deployment": {"vocab_size": 10000, "n_embd": 512, "n_layer": 6, "n_head": 8},
    "long documents": GPT2_SIZE | {"vocab_size": 50257, "n_positions": 2048},
    "short text": {"vocab_size": 50257, "n_positions": 256, "n_embd": 512, "n_layer": 6, "n_head": 8},
    "small efficient": {"vocab_size": 50257, "n_positions": 512, "n_embd": 384, "n_layer": 6, "n_head": 6},
    "scaling up": {"vocab_size": 50257, "n_positions": 1024, "n_embd": 1280, "n_layer": 36, "n_head": 20},
    "shallow": {"vocab_size": 50257, "n_positions": 512, "n_embd": 512, "n_layer": 6, "n_head": 8},
    "deep": {"vocab_size": 50257, "n_positions": 1024, "n_embd": 1280, "n_layer": 36, "n_head": 20},
    "inner default": {"n_embd": 768, "n_inner": None},
    "inner larger": {"n_embd": 768, "n_inner": 4096},
    "inner smaller": {"n_embd": 768, "n_inner": 2048},
    "small dataset": {"vocab_size": 50257, "n_embd": 768, "n_layer": 12, "resid_pdrop": 0.2, "embd_pdrop": 0.2, "attn_pdrop": 0.2},
    "large dataset": {"vocab_size": 50257, "n_embd": 1024, "n_layer": 24, "n_head": 16, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1},
    "high dropout": {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5},
    "gelu_new": {"activation_function": "gelu_new"},
    "relu": {"activation_function": "relu"},
    "silu": {"activation_function": "silu"},
    "epsilon fp16": {"layer_norm_epsilon": 1e-4},
    "epsilon fp32": {"layer_norm_epsilon": 1e-5},
    "large init": {"n_embd": 1600, "n_layer": 48, "n_head": 25, "initializer_range": 0.01},
    "small init": {"n_embd": 384, "n_layer": 6, "initializer_range": 0.025},
    "standard init": {"initializer_range": 0.02},
    "scaled attention": {"scale_attn_weights": True},
    "unscaled attention": {"scale_attn_weights": False},
    "very deep": {"n_layer": 48, "scale_attn_by_inverse_layer_idx": True},
    "standard depth": {"n_layer": 12, "scale_attn_by_inverse_layer_idx": False},
    "upcast": {"reorder_and_upcast_attn": True},
    "no upcast": {"reorder_and_upcast_attn": False},
    "end of text": {"bos_token_id": 50256, "eos_token_id": 50256},
    "custom tokens": {"vocab_size": 50260, "bos_token_id": 50257, "eos_token_id": 50258},
    "double heads": {"summary_type": "cls_index", "summary_use_proj": True, "summary_activation": None, "summary_proj_to_labels": True, "summary_first_dropout": 0.1},
    "recipe 1": {"vocab_size": 30000, "n_positions": 512, "n_embd": 384, "n_layer": 6, "n_head": 6, "n_inner": 1536, "activation_function": "relu", "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1, "use_cache": True},
    "recipe 2": GPT2_SIZE | {"vocab_size": 50257, "n_inner": 3072, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "initializer_range": 0.02},
    "recipe 3": {"vocab_size": 50257, "n_positions": 2048, "n_embd": 1600, "n_layer": 48, "n_head": 25, "n_inner": 6400, "layer_norm_epsilon": 1e-4, "initializer_range": 0.01, "scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    "recipe 4": GPT2_SIZE | {"vocab_size": 32000, "n_inner": 3072, "dropout": 0.15, "bos_token_id": 0, "eos_token_id": 1},
}  # fmt: skip

# Marked as good in the guide: n_head stays 12 and does not divide the width.
CANNOT_RUN: list[tuple[dict[str, Any], str]] = [
    ({"vocab_size": 10000, "n_embd": 512, "n_layer": 6}, "try 8 or 16"),
    ({"vocab_size": 50257, "n_positions": 256, "n_embd": 512, "n_layer": 6}, "try 8 or 16"),
    ({"vocab_size": 50257, "n_embd": 1024, "n_layer": 24}, "try 8, 16 or 32"),
    ({"n_embd": 1600, "n_layer": 48, "initializer_range": 0.01}, "try 10, 16 or 25"),
]


@pytest.mark.parametrize("name", SNIPPETS)
def test_corrected_snippet_builds(name: str) -> None:
    config = GPT2Config(**SNIPPETS[name])
    for key, value in SNIPPETS[name].items():
        assert getattr(config, key) == (3072 if (key, value) == ("n_inner", None) else value)


@pytest.mark.parametrize(
    ("n_embd", "n_head"), [(768, 12), (1024, 16), (1280, 20), (1536, 24), (1600, 25)]
)
def test_the_valid_combinations_have_heads_of_64(n_embd: int, n_head: int) -> None:
    assert GPT2Config(n_embd=n_embd, n_head=n_head).head_dim == 64


@pytest.mark.parametrize(("values", "fix"), CANNOT_RUN)
def test_snippet_without_heads_is_refused(values: dict[str, Any], fix: str) -> None:
    with pytest.raises(ConfigError, match=r"n_head=12 does not divide n_embd") as caught:
        GPT2Config(**values)
    assert [problem.fix for problem in caught.value.problems] == [fix]


@pytest.mark.parametrize("vocab_size", [10000, 30000, 32000])
def test_end_of_text_outside_a_smaller_vocabulary(vocab_size: int) -> None:
    assert GPT2Config(vocab_size=vocab_size).eos_token_id is None
    with pytest.raises(ConfigError, match="2 problems") as caught:
        GPT2Config(vocab_size=vocab_size, bos_token_id=50256, eos_token_id=50256)
    fixes = {problem.fix for problem in caught.value.problems}
    assert fixes == {f"use 0 to {vocab_size - 1}, or null for none"}
