"""Token files: damaged ones are refused with numbers, nanoGPT's are read, pickles run nothing."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptfit.data import TextSource, TokenDataset, Tokenizer, prepare, read_meta_pkl
from gptfit.errors import DataError

TEXT = "hello é world\n" * 20


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    prepare(TextSource.from_paths([tmp_path / "text.txt"]), Tokenizer.char(TEXT), tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def nanogpt(tmp_path: Path) -> Path:
    """What nanoGPT's shakespeare_char/prepare.py leaves, with an order of its own."""
    itos = dict(enumerate("lé\no rdwhez"))
    stoi = {character: index for index, character in itos.items()}
    for name, text in (("train", TEXT[:200]), ("val", TEXT[200:])):
        np.array([stoi[c] for c in text], dtype=np.uint16).tofile(tmp_path / f"{name}.bin")
    meta = {"vocab_size": len(itos), "itos": itos, "stoi": stoi}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
    return tmp_path


def test_prepared(prepared: Path) -> None:
    dataset = TokenDataset.open(prepared)
    assert dataset.tokenizer.decode(dataset.train) + dataset.tokenizer.decode(dataset.val) == TEXT
    assert (dataset.train_text_bytes, dataset.val_text_bytes) == (270, 30)
    assert dataset.val_tokens_per_byte == pytest.approx(28 / 30)
    assert dataset.notes == ()
    assert not dataset.train.flags.writeable
    dataset.verify()


def test_nanogpt(nanogpt: Path) -> None:
    dataset = TokenDataset.open(nanogpt)
    assert dataset.tokenizer.decode(dataset.train) == TEXT[:200]
    assert dataset.tokenizer.encode("lé").tolist() == [0, 1]
    assert dataset.vocab_size == 11
    assert dataset.val_text_bytes == len(TEXT[200:].encode("utf-8"))
    assert dataset.train.dtype == np.uint16
    assert any("taken as uint16" in note for note in dataset.notes)
    dataset.verify()


def test_bare_folder_with_gpt2_ids(
    tmp_path: Path, gpt2_bpe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpt2 = Tokenizer.gpt2(gpt2_bpe)
    monkeypatch.setattr(Tokenizer, "gpt2", lambda: gpt2)
    for name in ("train.bin", "val.bin"):
        np.array([15496, 995, 50256], dtype=np.uint16).tofile(tmp_path / name)
    dataset = TokenDataset.open(tmp_path)
    assert dataset.tokenizer.decode(dataset.val) == "Hello world<|endoftext|>"
    assert dataset.val_tokens_per_byte is None
    assert any("taken as GPT-2's" in note for note in dataset.notes)
    np.array([1, 2, 50257], dtype=np.uint16).tofile(tmp_path / "val.bin")
    with pytest.raises(
        DataError, match=r"val.bin: id 50257 at token 2 is outside the vocabulary of 50257"
    ):
        TokenDataset.open(tmp_path)


def test_first_bad_id_is_found_in_any_part(nanogpt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptfit.data.tokens.SCAN_TOKENS", 7)
    tokens = np.fromfile(nanogpt / "train.bin", dtype=np.uint16)
    tokens[[40, 41, 99]] = [11, 12, 13]
    tokens.tofile(nanogpt / "train.bin")
    with pytest.raises(
        DataError, match=r"train.bin: id 11 at token 40 is outside the vocabulary of 11"
    ):
        TokenDataset.open(nanogpt)


def npy(values: np.ndarray) -> bytes:
    """As ``numpy.save`` writes it."""
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def _edit(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "tokens.json"
        values = json.loads(path.read_text(encoding="utf-8")) | changes
        values = {key: value for key, value in values.items() if value is not None}
        path.write_text(json.dumps(values), encoding="utf-8")

    return change


def _bytes(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes())) and None


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no train.bin": (
        lambda f: (f / "train.bin").unlink(),
        r"holds no train\.bin; make it with: gptfit",
    ),
    "no val.bin": (lambda f: (f / "val.bin").unlink(), r"holds no val\.bin"),
    "flipped bit": (
        _bytes("train.bin", lambda b: b[:-2] + bytes([b[-2] ^ 1]) + b[-1:]),
        r"train\.bin has changed: its sha256 is [0-9a-f]{16}\.\.\., recorded is",
    ),
    "large id": (
        _bytes("val.bin", lambda b: b"\xff" + b[1:]),
        r"val\.bin: id 255 at token 0 is outs",
    ),
    "longer": (_bytes("val.bin", lambda b: b + b"\0\0"), r"has 58 bytes, tokens\.json says 56"),
    "shorter": (_bytes("val.bin", lambda b: b[:-1]), r"has 55 bytes, tokens\.json says 56"),
    "empty": (_bytes("val.bin", lambda b: b""), r"has 0 bytes, tokens\.json says 56"),
    "other tokenizer": (
        lambda f: Tokenizer.char(TEXT + "x").save(f),
        r"tokenizer\.json is not the tokenizer that made these tokens",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), r"tokenizer\.json: no such file"),
    "no JSON": (_bytes("tokens.json", lambda b: b[:-3]), r"tokens\.json cannot be read"),
    "a list": (_bytes("tokens.json", lambda b: b"[]"), r"tokens\.json holds no object"),
    "newer": (_edit(version=2), r"was written by a newer gptfit \(format 2\); upgrade"),
    "missing key": (_edit(dtype=None), r"missing or unknown dtype"),
    "unknown key": (_edit(extra=1), r"missing or unknown extra"),
    "vocabulary": (_edit(vocab_size=99), r"tokens\.json: vocab_size=99 is not the tokenizer's 10"),
    "dtype": (_edit(dtype="object"), r"dtype has an impossible value"),
    "version": (_edit(version="1"), r"version has an impossible value"),
    "counts": (_edit(tokens={"train": 5}), r"tokens has an impossible value"),
    "hashes": (_edit(sha256={"train": 1, "val": 2}), r"sha256 has an impossible value"),
    "sources": (_edit(sources=[1]), r"sources has an impossible value"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged(prepared: Path, damage: str) -> None:
    change, message = DAMAGE[damage]
    change(prepared)
    with pytest.raises(DataError, match=message):
        TokenDataset.open(prepared)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0\0\0", r"val\.bin has 3 bytes, no multiple of 2 as uint16 tokens"),
        (b"", r"val\.bin is empty"),
    ],
)
def test_damaged_bare(nanogpt: Path, content: bytes, message: str) -> None:
    (nanogpt / "val.bin").write_bytes(content)
    with pytest.raises(DataError, match=message):
        TokenDataset.open(nanogpt)


