"""Text to token files."""

from __future__ import annotations

import hashlib
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gptfit.data.meta_pickle import META_FILE, write_meta_pkl
from gptfit.data.sidecar import SIDECAR_FILE, Sidecar
from gptfit.data.text import TextSource
from gptfit.data.tokenizer import CONFIG_FILE, TOKENIZER_FILE, Tokenizer
from gptfit.data.tokens import TokenDataset
from gptfit.errors import DataError

Progress = Callable[[float], None]

# Pieces are encoded together, in threads, once there is this much of them.
BATCH_CHARACTERS = 2**22
SAMPLE_CHARACTERS = 2**16
# The last one says that all the others are there, so it is moved last.
FILES = ("train.bin", "val.bin", META_FILE, TOKENIZER_FILE, CONFIG_FILE, SIDECAR_FILE)


def prepare(
    text: TextSource,
    tokenizer: Tokenizer,
    out: str | Path,
    val_fraction: float = 0.1,
    progress: Progress | None = None,
) -> TokenDataset:
    """Write ``train.bin`` and ``val.bin`` of a text into the folder ``out``, and what describes them.

    The last ``val_fraction`` of the text is for validation. A document ends with the end-of-text
    token where the tokenizer has one. ``progress`` is told the share done, 0 to 1. The same text
    prepared there before is reused. Raises ``DataError`` before anything is written where possible;
    after an error or an interrupt the folder is as it was.
    """
    out = Path(out)
    if not 0 < val_fraction < 1:
        raise DataError(f"val_fraction={val_fraction} must be between 0 and 1, such as 0.1")
    train_bytes = int(text.total_bytes * (1 - val_fraction))
    _remove_leftovers(out)
    if _is_same(out, text, tokenizer, val_fraction):
        return TokenDataset.open(out)
    require_characters(
        text,
        tokenizer,
        "use tokenizer=char to make a vocabulary of this text, or tokenizer=bpe",
    )
    _require_space(out, text, tokenizer)
    try:
        with _temporary_folder(out) as folder:
            _write(folder, text, tokenizer, val_fraction, train_bytes, progress)
            for name in FILES:
                if (folder / name).exists():
                    (folder / name).replace(out / name)
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror or error}") from None
    return TokenDataset.open(out)


def _remove_leftovers(out: Path) -> None:
    """What a process that was killed has left: its folder, and the files it had moved out of it."""
    leftovers = list(out.glob(".preparing-*"))
    try:
        if leftovers and not (out / SIDECAR_FILE).exists():
            for name in FILES:
                (out / name).unlink(missing_ok=True)
        for folder in leftovers:
            shutil.rmtree(folder)
    except OSError as error:
        raise DataError(f"{out} cannot be cleared: {error.strerror or error}") from None


