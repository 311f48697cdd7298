"""Token files: nanoGPT's headerless ``train.bin`` and ``val.bin``, opened with care."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gptfit.data.meta_pickle import META_FILE, read_meta_pkl
from gptfit.data.sidecar import SIDECAR_FILE, SPLITS, Sidecar
from gptfit.data.tokenizer import TOKENIZER_FILE, Tokenizer
from gptfit.errors import DataError

SCAN_TOKENS = 2**22
LOOK_BYTES = 2**14
FEWEST_BYTES = 64
"""Of fewer, nothing can be said by their looks."""
REMEDY = "delete the folder and prepare the text again"


class Stamp(NamedTuple):
    """What tells without reading a file that it has changed."""

    inode: int
    size: int
    mtime_ns: int


@dataclass(frozen=True, eq=False)
class TokenDataset:
    """Tokens of a training and a validation text, read-only and mapped into memory, not loaded.

    ``*_text_bytes`` is the size of the text in UTF-8, None where it is not known. ``sha256`` is that
    of each file. ``notes`` says what had to be assumed about files that came without a description.
    """

    folder: Path
    train: np.ndarray
    val: np.ndarray
    tokenizer: Tokenizer
    sha256: Mapping[str, str]
    split: str
    train_text_bytes: int | None
    val_text_bytes: int | None
    notes: tuple[str, ...] = ()
    _stamps: dict[str, Stamp] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._stamps.update({split: _stamp(_path(self.folder, split)) for split in SPLITS})

    @classmethod
    def open(cls, folder: str | Path) -> TokenDataset:
        """A folder made by ``prepare``, or one of nanoGPT's.

        Reads the files once, so that training cannot meet an id outside the vocabulary or, where
        their hashes are known, a flipped bit. Raises ``DataError``.
        """
        folder = Path(folder)
        for split in SPLITS:
            if not (folder / f"{split}.bin").is_file():
                raise DataError(
                    f"{folder} holds no {split}.bin; make it with: gptfit prepare TEXT --out {folder}"
                )
        return _open_prepared(folder) if (folder / SIDECAR_FILE).is_file() else _open_bare(folder)

    def verify(self) -> None:
        """Read the files again; raise ``DataError`` if they are not what they were when opened."""
        for split, tokens in (("train", self.train), ("val", self.val)):
            self._verify(split, tokens)

    def require_unchanged(self) -> None:
        """As ``verify``, and cheap: files that bear the time they bore are not read again.

        A file that was deleted or replaced by another is none of ours any more: the old one stays
        mapped until the end.
        """
        for split, tokens in (("train", self.train), ("val", self.val)):
            path, was = _path(self.folder, split), self._stamps[split]
            try:
                now = _stamp(path)
            except OSError:
                continue
            if now == was or now.inode != was.inode:
                continue
            if now.size < tokens.nbytes:  # to read what is gone would end the process
                raise DataError(
                    f"{path} has been cut off while it was in use: {now.size:,} of {tokens.nbytes:,} "
                    f"bytes are left; {REMEDY}"
                )
            self._verify(split, tokens)
            self._stamps[split] = now

    def _verify(self, split: str, tokens: np.ndarray) -> None:
        path, recorded = _path(self.folder, split), self.sha256[split]
        actual = _scan(path, tokens, self.vocab_size)
        if actual != recorded:
            raise DataError(
                f"{path} has changed: its sha256 is {actual[:16]}..., recorded is "
                f"{recorded[:16]}...; {REMEDY}"
            )

    def require_context(self, block_size: int) -> None:
        """Raise ``DataError`` unless both splits fill at least one window and its last target."""
        for split, tokens in (("training", self.train), ("validation", self.val)):
            if tokens.size < block_size + 1:
                raise DataError(
                    f"the {split} split of {self.folder} has {tokens.size} tokens; n_positions="
                    f"{block_size} needs at least {block_size + 1}: use more text or a smaller "
                    "n_positions"
                )

    @property
    def vocab_size(self) -> int:
        """Number of the tokenizer's ids."""
        return self.tokenizer.vocab_size

    @property
    def val_tokens_per_byte(self) -> float | None:
        """Tokens per byte of the validation text, None where its size is not known."""
        return self.val.size / self.val_text_bytes if self.val_text_bytes else None

    @property
    def fingerprint(self) -> str:
        """sha256 over both files and the tokenizer: equal for the same tokens, in any folder."""
        parts = [self.sha256[split] for split in SPLITS] + [self.tokenizer.fingerprint]
        return hashlib.sha256("\n".join(parts).encode("ascii")).hexdigest()


