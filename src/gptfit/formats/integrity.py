"""A folder's manifest: the size and sha256 of each file, by which a folder is whole or is not."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gptfit.errors import CheckpointError

MANIFEST = "manifest.json"
VERSION = 1


def write_manifest(folder: Path, step: int) -> None:
    """Sync every file below ``folder`` to the disk and write down its size and sha256."""
    files: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        sync(path)
        name = path.relative_to(folder).as_posix()
        files[name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    manifest = {"version": VERSION, "step": step, "files": files}
    write_synced(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    for path in [*(path for path in folder.rglob("*") if path.is_dir()), folder]:
        sync(path)


def is_whole(folder: Path) -> bool:
    """Whether every file of the manifest is there with its size."""
    try:
        return all((folder / name).stat().st_size == size for name, size, _ in _entries(folder))
    except (CheckpointError, OSError):
        return False


def verify(folder: Path, without: str | None = None) -> None:
    """Compare the files with the manifest; ``CheckpointError`` names the first that differs.

    Files below the subfolder ``without`` are passed over.
    """
    for name, size, digest in _entries(folder):
        path = folder / name
        if without is not None and name.startswith(f"{without}/"):
            continue
        if not path.is_file():
            raise CheckpointError(f"{path} is missing from its checkpoint")
        if path.stat().st_size != size:
            have = path.stat().st_size
            raise CheckpointError(f"{path} has {have} of {size} bytes: it is truncated or replaced")
        if sha256(path) != digest:
            raise CheckpointError(
                f"{path} is damaged or replaced: its sha256 is not {digest[:12]}… of {MANIFEST}"
            )


def _entries(folder: Path) -> Iterator[tuple[str, int, str]]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version, files = int(manifest["version"]), dict(manifest["files"])
        entries = [(str(name), int(e["bytes"]), str(e["sha256"])) for name, e in files.items()]
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{folder} has no readable {MANIFEST}: it is not whole") from None
    if version > VERSION:
        raise CheckpointError(f"{folder} was written by a newer gptfit; upgrade with pip")
    yield from entries


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
