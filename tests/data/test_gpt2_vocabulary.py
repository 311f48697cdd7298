"""Where GPT-2's vocabulary is looked for, without a network."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from gptfit.data import Tokenizer
from gptfit.data import gpt2_vocabulary as module
from gptfit.data.gpt2_vocabulary import URL
from gptfit.errors import DataError


@pytest.fixture
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "tiktoken"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def test_nothing_found(empty_caches: Path) -> None:
    with pytest.raises(
        DataError, match=r"HF_HUB_OFFLINE is set; set tokenizer to a folder with enc"
    ):
        Tokenizer.gpt2()


def test_failed_download(empty_caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(url: str, sha256: str) -> bytes:
        raise ConnectionError("no route to host")

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(module, "read_file_cached", fail)
    with pytest.raises(
        DataError, match=r"the download of https://.*encoder.json failed \(Connection"
    ):
        Tokenizer.gpt2()


def test_tiktoken_cache(empty_caches: Path, gpt2_bpe: Path) -> None:
    cache = empty_caches / "tiktoken"
    cache.mkdir()
    for name in ("encoder.json", "vocab.bpe"):
        shutil.copy(gpt2_bpe / name, cache / hashlib.sha1((URL + name).encode()).hexdigest())
    assert Tokenizer.gpt2().encode("Hello world").tolist() == [15496, 995]


@pytest.mark.parametrize(
    ("name", "layout"),
    [("models--openai-community--gpt2", "tokenizer.json"), ("models--gpt2", "vocab.json")],
)
def test_hugging_face_cache(empty_caches: Path, gpt2_bpe: Path, name: str, layout: str) -> None:
    folder = empty_caches / "hf/hub" / name / "snapshots/abc"
    folder.mkdir(parents=True)
    if layout == "tokenizer.json":
        Tokenizer.gpt2(gpt2_bpe).save(folder)
    else:
        shutil.copy(gpt2_bpe / "encoder.json", folder / "vocab.json")
        shutil.copy(gpt2_bpe / "vocab.bpe", folder / "merges.txt")
    found = Tokenizer.gpt2()
    assert found.kind == "gpt2"
    assert found.fingerprint == Tokenizer.gpt2(gpt2_bpe).fingerprint


def test_another_vocabulary_is_no_gpt2(empty_caches: Path) -> None:
    mine = Tokenizer.train_bpe(["some words of mine"], 260)
    hub = empty_caches / "hf/hub/models--gpt2/snapshots/abc"
    hub.mkdir(parents=True)
    mine.save(hub)
    with pytest.raises(DataError, match="needs GPT-2's vocabulary"):
        Tokenizer.gpt2()
    model = json.loads((hub / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    folder = empty_caches / "mine"
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    loaded = Tokenizer.load(folder)
    assert (loaded.kind, loaded.vocab_size, loaded.eos_token_id) == ("bpe", 260, 259)
    assert loaded.encode("some words").tolist() == mine.encode("some words").tolist()


@pytest.mark.parametrize(
    ("encoder", "merges"),
    [
        ("{", ""),
        ("[]", ""),
        ("{}", "one\n"),
        ('{"a": 0}', "a b\n"),
        ('{"a": "x"}', ""),
        ("\udcff", ""),
    ],
)
def test_broken_vocabulary(tmp_path: Path, encoder: str, merges: str) -> None:
    (tmp_path / "encoder.json").write_text(encoder, encoding="utf-8", errors="surrogateescape")
    (tmp_path / "vocab.bpe").write_text(merges, encoding="utf-8")
    with pytest.raises(DataError, match=r"holds no .*vocabulary"):
        Tokenizer.load(tmp_path)


def test_folder_without_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"needs encoder.json and vocab.bpe, or vocab.json and merge"
    ):
        Tokenizer.gpt2(tmp_path)
