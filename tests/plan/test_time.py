"""Step times: the roofline against published runs, and the work against the ledger's letters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gptfit.config import GPT2Config
from gptfit.plan.flops import training_flops_per_token
from gptfit.plan.hardware import find_device
from gptfit.plan.step import DDP, FSDP, TrainingStep
from gptfit.plan.time import WORK, letters_of, roofline, step_time
from made_up import COSTS

GPT2 = GPT2Config(vocab_size=50304, bias=False)
STEP = TrainingStep(micro_batch_size=16, context=1024, compiled=True)


@pytest.mark.parametrize(
    ("device", "batch", "milliseconds"),
    [
        (
            "a100-80gb",
            16,
            93,
        ),  # Karpathy's lecture on reproducing GPT-2, compiled with flash attention
        ("h200", 64, 133.7),  # modded-nanogpt track 3, 1070.7 ms for 524,288 tokens
    ],
)
def test_published_steps_lie_in_the_interval(device: str, batch: int, milliseconds: float) -> None:
    time = step_time(GPT2, replace(STEP, micro_batch_size=batch), find_device(device))
    assert time is not None
    assert time.seconds.low < milliseconds / 1000 < time.seconds.high
    assert time.tokens_per_second.best == pytest.approx(batch * 1024 / time.seconds.best)


def test_products_are_the_counted_flops() -> None:
    letters = letters_of(GPT2, replace(STEP, micro_batch_size=1))
    products = COSTS.parts(letters)
    flops = {
        kind: products[kind] / COSTS.seconds[kind] for kind in ("block products", "head products")
    }
    attention = 12 * GPT2.n_layer * GPT2.n_embd * 1024
    counted = training_flops_per_token(GPT2) - attention
    assert sum(flops.values()) / 1024 == pytest.approx(counted, rel=0.001)


def test_parts_add_up_and_are_linear() -> None:
    assert set(COSTS.seconds) == set(WORK)
    time = step_time(GPT2, STEP, find_device("cpu"), COSTS)
    twice = step_time(GPT2, replace(STEP, grad_accum_steps=2), find_device("cpu"), COSTS)
    assert time is not None
    assert twice is not None
    assert sum(time.parts.values()) == pytest.approx(time.seconds.best)
    once = time.seconds.best - time.parts["optimizer"]
    assert twice.seconds.best == pytest.approx(2 * once + time.parts["optimizer"])


def test_unknown_speed_is_no_guess() -> None:
    assert step_time(GPT2, STEP, find_device("cpu")) is None
    assert roofline(find_device("v100-sxm2-16gb"), STEP) is None  # it has no bfloat16


def test_a_small_model_on_a_gpu_waits_for_launches() -> None:
    small = GPT2Config(n_layer=6, n_head=6, n_embd=384, vocab_size=65, n_positions=64)
    step = TrainingStep(micro_batch_size=4, context=64)
    time = step_time(small, step, find_device("h100"))
    assert time is not None
    assert time.parts["launches"] > time.seconds.best / 2


def test_devices_share_the_work_and_pay_for_talking() -> None:
    device = find_device("a100-80gb")
    alone = step_time(GPT2, STEP, device)
    pair = step_time(GPT2, replace(STEP, parallel=DDP, world_size=2), device)
    sharded = step_time(GPT2, replace(STEP, parallel=FSDP, world_size=2), replace(device, link=1e9))
    assert alone is not None
    assert pair is not None
    assert sharded is not None
    assert 1.5 < pair.tokens_per_second.best / alone.tokens_per_second.best <= 2
    assert sharded.parts["communication"] > pair.parts["communication"]


def test_arrays_of_sizes() -> None:
    letters = letters_of(GPT2, STEP) | {"B": np.array([1, 2])}
    letters["n"] = letters["B"] * 1024
    parts = COSTS.parts(letters)
    assert parts["loss"][1] == pytest.approx(2 * parts["loss"][0])
