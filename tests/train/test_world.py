"""Several processes train what one process trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from several_processes import together
from shared_work import batch_hashes, steps, tiny_tokens

Result = dict[str, Any]
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tokens(tmp_path_factory.mktemp("tokens"))


def train(size: int, *arguments: Any) -> list[Result]:
    return together(size, steps, *arguments)


def assert_equal(one: Result, other: Result) -> None:
    """The same losses, norms, weights and moments."""
    for name in ("losses", "norms"):
        assert other[name] == pytest.approx(one[name], abs=TOLERANCE)
    for kind in ("weights", "moments"):
        assert one[kind].keys() == other[kind].keys()
        for name, array in one[kind].items():
            np.testing.assert_allclose(other[kind][name], array, 0, TOLERANCE, err_msg=name)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("micro", [1, 4])
def test_two_processes_train_as_one(
    tokens: Path, parallel: str, optimizer: str, micro: int
) -> None:
    """With accumulation (4 sequences each, one by one) and without."""
    overrides = ["batch_size=8", f"parallel={parallel}", f"optimizer={optimizer}"]
    overrides += [f"micro_batch_size={micro}", "muon_learning_rate=0.005"]
    [one] = train(1, tokens, overrides)
    two = train(2, tokens, overrides)
    assert one["steps"] == 4
    assert batch_hashes(two) == batch_hashes([one])
    assert two[0]["losses"] == two[1]["losses"]
    assert two[0]["norms"] == two[1]["norms"]
    assert_equal(one, two[0])


def test_four_processes_train_as_one(tokens: Path) -> None:
    [one] = train(1, tokens, ["batch_size=8", "optimizer=muon", "muon_learning_rate=0.005"])
    four = train(4, tokens, ["batch_size=8", "optimizer=muon", "muon_learning_rate=0.005"])
    assert batch_hashes(four) == batch_hashes([one])
    assert_equal(one, four[0])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_what_is_kept_goes_on_in_any_number_of_processes(tokens: Path, optimizer: str) -> None:
    """1 -> 2 (DDP) -> 4 (FSDP) -> 1, against one process all the way."""
    overrides = ["batch_size=8", f"optimizer={optimizer}", "muon_learning_rate=0.005"]
    [straight] = train(1, tokens, overrides)
    kept, hashes, losses = None, [], []
    for number, (size, parallel) in enumerate([(1, "auto"), (2, "ddp"), (4, "fsdp"), (1, "auto")]):
        results = train(
            size, tokens, [*overrides, f"parallel={parallel}"], number, number + 1, kept
        )
        kept = results[0]
        hashes += batch_hashes(results)
        losses += kept["losses"]
    assert hashes == batch_hashes([straight])
    assert losses == pytest.approx(straight["losses"], abs=TOLERANCE)
    assert_equal({**straight, "losses": [], "norms": []}, {**kept, "losses": [], "norms": []})


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_one_process_meets_nan_and_all_stop_before_the_update(tokens: Path, parallel: str) -> None:
    overrides = ["batch_size=8", f"parallel={parallel}"]
    sound = train(2, tokens, overrides, 0, 2)
    poisoned = train(2, tokens, overrides, 0, 4, None, 2)
    assert [result["steps"] for result in poisoned] == [2, 2]
    assert_equal(sound[0], poisoned[0])


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_memory_options_hold_in_several_processes(tokens: Path, parallel: str) -> None:
    overrides = ["batch_size=8", f"parallel={parallel}"]
    [one] = train(1, tokens, overrides)
    two = train(2, tokens, [*overrides, "checkpointed_blocks=1", "loss_chunks=3"])
    assert_equal(one, two[0])
