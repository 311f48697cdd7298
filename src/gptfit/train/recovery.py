"""Which checkpoint of a run to go on from, and clearing up what an earlier process left behind.

The folders themselves say what they are, by their manifests; ``last.json`` and ``best.json`` are for
those who look from outside, and may be a checkpoint behind where a process was killed.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gptfit.errors import CheckpointError
from gptfit.formats.integrity import (
    NewerFormatError,
    is_whole,
    read_manifest,
    sync,
    verify,
    write_synced,
)
from gptfit.formats.locate import CHECKPOINTS, pointed_at

STEP = "step-"
WRITING = ".tmp-"
"""Before the name of a folder that is being written."""
DROPPED = ".old-"
"""Before the name of a folder that is being deleted."""
LEFT = "left-"
"""Before the name of a checkpoint that the run has turned away from."""
Warn = Callable[[str], None]


def step_name(step: int) -> str:
    """The folder of a step's checkpoint."""
    return f"{STEP}{step:06d}"


def checkpoints_of(run: Path) -> list[Path]:
    """The run's checkpoints, newest first by the step in their manifests, damaged ones included."""
    return sorted((run / CHECKPOINTS).glob(f"{STEP}[0-9]*"), key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """By the manifest, or by the name of a folder that has lost it."""
    try:
        return read_manifest(checkpoint).step
    except CheckpointError:
        digits = checkpoint.name.removeprefix(STEP)
        return int(digits) if digits.isdecimal() else -1


def has_checkpoint(run: Path) -> bool:
    """Whether there is anything to go on from, be it damaged."""
    unnamed = (run / CHECKPOINTS).glob(f"{WRITING}{STEP}*")
    return bool(checkpoints_of(run)) or any(is_whole(folder) for folder in unnamed)


def newest(run: Path, fall_back: bool = False, warn: Warn = lambda text: None) -> Path:
    """The newest checkpoint, verified.

    A damaged one raises ``CheckpointError`` naming those that are whole; with ``fall_back`` it is
    passed over, and ``warn`` is told.
    """
    found = checkpoints_of(run)
    if not found:
        raise CheckpointError(f"{run} holds no checkpoint yet; it trained no step that was saved")
    for folder, before in zip(found, [*found[1:], None], strict=True):
        try:
            verify(folder)
            return folder
        except NewerFormatError:
            raise
        except CheckpointError as error:
            if not fall_back or before is None:
                raise CheckpointError(f"{error}{_way_out(found, folder)}") from None
            warn(f"{error}; falling back to {before.name}")
    raise AssertionError("the last one has either been returned or raised")


def clear(run: Path) -> None:
    """Finish or remove what a killed process left half done in the run's checkpoints.

    Only for the process that trains the run.
    """
    folder = run / CHECKPOINTS
    for temporary in folder.glob(f"{WRITING}{STEP}*"):
        final = folder / temporary.name.removeprefix(WRITING)
        if is_whole(temporary) and not final.exists():  # it only lacks its name
            temporary.rename(final)
            sync(folder)
        else:
            shutil.rmtree(temporary, ignore_errors=True)
    for dropped in folder.glob(f"{DROPPED}*"):
        shutil.rmtree(dropped, ignore_errors=True)


def drop(folder: Path) -> Path:
    """Take a checkpoint's name from it; what is left, returned, is no checkpoint and to be deleted."""
    dropped = folder.with_name(DROPPED + folder.name)
    shutil.rmtree(dropped, ignore_errors=True)
    return folder.rename(dropped)


def turn_to(run: Path, checkpoint: Path, best_step: int | None) -> list[Path]:
    """Make ``checkpoint`` the newest: later ones are set aside and returned, and the pointers follow.

    Later ones exist where the run goes back on purpose, or because they are damaged.
    """
    left = []
    for folder in checkpoints_of(run):
        if folder == checkpoint:
            break
        aside = folder.with_name(LEFT + folder.name)
        if aside.exists():
            drop(aside)
        folder.rename(aside)
        left.append(aside)
    names = {"last": checkpoint.name}
    if best_step is not None:
        names["best"] = step_name(best_step)
    for pointer, name in names.items():
        if _pointed_at(run, pointer) != name and is_whole(run / CHECKPOINTS / name):
            point(run / CHECKPOINTS, pointer, name)
    return left


def point(folder: Path, pointer: str, name: str) -> None:
    """Replace a pointer file, then the link of the same name that people and tools open."""
    file = folder / f"{pointer}.json"
    write_synced(file.with_suffix(".tmp"), json.dumps({"folder": name}) + "\n")
    os.replace(file.with_suffix(".tmp"), file)
    link, fresh = folder / pointer, folder / f".{pointer}.link"
    with suppress(OSError):  # a system may forbid links
        if (
            link.is_dir() and not link.is_symlink()
        ):  # the run was copied by a tool that follows links
            shutil.rmtree(link)
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(name, target_is_directory=True)
        os.replace(fresh, link)
    sync(folder)


def best_of(run: Path, best_step: int | None) -> set[str]:
    """The folders that may be the best one: by the state, and by the pointer if that is behind."""
    by_state = None if best_step is None else step_name(best_step)
    return {name for name in (by_state, _pointed_at(run, "best")) if name is not None}


def _pointed_at(run: Path, pointer: str) -> str | None:
    """As ``pointed_at``; a damaged pointer points nowhere."""
    try:
        return pointed_at(run, pointer)
    except CheckpointError:
        return None


def _way_out(found: list[Path], damaged: Path) -> str:
    whole = [folder for folder in found if folder != damaged and is_whole(folder)]
    if not whole:
        return ""
    names = ", ".join(folder.name for folder in reversed(whole))
    command = shlex.join(["gptfit", "train", "--resume", str(whole[0])])
    return f"; {names} can be had, for example by: {command}"
