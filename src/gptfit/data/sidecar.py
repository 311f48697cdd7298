"""``tokens.json``: what the headerless token files beside it hold."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from gptfit.errors import DataError

SIDECAR_FILE = "tokens.json"
VERSION = 1
SPLITS = ("train", "val")
DTYPES = ("uint16", "uint32")


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """Sizes and hashes; the dicts have an entry for ``train`` and one for ``val``.

    ``tokenizer`` is its fingerprint, ``text_sha256`` the hash of the text before the split.
    """

    version: int = VERSION
    dtype: str
    vocab_size: int
    tokenizer: str
    tokenizer_kind: str
    tokens: dict[str, int]
    text_bytes: dict[str, int]
    sha256: dict[str, str]
    text_sha256: str
    val_fraction: float
    split: str
    sources: list[str]

    @classmethod
    def read(cls, path: Path) -> Sidecar:
        """Raises ``DataError`` for anything but what ``write`` writes."""
        values = _read_object(path)
        if isinstance(version := values.get("version"), int) and version > VERSION:
            raise DataError(
                f"{path} was written by a newer gptfit (format {version}); upgrade gptfit"
            )
        names = {field.name for field in fields(cls)}
        if wrong := names ^ values.keys():
            raise DataError(
                f"{path}: missing or unknown {', '.join(sorted(wrong))}; prepare it again"
            )
        for name, value in values.items():
            if not _has_type(name, value):
                raise DataError(f"{path}: {name} has an impossible value; prepare it again")
        return cls(**values)

    def write(self, path: Path) -> None:
        """Write as indented JSON."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8")


def _read_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}; prepare the data again") from None
    if not isinstance(values, dict):
        raise DataError(f"{path} holds no object; prepare the data again")
    return values


def _has_type(name: str, value: Any) -> bool:
    if name in ("tokens", "text_bytes", "sha256"):
        kind = str if name == "sha256" else int
        return (
            isinstance(value, dict)
            and set(value) == set(SPLITS)
            and all(type(entry) is kind for entry in value.values())
        )
    if name == "dtype":
        return value in DTYPES
    if name == "sources":
        return isinstance(value, list) and all(isinstance(entry, str) for entry in value)
    kinds = {"version": int, "vocab_size": int, "val_fraction": float}
    return type(value) is kinds.get(name, str)
