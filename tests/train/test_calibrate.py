"""Measuring the machine, and what is done with the figures."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from gptfit.config import GPT2Config, Recipe
from gptfit.data import TextSource, vocabularies
from gptfit.plan import calibration
from gptfit.plan.calibration import Fingerprint
from gptfit.plan.scaling import SMALL_TEXT
from gptfit.plan.step import TrainingStep
from gptfit.train import calibrate
from gptfit.train.allocator import keep_freed_pages
from gptfit.train.device import Device, choose_device
from gptfit.train.pilot import fit_to_pilots

SIZES = (
    (1, 16, 8, 1, 65, 1, "adamw"),
    (2, 16, 8, 2, 65, 1, "muon"),
    (1, 32, 16, 2, 100, 2, "adamw"),
)


@pytest.fixture
def cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    """A CPU that has not been measured, with small models to measure it by."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(calibrate, "ON_CPU", SIZES)
    monkeypatch.setattr(calibrate, "SECONDS_PER_SAMPLE", 0.01)
    return choose_device("cpu", "float32", GPT2Config())


def test_a_machine_is_measured_once(cpu: Device) -> None:
    said: list[str] = []
    first = calibrate.calibration_for(cpu, said.append)
    assert len(first.samples) == len(SIZES)
    assert all(sample.seconds > 0 for sample in first.samples)
    assert sum(first.costs.seconds.values()) > 0
    assert calibrate.calibration_for(cpu, said.append) == first
    assert len(said) == 1


def test_the_fingerprint_is_found_without_torch_too(cpu: Device) -> None:
    print_of_torch = calibrate.fingerprint(cpu)
    assert print_of_torch.threads == torch.get_num_threads()
    assert Fingerprint.of_cpu("float32").device == print_of_torch.device
    assert Fingerprint.of_cpu("float32").torch == print_of_torch.torch


def test_a_step_leaves_nothing_behind(cpu: Device) -> None:
    config = GPT2Config(n_layer=1, n_head=1, n_embd=16, n_positions=8, vocab_size=65)
    step = TrainingStep(micro_batch_size=2, context=8, device_kind="cpu", dtype="float32")
    assert calibrate.step_seconds(config, step, cpu, seconds=0.01) > 0
    assert not list(calibration.calibration_file(calibrate.fingerprint(cpu)).parent.glob("*"))


def test_a_width_too_narrow_for_bfloat16_is_measured_in_float32(cpu: Device) -> None:
    base = Recipe.resolve(overrides=["n_embd=32", "n_head=2", "device=cpu"])
    assert calibrate.this_machine(base, lambda line: None).dtype == "float32"


def test_a_large_tensor_finds_its_pages_again() -> None:
    if not keep_freed_pages():
        pytest.skip("this C library's allocator takes no such settings")

    def pages_cleared() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)  # 64 MiB, 16,384 pages
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    # By default each of them clears all its pages; here only those that the heap has to grow for.
    assert min(pages_cleared() for _ in range(6)) < 1000


def test_pilot_runs_change_the_law(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("All happy families are alike; each is unhappy in its own way. " * 200)
    text = TextSource.from_paths([str(path)])
    base = Recipe.resolve(
        overrides=[
            "n_layer=1",
            "n_embd=32",
            "n_head=2",
            "n_positions=16",
            "batch_size=4",
            "device=cpu",
        ]
    )
    machine = calibrate.this_machine(base, lambda line: None)
    choices = vocabularies(text, base.data)
    said: list[str] = []
    law = fit_to_pilots(SMALL_TEXT, base, text, choices, machine, 1.0, 10.0, said.append)
    assert len(said) == 3
    assert "3 pilot runs" in law.name
    assert law != SMALL_TEXT
