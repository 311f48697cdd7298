"""Training in less memory is the same training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gptfit.config import RunConfig
from gptfit.errors import ConfigError
from gptfit.train.events import Event, Stepped
from tiny_run import finish, make_trainer


def losses(run: Path, *overrides: str) -> list[float]:
    seen: list[float] = []

    def listen(event: Event) -> None:
        if isinstance(event, Stepped):
            seen.append(event.loss)

    finish(make_trainer(run, "log_interval=1", *overrides), listen)
    return seen


def test_recomputed_blocks_train_to_the_same_bit(tmp_path: Path) -> None:
    plain = losses(tmp_path / "plain")
    assert losses(tmp_path / "recomputed", "checkpointed_blocks=2") == plain


def test_a_loss_in_chunks_trains_alike(tmp_path: Path) -> None:
    plain = losses(tmp_path / "plain")
    assert losses(tmp_path / "chunks", "loss_chunks=3") == pytest.approx(plain, rel=1e-4)


def test_more_blocks_than_the_model_has_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"checkpointed_blocks=3 of n_layer=2; use at most 2"):
        make_trainer(tmp_path / "run", "checkpointed_blocks=3")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"checkpointed_blocks": -1}, "checkpointed_blocks=-1 must be at least 0"),
        ({"checkpointed_blocks": True}, "checkpointed_blocks=True must be an integer"),
        ({"loss_chunks": 0}, "loss_chunks=0 must be at least 1; the default is 1"),
        ({"loss_chunks": 2.5}, "loss_chunks=2.5 must be an integer"),
    ],
)
def test_impossible_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RunConfig(**values)
