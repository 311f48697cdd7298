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
    """Training begins, or goes on, after ``step``."""

    kind: ClassVar[str] = "started"
    step: int
    device: str
    dtype: str
    parameters: int


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


Event = Started | Stepped | Evaluated | Sampled | Saved
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

    def read(self) -> list[dict[str, Any]]:
        """All events of the run as it stands.

        A run that was resumed has lived some steps twice: what lies beyond the step at which it
        started again is left out, and so is a line that a crash cut short.
        """
        events: list[dict[str, Any]] = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if event["event"] == Started.kind:
                events = [earlier for earlier in events if earlier["step"] <= event["step"]]
            events.append(event)
        return events
