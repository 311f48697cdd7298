"""Prepared folders: nanoGPT's bytes, nothing half-written, nothing overwritten."""

from __future__ import annotations

import json
import pickle
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptfit.data import TextSource, TokenDataset, Tokenizer, prepare
from gptfit.data.preparation import FILES
from gptfit.errors import DataError

TEXT = "The quick brown fox jumps over the lazy dog.\n" * 30


def source(folder: Path, text: str = TEXT, name: str = "text.txt") -> TextSource:
    (folder / name).write_bytes(text.encode("utf-8"))
    return TextSource.from_paths([folder / name])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@cache
def bpe() -> Tokenizer:
    return Tokenizer.train_bpe([TEXT], 290)


def test_equals_nanogpt_char(tinyshakespeare: Path, tmp_path: Path) -> None:
    """The bytes that nanoGPT's data/shakespeare_char/prepare.py writes."""
    text = tinyshakespeare.read_text(encoding="utf-8")
    stoi = {character: index for index, character in enumerate(sorted(set(text)))}
    tokens = np.array([stoi[character] for character in text], dtype=np.uint16)
    cut = int(len(text) * 0.9)
    dataset = prepare(TextSource.from_paths([tinyshakespeare]), Tokenizer.char(text), tmp_path)
    for path, expected in (("train.bin", tokens[:cut]), ("val.bin", tokens[cut:])):
        assert np.array_equal(np.fromfile(tmp_path / path, dtype=np.uint16), expected)
    meta = pickle.loads((tmp_path / "meta.pkl").read_bytes())
    assert meta == {"vocab_size": 65, "stoi": stoi, "itos": {i: c for c, i in stoi.items()}}
    assert dataset.val_tokens_per_byte == 1.0
    assert dataset.split == (
        "by position: training is the first 1,003,854 bytes of the text, validation the last 111,540"
    )