def _open_prepared(folder: Path) -> TokenDataset:
    sidecar = Sidecar.read(folder / SIDECAR_FILE)
    tokenizer = Tokenizer.load(folder)
    if tokenizer.fingerprint != sidecar.tokenizer:
        raise DataError(
            f"{folder / TOKENIZER_FILE} is not the tokenizer that made these tokens; put that one "
            f"back, or {REMEDY}"
        )
    if tokenizer.vocab_size != sidecar.vocab_size:
        raise DataError(
            f"{folder / SIDECAR_FILE}: vocab_size={sidecar.vocab_size} is not the tokenizer's "
            f"{tokenizer.vocab_size}; {REMEDY}"
        )
    dtype = np.dtype(sidecar.dtype)
    for split in SPLITS:
        path, expected = _path(folder, split), sidecar.tokens[split] * dtype.itemsize
        if (size := path.stat().st_size) != expected:
            raise DataError(
                f"{path} has {size:,} bytes, {SIDECAR_FILE} says {expected:,}; {REMEDY}"
            )
    dataset = TokenDataset(
        folder,
        _map(folder, "train", dtype),
        _map(folder, "val", dtype),
        tokenizer,
        sidecar.sha256,
        sidecar.split,
        sidecar.text_bytes["train"],
        sidecar.text_bytes["val"],
    )
    dataset.verify()
    return dataset


def _open_bare(folder: Path) -> TokenDataset:
    tokenizer, note = _bare_tokenizer(folder)
    for split in SPLITS:
        _require_uint16(_path(folder, split))
    train, val = (_map(folder, split, np.dtype(np.uint16)) for split in SPLITS)
    return TokenDataset(
        folder,
        train,
        val,
        tokenizer,
        sha256={
            "train": _scan(_path(folder, "train"), train, tokenizer.vocab_size),
            "val": _scan(_path(folder, "val"), val, tokenizer.vocab_size),
        },
        split="as found: train.bin and val.bin",
        train_text_bytes=_text_bytes(tokenizer, train),
        val_text_bytes=_text_bytes(tokenizer, val),
        notes=(
            f"{folder} has no {SIDECAR_FILE}: its tokens are taken as uint16, as in nanoGPT",
            note,
        ),
    )


def _bare_tokenizer(folder: Path) -> tuple[Tokenizer, str]:
    if (folder / TOKENIZER_FILE).is_file():
        return Tokenizer.load(folder), f"the vocabulary is that of {TOKENIZER_FILE}"
    if (folder / META_FILE).is_file():
        characters = read_meta_pkl(folder / META_FILE)
        return Tokenizer.char_in_order(characters), f"the vocabulary is that of {META_FILE}"
    note = f"there is neither {TOKENIZER_FILE} nor {META_FILE}: the ids are taken as GPT-2's"
    return Tokenizer.gpt2(), note


def _require_uint16(path: Path) -> None:
    """Refuse by its looks what taken as uint16 would be ids of the vocabulary, and nonsense."""
    with path.open("rb") as file:
        content = file.read(LOOK_BYTES)
    if content.startswith(b"\x93NUMPY"):
        raise DataError(
            f"{path} is an array of numpy.save, with a header; write its ids with "
            "tokens.astype('uint16').tofile(...)"
        )
    if len(content) < FEWEST_BYTES:
        return
    values = np.frombuffer(content[: len(content) // 4 * 4], dtype="<u2")
    if not values[1::2].any() and values[::2].any():
        raise DataError(
            f"{path}: every second value is 0, as in tokens of 32 or 64 bits; write them with "
            "tokens.astype('uint16').tofile(...)"
        )
    if b"\0" not in content and _is_utf8(content):
        raise DataError(f"{path} holds text, not tokens; make them with: gptfit prepare {path}")


def _is_utf8(content: bytes) -> bool:
    """Whether the bytes begin a text; the last character may be cut."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(content)
    except UnicodeDecodeError:
        return False
    return True


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return Stamp(status.st_ino, status.st_size, status.st_mtime_ns)


def _path(folder: Path, split: str) -> Path:
    return folder / f"{split}.bin"


def _map(folder: Path, split: str, dtype: np.dtype) -> np.ndarray:
    path = _path(folder, split)
    size = path.stat().st_size
    if not size:
        raise DataError(f"{path} is empty; {REMEDY}, with more of it")
    if size % dtype.itemsize:
        raise DataError(
            f"{path} has {size:,} bytes, no multiple of {dtype.itemsize} as {dtype.name} tokens are: "
            f"it is cut off or something else; {REMEDY}"
        )
    return np.memmap(path, dtype=dtype.newbyteorder("<"), mode="r")


def _scan(path: Path, tokens: np.ndarray, vocab_size: int) -> str:
    """sha256 of a token file, whose ids must be inside the vocabulary."""
    digest = hashlib.sha256()
    for start, chunk in _chunks(tokens):
        digest.update(chunk.data)
        if int(chunk.max()) >= vocab_size:
            first = int(np.flatnonzero(chunk >= vocab_size)[0])
            raise DataError(
                f"{path}: id {chunk[first]} at token {start + first:,} is outside the vocabulary of "
                f"{vocab_size}; the file was made with another tokenizer, {REMEDY}"
            )
    return digest.hexdigest()


def _chunks(tokens: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, tokens.size, SCAN_TOKENS):
        yield start, np.asarray(tokens[start : start + SCAN_TOKENS])


def _text_bytes(tokenizer: Tokenizer, tokens: np.ndarray) -> int | None:
    """Size of the text behind tokens, which a vocabulary of characters allows to count."""
    if tokenizer.characters is None:
        return None
    lengths = np.array([len(character.encode("utf-8")) for character in tokenizer.characters])
    return sum(int(lengths[chunk].sum()) for _, chunk in _chunks(tokens))
