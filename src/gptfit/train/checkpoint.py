"""Checkpoints that are whole or absent.

``checkpoints/step-000500/`` is written under a temporary name, synced, and renamed; ``last.json`` and
``best.json`` beside it are replaced in one go. What ``transformers`` needs lies at the top of the
folder, what only training needs in ``training/``; ``manifest.json`` has the size and sha256 of each file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from gptfit.data import Tokenizer
from gptfit.errors import CheckpointError
from gptfit.formats.hf import save_model
from gptfit.formats.locate import CHECKPOINTS, find_checkpoint
from gptfit.model import GPT2
from gptfit.plan.params import count_parameters

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
OPTIMIZER = "training/optimizer.safetensors"
STATE = "training/state.json"


@dataclass(frozen=True)
class TrainingState:
    """Where the run stands, beside its tensors. Batches and dropout follow from the step alone."""

    step: int
    elapsed_seconds: float
    best_loss: float | None
    best_step: int | None
    data_fingerprint: str


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(self, run: Path, keep: int = 2) -> None:
        self.run = run
        self.folder = run / CHECKPOINTS
        self.keep = keep

    def save(
        self,
        model: GPT2,
        tokenizer: Tokenizer,
        optimizer_state: dict[str, torch.Tensor],
        state: TrainingState,
        is_best: bool,
    ) -> Path:
        """Write a checkpoint, point ``last`` (and ``best``) at it, drop what is no longer kept."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        name = f"step-{state.step:06d}"
        if not is_whole(self.folder / name):
            self._require_space(model)
            temporary = self.folder / f".tmp-{name}"
            try:
                _write(temporary, model, tokenizer, optimizer_state, state)
                shutil.rmtree(self.folder / name, ignore_errors=True)
                temporary.rename(self.folder / name)
            except (OSError, SafetensorError) as error:
                shutil.rmtree(temporary, ignore_errors=True)
                raise CheckpointError(
                    f"{self.folder / name} cannot be written ({error}); "
                    "earlier checkpoints are untouched"
                ) from error
            sync(self.folder)
        self._point("last", name)
        if is_best:
            self._point("best", name)
        self._drop_old()
        return self.folder / name

    def load_last(self) -> tuple[Path, TrainingState, dict[str, torch.Tensor]]:
        """The newest checkpoint with its training state and optimizer moments, verified."""
        folder = find_checkpoint(self.run, ("last",))
        verify(folder)
        values = json.loads((folder / STATE).read_text(encoding="utf-8"))
        return folder, TrainingState(**values), load_file(folder / OPTIMIZER)

    def _point(self, name: str, folder: str) -> None:
        """Replace the pointer file, then the link of the same name that people and tools open."""
        pointer = self.folder / f"{name}.json"
        write_synced(pointer.with_suffix(".tmp"), json.dumps({"folder": folder}) + "\n")
        os.replace(pointer.with_suffix(".tmp"), pointer)
        link = self.folder / f".{name}.link"
        link.unlink(missing_ok=True)
        link.symlink_to(folder, target_is_directory=True)
        os.replace(link, self.folder / name)
        sync(self.folder)

    def _drop_old(self) -> None:
        kept = {find_checkpoint(self.run, (name,)).name for name in self._pointers()}
        steps = sorted(path for path in self.folder.glob("step-*") if is_whole(path))
        for path in steps[: -self.keep]:
            if path.name not in kept:
                shutil.rmtree(path)

    def _pointers(self) -> Iterator[str]:
        return (name for name in ("best", "last") if (self.folder / f"{name}.json").is_file())

    def _remove_leftovers(self) -> None:
        """Folders that an earlier process did not live to rename."""
        for path in self.folder.glob(".tmp-*"):
            shutil.rmtree(path)

    def _require_space(self, model: GPT2) -> None:
        needed = checkpoint_bytes(model)
        free = shutil.disk_usage(self.folder).free
        if free < needed * 1.1:
            raise CheckpointError(
                f"{self.folder}: a checkpoint needs {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB "
                "are free; make room and resume"
            )


def checkpoint_bytes(model: GPT2) -> int:
    """Size of a checkpoint: weights and two moments in float32."""
    return 3 * 4 * count_parameters(model.config.replace(bias=True)).total


def is_whole(folder: Path) -> bool:
    """Whether every file that the manifest lists is there with its size."""
    try:
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == e["bytes"] for name, e in entries.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def verify(folder: Path) -> None:
    """Compare every file with the manifest's size and sha256; ``CheckpointError`` names the first."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version, entries = manifest["version"], dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{folder} has no readable {MANIFEST}: it is not whole") from None
    if version > FORMAT_VERSION:
        raise CheckpointError(f"{folder} was written by a newer gptfit; upgrade with pip")
    for name, entry in entries.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing from its checkpoint")
        if path.stat().st_size != entry["bytes"]:
            size = path.stat().st_size
            raise CheckpointError(f"{path} has {size} of {entry['bytes']} bytes: it is truncated")
        if sha256(path) != entry["sha256"]:
            raise CheckpointError(f"{path} is damaged: its sha256 is not {entry['sha256'][:12]}…")


def _write(
    folder: Path,
    model: GPT2,
    tokenizer: Tokenizer,
    optimizer_state: dict[str, torch.Tensor],
    state: TrainingState,
) -> None:
    (folder / "training").mkdir(parents=True)
    save_model(folder, model, tokenizer)
    save_file(optimizer_state, folder / OPTIMIZER)
    (folder / STATE).write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")
    files: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        sync(path)
        name = path.relative_to(folder).as_posix()
        files[name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    manifest = {"version": FORMAT_VERSION, "step": state.step, "files": files}
    write_synced(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    sync(folder / "training")
    sync(folder)


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
