"""torch.compile: asked for, decided by the length of the run, and done without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gptfit.config import Recipe
from gptfit.model import GPT2
from gptfit.train import compiled
from gptfit.train.compiled import compile_blocks, wants_compilation
from gptfit.train.device import Device
from gptfit.train.events import MetricsFile
from tiny_run import TINY, finish, make_trainer

CPU = Device(torch.device("cpu"), torch.float32)
GPU = Device(torch.device("cuda"), torch.bfloat16)


@pytest.mark.parametrize(
    ("device", "overrides", "wanted"),
    [
        (CPU, ["max_steps=1000000"], False),
        (CPU, ["compile=on"], True),
        (GPU, ["max_seconds=120"], False),
        (GPU, ["max_seconds=600"], True),
        (GPU, ["max_tokens=1e9"], True),
        (GPU, ["max_steps=100"], False),
        (GPU, ["max_steps=100000"], True),
        (GPU, ["max_steps=100000", "compile=off"], False),
    ],
)
def test_auto_is_by_the_length_of_the_run(
    device: Device, overrides: list[str], wanted: bool
) -> None:
    overrides = [word.replace("1e9", "1000000000") for word in overrides]
    assert wants_compilation(Recipe.resolve(overrides=overrides), device) == wanted


def test_where_it_fails_training_goes_on_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(*given: Any) -> None:
        raise RuntimeError("no C++ compiler\nand more lines")

    monkeypatch.setattr(compiled, "_try", no_compiler)
    trainer = make_trainer(tmp_path / "run", "compile=on", "dropout=0")
    finish(trainer)
    finish(make_trainer(tmp_path / "plain", "dropout=0"))
    started = MetricsFile(tmp_path / "run" / "metrics.jsonl").read()[0]
    assert "no C++ compiler)" in started["compilation"]
    plain = GPT2(trainer.recipe.model).loss.__func__
    assert trainer.model.loss.__func__ is plain
    runs = [tmp_path / name / "checkpoints/last/model.safetensors" for name in ("run", "plain")]
    assert runs[0].read_bytes() == runs[1].read_bytes()


@pytest.mark.filterwarnings("ignore")  # torch's own, on its way
def test_compiled_blocks_compute_the_same() -> None:
    model = GPT2(Recipe.resolve(overrides=[*TINY, "vocab_size=29", "dropout=0"]).model)
    idx = torch.randint(29, (2, 8), generator=torch.Generator().manual_seed(0))
    expected = model(idx, idx)
    names = list(model.state_dict())
    assert compile_blocks(model, CPU, 2, "aot_eager").startswith("compiled in ")
    assert list(model.state_dict()) == names
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.allclose(model(idx, idx), expected, atol=1e-5)
