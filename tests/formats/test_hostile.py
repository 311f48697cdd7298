"""Files that lie about themselves: refused before anything is allocated, and nothing in them runs."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptfit.config import GPT2Config
from gptfit.config.files import read_config_file
from gptfit.errors import CheckpointError, ConfigError
from gptfit.formats.hf import load_model, save_model
from gptfit.formats.locate import find_model
from gptfit.formats.safetensors_header import HEADER_LIMIT_BYTES
from gptfit.model import GPT2

CONFIG = GPT2Config(n_layer=1, n_embd=12, n_head=3, vocab_size=50, n_positions=8)
NAME = "transformer.wpe.weight"

Header = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path, GPT2(CONFIG))
    return tmp_path


def rewrite(folder: Path, change: Callable[[Header], object], more: bytes = b"") -> None:
    """The weights behind another header: what ``change`` leaves, or the text that it returns."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:end])
    text = change(header)
    written = (text if isinstance(text, str) else json.dumps(header)).encode()
    path.write_bytes(struct.pack("<Q", len(written)) + written + content[end:] + more)


def entry(**changes: Any) -> Callable[[Header], None]:
    return lambda header: header[NAME].update(changes)


def moved(begin: int, end: int) -> Callable[[Header], None]:
    """The tensor's data, that much further on at either end."""

    def change(header: Header) -> None:
        first, last = header[NAME]["data_offsets"]
        header[NAME]["data_offsets"] = [first + begin, last + end]

    return change


def number(text: str) -> Callable[[Header], str]:
    """A size as JSON text that ``json.dumps`` would not write."""

    def change(header: Header) -> str:
        header[NAME]["shape"] = ["HERE", 12]
        return json.dumps(header).replace('"HERE"', text)

    return change


def crowd(count: int) -> Callable[[Header], None]:
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return lambda header: header.update({f"t{n}": empty for n in range(count)})


HEADERS: dict[str, tuple[Callable[[Header], object], str]] = {
    "overlapping": (moved(-4, -4), "invalid offset"),
    "too short for its shape": (moved(0, -4), "invalid shape, data type, or offset"),
    "of another size": (entry(dtype="F64"), "invalid shape, data type, or offset"),
    "no offsets": (entry(data_offsets=[]), "does not describe tensors"),
    "negative offset": (entry(data_offsets=[-4, 380]), "does not describe tensors"),
    "negative shape": (entry(shape=[-8, -12]), "does not describe tensors"),
    "words": (entry(shape="ab"), "does not describe tensors"),
    "truth": (entry(shape=[True, 12]), "does not describe tensors"),
    "fraction": (entry(shape=[8.5, 12]), "does not describe tensors"),
    "1e400": (number("1e400"), "does not describe tensors"),
    "NaN": (number("NaN"), "does not describe tensors"),
    "thousands of digits": (number("9" * 5000), "is not JSON"),
    "2^80": (entry(shape=[2**40, 2**40]), r"wpe\.weight is \[1099511627776, 1099511627776\]"),
    "unknown dtype": (entry(dtype="Q9"), "unknown variant"),
    "integers": (entry(dtype="I32"), r"wpe\.weight holds torch\.int32"),
    "thousands of tensors": (crowd(20_000), "20000 differences"),
    "nothing but brackets": (lambda header: "[" * 100_000, "is not JSON"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers(folder: Path, case: str) -> None:
    change, message = HEADERS[case]
    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(folder)
    assert len(str(caught.value)) < len(str(folder)) + 800


def test_data_that_no_tensor_has(folder: Path) -> None:
    rewrite(folder, lambda header: None, more=b"more")
    with pytest.raises(CheckpointError, match="bytes of data where its header says"):
        load_model(folder)


def test_a_header_of_2_to_the_63(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**63) + path.read_bytes()[8:])
    with pytest.raises(CheckpointError, match="its header claims 9223372036854775808 of"):
        load_model(folder)


def test_a_header_too_long_to_be_read(folder: Path) -> None:
    """A million empty tensors, which the format allows, would take gigabytes to read."""
    rewrite(folder, lambda header: json.dumps(header) + " " * HEADER_LIMIT_BYTES)
    with pytest.raises(CheckpointError, match=r"more than the 4,194,304 that any GPT-2 needs"):
        load_model(folder)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("transformer.h.0.attn.c_attn.weight", r"c_attn\.weight is \[36, 12\] .* says \[12, 36\]"),
        ("transformer.h.0.mlp.c_fc.weight", r"c_fc\.weight is \[48, 12\] .* says \[12, 48\]"),
    ],
)
def test_transposed(folder: Path, name: str, shapes: str) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    save_file({**state, name: state[name].t().contiguous()}, path)
    with pytest.raises(CheckpointError, match=shapes):
        load_model(folder)


def test_an_untied_config_needs_a_head(folder: Path) -> None:
    weights = folder / "model.safetensors"
    save_file(load_file(weights), weights, {"format": "pt"})  # as others write it
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8")) | {"tie_word_embeddings": False}
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"missing lm_head\.weight"):
        load_model(folder)


@pytest.mark.parametrize("key", ["auto_map", "trust_remote_code", "custom_pipelines"])
def test_code_that_comes_with_a_model_is_not_run(folder: Path, key: str) -> None:
    canary = folder / "canary"
    (folder / "modeling.py").write_text(f"open({str(canary)!r}, 'w')\n", encoding="utf-8")
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    value = {"AutoModelForCausalLM": "modeling.Model"}
    path.write_text(json.dumps(values | {key: value}), encoding="utf-8")
    with pytest.raises(ConfigError, match=f"{key}=.* gptfit never does; remove the key"):
        load_model(folder)
    assert not canary.exists()


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_pickles_and_programs_are_not_opened(tmp_path: Path) -> None:
    """nanoGPT's checkpoint and configuration, and a folder of torch's distributed checkpoints."""
    canary = tmp_path / "canary"
    torch.save({"model": Canary(canary)}, tmp_path / "ckpt.pt")
    with pytest.raises(CheckpointError, match="a pickled checkpoint is never executed"):
        find_model(tmp_path / "ckpt.pt")
    (tmp_path / "config.py").write_text(f"open({str(canary)!r}, 'w')\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"unknown file type '\.py'"):
        read_config_file(tmp_path / "config.py")
    shards = tmp_path / "distributed"
    shards.mkdir()
    (shards / ".metadata").write_bytes(pickle.dumps(Canary(canary)))
    (shards / "__0_0.distcp").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"holds neither a config\.json nor a checkpoints"):
        find_model(shards)
    assert not canary.exists()
