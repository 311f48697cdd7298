"""Batches: every token its turn, the same for every number of processes, nothing but the step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptfit.data import IGNORED, Sampler, consecutive_windows
from gptfit.errors import ConfigError, DataError


@st.composite
def samplers(draw: st.DrawFn) -> Sampler:
    block_size = draw(st.integers(1, 12))
    size = draw(st.integers(block_size + 1, 300))
    batch_size, seed = draw(st.integers(1, 16)), draw(st.integers(0, 2**63 - 1))
    return Sampler(np.arange(size, dtype=np.uint16), block_size, batch_size, seed)


@given(samplers(), st.integers(0, 50))
def test_targets_follow_inputs(sampler: Sampler, step: int) -> None:
    inputs, targets = sampler.batch(step)
    assert inputs.shape == targets.shape == (sampler.batch_size, sampler.block_size)
    assert inputs.dtype == targets.dtype == np.int64
    assert inputs.flags.c_contiguous
    assert targets.flags.c_contiguous
    assert np.array_equal(targets, inputs + 1)  # the text is 0, 1, 2, ...
    assert np.array_equal(inputs[:, 0], sampler.offsets(step))


@given(samplers(), st.integers(0, 3))
def test_an_epoch_reads_the_text_once(sampler: Sampler, epoch: int) -> None:
    count, block, batch = sampler.windows_per_epoch, sampler.block_size, sampler.batch_size
    steps = range(epoch * count // batch, (epoch + 1) * count // batch + 1)
    offsets = np.concatenate([sampler.offsets(step) for step in steps])
    skipped = epoch * count - steps[0] * batch
    starts = np.sort(offsets[skipped : skipped + count])
    assert len(starts) == count
    assert np.all(np.diff(starts) == block)
    left_out = sampler.tokens.size - 1 - count * block
    assert 0 <= starts[0] <= left_out < 2 * block


@given(samplers(), st.integers(0, 1000))
def test_a_batch_follows_from_the_step_alone(sampler: Sampler, step: int) -> None:
    twin = Sampler(sampler.tokens, sampler.block_size, sampler.batch_size, sampler.seed)
    for other in (step + 1, step + 40, 0):
        twin.batch(other)
    assert np.array_equal(sampler.batch(step), twin.batch(step))


@given(samplers(), st.integers(0, 20), st.data())
def test_ranks_share_the_batch(sampler: Sampler, step: int, data: st.DataObject) -> None:
    divisors = [n for n in range(1, sampler.batch_size + 1) if sampler.batch_size % n == 0]
    world_size = data.draw(st.sampled_from(divisors))
    parts = [sampler.batch(step, rank, world_size) for rank in range(world_size)]
    assert np.array_equal(np.concatenate([part[0] for part in parts]), sampler.batch(step)[0])
    assert np.array_equal(np.concatenate([part[1] for part in parts]), sampler.batch(step)[1])


def test_every_token_is_a_target_in_time() -> None:
    sampler = Sampler(np.arange(50, dtype=np.uint16), 8, 4, seed=1)
    seen = {int(t) for step in range(200) for t in sampler.batch(step)[1].flat}
    assert seen == set(range(1, 50))


def test_epochs_and_seeds_differ() -> None:
    tokens = np.arange(10_000, dtype=np.uint16)
    sampler = Sampler(tokens, 10, 998, seed=1)
    assert sampler.windows_per_epoch == 998
    assert [sampler.epoch(step) for step in (0, 1, 2)] == [0.0, 1.0, 2.0]
    first, second = sampler.offsets(0), sampler.offsets(1)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, Sampler(tokens, 10, 998, seed=2).offsets(0))
    assert not np.array_equal(first, np.sort(first))


def test_fixed_order_for_ever() -> None:
    """A resumed run reads on where it stopped, also after an upgrade of gptfit or numpy."""
    sampler = Sampler(np.arange(100, dtype=np.uint16), 10, 4, seed=1337)
    assert [sampler.offsets(step).tolist() for step in (0, 2, 10**6)] == FIXED


FIXED = [[15, 35, 45, 55], [84, 34, 74, 14], [33, 43, 13, 73]]


def test_processes_that_do_not_divide_the_batch() -> None:
    sampler = Sampler(np.arange(100, dtype=np.uint16), 10, 4, seed=0)
    with pytest.raises(ConfigError, match=r"batch_size=4 cannot be shared by 3 .* multiple of 3"):
        sampler.batch(0, 0, 3)


def test_text_shorter_than_a_window() -> None:
    assert Sampler(np.arange(9, dtype=np.uint16), 8, 3, 0).batch(5)[1][:, -1].tolist() == [8, 8, 8]
    with pytest.raises(DataError, match=r"8 tokens do not fill one window of n_positions=8"):
        Sampler(np.arange(8, dtype=np.uint16), 8, 1, 0)


def test_windows_by_hand() -> None:
    batches = list(consecutive_windows(np.arange(10, 20, dtype=np.uint16), 3, 2))
    assert [inputs.tolist() for inputs, _ in batches] == [
        [[10, 11, 12], [13, 14, 15]],
        [[16, 17, 18]],
    ]
    assert batches[1][1].tolist() == [[17, 18, 19]]
    inputs, targets = next(consecutive_windows(np.arange(10, 15, dtype=np.uint16), 3, 2))
    assert inputs.tolist() == [[10, 11, 12], [13, 0, 0]]
    assert targets.tolist() == [[11, 12, 13], [14, IGNORED, IGNORED]]


@given(st.integers(2, 200), st.integers(1, 20), st.integers(1, 5), st.none() | st.integers(1, 300))
def test_each_token_is_a_target_once(size: int, block: int, batch: int, limit: int | None) -> None:
    tokens = np.arange(size, dtype=np.uint16)
    scored: list[int] = []
    for inputs, targets in consecutive_windows(tokens, block, batch, limit):
        assert inputs.shape == targets.shape
        assert inputs.shape[1] == block
        assert inputs.shape[0] <= batch
        real = targets != IGNORED
        assert np.array_equal(inputs[real] + 1, targets[real])
        scored += targets[real].tolist()
    assert scored == list(range(1, size))[: limit or size]


def test_nothing_to_predict() -> None:
    with pytest.raises(DataError, match="1 tokens hold nothing to predict"):
        next(consecutive_windows(np.arange(1, dtype=np.uint16), 3, 2))
