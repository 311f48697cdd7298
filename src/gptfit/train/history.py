"""What the runs of a folder have come to, read from their files alone, while they train or after."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gptfit.config import Recipe
from gptfit.errors import ConfigError, GptfitError
from gptfit.formats.locate import CHECKPOINTS, METRICS, RECIPE
from gptfit.plan.params import count_parameters
from gptfit.train.events import Evaluated, NonFinite, Saved, SaveFailed, Started, Stepped, parse
from gptfit.train.lock import LOCK, Holder, is_held

RUNNING, FINISHED, INTERRUPTED = "running", "finished", "interrupted"
FAILED, KILLED, NOT_STARTED = "failed", "stopped unexpectedly", "not started"
UNREADABLE = "unreadable"

DONE = (Started.kind, Stepped.kind, Evaluated.kind, Saved.kind)
"""Events whose step has been made."""
STEP_LINE = f'{{"event": "{Stepped.kind}"'.encode()


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One folder of runs; what is not known is None.

    Losses are of the validation text, in nats per token. ``fault`` says why a run is unreadable or
    how it failed. ``updated`` is in seconds since 1970.
    """

    name: str
    folder: str
    status: str
    fault: str = ""
    step: int | None = None
    max_steps: int | None = None
    progress: float | None = None
    last_loss: float | None = None
    last_bits_per_byte: float | None = None
    best_loss: float | None = None
    best_bits_per_byte: float | None = None
    best_step: int | None = None
    tokens_per_second: float | None = None
    parameters: int | None = None
    elapsed_seconds: float | None = None
    updated: float


def list_runs(folders: list[Path]) -> list[RunSummary]:
    """The runs among ``folders`` and right below them, the latest first.

    A folder that is no run, or a damaged one, is listed with what is wrong. Raises ``ConfigError``
    for a folder that is not there.
    """
    runs = [run for folder in folders for run in _candidates(folder)]
    summaries = [summarize(run) for run in dict.fromkeys(runs)]
    return sorted(summaries, key=lambda summary: (-summary.updated, summary.folder))


def _candidates(folder: Path) -> Iterator[Path]:
    if is_run(folder):
        yield folder
        return
    try:
        yield from (
            path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
        )
    except OSError as error:
        raise ConfigError(f"{folder} holds no runs: {error.strerror}") from None


def is_run(folder: Path) -> bool:
    """Whether anything in the folder is of a run."""
    return any((folder / name).exists() for name in (RECIPE, METRICS, CHECKPOINTS))


def summarize(run: Path) -> RunSummary:
    """The state of one run. A folder that cannot be read makes a summary that says so."""
    known: dict[str, Any] = {
        "name": run.resolve().name,
        "folder": str(run),
        "updated": _updated(run),
    }
    try:
        return RunSummary(**known, **_state(run))
    except (GptfitError, OSError, KeyError, TypeError, ValueError) as error:
        fault = str(error) if isinstance(error, GptfitError | OSError) else _damage(error)
        return RunSummary(**known, status=UNREADABLE, fault=fault.splitlines()[0])


def _damage(error: Exception) -> str:
    return f"{METRICS} is damaged ({type(error).__name__}: {error})"


def _updated(run: Path) -> float:
    for path in (run / METRICS, run / RECIPE, run):
        try:
            return path.stat().st_mtime
        except OSError:
            continue
    return 0.0


def _state(run: Path) -> dict[str, Any]:
    if not is_run(run):
        raise ConfigError(f"no run: it holds no {RECIPE}")
    recipe = Recipe.load(run / RECIPE)
    tale = Tale.read(run / METRICS)
    best = min(tale.evaluations, key=lambda event: float(event["loss"]), default={})
    last = tale.evaluations[-1] if tale.evaluations else {}
    status, fault = _status(run, tale)
    parameters = tale.last(Started.kind).get("parameters")
    return {
        "status": status,
        "fault": fault,
        "step": tale.step,
        "max_steps": recipe.train.max_steps,
        "progress": tale.progress,
        "last_loss": last.get("loss"),
        "last_bits_per_byte": last.get("bits_per_byte"),
        "best_loss": best.get("loss"),
        "best_bits_per_byte": best.get("bits_per_byte"),
        "best_step": best.get("step"),
        "tokens_per_second": tale.latest_step.get("tokens_per_second"),
        "parameters": parameters or count_parameters(recipe.model).total,
        "elapsed_seconds": tale.elapsed_seconds,
    }


@dataclass(frozen=True)
class Tale:
    """The events of a run as it stands; of the steps only the latest, {} without one."""

    events: list[dict[str, Any]]
    latest_step: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Tale:
        """Without making anything of the steps before the latest: a long run has a million."""
        if not path.exists():
            return cls([], {})
        events: list[tuple[int, dict[str, Any]]] = []
        steps: list[int] = []  # where their lines begin
        end = 0
        with path.open("rb") as file:
            for line in file:
                place, end = end, end + len(line)
                if line.startswith(STEP_LINE) and line.endswith(b"\n"):
                    steps.append(place)
                elif event := parse(line):
                    if (back_to := event.get("metrics_bytes")) is not None:
                        events = [(earlier, kept) for earlier, kept in events if earlier < back_to]
                        del steps[bisect_left(steps, back_to) :]
                    events.append((place, event))
            whole = (event for place in reversed(steps) if (event := _event_at(file, place)))
            latest = next(whole, {})
        return cls([event for _, event in events], latest)

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """Those with a finite loss."""
        kind = Evaluated.kind
        return [e for e in self.events if e["event"] == kind and math.isfinite(e["loss"])]

    @property
    def step(self) -> int:
        """Steps that are known to be done."""
        told = [*self.events, *filter(None, [self.latest_step])]
        return max((event["step"] for event in told if event["event"] in DONE), default=0)

    @property
    def progress(self) -> float:
        """Share of the budget that was spent at the latest step."""
        return float(self.latest_step.get("progress", 0.0))

    @property
    def elapsed_seconds(self) -> float:
        """Time spent in training, over all resumes."""
        told = [*self.events, self.latest_step]
        return max((float(event.get("elapsed_seconds", 0.0)) for event in told), default=0.0)

    def last(self, *kinds: str) -> dict[str, Any]:
        """The last event of these kinds, one without a step where there is none."""
        told = (event for event in reversed(self.events) if event["event"] in kinds)
        return next(told, {"event": ""})


def _event_at(file: BinaryIO, place: int) -> dict[str, Any] | None:
    file.seek(place)
    return parse(file.readline())


def _status(run: Path, tale: Tale) -> tuple[str, str]:
    """The status, and why it is a bad one where the events say so."""
    if is_held(run):
        return RUNNING, ""
    if not tale.events:
        return NOT_STARTED, ""
    # The budget may have been extended since: what was saved before the last start does not count.
    turn, final = tale.last(Saved.kind, Started.kind), tale.events[-1]
    is_saved = turn["event"] == Saved.kind and turn["step"] == tale.step
    if tale.progress >= 1 and is_saved:
        return FINISHED, ""
    if final["event"] == SaveFailed.kind:
        return FAILED, str(final["message"])
    if final["event"] == NonFinite.kind and final["action"] == "stop":
        return FAILED, f"the loss or a gradient was not finite after step {final['step']}"
    # Whoever leaves on request saves last, and gives the lock back.
    if final["event"] == Saved.kind and is_saved and Holder.read(run / LOCK) is None:
        return INTERRUPTED, ""
    return KILLED, ""