def test_equals_nanogpt_bpe(tinyshakespeare: Path, gpt2_bpe: Path, tmp_path: Path) -> None:
    """The ids of nanoGPT's data/shakespeare/prepare.py, and the end of text at the end."""
    text, tokenizer = tinyshakespeare.read_text(encoding="utf-8"), Tokenizer.gpt2(gpt2_bpe)
    dataset = prepare(TextSource.from_paths([tinyshakespeare]), tokenizer, tmp_path)
    cut = int(len(text) * 0.9)
    assert dataset.train.tolist() == tokenizer.encode(text[:cut]).tolist()
    assert dataset.val.tolist() == [*tokenizer.encode(text[cut:]).tolist(), 50256]
    assert dataset.train.size == 301_966  # as nanoGPT's readme says
    assert not (tmp_path / "meta.pkl").exists()
    assert names(tmp_path) == {
        "train.bin",
        "val.bin",
        "tokens.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


@settings(max_examples=40, deadline=None)
@given(
    documents=st.lists(
        st.text(st.sampled_from("ab é😀\n"), min_size=1, max_size=30), min_size=1, max_size=6
    ),
    fraction=st.floats(0.05, 0.5),
    as_char=st.booleans(),
)
def test_split_of_documents(
    documents: list[str], fraction: float, as_char: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("split")
    lines = "\n".join(json.dumps({"text": document}) for document in documents)
    text = source(folder, lines, "text.jsonl")
    tokenizer = Tokenizer.char("ab é😀\n") if as_char else bpe()
    total = len("".join(documents).encode())
    if int(total * (1 - fraction)) < len(documents[0][0].encode()):
        with pytest.raises(DataError, match="are too few to split off"):
            prepare(text, tokenizer, folder / "out", fraction)
        assert not (folder / "out").exists()
        return
    dataset = prepare(text, tokenizer, folder / "out", fraction)
    end = "" if as_char else "<|endoftext|>"
    joined = tokenizer.decode(dataset.train) + tokenizer.decode(dataset.val)
    assert joined == "".join(document + end for document in documents)
    assert dataset.train_text_bytes is not None
    assert dataset.val_text_bytes is not None
    assert dataset.train_text_bytes + dataset.val_text_bytes == total
    assert 0 <= int(total * (1 - fraction)) - dataset.train_text_bytes < 4
    for part, size in (
        (dataset.train, dataset.train_text_bytes),
        (dataset.val, dataset.val_text_bytes),
    ):
        assert len(tokenizer.decode(part).replace("<|endoftext|>", "").encode()) == size


def test_small_batches_do_not_change_the_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare(source(tmp_path), bpe(), tmp_path / "whole")
    monkeypatch.setattr("gptfit.data.text.CHUNK_BYTES", 7)
    monkeypatch.setattr("gptfit.data.preparation.BATCH_CHARACTERS", 20)
    parts = prepare(source(tmp_path), bpe(), tmp_path / "parts")
    assert parts.fingerprint == whole.fingerprint


def test_large_vocabulary_takes_32_bits(tmp_path: Path) -> None:
    characters = [chr(code) for code in range(0x10000, 0x10000 + 2**16 + 1)]
    text = source(tmp_path, characters[-1] * 10 + characters[0] * 10)
    dataset = prepare(text, Tokenizer.char(characters), tmp_path / "out")
    assert dataset.train.dtype == np.uint32
    assert dataset.train.tolist() == [2**16] * 10 + [0] * 8
    exact = prepare(
        source(tmp_path, "\U00010000" * 20), Tokenizer.char(characters[:-1]), tmp_path / "o"
    )
    assert exact.train.dtype == np.uint16


def test_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptfit.data.text.CHUNK_BYTES", 100)
    shares: list[float] = []
    prepare(source(tmp_path), Tokenizer.char(TEXT), tmp_path / "out", progress=shares.append)
    assert shares == sorted(shares)
    assert len(shares) == 14
    assert shares[-1] == 1.0


def test_same_again_is_reused(tmp_path: Path) -> None:
    first = prepare(source(tmp_path), bpe(), tmp_path / "out")
    stamp = (tmp_path / "out/train.bin").stat().st_mtime_ns
    again = prepare(source(tmp_path, name="copy.txt"), bpe(), tmp_path / "out")
    assert again.fingerprint == first.fingerprint
    assert (tmp_path / "out/train.bin").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("change", ["text", "tokenizer", "split", "bare"])
def test_other_data_is_not_overwritten(tmp_path: Path, change: str) -> None:
    out = tmp_path / "out"
    prepare(source(tmp_path), bpe(), out)
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.name != "tokens.json"}
    text = source(tmp_path, TEXT + "more") if change == "text" else source(tmp_path)
    if change == "bare":
        (out / "tokens.json").unlink()
    with pytest.raises(DataError, match="already holds data of another text, tokenizer or split"):
        prepare(
            text,
            Tokenizer.char(TEXT + "m") if change == "tokenizer" else bpe(),
            out,
            0.2 if change == "split" else 0.1,
        )
    assert before == {p.name: p.read_bytes() for p in out.iterdir() if p.name != "tokens.json"}


def test_faults_of_the_text_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good" * 100_000 + b"\xff")
    with pytest.raises(DataError, match="not UTF-8 at byte 400000"):
        prepare(TextSource.from_paths([tmp_path / "a.txt"]), bpe(), tmp_path / "deep/out")
    assert not (tmp_path / "deep").exists()


def test_unknown_characters_are_named_before_writing(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"has 2 characters that the vocabulary lacks: 'é' \(U\+00E9\), '😀'"
    ):
        prepare(source(tmp_path, "abé😀a" * 9), Tokenizer.char("ab"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_interrupt_leaves_nothing(tmp_path: Path, interrupt: BaseException) -> None:
    def stop(share: float) -> None:
        raise interrupt

    expected = DataError if isinstance(interrupt, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        prepare(source(tmp_path), bpe(), tmp_path / "deep/out", progress=stop)
    assert names(tmp_path) == {"text.txt"}
    (tmp_path / "mine").mkdir()
    with pytest.raises(expected):
        prepare(source(tmp_path), bpe(), tmp_path / "mine", progress=stop)
    assert not names(tmp_path / "mine")


@pytest.mark.parametrize("moved", [0, 1, 4])
def test_what_a_killed_process_left_is_removed(tmp_path: Path, moved: int) -> None:
    """Killed while it wrote, or while it moved what it had written."""
    whole = prepare(source(tmp_path), bpe(), tmp_path / "whole")
    out = tmp_path / "out"
    half = out / ".preparing-abc"
    half.mkdir(parents=True)
    (out / "mine.txt").write_text("mine", encoding="utf-8")
    for number, name in enumerate(FILES[:-1]):
        if (whole.folder / name).exists():
            shutil.copy(whole.folder / name, out / name if number < moved else half / name)
    again = prepare(source(tmp_path), bpe(), out)
    assert again.fingerprint == whole.fingerprint
    assert names(out) == names(whole.folder) | {"mine.txt"}


def test_leftovers_beside_whole_data_cost_only_themselves(tmp_path: Path) -> None:
    first = prepare(source(tmp_path), bpe(), tmp_path / "out")
    (tmp_path / "out/.preparing-abc").mkdir()
    with pytest.raises(DataError, match="already holds data of another text"):
        prepare(source(tmp_path, TEXT + "more"), bpe(), tmp_path / "out")
    assert not (tmp_path / "out/.preparing-abc").exists()
    assert TokenDataset.open(tmp_path / "out").fingerprint == first.fingerprint


def test_beside_other_files(tmp_path: Path) -> None:
    prepare(source(tmp_path), bpe(), tmp_path)
    assert "text.txt" in names(tmp_path)
    assert TokenDataset.open(tmp_path).tokenizer.kind == "bpe"


def test_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(DataError, match=r"needs about 0.0 MB and 0.0 MB are free; make room"):
        prepare(source(tmp_path), bpe(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, float("nan")])
def test_impossible_fraction(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(DataError, match=r"val_fraction=.* must be between 0 and 1"):
        prepare(source(tmp_path), bpe(), tmp_path / "out", fraction)


def test_out_is_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a file; name a folder"):
        prepare(source(tmp_path), bpe(), tmp_path / "text.txt")


def test_embedded_corpus(tmp_path: Path) -> None:
    text = TextSource.embedded()
    dataset = prepare(text, Tokenizer.char(text.characters), tmp_path)
    assert dataset.train.size + dataset.val.size == len(
        "".join("".join(d) for d in text.documents())
    )
