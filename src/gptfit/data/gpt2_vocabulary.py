"""Where GPT-2's vocabulary comes from: files the user has, a cache, or tiktoken's download."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiktoken import Encoding
from tiktoken.load import read_file_cached
from tiktoken_ext.openai_public import r50k_pat_str  # type: ignore[import-untyped]

from gptfit.errors import DataError

URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
# sha256 of OpenAI's files, as in tiktoken_ext.openai_public.
ENCODER_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
END = 50256
"""Id of the end of text, the last one."""
FILE_NAMES = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))
HUB_NAMES = ("models--openai-community--gpt2", "models--gpt2")


@dataclass(frozen=True)
class Vocabulary:
    """A byte-level BPE: the id of each token, and the merges in their order."""

    ids: dict[str, int]
    merges: list[tuple[str, str]]

    @classmethod
    def from_model(cls, model: dict[str, Any]) -> Vocabulary:
        """From the ``model`` of a ``tokenizer.json``, whose merges are pairs or lines."""
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        return cls(model["vocab"], [(left, right) for left, right in pairs])

    @property
    def is_gpt2(self) -> bool:
        """Whether these are the merges of the released GPT-2 (its ids follow from them)."""
        lines = ["#version: 0.2", *(" ".join(pair) for pair in self.merges), ""]
        return hashlib.sha256("\n".join(lines).encode("utf-8")).hexdigest() == MERGES_SHA256

    def to_tiktoken(self) -> Encoding:
        """GPT-2's encoder in tiktoken, several times as fast as the one in tokenizers.

        Only for GPT-2 itself: tiktoken joins any two neighbours that are a token together, which
        is the same as following the merges in GPT-2's vocabulary but need not be in another.
        """
        assert self.is_gpt2
        byte_of = _byte_of_character()
        ranks = {bytes(byte_of[c] for c in token): i for token, i in self.ids.items() if i < END}
        return Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={})


def _byte_of_character() -> dict[str, int]:
    """How a vocabulary file spells bytes: printable ones as they are, the others from U+0100 on.

    Source: bytes_to_unicode in openai/gpt-2, src/encoder.py.
    """
    printable = [byte for byte in range(256) if chr(byte).isprintable() and byte != ord(" ")]
    others = [byte for byte in range(256) if byte not in printable]
    shifted = {chr(256 + index): byte for index, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | shifted


def has_vocabulary(folder: Path) -> bool:
    """Whether a folder holds the two files of a byte-level BPE."""
    return any(all((folder / name).is_file() for name in pair) for pair in FILE_NAMES)


def read_vocabulary(folder: Path) -> Vocabulary:
    """From ``encoder.json`` + ``vocab.bpe`` (OpenAI) or ``vocab.json`` + ``merges.txt`` (Hugging Face)."""
    for encoder, merges in FILE_NAMES:
        if (folder / encoder).is_file() and (folder / merges).is_file():
            contents = (folder / encoder).read_bytes(), (folder / merges).read_bytes()
            return _parse(*contents, source=str(folder))
    raise DataError(
        f"{folder} holds no vocabulary; it needs encoder.json and vocab.bpe, or vocab.json and "
        "merges.txt"
    )


def find_gpt2() -> Vocabulary:
    """GPT-2's vocabulary from Hugging Face's cache, else from tiktoken's cache or its download."""
    for folder in _hub_snapshots():
        if has_vocabulary(folder) and (found := read_vocabulary(folder)).is_gpt2:
            return found
        if (folder / "tokenizer.json").is_file():
            found = _from_tokenizer_json(folder / "tokenizer.json")
            if found.is_gpt2:
                return found
    return _from_tiktoken()


def _hub_snapshots() -> Iterator[Path]:
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")
    for name in HUB_NAMES:
        yield from sorted((hub / name / "snapshots").glob("*"))


def _from_tokenizer_json(path: Path) -> Vocabulary:
    try:
        return Vocabulary.from_model(json.loads(path.read_text(encoding="utf-8"))["model"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no tokenizer.json of GPT-2 ({error}); delete it") from None


def _from_tiktoken() -> Vocabulary:
    encoder = _tiktoken_file("encoder.json", ENCODER_SHA256)
    merges = _tiktoken_file("vocab.bpe", MERGES_SHA256)
    return _parse(encoder, merges, source=URL)


def _tiktoken_file(name: str, sha256: str) -> bytes:
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "on", "true", "yes")
    if offline and not _tiktoken_cache(URL + name).is_file():
        raise _not_found("no download was tried, because HF_HUB_OFFLINE is set")
    try:
        return read_file_cached(URL + name, sha256)
    except Exception as error:  # any way a download can fail; requests is tiktoken's business
        reason = f"the download of {URL}{name} failed ({type(error).__name__})"
        raise _not_found(reason) from None


def _tiktoken_cache(url: str) -> Path:
    """Where tiktoken keeps a downloaded file (tiktoken/load.py: read_file_cached)."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    folder = folder or os.path.join(tempfile.gettempdir(), "data-gym-cache")
    return Path(folder, hashlib.sha1(url.encode("utf-8")).hexdigest())


def _not_found(reason: str) -> DataError:
    return DataError(
        "tokenizer=gpt2 needs GPT-2's vocabulary: it is neither in Hugging Face's cache nor in "
        f"tiktoken's, and {reason}; set tokenizer to a folder with encoder.json and vocab.bpe (or "
        "a tokenizer.json), or use tokenizer=bpe, which needs no download"
    )


def _parse(encoder: bytes, merges: bytes, source: str) -> Vocabulary:
    try:
        ids = json.loads(encoder.decode("utf-8"))
        # split("\n") and not splitlines(): tokens may hold other characters that end a line
        lines = [line.rstrip("\r") for line in merges.decode("utf-8").split("\n")]
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source} holds no vocabulary that can be read ({error})") from None
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    if not isinstance(ids, dict) or any(len(pair) != 2 for pair in pairs):
        raise DataError(
            f"{source} holds no GPT-2 vocabulary: an object of ids, and a pair per line"
        )
    return Vocabulary(ids, [(left, right) for left, right in pairs])