def _is_same(out: Path, text: TextSource, tokenizer: Tokenizer, val_fraction: float) -> bool:
    """Whether ``out`` already holds this very data. Raises ``DataError`` if it holds other data."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; name a folder")
    if not any((out / name).exists() for name in FILES):
        return False
    if (out / SIDECAR_FILE).exists():
        old = Sidecar.read(out / SIDECAR_FILE)
        was = (old.text_sha256, old.tokenizer, old.val_fraction)
        if was == (text.summary.sha256, tokenizer.fingerprint, val_fraction):
            return True
    raise DataError(
        f"{out} already holds data of another text, tokenizer or split; choose another folder, or "
        "delete it"
    )


def require_characters(text: TextSource, tokenizer: Tokenizer, way_out: str) -> None:
    """A character tokenizer made from another text may not know all characters of this one."""
    if tokenizer.characters is None:
        return
    unknown = sorted(text.characters.difference(tokenizer.characters))
    if unknown:
        shown = ", ".join(f"{character!r} (U+{ord(character):04X})" for character in unknown[:5])
        raise DataError(
            f"{text.description} has {len(unknown)} characters that the vocabulary lacks: "
            f"{shown}; {way_out}"
        )


def _dtype(tokenizer: Tokenizer) -> np.dtype:
    return np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")


def _require_space(out: Path, text: TextSource, tokenizer: Tokenizer) -> None:
    """Estimate the size of the files from the beginning of the text, with a tenth to spare."""
    chunks = (chunk for document in text.documents() for chunk in document)
    sample = next(chunks)[:SAMPLE_CHARACTERS]
    rate = tokenizer.encode(sample).size / len(sample.encode("utf-8"))
    tokens = rate * text.total_bytes * 1.1 + text.summary.documents
    needed = math.ceil(tokens * _dtype(tokenizer).itemsize)
    existing = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise DataError(
            f"{out} needs about {needed / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are free; make room "
            "or choose another folder"
        )


@contextmanager
def _temporary_folder(out: Path) -> Iterator[Path]:
    """A folder inside ``out`` (so that moving out of it is atomic) that is gone at the end."""
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".preparing-", dir=out))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            if any(parent.iterdir()):
                break
            parent.rmdir()


def _write(
    folder: Path,
    text: TextSource,
    tokenizer: Tokenizer,
    val_fraction: float,
    train_bytes: int,
    progress: Progress | None,
) -> None:
    with ExitStack() as stack:
        train, val = (
            stack.enter_context(TokenWriter(folder / name, tokenizer)) for name in FILES[:2]
        )
        _encode(text, train, val, train_bytes, progress)
    for writer in (train, val):
        if not writer.tokens:
            raise DataError(
                f"{text.description}: {text.total_bytes} bytes are too few to split off "
                f"val_fraction={val_fraction} for validation; use more text"
            )
    tokenizer.save(folder)
    if tokenizer.characters is not None:
        write_meta_pkl(folder / META_FILE, tokenizer.characters)
    Sidecar(
        dtype=_dtype(tokenizer).name,
        vocab_size=tokenizer.vocab_size,
        tokenizer=tokenizer.fingerprint,
        tokenizer_kind=tokenizer.kind,
        tokens={"train": train.tokens, "val": val.tokens},
        text_bytes={"train": train.text_bytes, "val": val.text_bytes},
        sha256={"train": train.sha256, "val": val.sha256},
        text_sha256=text.summary.sha256,
        val_fraction=val_fraction,
        split=(
            f"by position: training is the first {train.text_bytes:,} bytes of the text, validation "
            f"the last {val.text_bytes:,}"
        ),
        sources=list(text.sources),
    ).write(folder / SIDECAR_FILE)


def _encode(
    text: TextSource,
    train: TokenWriter,
    val: TokenWriter,
    train_bytes: int,
    progress: Progress | None,
) -> None:
    """Feed the first ``train_bytes`` of the text, down to a whole character, to ``train``."""
    current = train
    seen = 0
    for document in text.documents():
        for chunk in document:
            content = chunk.encode("utf-8")
            room = train_bytes - seen
            seen += len(content)
            if current is train and len(content) > room:
                head = content[:room].decode("utf-8", "ignore")
                train.write(head)
                train.cut()
                current, chunk = val, chunk[len(head) :]
            current.write(chunk)
            if progress is not None:
                progress(seen / text.total_bytes)
        current.end_document()


class TokenWriter:
    """Encodes a stream of text into one token file; cuts it for the encoder where that is safe."""

    def __init__(self, path: Path, tokenizer: Tokenizer) -> None:
        self._path = path
        self._tokenizer = tokenizer
        self._digest = hashlib.sha256()
        self._cutter = tokenizer.cutter()
        self._pieces: list[str | None] = []  # None where a document ends
        self._waiting = 0
        self.tokens = 0
        self.text_bytes = 0

    def __enter__(self) -> TokenWriter:
        self._file: BinaryIO = self._path.open("wb")
        return self

    def __exit__(self, *exception: object) -> None:
        with self._file:
            if exception[0] is None:
                self._flush()

    @property
    def sha256(self) -> str:
        """Hash of what has been written."""
        return self._digest.hexdigest()

    def write(self, chunk: str) -> None:
        """The next part of the current document."""
        self.text_bytes += len(chunk.encode("utf-8"))
        self._take(self._cutter.push(chunk))

    def cut(self) -> None:
        """End the current document where it is not at its end: nothing marks the place."""
        self._take(self._cutter.flush())

    def end_document(self) -> None:
        """End the current document with the end-of-text token, if there is one."""
        self.cut()
        self._pieces.append(None)

    def _take(self, piece: str) -> None:
        if piece:
            self._pieces.append(piece)
            self._waiting += len(piece)
        if self._waiting >= BATCH_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        eos, dtype = self._tokenizer.eos_token_id, _dtype(self._tokenizer)
        end = np.array([] if eos is None else [eos], dtype=dtype)
        encoded = iter(self._tokenizer.encode_batch([p for p in self._pieces if p is not None]))
        arrays = [end if piece is None else next(encoded) for piece in self._pieces]
        content = np.concatenate([end[:0], *arrays]).astype(dtype).tobytes()
        self._file.write(content)
        self._digest.update(content)
        self.tokens += len(content) // dtype.itemsize
        self._pieces, self._waiting = [], 0
