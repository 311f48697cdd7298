"""A folder's manifest: the size and sha256 of each file, by which a folder is whole or is not.

The manifest is written last, and bears its own sha256.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptfit.errors import CheckpointError

MANIFEST = "manifest.json"
VERSION = 2
"""Of the checkpoint's format. The manifests of version 1 have no hash of their own."""
SEAL = "sha256"


class NewerFormatError(CheckpointError):
    """A checkpoint that is in order, but beyond what this version can read."""


@dataclass(frozen=True)
class Manifest:
    """Size in bytes and sha256 of each file, by its path within the folder."""

    step: int
    files: Mapping[str, tuple[int, str]]


def write_manifest(folder: Path, step: int, known: Mapping[str, str]) -> None:
    """See every file below ``folder`` onto the disk and write down its size and sha256.

    ``known`` has the sha256 of files that were hashed, and synced, while they were written.
    """
    files: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name not in known:
            sync(path)
        files[name] = {"bytes": path.stat().st_size, "sha256": known.get(name) or sha256(path)}
    values = {"version": VERSION, "step": step, "files": files}
    write_synced(folder / MANIFEST, _text(values | {SEAL: _seal(values)}))
    for path in [*(path for path in folder.rglob("*") if path.is_dir()), folder]:
        sync(path)


def read_manifest(folder: Path) -> Manifest:
    """Raises ``CheckpointError`` for one that is missing or damaged, or ``NewerFormatError``."""
    path = folder / MANIFEST
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        raise CheckpointError(f"{folder} has no readable {MANIFEST}: it is not whole") from None
    try:
        values = json.loads(text)
        version, seal = int(values["version"]), values.pop(SEAL, "")
        actual = _seal(values)
        # To the letter: what no reader would notice is not accepted either.
        if version > 1 and (seal != actual or text != _text(values | {SEAL: seal})):
            raise ValueError(f"its sha256 is {actual[:12]}…, expected is {str(seal)[:12]}…")
        if version > VERSION:
            raise NewerFormatError(
                f"{path} was written by version {version} of the checkpoint format, and this gptfit "
                f"reads up to {VERSION}; upgrade: pip install -U gptfit"
            )
        files = {str(n): (int(e["bytes"]), str(e["sha256"])) for n, e in values["files"].items()}
        return Manifest(int(values["step"]), files)
    except NewerFormatError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None


def is_whole(folder: Path) -> bool:
    """Whether every file of the manifest is there with its size."""
    try:
        files = read_manifest(folder).files
        return all((folder / name).stat().st_size == size for name, (size, _) in files.items())
    except (CheckpointError, OSError):
        return False


def verify(folder: Path, without: str | None = None) -> None:
    """Compare the files with the manifest; ``CheckpointError`` names the first that differs.

    Files below the subfolder ``without`` are passed over.
    """
    for name, (size, digest) in read_manifest(folder).files.items():
        path = folder / name
        if without is not None and name.startswith(f"{without}/"):
            continue
        if not path.is_file():
            raise CheckpointError(f"{path} is missing from its checkpoint")
        if path.stat().st_size != size:
            have = path.stat().st_size
            raise CheckpointError(f"{path} has {have} of {size} bytes: it is truncated or replaced")
        actual = sha256(path)
        if actual != digest:
            raise CheckpointError(
                f"{path} is damaged or replaced: its sha256 is {actual[:12]}…, expected is "
                f"{digest[:12]}… of {MANIFEST}"
            )


def _text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2) + "\n"


def _seal(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(_text(values).encode("utf-8")).hexdigest()


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None


def sync(path: Path) -> None:
    """Have the system put a file's content, or a folder's entries, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, text: str) -> None:
    """Write a small file and see it onto the disk."""
    path.write_text(text, encoding="utf-8")
    sync(path)
