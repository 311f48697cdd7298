"""Further places for a run's numbers: TensorBoard, Weights & Biases.

``metrics.jsonl`` stays the source of truth. What fails here once the run has begun costs a warning and
the rest of that copy, never the run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from gptfit.config import Recipe
from gptfit.errors import ConfigError, GptfitError, MissingDependencyError
from gptfit.train.events import Evaluated, Event, Listener, Stepped

TENSORBOARD, WANDB = "tensorboard", "wandb"
"""As the recipe names them; their packages and their folders below the run's are called the same."""
WANDB_ID = "run-id"
FLUSH_SECONDS = 30

Warn = Callable[[str], None]

NUMBERS: Mapping[type[Event], tuple[str, tuple[str, ...]]] = {
    Stepped: (
        "train",
        (
            "loss",
            "learning_rate",
            "grad_norm",
            "tokens",
            "epoch",
            "tokens_per_second",
            "model_flops_utilization",
        ),
    ),
    Evaluated: ("validation", ("loss", "bits_per_byte")),
}
"""What is drawn of which event: a heading, and names of its fields."""


class Sink(Protocol):
    """Where numbers go."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add numbers by their names."""

    def close(self, is_whole: bool) -> None:
        """Write what is left; ``is_whole`` unless an error ended the run."""


def require_sinks(names: Sequence[str]) -> None:
    """Raise ``MissingDependencyError`` for the first whose package is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise MissingDependencyError(name, "track", f"track={name}")


@contextmanager
def tracked(
    listener: Listener, run: Path, recipe: Recipe, step: int, warn: Warn
) -> Iterator[Listener]:
    """A listener that tells ``listener`` and then the recipe's sinks, which go on after ``step``.

    Raises ``MissingDependencyError`` or ``ConfigError`` for a sink that cannot begin until its user
    has done something about it.
    """
    require_sinks(recipe.run.track)
    sinks = {
        name: sink for name in recipe.run.track if (sink := _open(name, run, recipe, step, warn))
    }

    def attempt(name: str, action: Callable[[Sink], None]) -> None:
        try:
            action(sinks[name])
        except Exception as error:  # whatever a third party raises, training goes on
            del sinks[name]
            warn(f"{name} takes no more of this run ({_in_words(error)}); metrics.jsonl has it all")

    def tell(event: Event) -> None:
        listener(event)
        if numbers := numbers_of(event):
            for name in list(sinks):
                attempt(name, lambda sink: sink.log(event.step, numbers))

    is_whole = False
    try:
        yield tell
        is_whole = True
    finally:
        for name in list(sinks):
            attempt(name, lambda sink: sink.close(is_whole))


def numbers_of(event: Event) -> dict[str, float]:
    """What there is to draw of an event; of most kinds nothing."""
    heading, names = NUMBERS.get(type(event), ("", ()))
    values = {f"{heading}/{name}": getattr(event, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _open(name: str, run: Path, recipe: Recipe, step: int, warn: Warn) -> Sink | None:
    try:
        return SINKS[name](run, recipe, step)
    except GptfitError:
        raise
    except ImportError:
        raise MissingDependencyError(name, "track", f"track={name}") from None
    except Exception as error:  # no network, no room: nothing that a run should wait for
        warn(f"{name} will have nothing of this run ({_in_words(error)}); metrics.jsonl has it all")
        return None


def _in_words(error: Exception) -> str:
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


class TensorBoard:
    """Event files in ``RUN/tensorboard``; what an earlier process told beyond ``step`` is hidden."""

    def __init__(self, run: Path, recipe: Recipe, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(
            str(run / TENSORBOARD), purge_step=step + 1, flush_secs=FLUSH_SECONDS
        )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self, is_whole: bool) -> None:
        self._writer.close()


class WeightsAndBiases:
    """One run there for one run here: its id is kept in ``RUN/wandb``.

    WANDB_MODE, WANDB_PROJECT and the other variables of wandb's own count; offline it keeps its files
    in ``RUN/wandb`` for ``wandb sync``.
    """

    def __init__(self, run: Path, recipe: Recipe, step: int) -> None:
        import wandb

        known = run / WANDB / WANDB_ID
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "gptfit"),
                name=run.resolve().name,
                dir=str(run),
                id=known.read_text(encoding="utf-8").strip() if known.is_file() else None,
                resume="allow",
                config=recipe.to_dict(resolved=True),
                settings=wandb.Settings(console="off", quiet=True),  # the screen is ours
            )
        except wandb.errors.UsageError as error:
            raise ConfigError(
                f"track=wandb cannot begin ({_in_words(error)}); run wandb login, or set "
                "WANDB_MODE=offline"
            ) from None
        # A resumed run tells some steps again, which wandb's own count of steps would refuse.
        self._run.define_metric("*", step_metric="step")
        known.parent.mkdir(exist_ok=True)
        known.write_text(f"{self._run.id}\n", encoding="utf-8")

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log({"step": step, **numbers})

    def close(self, is_whole: bool) -> None:
        self._run.finish(exit_code=0 if is_whole else 1)


SINKS: Mapping[str, Callable[[Path, Recipe, int], Sink]] = {
    TENSORBOARD: TensorBoard,
    WANDB: WeightsAndBiases,
}
