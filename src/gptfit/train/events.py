"""What a run has to tell. The metrics file, the terminal and the picture all read these events."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from gptfit.errors import CheckpointError


@dataclass(frozen=True)
class Started:
    """Training begins, or goes on, after ``step``, where the metrics had ``metrics_bytes``.

    ``compilation`` says what became of torch.compile, if it was to be used.
    """

    kind: ClassVar[str] = "started"
    step: int
    metrics_bytes: int
    device: str
    dtype: str
    parameters: int
    compilation: str = ""


@dataclass(frozen=True)
class Stepped:
    """One optimizer step. ``loss`` is the mean over the steps since the last such event."""

    kind: ClassVar[str] = "step"
    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    epoch: float
    tokens_per_second: float
    elapsed_seconds: float
    progress: float
    model_flops_utilization: float | None


@dataclass(frozen=True)
class Evaluated:
    """The validation loss in nats per token, over ``tokens`` of the split's ``of_tokens``."""

    kind: ClassVar[str] = "evaluation"
    step: int
    loss: float
    bits_per_byte: float | None
    tokens: int
    of_tokens: int
    is_best: bool
    elapsed_seconds: float


@dataclass(frozen=True)
class Sampled:
    """A text the model has written."""

    kind: ClassVar[str] = "sample"
    step: int
    prompt: str
    text: str


@dataclass(frozen=True)
class Saved:
    """A checkpoint, by the name of its folder."""

    kind: ClassVar[str] = "checkpoint"
    step: int
    folder: str


@dataclass(frozen=True)
class SaveFailed:
    """A checkpoint that could not be written; training goes on."""

    kind: ClassVar[str] = "save failed"
    step: int
    message: str


@dataclass(frozen=True)
class NonFinite:
    """A loss or a gradient that was not finite, after ``step``; nothing was updated by it.

    ``batch`` and ``grad_norm`` are None where an evaluation met it, numbers that are not finite are
    None too. ``action`` is stop, skip or rewind; after a rewind the run stands where the metrics had
    ``metrics_bytes``. ``damaged`` says of each checkpoint that it has passed over what is wrong with it.
    """

    kind: ClassVar[str] = "nonfinite"
    step: int
    batch: int | None
    loss: float | None
    grad_norm: float | None
    action: str
    metrics_bytes: int | None = None
    damaged: tuple[str, ...] = ()


@dataclass(frozen=True)
class MicroBatchHalved:
    """The memory did not suffice; from here on ``micro_batch_size`` sequences are taken at once."""

    kind: ClassVar[str] = "out of memory"
    step: int
    micro_batch_size: int
    grad_accum_steps: int


Event = Started | Stepped | Evaluated | Sampled | Saved | SaveFailed | NonFinite | MicroBatchHalved
Listener = Callable[[Event], None]


class MetricsFile:
    """``metrics.jsonl``: append-only, one event a line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: Event) -> None:
        """Add one line, after whatever half of one a crash has left."""
        line = json.dumps({"event": event.kind, **asdict(event)}, ensure_ascii=False)
        try:
            with self.path.open("ab+") as file:
                if file.tell():
                    file.seek(-1, 2)
                    line = line if file.read(1) == b"\n" else "\n" + line
                file.write(line.encode("utf-8") + b"\n")
        except OSError as error:
            raise CheckpointError(
                f"{self.path} cannot be written ({error.strerror}); make room and resume"
            ) from error

    def size(self) -> int:
        """Bytes that have been written."""
        return self.path.stat().st_size if self.path.exists() else 0

    def read(self) -> list[dict[str, Any]]:
        """All events of the run as it stands.

        A run that went back to a checkpoint has lived some steps twice. The event that tells so says
        where the metrics stood in that checkpoint: what lies between is left out, and so is a line
        that a crash cut short.
        """
        events: list[tuple[int, dict[str, Any]]] = []
        end = 0
        for line in self.path.read_bytes().split(b"\n"):
            place, end = end, end + len(line) + 1
            if (event := parse(line)) is None:
                continue
            if (back_to := event.get("metrics_bytes")) is not None:
                events = [(earlier, kept) for earlier, kept in events if earlier < back_to]
            events.append((place, event))
        return [event for _, event in events]


def unheard(event: Event) -> None:
    """A listener for when nobody listens."""


class Teller:
    """Writes each event down and tells the listener; of several processes only the main one does."""

    def __init__(self, metrics: MetricsFile, is_main: bool) -> None:
        self.metrics = metrics
        self.is_main = is_main
        self.listener: Listener = unheard

    def __call__(self, event: Event) -> None:
        if self.is_main:
            self.metrics.append(event)
            self.listener(event)


def parse(line: bytes) -> dict[str, Any] | None:
    """The event of a line; None of one that a crash cut short, or that something else wrote."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_event = isinstance(event, dict) and "event" in event and type(event.get("step")) is int
    return event if is_event else None
