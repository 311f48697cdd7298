"""Tokens that change under a run that reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptfit.errors import DataError
from gptfit.formats.integrity import verify
from gptfit.train.events import Event, Stepped
from tiny_run import finish, make_trainer


def test_the_run_ends_before_it_saves_what_it_learned_from_them(tmp_path: Path) -> None:
    run = tmp_path / "run"

    def damage(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == 6:
            with (run / "data/train.bin").open("r+b") as file:
                file.write(b"\1\0\2\0\3\0")

    with pytest.raises(DataError, match=r"train\.bin has changed: its sha256 is"):
        finish(make_trainer(run), damage)
    (saved,) = (run / "checkpoints").glob("step-*")
    assert saved.name == "step-000004"
    verify(saved)
