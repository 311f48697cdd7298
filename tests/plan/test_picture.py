"""The pictures hold what they should; how they look, a person has to see."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from example_plan import example_plan
from gptfit.plan import picture
from gptfit.plan.hardware import GIB
from gptfit.plan.search import Candidate, SearchResult


@pytest.fixture(autouse=True)
def text_stays_text() -> Any:
    """SVG text as text, so that it can be read back."""
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        yield


def words(path: Path) -> str:
    """All texts of an SVG file, one a line."""
    root = ElementTree.parse(path).getroot()
    return "\n".join("".join(node.itertext()) for node in root.iter() if node.tag.endswith("text"))


def test_memory_names_phases_components_and_the_limit(tmp_path: Path) -> None:
    picture.draw_plan(example_plan(), tmp_path / "memory.svg")
    shown = words(tmp_path / "memory.svg")
    for word in ("forward", "weights", "logits and loss", "allocator and context", "memory (GiB)"):
        assert word in shown
    assert "usable on RTX 4090: 23.5 GiB" in shown
    assert "FITS: gpt2, 124,439,808 parameters, on RTX 4090" in shown
    assert "13.0 GiB (12.5 to 14.2) in loss backward" in shown
    # forward 10, loss backward 12, block backward 7, optimizer step 4 GiB, each with 1 GiB beside
    assert re.findall(r"^([\d.]+) GiB$", shown, re.MULTILINE) == [
        "11.0",
        "13.0",
        "8.00",
        "5.00",
    ]


def test_a_far_limit_is_left_out(tmp_path: Path) -> None:
    """A line at 200 GiB would flatten bars of 13."""
    plan = example_plan(usable_bytes=200 * GIB)
    picture.draw_plan(plan, tmp_path / "memory.svg")
    assert "usable" not in words(tmp_path / "memory.svg")


def test_every_component_of_the_ledger_has_a_colour() -> None:
    from gptfit.config import GPT2Config
    from gptfit.plan.memory import memory_ledger
    from gptfit.plan.step import DDP, FSDP, TrainingStep

    config = GPT2Config(n_layer=2, n_embd=128, n_head=2)
    for options in ({}, {"parallel": DDP, "world_size": 4}, {"parallel": FSDP, "world_size": 4}):
        ledger = memory_ledger(config, TrainingStep(context=64, **options))
        names = {name for phase in ledger.phases for name in phase.components()}
        assert names <= set(picture.COLOURS)


def test_the_planned_size_among_others(tmp_path: Path) -> None:
    """Only where a law foresees the loss."""
    picture.draw_plan(example_plan(), tmp_path / "with.svg")
    shown = words(tmp_path / "with.svg")
    for word in ("the planned work", "twice the work", "parameters", "100M"):
        assert word in shown
    assert "planned: 124M parameters, 3.3" in shown
    picture.draw_plan(example_plan(loss=None), tmp_path / "without.svg")
    assert "work" not in words(tmp_path / "without.svg")


def test_same_work_is_least_at_the_optimal_size() -> None:
    lines = picture.same_work(1e19)
    sizes, losses = zip(*lines["the planned work"], strict=True)
    assert losses.index(min(losses)) == len(sizes) // 2
    for less, more in zip(lines["half the work"], lines["twice the work"], strict=True):
        assert less[0] == more[0]
        assert less[1] > more[1]


def candidate(seconds: float, gib: float, bits: float) -> Candidate:
    return Candidate(
        n_layer=2, n_embd=128, n_head=2, n_positions=64, vocab_size=65, micro_batch_size=8,
        grad_accum_steps=1, dtype="float32", checkpointed_blocks=0, loss_chunks=1,
        parameters=1_000_000, bits_per_byte=bits, binding="time", seconds=seconds,
        step_seconds=0.1, steps=100, tokens=1e6, epochs=1.0, memory_bytes=gib * GIB,
    )  # fmt: skip


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_search(tmp_path: Path, suffix: str) -> None:
    points = (
        candidate(7200, 4, 1.5),
        candidate(7200, 2, 1.6),
        candidate(3600, 2, 1.7),
    )
    result = SearchResult(100, 50, points[:1], points, (), "a law", 0.1)
    path = tmp_path / f"search.{suffix}"
    picture.draw_search(result, path, 8 * GIB, "found for a $text$")
    if suffix == "svg":
        shown = words(path)
        for word in ("2 hours", "1 hours", "usable: 8.00 GiB", "best: 4.00 GiB, 1.5", "4 GiB"):
            assert word in shown
        assert "found for a $text$" in shown
    else:
        assert path.read_bytes().startswith(b"\x89PNG")


def test_a_search_that_finds_one_candidate(tmp_path: Path) -> None:
    only = candidate(60, 1, 2.0)
    result = SearchResult(1, 1, (only,), (only,), (), "a law", 0.1)
    picture.draw_search(result, tmp_path / "one.png", 2 * GIB)
    assert (tmp_path / "one.png").stat().st_size > 1000