IDS = np.arange(1, 200) % 11
NOT_TOKENS: dict[str, tuple[bytes, str]] = {
    "32 bits": (
        IDS.astype("<u4").tobytes(),
        r"train\.bin: every second value is 0, as in tokens of",
    ),
    "64 bits": (
        IDS.astype("<i8").tobytes(),
        r"train\.bin: every second value is 0, as in tokens of",
    ),
    "text": (("Où est le café ? " * 9).encode(), r"train\.bin holds text, not tokens; make them w"),
    "numpy.save": (npy(IDS.astype("<u2")), r"train\.bin is an array of numpy\.save, with a header"),
    "8 bits": (IDS.astype("u1").tobytes(), r"train\.bin has 199 bytes, no multiple of 2"),
}


@pytest.mark.parametrize("kind", NOT_TOKENS)
def test_what_would_pass_for_tokens(nanogpt: Path, kind: str) -> None:
    """GPT-2's vocabulary is so large that most pairs of bytes are ids of it."""
    content, message = NOT_TOKENS[kind]
    (nanogpt / "train.bin").write_bytes(content)
    with pytest.raises(DataError, match=message):
        TokenDataset.open(nanogpt)


@pytest.mark.parametrize("ids", [[0] * 500, [10] * 500, [0, 0, 0, 7] * 90], ids=["0", "10", "0007"])
def test_monotonous_tokens_are_tokens(nanogpt: Path, ids: list[int]) -> None:
    np.array(ids, dtype="<u2").tofile(nanogpt / "train.bin")
    assert TokenDataset.open(nanogpt).train.tolist() == ids


def test_changed_while_in_use(prepared: Path) -> None:
    dataset = TokenDataset.open(prepared)
    dataset.require_unchanged()
    os.utime(prepared / "train.bin", (1, 1))
    dataset.require_unchanged()  # touched, and read again to see that it is the same
    with (prepared / "val.bin").open("r+b") as file:
        file.write(b"\1\0\2\0\3\0")
    os.utime(prepared / "val.bin", (2, 2))
    with pytest.raises(DataError, match=r"val\.bin has changed: its sha256 is"):
        dataset.require_unchanged()


