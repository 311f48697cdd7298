"""From what a user names (a run, a checkpoint folder, a hub id) to the folder that holds the model."""

from __future__ import annotations

import json
import re
from pathlib import Path

from gptfit.errors import CheckpointError, MissingDependencyError

# What a run folder holds, beside its data.
RECIPE = "recipe.toml"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
HUB_FILES = ["config.json", "generation_config.json", "tokenizer*.json", "vocab.json", "merges.txt"]
HUB_FILES += ["model*.safetensors", "model.safetensors.index.json"]


def find_model(where: str | Path) -> Path:
    """The checkpoint folder of a run (its best, else its last), of a folder, or of a hub id.

    Raises ``CheckpointError`` when there is none, offline included.
    """
    path = Path(where)
    if (path / "config.json").is_file():
        return path
    if (path / CHECKPOINTS).is_dir():
        return find_checkpoint(path)
    if path.is_file():
        raise CheckpointError(
            f"{path} is a file; give the run or the folder that holds config.json and "
            "model.safetensors (a pickled checkpoint is never executed)"
        )
    if path.exists():
        raise CheckpointError(f"{path} holds neither a config.json nor a {CHECKPOINTS} folder")
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(where)) and not str(where).startswith(
        (".", "runs/")
    ):
        return download(str(where))
    raise CheckpointError(f"{path}: no such run or checkpoint folder")


def find_checkpoint(run: Path, names: tuple[str, ...] = ("best", "last")) -> Path:
    """The checkpoint that the first existing pointer (``best.json``, ``last.json``) names."""
    for name in names:
        folder = pointed_at(run, name)
        if folder is None:
            continue
        if not (run / CHECKPOINTS / folder).is_dir():
            raise CheckpointError(
                f"{run / CHECKPOINTS / name}.json names {folder}, which is missing"
            )
        return run / CHECKPOINTS / folder
    raise CheckpointError(f"{run} holds no checkpoint yet; it trained no step that was saved")


def pointed_at(run: Path, name: str) -> str | None:
    """The folder that the pointer file ``name`` names, whether it exists or not; None without one."""
    pointer = run / CHECKPOINTS / f"{name}.json"
    if not pointer.is_file():
        return None
    try:
        folder = str(json.loads(pointer.read_text(encoding="utf-8"))["folder"])
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{pointer} does not name a checkpoint folder") from None
    if Path(folder).name != folder:
        raise CheckpointError(f"{pointer} points outside its folder: {folder!r}")
    return folder


def download(repo_id: str) -> Path:
    """The folder of a hub model, from the local Hugging Face cache or the network."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )
    except ImportError:
        raise MissingDependencyError("huggingface_hub", "hf", f"loading {repo_id!r}") from None

    try:
        return Path(snapshot_download(repo_id, allow_patterns=HUB_FILES))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{repo_id!r} is no folder here and cannot be had from the Hugging Face hub ({reason}); "
            "give the path of a run or checkpoint folder, or download it where there is a network"
        ) from None
