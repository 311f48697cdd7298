"""Writing a safetensors file in one pass: hashed while it is written, and on the disk at the end.

The library's own writer wants all tensors contiguous and on the CPU at once, and leaves the file to be
read again for its hash. The bytes are the same (layout: ``safetensors_header``).
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import json
import os
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import torch
from torch import Tensor

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64"}
CHUNK_BYTES = 16 * 2**20
CHUNKS_AHEAD = 4
"""How many may wait to be hashed; they keep their tensors in memory."""
BUFFERED = io.DEFAULT_BUFFER_SIZE
"""Smaller writes may still be on their way to the system."""
SYNC_FILE_RANGE = (
    getattr(ctypes.CDLL(None), "sync_file_range", None) if sys.platform == "linux" else None
)
SYNC_FILE_RANGE_WRITE = 2


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Write ``tensors``, which may be views on any device; the sha256 of the file.

    One tensor at a time is copied. Raises ``OSError``.
    """
    # Wide elements first, so that each is aligned: the library's order.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    digest = hashlib.sha256()
    chunks: Queue[memoryview | None] = Queue(CHUNKS_AHEAD)
    hashing = Thread(target=_hash, args=(digest, chunks))
    hashing.start()
    try:
        with path.open("wb") as file:
            written = 0
            for chunk in _chunks({name: tensors[name] for name in names}, metadata):
                chunks.put(chunk)
                file.write(chunk)
                _begin_writing_out(file.fileno(), written, len(chunk))
                written += len(chunk)
            file.flush()
            os.fsync(file.fileno())
    finally:
        chunks.put(None)
        hashing.join()
    return digest.hexdigest()


def file_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Size of the file without its metadata."""
    return len(_header(tensors, {})) + sum(tensor.nbytes for tensor in tensors.values())


def _chunks(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[memoryview]:
    yield memoryview(_header(tensors, metadata))
    for tensor in tensors.values():
        whole = tensor.detach().cpu().contiguous()
        data = whole.reshape(-1).view(torch.uint8).numpy().data
        for start in range(0, len(data), CHUNK_BYTES):
            yield data[start : start + CHUNK_BYTES]


def _begin_writing_out(descriptor: int, start: int, size: int) -> None:
    """Let Linux write this part of a file to the disk now, so that fsync finds little left to wait for."""
    if SYNC_FILE_RANGE is not None and size > BUFFERED:
        SYNC_FILE_RANGE(
            descriptor, ctypes.c_int64(start), ctypes.c_int64(size), SYNC_FILE_RANGE_WRITE
        )


def _hash(digest: hashlib._Hash, chunks: Queue[memoryview | None]) -> None:
    """Beside the writing: both leave the interpreter to others."""
    while (chunk := chunks.get()) is not None:
        digest.update(chunk)


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.nbytes
        dtype, shape = DTYPES[tensor.dtype], list(tensor.shape)
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
