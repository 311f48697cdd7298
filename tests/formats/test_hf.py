"""Strict loading: whatever does not belong together is refused, with the list of what differs."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from gptfit.errors import CheckpointError, ConfigError, GptfitError
from gptfit.formats.hf import load_model, save_model
from gptfit.formats.locate import find_model
from gptfit.formats.safetensors_header import read_header
from gptfit.model import GPT2
from random_configs import random_config

CONFIG = random_config(
    3, n_layer=2, n_embd=12, n_head=3, tie_word_embeddings=True, bias=True, n_inner=None
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path, GPT2(CONFIG))
    return tmp_path


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(values), encoding="utf-8")


def edit_weights(folder: Path, metadata: dict[str, str] | None = None, **changes: Any) -> None:
    path = folder / "model.safetensors"
    state = {**load_file(path), **changes}
    kept = {name: tensor for name, tensor in state.items() if tensor is not None}
    save_file(kept, path, metadata if metadata is not None else dict(read_header(path).metadata))


@pytest.mark.parametrize("seed", range(20))
def test_round_trip_is_exact(seed: int, tmp_path: Path) -> None:
    model = GPT2(random_config(seed), pad_vocab_to_multiple=16)
    save_model(tmp_path, model)
    again = load_model(tmp_path)
    assert again.config == model.config
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name][: len(tensor)]), name


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_head", 4),
        ("activation_function", "relu"),
        ("layer_norm_epsilon", 1e-3),
        ("scale_attn_weights", not CONFIG.scale_attn_weights),
        ("scale_attn_by_inverse_layer_idx", not CONFIG.scale_attn_by_inverse_layer_idx),
        ("reorder_and_upcast_attn", not CONFIG.reorder_and_upcast_attn),
    ],
)
def test_other_numerics_are_refused(folder: Path, field: str, value: Any) -> None:
    if getattr(CONFIG, field) == value:
        value = {"activation_function": "silu", "layer_norm_epsilon": 0.5}[field]
    edit_config(folder, **{field: value})
    with pytest.raises(CheckpointError, match=f"{field}=.* but the weights were made with"):
        load_model(folder)
    AutoModelForCausalLM.from_pretrained(folder)  # transformers does not notice


@pytest.mark.parametrize("field", ["n_head", "n_embd", "vocab_size", "n_layer", "bias"])
def test_changes_of_shape_or_numerics_are_refused(folder: Path, field: str) -> None:
    value = {"n_head": 4, "n_embd": 24, "vocab_size": 99, "n_layer": 1, "bias": False}[field]
    with pytest.raises(ConfigError, match=f"{field} cannot change under given weights"):
        load_model(folder, changes={field: value})


def test_dropout_may_change(folder: Path) -> None:
    assert load_model(folder, changes={"dropout": 0.25}).config.attn_pdrop == 0.25


def test_all_differences_are_listed(folder: Path) -> None:
    edit_weights(
        folder,
        **{
            "transformer.h.0.ln_1.weight": None,
            "transformer.wpe.weight": torch.zeros(3, 12),
            "transformer.extra": torch.zeros(1),
        },
    )
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    text = str(caught.value)
    assert "3 differences" in text
    assert "missing h.0.ln_1.weight" in text
    assert "unexpected extra" in text
    assert f"wpe.weight is [3, 12] where the config says [{CONFIG.n_positions}, 12]" in text


@pytest.mark.parametrize("n_layer", [1, 3])
def test_wrong_depth_is_refused(folder: Path, n_layer: int) -> None:
    edit_config(folder, n_layer=n_layer)
    with pytest.raises(CheckpointError, match=r"unexpected h\.1|missing h\.2"):
        load_model(folder)


def test_openai_layout_with_legacy_buffers(folder: Path) -> None:
    """The hub's gpt2: no prefix, causal masks stored beside the weights, tied head stored twice."""
    state = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    bare["h.0.attn.bias"] = torch.ones(1, 1, 8, 8)
    bare["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    bare["lm_head.weight"] = bare["wte.weight"].clone()
    save_file(bare, folder / "model.safetensors")
    idx = torch.arange(5)[None]
    with torch.no_grad():
        want = AutoModelForCausalLM.from_pretrained(folder)(idx).logits
        assert torch.allclose(load_model(folder).eval()(idx), want, atol=1e-5)


def test_tied_config_with_another_head_is_refused(folder: Path) -> None:
    edit_weights(folder, **{"lm_head.weight": torch.randn(CONFIG.vocab_size, 12)})
    with pytest.raises(CheckpointError, match="set tie_word_embeddings to false"):
        load_model(folder)


def test_bias_free_config_with_biases_is_refused(folder: Path) -> None:
    edit_weights(folder, {}, **{"transformer.ln_f.bias": torch.ones(12)})
    edit_config(folder, bias=False)
    with pytest.raises(CheckpointError, match=r"ln_f\.bias is not zero, but .* bias=false"):
        load_model(folder)


def test_sharded(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    names = sorted(state)
    shards = {"a.safetensors": names[:7], "b.safetensors": names[7:]}
    for shard, members in shards.items():
        save_file({name: state[name] for name in members}, folder / shard)
    index = {name: shard for shard, members in shards.items() for name in members}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index}), encoding="utf-8"
    )
    whole = load_model(folder).state_dict()
    (folder / "model.safetensors").unlink()
    for name, tensor in load_model(folder).state_dict().items():
        assert torch.equal(tensor, whole[name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_load_as_float32(folder: Path, dtype: torch.dtype) -> None:
    state = load_file(folder / "model.safetensors")
    save_file({name: t.to(dtype) for name, t in state.items()}, folder / "model.safetensors")
    assert {tensor.dtype for tensor in load_model(folder).state_dict().values()} == {torch.float32}


class Canary:
    """Touches a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_pickled_weights_are_read_as_plain_data_only(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert load_model(folder).config == CONFIG
    canary = tmp_path / "canary"
    torch.save({"wte.weight": Canary(canary)}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="nothing in it was executed"):
        load_model(folder)
    for content in (pickle.dumps(Canary(canary)), b"", b"\x80\x02", b"hello", b"PK\x03\x04"):
        (folder / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(CheckpointError, match="nothing in it was executed"):
            load_model(folder)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "0 bytes|header claims"),
        (b"\xff" * 8 + b"{}", "header claims"),
        ((2).to_bytes(8, "little") + b"[]", "not an object"),
        ((4).to_bytes(8, "little") + b"{abc", "not JSON"),
        ((13).to_bytes(8, "little") + b'{"a":{"x":1}}', "does not describe tensors"),
    ],
)
def test_hostile_headers(folder: Path, content: bytes, reason: str) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=reason):
        load_model(folder)


def test_truncated_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        load_model(folder)


def test_missing_pieces_are_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        load_model(folder)
    with pytest.raises(CheckpointError, match="no such folder"):
        load_model(folder / "nowhere")


def test_find_model(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_model(folder) == folder
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"neither a config\.json nor a checkpoints folder"):
        find_model(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="no such run or checkpoint folder"):
        find_model("runs/nothing-here")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(GptfitError, match="cannot be had from the Hugging Face hub"):
        find_model("someone/some-model")


@pytest.mark.parametrize("fingerprint", ["not json", "3", '{"n_head": 99}'])
def test_damaged_or_foreign_fingerprints(folder: Path, fingerprint: str) -> None:
    edit_weights(folder, {"gptfit.numerics": fingerprint})
    with pytest.raises(CheckpointError, match=r"gptfit\.numerics is damaged|n_head=3, but"):
        load_model(folder)
