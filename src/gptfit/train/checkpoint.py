"""Checkpoints that are whole or absent.

``checkpoints/step-000500/`` is written under a temporary name, synced, and renamed; ``last.json`` and
``best.json`` beside it are replaced in one go. What ``transformers`` needs lies at the top of the
folder, what only training needs in ``training/``; ``manifest.json`` has the size and sha256 of each file.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from gptfit.config import GPT2Config
from gptfit.data import Tokenizer
from gptfit.errors import CheckpointError, GptfitError
from gptfit.formats.hf import save_model, to_hf_state
from gptfit.formats.integrity import is_whole, sync, write_manifest
from gptfit.formats.locate import CHECKPOINTS
from gptfit.formats.safetensors_writer import file_bytes, save_tensors
from gptfit.model import GPT2
from gptfit.plan.manifest import manifest
from gptfit.plan.params import count_parameters
from gptfit.train import recovery
from gptfit.train.optimizer import MOMENTS, by_muon
from gptfit.train.recovery import DROPPED, WRITING, Warn, step_name

TRAINING = "training"
OPTIMIZER = f"{TRAINING}/optimizer.safetensors"
STATE = f"{TRAINING}/state.json"
SPARE = 1.1
"""Free space wanted, in sizes of a checkpoint."""
ABOUT_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class TrainingState:
    """Where the run stands, beside its tensors. Dropout and, but for the skipped ones, batches follow
    from the step alone.

    ``unlogged_loss`` is the sum over the steps that no line of the metrics has told yet, of which
    there were ``metrics_bytes``; ``micro_batch_size`` is what the memory turned out to allow.
    """

    step: int
    elapsed_seconds: float
    best_loss: float | None
    best_step: int | None
    data_fingerprint: str
    batches_skipped: int = 0
    evaluated_step: int | None = None
    unlogged_loss: float = 0.0
    unlogged_steps: int = 0
    micro_batch_size: int | None = None
    metrics_bytes: int = 0

    def is_same_model(self, other: TrainingState) -> bool:
        """Whether both stand at the same place, seen perhaps at different times."""
        return other == replace(
            self, elapsed_seconds=other.elapsed_seconds, metrics_bytes=other.metrics_bytes
        )


@dataclass(frozen=True)
class Written:
    """What became of one save: the checkpoint's folder, or why there is none."""

    step: int
    folder: Path | None
    error: CheckpointError | None


