"""Checkpoints that are whole or absent.

``checkpoints/step-000500/`` is written under a temporary name, synced, and renamed; ``last.json`` and
``best.json`` beside it are replaced in one go. What ``transformers`` needs lies at the top of the
folder, what only training needs in ``training/``; ``manifest.json`` has the size and sha256 of each file.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from gptfit.data import Tokenizer
from gptfit.errors import CheckpointError
from gptfit.formats.hf import save_model
from gptfit.formats.integrity import is_whole, sync, write_manifest, write_synced
from gptfit.formats.locate import CHECKPOINTS, find_checkpoint, pointed_at
from gptfit.model import GPT2
from gptfit.plan.params import count_parameters

TRAINING = "training"
OPTIMIZER = f"{TRAINING}/optimizer.safetensors"
STATE = f"{TRAINING}/state.json"


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
        """Write a checkpoint, point ``last`` (and ``best``) at it, drop what is no longer kept.

        Raises ``CheckpointError`` when that fails; what ``last`` points at is whole all the same.
        """
        name = f"step-{state.step:06d}"
        temporary = self.folder / f".tmp-{name}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            # A folder of this name that last.json does not know is of a run that went another way.
            if pointed_at(self.run, "last") != name or not is_whole(self.folder / name):
                self._require_space(model)
                _write(temporary, model, tokenizer, optimizer_state, state)
                shutil.rmtree(self.folder / name, ignore_errors=True)
                temporary.rename(self.folder / name)
                sync(self.folder)
            self._point("last", name)
            if is_best:
                self._point("best", name)
            self._drop_old()
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointError(
                f"{self.folder / name} cannot be written ({error}); earlier checkpoints are untouched"
            ) from error
        return self.folder / name

    def load_last(self) -> tuple[Path, TrainingState, dict[str, torch.Tensor]]:
        """The newest checkpoint with its training state and optimizer moments."""
        folder = find_checkpoint(self.run, ("last",))
        return folder, read_state(folder), load_file(folder / OPTIMIZER)

    def _point(self, name: str, folder: str) -> None:
        """Replace the pointer file, then the link of the same name that people and tools open."""
        pointer = self.folder / f"{name}.json"
        write_synced(pointer.with_suffix(".tmp"), json.dumps({"folder": folder}) + "\n")
        os.replace(pointer.with_suffix(".tmp"), pointer)
        link, fresh = self.folder / name, self.folder / f".{name}.link"
        if (
            link.is_dir() and not link.is_symlink()
        ):  # the run was copied by a tool that follows links
            shutil.rmtree(link)
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(folder, target_is_directory=True)
        os.replace(fresh, link)
        sync(self.folder)

    def _drop_old(self) -> None:
        kept = {pointed_at(self.run, name) for name in ("best", "last")}
        steps = [path for path in self.folder.glob("step-*") if is_whole(path)]
        steps.sort(key=lambda path: int(path.name.removeprefix("step-")))
        for path in steps[: -self.keep]:
            if path.name not in kept:
                shutil.rmtree(path)

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


def read_state(checkpoint: Path) -> TrainingState:
    """Where a checkpoint stands."""
    return TrainingState(**json.loads((checkpoint / STATE).read_text(encoding="utf-8")))


def checkpoint_bytes(model: GPT2) -> int:
    """Size of a checkpoint: weights and two moments in float32."""
    return 3 * 4 * count_parameters(model.config.replace(bias=True)).total


def _write(
    folder: Path,
    model: GPT2,
    tokenizer: Tokenizer,
    optimizer_state: dict[str, torch.Tensor],
    state: TrainingState,
) -> None:
    (folder / TRAINING).mkdir(parents=True)
    save_model(folder, model, tokenizer)
    on_cpu = {name: tensor.cpu().contiguous() for name, tensor in optimizer_state.items()}
    save_file(on_cpu, folder / OPTIMIZER)
    (folder / STATE).write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")
    write_manifest(folder, state.step)