def test_cut_off_while_in_use(prepared: Path) -> None:
    """Reading the pages that are gone would kill the process without a word."""
    dataset = TokenDataset.open(prepared)
    os.truncate(prepared / "train.bin", 10)
    with pytest.raises(DataError, match=r"train\.bin has been cut off .* 10 of 504 bytes are left"):
        dataset.require_unchanged()


def test_an_untouched_file_is_not_read_again(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = TokenDataset.open(prepared)
    monkeypatch.setattr("gptfit.data.tokens._scan", None)
    dataset.require_unchanged()


def test_tokens_replaced_or_deleted_stay_mapped(prepared: Path) -> None:
    dataset = TokenDataset.open(prepared)
    before = dataset.train.tolist()
    (prepared / "new").write_bytes(b"\0\0" * 50)
    (prepared / "new").replace(prepared / "train.bin")
    (prepared / "val.bin").unlink()
    dataset.require_unchanged()
    assert dataset.train.tolist() == before


def test_changed_while_open(prepared: Path) -> None:
    dataset = TokenDataset.open(prepared)
    with (prepared / "train.bin").open("r+b") as file:
        file.seek(20)
        file.write(b"\1\0\2\0\3\0")
    with pytest.raises(DataError, match=r"train\.bin has changed"):
        dataset.verify()


def test_context(prepared: Path) -> None:
    dataset = TokenDataset.open(prepared)
    dataset.require_context(27)
    with pytest.raises(
        DataError, match=r"validation split .* has 28 tokens; n_positions=28 needs at le"
    ):
        dataset.require_context(28)
    with pytest.raises(DataError, match=r"training split .* has 252 tokens; n_positions=252"):
        dataset.require_context(252)


def test_fingerprint(prepared: Path, nanogpt: Path) -> None:
    first = TokenDataset.open(prepared).fingerprint
    assert len(first) == 64
    moved = prepared.rename(prepared.with_name("moved"))
    assert TokenDataset.open(moved).fingerprint == first
    assert TokenDataset.open(nanogpt).fingerprint != first


class Exploit:
    """Creates a file when it is unpickled the usual way."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.canary),))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_malicious_meta_pkl_runs_nothing(nanogpt: Path, protocol: int) -> None:
    canary = nanogpt / "canary"
    meta = {"itos": dict(enumerate("ab")), "extra": Exploit(canary)}
    (nanogpt / "meta.pkl").write_bytes(pickle.dumps(meta, protocol))
    with pytest.raises(DataError, match=r"meta\.pkl was not opened: it asks for \w+\.mkdir"):
        TokenDataset.open(nanogpt)
    assert not canary.exists()
    pickle.loads((nanogpt / "meta.pkl").read_bytes())  # the exploit is a real one
    assert canary.exists()


def _persistent(values: object) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: object) -> str | None:
            return "outside" if isinstance(obj, set) else None

    buffer = io.BytesIO()
    Pickler(buffer).dump(values)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "was not opened"),
        (b"garbage", "was not opened"),
        (pickle.dumps({"itos": OrderedDict({0: "a"})}), r"it asks for collections\.OrderedDict"),
        (pickle.dumps({"itos": {0: "a"}, "n": np.int64(1)}), "it asks for numpy"),
        (b"cos\nsystem\n(S'true'\ntR.", r"it asks for os\.system"),
        (b"(S'true'\nios\nsystem\n.", r"it asks for os\.system"),
        (b"\x80\x02\x82\x01.", "was not opened"),
        (_persistent({"itos": {1}}), "it asks for an object from outside"),
        (pickle.dumps([1, 2]), "holds no dict 'itos'"),
        (pickle.dumps({"vocab_size": 5}), "holds no dict 'itos'"),
        (pickle.dumps({"itos": {}}), "holds no dict 'itos'"),
        (pickle.dumps({"itos": {0: "a", 2: "b"}}), "ids in 'itos' are not 0 to 1"),
        (pickle.dumps({"itos": {"0": "a"}}), "ids in 'itos' are not 0 to 0"),
        (pickle.dumps({"itos": {False: "a"}}), "ids in 'itos' are not 0 to 0"),
        (pickle.dumps({"itos": {0: "the"}}), "holds more than single characters"),
        (pickle.dumps({"itos": {0: 7}}), "holds more than single characters"),
    ],
)
def test_unusable_meta_pkl(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "meta.pkl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_meta_pkl(tmp_path / "meta.pkl")


def test_meta_pkl(nanogpt: Path) -> None:
    assert "".join(read_meta_pkl(nanogpt / "meta.pkl")) == "lé\no rdwhez"
