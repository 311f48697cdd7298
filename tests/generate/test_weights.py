"""Smaller weights: how near they stay, and what they refuse."""

from __future__ import annotations

import pytest
import torch

from gptfit.config import GPT2Config
from gptfit.errors import ConfigError
from gptfit.generate import Engine, Request, SamplingOptions, with_weights
from gptfit.generate.weights import Float16Linear, Int8Linear
from gptfit.model import GPT2
from random_configs import random_config

pytestmark = pytest.mark.skipif(
    torch.backends.quantized.engine not in ("x86", "fbgemm"), reason="kernels for x86 only"
)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kind", "error"), [(Float16Linear, 4e-4), (Int8Linear, 2e-2)])
def test_products_are_near_and_rows_do_not_touch(kind: type, error: float, bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(30, 70, generator=generator) * torch.linspace(0.01, 3, 30)[:, None]
    offset = torch.randn(30, generator=generator) if bias else None
    x = torch.randn(9, 70, generator=generator) * torch.logspace(-3, 3, 9)[:, None]
    linear = kind(weight, offset)
    with torch.inference_mode():
        y = linear(x)
        want = torch.nn.functional.linear(x.double(), weight.double())
        got = y.double() - (offset.double() if offset is not None else 0)
        assert ((got - want).norm(dim=1) <= error * want.norm(dim=1) + 1e-6).all()
        alone = torch.cat([linear(x[row : row + 1]) for row in range(9)])
        assert torch.equal(y, alone)
        assert torch.equal(linear(x.view(3, 3, 70)), y.view(3, 3, 30))
        assert linear(torch.zeros(2, 70)).isfinite().all()


@pytest.mark.parametrize("weights", ["float16", "int8"])
@pytest.mark.parametrize("seed", range(8))
def test_any_model_keeps_its_logits(seed: int, weights: str) -> None:
    config = random_config(seed, initializer_range=0.1)
    idx = torch.randint(config.vocab_size, (2, 7), generator=torch.Generator().manual_seed(seed))
    model = GPT2(config, generator=torch.Generator().manual_seed(seed)).eval()
    with torch.inference_mode():
        before = model(idx).log_softmax(-1)
        after = with_weights(model, weights)(idx).log_softmax(-1)
    assert (before - after).abs().max() < {"float16": 5e-3, "int8": 0.3}[weights]
    assert not torch.equal(before, after)


@pytest.mark.parametrize("weights", ["float16", "int8"])
def test_batched_rows_are_equal_to_single_ones(weights: str) -> None:
    config = random_config(5, n_positions=32, initializer_range=0.3)
    model = with_weights(GPT2(config, generator=torch.Generator().manual_seed(5)).eval(), weights)
    requests = [
        Request(prompt=[1] * length, max_new_tokens=40, options=SamplingOptions(seed=length))
        for length in (1, 4, 9)
    ]
    together = Engine(model, 3)
    rows = [together.add(request) for request in requests]
    while together.rows:
        together.step()
    for row in rows:
        alone = Engine(model, 1)
        same = alone.add(row.request)
        while alone.rows:
            alone.step()
        assert row.ids == same.ids


def test_auto_takes_float16_for_a_large_model_only() -> None:
    small = GPT2(random_config(0))
    assert isinstance(with_weights(small).lm_head, torch.nn.Linear)
    large = GPT2(GPT2Config(vocab_size=20_000, n_embd=512, n_head=8, n_layer=1, n_positions=8))
    assert isinstance(with_weights(large).lm_head, Float16Linear)


def test_a_torch_without_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.quantized, "engine", "qnnpack")
    with pytest.raises(ConfigError, match=r"int8 needs torch's kernels for x86 .* use float32"):
        with_weights(GPT2(random_config(0)), "int8")


def test_what_it_refuses() -> None:
    model = GPT2(random_config(0))
    with pytest.raises(ConfigError, match="weights=int4 is not known; choose one of auto"):
        with_weights(model, "int4")
    for weight in (1e5, float("nan"), float("inf")):
        with torch.no_grad():
            model.wpe.weight[0, 0] = weight
        for weights in ("float16", "int8"):
            with pytest.raises(
                ConfigError, match=r"holds weights up to 65,504, and wpe\.weight has"
            ):
                with_weights(model, weights)
    with pytest.raises(ConfigError, match="is for a CPU, and the model is on meta"):
        with_weights(GPT2(random_config(0)).to("meta"), "int8")
