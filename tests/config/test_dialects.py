"""Hugging Face, nanoGPT and flat files: read, written, and refused where they cannot say it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptfit.config import GPT2Config
from gptfit.config.dialects import read_dialect, to_flat, to_hf, to_nanogpt
from gptfit.errors import ConfigError
from random_configs import random_config

# openai-community/gpt2 on the Hugging Face hub, in the words of transformers 4.
HUB: dict[str, Any] = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}
TINY = {
    "name": "GPT-Tiny",
    "n_layer": 4,
    "n_head": 4,
    "n_embd": 192,
    "block_size": 128,
    "batch_size": 16,
}


def refused(values: dict[str, Any]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read_dialect(values, source="some.json")
    assert str(caught.value).startswith("some.json: ")
    return caught.value


def test_the_hubs_config_is_the_default() -> None:
    reading = read_dialect(HUB)
    assert (reading.dialect, reading.config) == ("hf", GPT2Config())


def test_hugging_face_reads_ours_and_we_read_theirs(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    for seed in range(10):
        config = random_config(seed, bias=True)
        config.save(tmp_path / "config.json")
        theirs = transformers.GPT2Config.from_pretrained(tmp_path)
        assert GPT2Config.from_dict(json.loads(theirs.to_json_string(use_diff=False))) == config
        assert GPT2Config.from_dict(json.loads(theirs.to_json_string())) == config
        assert theirs.n_inner == (None if "n_inner" in config.following else config.n_inner)


@pytest.mark.parametrize("seed", range(20))
def test_hf_round_trip(seed: int, tmp_path: Path) -> None:
    config = random_config(seed)
    config.save(tmp_path / "config.json")
    assert GPT2Config.from_file(tmp_path) == config
    assert to_hf(config)["architectures"] == ["GPT2LMHeadModel"]


def test_aliases_mix() -> None:
    config = GPT2Config.from_dict(
        {"hidden_size": 64, "num_attention_heads": 4, "block_size": 32, "n_layer": 2}
    )
    assert (config.n_embd, config.n_head, config.n_positions) == (64, 4, 32)
    assert config.activation_function == "gelu_new"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "gpt_neo"}, "model_type='gpt_neo' is no GPT-2; only gpt2 is read"),
        ({"n_ctx": 2048, "n_positions": 1024}, "n_ctx=2048 and n_positions=1024 differ"),
        ({"n_ctx": 2048}, "n_ctx=2048 and n_positions=1024 differ"),
        (
            {"auto_map": {"AutoConfig": "x.Y"}},
            "asks to run code that comes with the model; gptfit never does",
        ),
        ({"trust_remote_code": True}, "trust_remote_code=True asks to run code"),
        ({"pruned_heads": {"0": [1]}}, "a shape that a GPT-2 does not have"),
        ({"n_lyer": 3, "model_type": "gpt2"}, "unknown key 'n_lyer'; did you mean 'n_layer'?"),
        ({"rope_theta": 1e4, "model_type": "gpt2"}, "unknown key 'rope_theta'"),
        ({"model_args": 3}, "model_args=3 must be an object"),
        ({"model_args": {}, "optimizer": {}}, "unknown key 'optimizer'"),
        ({"block_size": 64, "n_layers": 3}, "unknown key 'n_layers'; did you mean 'n_layer'?"),
        ({"model_args": {"n_inner": 3}}, "unknown key 'n_inner'"),
    ],
)
def test_refused(values: dict[str, Any], message: str) -> None:
    assert message in str(refused(values))


@pytest.mark.parametrize("values", [[], None, 3, "gpt2", {1: 2}])
def test_not_a_configuration(values: Any) -> None:
    with pytest.raises(ConfigError, match="give keys and values"):
        GPT2Config.from_dict(values)


@pytest.mark.parametrize(
    "envelope", [{"model_type": "gpt2"}, {"block_size": 64}, {"batch_size": 1}]
)
def test_all_faults_in_one_error(envelope: dict[str, Any]) -> None:
    error = refused(envelope | {"n_layer": 0, "n_head": "12", "n_embedding": 3, "bias": 1})
    assert {p.field for p in error.problems} == {"n_embedding", "n_layer", "n_head", "bias"}


def test_nanogpt_reads_with_its_own_defaults() -> None:
    reading = read_dialect({"block_size": 256, "n_layer": 6})
    assert reading.dialect == "nanogpt"
    config = GPT2Config(
        vocab_size=50304, n_positions=256, n_layer=6, dropout=0, activation_function="gelu"
    )
    assert reading.config == config
    assert (reading.config.bias, reading.config.eos_token_id) == (True, 50256)
    assert "vocab_size was not given: 50304" in reading.notes
    assert any("exact GELU" in note for note in reading.notes)


def test_nanogpt_model_args() -> None:
    args = {
        "n_layer": 4,
        "n_head": 4,
        "n_embd": 128,
        "block_size": 64,
        "bias": False,
        "vocab_size": 65,
        "dropout": 0.0,
    }
    config = read_dialect({"model_args": args}).config
    assert (config.bias, config.vocab_size, config.eos_token_id) == (False, 65, None)
    assert to_nanogpt(config) == args
    assert read_dialect({"model_args": args | {"vocab_size": None}}).config.vocab_size == 50304


@pytest.mark.parametrize("bias", [True, False])
def test_nanogpt_round_trip(bias: bool) -> None:
    config = GPT2Config(activation_function="gelu", bias=bias, dropout=0.2, vocab_size=50304)
    assert read_dialect(to_nanogpt(config)).config == config


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"activation_function": "gelu_new"}, ["activation_function"]),
        ({"attn_pdrop": 0.3}, ["attn_pdrop"]),
        ({"layer_norm_epsilon": 1e-4}, ["layer_norm_epsilon"]),
        ({"n_inner": 100, "tie_word_embeddings": False}, ["n_inner", "tie_word_embeddings"]),
        ({"scale_attn_weights": False}, ["scale_attn_weights"]),
        ({"scale_attn_by_inverse_layer_idx": True}, ["scale_attn_by_inverse_layer_idx"]),
        ({"use_cache": False, "eos_token_id": None, "initializer_range": 0.1}, []),
    ],
)
def test_what_nanogpt_cannot_say(changes: dict[str, Any], names: list[str]) -> None:
    config = GPT2Config(activation_function="gelu").replace(**changes)
    if not names:
        assert to_nanogpt(config)["n_layer"] == 12
        return
    with pytest.raises(ConfigError, match="nanoGPT cannot say") as caught:
        to_nanogpt(config)
    assert [problem.field for problem in caught.value.problems] == names


def test_flat_file_fills_the_same_defaults_everywhere() -> None:
    reading = read_dialect(TINY)
    assert reading.dialect == "flat"
    assert reading.extras == {"name": "GPT-Tiny", "batch_size": 16}
    config = reading.config
    assert (config.vocab_size, config.embd_pdrop, config.bias, config.eos_token_id) == (
        50304,
        0.2,
        False,
        50256,
    )
    assert (config.activation_function, config.n_positions) == ("gelu_new", 128)
    assert "vocab_size was not given: 50304" in reading.notes


def test_flat_round_trip() -> None:
    config = read_dialect(TINY | {"vocab_size": 256, "dropout": 0.1, "bias": True}).config
    written = to_flat(config, "GPT-Tiny", "for tests", 16, "cuda")
    assert set(written) == {*TINY, "description", "device", "vocab_size", "dropout", "bias"}
    reading = read_dialect(written)
    assert reading.config == config
    assert reading.extras == {
        "name": "GPT-Tiny",
        "description": "for tests",
        "batch_size": 16,
        "device": "cuda",
    }
    assert "device" not in to_flat(config, "a", "b", 1)
    with pytest.raises(ConfigError, match="a flat file cannot say activation_function='relu'"):
        to_flat(config.replace(activation_function="relu"), "a", "b", 1)