class CheckpointStore:
    """The checkpoints of one run: the last ``keep``, the best, and those of each ``keep_every`` steps.

    An ``asynchronous`` store copies the tensors and writes them while training goes on, one
    checkpoint at a time; an interpreter that ends waits for it.
    """

    def __init__(
        self, run: Path, keep: int = 2, keep_every: int | None = None, asynchronous: bool = False
    ) -> None:
        self.run = run
        self.folder = run / CHECKPOINTS
        self.keep = max(1, keep)
        self.keep_every = keep_every
        self.asynchronous = asynchronous
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._in_flight: Future[None] | None = None
        self._deletions: deque[Future[None]] = deque()
        self._finished: deque[Written] = deque()

    def save(
        self,
        model: GPT2,
        tokenizer: Tokenizer,
        optimizer_state: Mapping[str, Tensor],
        state: TrainingState,
        is_best: bool,
    ) -> None:
        """Write a checkpoint, point ``last`` (and ``best``) at it, drop what is no longer kept.

        What becomes of it is told by ``finished``: a write that fails raises nothing here.
        """
        self.wait()
        if not self.asynchronous:
            self._write(model, tokenizer, optimizer_state, state, is_best)
            return
        try:
            copy = copy_of(model)
            moments = {
                name: tensor.to("cpu", copy=True) for name, tensor in optimizer_state.items()
            }
        except RuntimeError as error:
            self._failed(state.step, f"{error}; run.async_checkpoints=false needs no copy")
            return
        self._in_flight = self._writer.submit(self._write, copy, tokenizer, moments, state, is_best)

    def finished(self) -> list[Written]:
        """What has become of the saves since the last call, in their order."""
        return [self._finished.popleft() for _ in range(len(self._finished))]

    def wait(self) -> None:
        """Until nothing is being written, or deleted."""
        in_flight, self._in_flight = self._in_flight, None
        if in_flight is not None:
            in_flight.result()
        while self._deletions:
            self._deletions.popleft().result()

    def load(self, checkpoint: Path) -> tuple[TrainingState, dict[str, Tensor]]:
        """A verified checkpoint's training state and optimizer moments.

        A best model that is not there any more is none.
        """
        state = read_state(checkpoint)
        if state.best_step is not None and not is_whole(self.folder / step_name(state.best_step)):
            state = replace(state, best_loss=None, best_step=None)
        return state, load_file(checkpoint / OPTIMIZER)

    def load_last(
        self, warn: Warn = lambda text: None
    ) -> tuple[Path, TrainingState, dict[str, Tensor]]:
        """The newest checkpoint, verified, with its state and moments.

        A damaged one is passed over, which ``warn`` is told.
        """
        self.wait()
        folder = recovery.newest(self.run, fall_back=True, warn=warn)
        return folder, *self.load(folder)

    def require_space(self, needed: int) -> None:
        """Raise ``CheckpointError`` unless ``needed`` bytes are free, and a tenth to spare."""
        existing = next(path for path in (self.folder, *self.folder.parents) if path.is_dir())
        free = shutil.disk_usage(existing).free
        if free < needed * SPARE:
            raise CheckpointError(
                f"{self.folder}: a checkpoint needs {needed:,} bytes and {free:,} bytes are free; "
                "make room and resume"
            )

    def _write(
        self,
        model: GPT2,
        tokenizer: Tokenizer,
        optimizer_state: Mapping[str, Tensor],
        state: TrainingState,
        is_best: bool,
    ) -> None:
        folder = self.folder / step_name(state.step)
        needed = sizes(model, tokenizer, optimizer_state)
        try:
            self.folder.mkdir(exist_ok=True)
            with suppress(OSError):
                recovery.clear(self.run)
            if not (is_whole(folder) and state.is_same_model(read_state(folder))):
                self.require_space(needed)
                self._put(folder, model, tokenizer, optimizer_state, state)
            best_step = state.step if is_best else state.best_step
            recovery.turn_to(self.run, folder, best_step)
            self._drop_old(folder, best_step)
        except (OSError, RuntimeError, GptfitError) as error:
            self._take_back(folder)
            reason = str(error)
            if isinstance(error, OSError) and error.errno in ABOUT_SPACE:
                free = shutil.disk_usage(self.run).free
                reason += f"; it needs {needed:,} bytes and {free:,} bytes are free"
            self._failed(state.step, reason)
        else:
            self._finished.append(Written(state.step, folder, None))

    def _put(
        self,
        folder: Path,
        model: GPT2,
        tokenizer: Tokenizer,
        optimizer_state: Mapping[str, Tensor],
        state: TrainingState,
    ) -> None:
        """Write beside, then rename; a folder of that name that says something else gives way."""
        temporary = folder.with_name(WRITING + folder.name)
        (temporary / TRAINING).mkdir(parents=True)
        known = save_model(temporary, model, tokenizer)
        known[OPTIMIZER] = save_tensors(temporary / OPTIMIZER, optimizer_state, {})
        text = json.dumps(asdict(state), indent=2) + "\n"
        (temporary / STATE).write_text(text, encoding="utf-8")
        write_manifest(temporary, state.step, known)
        if folder.exists():
            folder.rename(folder.with_name(DROPPED + folder.name))
        temporary.rename(folder)
        sync(self.folder)

    def _take_back(self, folder: Path) -> None:
        """Leave things as they were before a write that failed."""
        with suppress(OSError):
            dropped = folder.with_name(DROPPED + folder.name)
            if dropped.exists() and not folder.exists():
                dropped.rename(folder)
            shutil.rmtree(folder.with_name(WRITING + folder.name), ignore_errors=True)

    def _failed(self, step: int, reason: str) -> None:
        error = CheckpointError(
            f"{self.folder / step_name(step)} cannot be written ({reason}); earlier checkpoints are "
            "untouched"
        )
        self._finished.append(Written(step, None, error))

    def _drop_old(self, newest: Path, best_step: int | None) -> None:
        kept = {newest.name, *recovery.best_of(self.run, best_step)}
        whole = [path for path in recovery.checkpoints_of(self.run) if is_whole(path)]
        for path in reversed(whole[self.keep :]):
            if path.name not in kept and not self._is_kept_for_good(path):
                with suppress(OSError):  # the checkpoint is written all the same
                    # A file system takes its time to give gigabytes back: nobody waits for it.
                    left = recovery.drop(path)
                    deletion = self._writer.submit(shutil.rmtree, left, ignore_errors=True)
                    self._deletions.append(deletion)

    def _is_kept_for_good(self, path: Path) -> bool:
        return self.keep_every is not None and recovery.step_of(path) % self.keep_every == 0


def read_state(checkpoint: Path) -> TrainingState:
    """Where a checkpoint stands."""
    return TrainingState(**json.loads((checkpoint / STATE).read_text(encoding="utf-8")))


def copy_of(model: GPT2) -> GPT2:
    """The model as it is now, on the CPU, for good."""
    copies = {
        id(ours): nn.Parameter(ours.detach().to("cpu", copy=True)) for ours in model.parameters()
    }
    return deepcopy(model, copies)  # which takes these instead of the parameters themselves


def checkpoint_bytes(config: GPT2Config, optimizer: str) -> int:
    """Size of a checkpoint's tensors: the weights in float32 and what the optimizer remembers."""
    moments = sum(
        spec.numel * (1 if optimizer == "muon" and by_muon(spec) else len(MOMENTS))
        for spec in manifest(config)
        if not spec.tied_to
    )
    return 4 * (count_parameters(config.replace(bias=True)).total + moments)


def sizes(model: GPT2, tokenizer: Tokenizer, optimizer_state: Mapping[str, Tensor]) -> int:
    """Bytes of a checkpoint's large files, exactly but for the metadata."""
    tensors = (to_hf_state(model), optimizer_state)
    return sum(map(file_bytes, tensors)) + len(tokenizer.document.encode("utf-8"))
