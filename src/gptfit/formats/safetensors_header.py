"""Names, shapes and metadata of a safetensors file, read without torch and without its data.

Layout (https://github.com/huggingface/safetensors#format): 8 bytes of header length, little endian;
the header as JSON; the data.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

from gptfit.errors import CheckpointError

# GPT-2 XL's header has 0.1 MiB. The format allows 100 MB, with which a million empty tensors cost
# the reader gigabytes.
HEADER_LIMIT_BYTES = 4 * 2**20


@dataclass(frozen=True)
class SafetensorsHeader:
    """``shapes`` by tensor name; ``metadata`` is the file's own ``__metadata__``."""

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]


def read_header(path: Path) -> SafetensorsHeader:
    """Read and check the header; the file must be as long as the header says.

    Raises ``CheckpointError`` for a missing, truncated or malformed file.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
            if not 0 < length <= size - 8:
                raise _damaged(path, f"its header claims {length} of {size} bytes")
            if length > HEADER_LIMIT_BYTES:
                raise CheckpointError(
                    f"{path} has a header of {length:,} bytes, more than the {HEADER_LIMIT_BYTES:,} "
                    "that any GPT-2 needs; it is not opened"
                )
            header = json.loads(file.read(length))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise _damaged(path, "its header is not JSON") from None
    return _parse(path, header, size - 8 - length)


def _parse(path: Path, header: object, data_bytes: int) -> SafetensorsHeader:
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not an object")
    metadata = header.pop("__metadata__", {})
    try:
        shapes = {name: _sizes(entry["shape"]) for name, entry in header.items()}
        end = max((_sizes(entry["data_offsets"])[1] for entry in header.values()), default=0)
    except (KeyError, TypeError, ValueError, IndexError):
        raise _damaged(path, "its header does not describe tensors") from None
    if end != data_bytes:
        raise _damaged(path, f"it holds {data_bytes} bytes of data where its header says {end}")
    if not isinstance(metadata, dict):
        raise _damaged(path, "its metadata is not an object")
    return SafetensorsHeader(shapes, {str(key): str(value) for key, value in metadata.items()})


def _sizes(values: list[int]) -> tuple[int, ...]:
    """Raises ``ValueError`` unless they are whole numbers from 0."""
    if not all(type(value) is int and value >= 0 for value in values):
        raise ValueError(values)
    return tuple(values)


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} is truncated or damaged: {reason}; copy or export it again")
