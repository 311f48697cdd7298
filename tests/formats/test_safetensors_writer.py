"""Our files are those of the safetensors library, to the byte."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from safetensors.torch import save_file as save_by_library

from gptfit.formats.safetensors_writer import CHUNK_BYTES, file_bytes, save_tensors

TENSORS = {
    "b": torch.arange(15.0).reshape(3, 5),
    "a.x": torch.randn(7),
    "half": torch.randn(3).bfloat16(),
    "one": torch.tensor(3.0),
    "none": torch.zeros(0, 4),
    "ü": torch.arange(3),
}


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}])
def test_bytes_are_those_of_the_library(tmp_path: Path, metadata: dict[str, str]) -> None:
    digest = save_tensors(tmp_path / "ours", TENSORS, metadata)
    save_by_library(TENSORS, tmp_path / "theirs", metadata or None)
    content = (tmp_path / "ours").read_bytes()
    assert content == (tmp_path / "theirs").read_bytes()
    assert digest == hashlib.sha256(content).hexdigest()
    assert metadata or len(content) == file_bytes(TENSORS)


def test_views_and_large_tensors(tmp_path: Path) -> None:
    large = torch.randn(2, CHUNK_BYTES // 4 + 3)
    digest = save_tensors(tmp_path / "file", {"large": large, "view": large.t()[:5]}, {})
    loaded = load_file(tmp_path / "file")
    assert torch.equal(loaded["large"], large)
    assert torch.equal(loaded["view"], large.t()[:5])
    assert digest == hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest()
