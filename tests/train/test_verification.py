"""The ledger against the step that it describes."""

from __future__ import annotations

from typing import Any

import pytest

from gptfit.config import GPT2Config
from gptfit.errors import ConfigError
from gptfit.plan.step import CHUNKED, EAGER, FLOAT32, RECOMPUTED, TrainingStep
from gptfit.train.tracer import EVALUATION
from gptfit.train.verification import verify

GPT2_SMALL = GPT2Config(vocab_size=50304, dropout=0.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"keeps_logits": True},
        {"checkpointed_blocks": 12, "loss": CHUNKED, "loss_chunks": 12},
        {"checkpointed_blocks": 5, "loss": RECOMPUTED, "loss_chunks": 12},
        {"dtype": FLOAT32, "fused_optimizer": False, "device_kind": "cpu"},
        {"fused_gelu": False, "attention": EAGER, "grad_accum_steps": 4},
    ],
)
def test_the_ledger_is_within_one_percent(changes: dict[str, Any]) -> None:
    found = verify(GPT2_SMALL, TrainingStep(micro_batch_size=12, context=1024, **changes))
    assert abs(found.error) < 0.01
    assert found.ledger_bytes == pytest.approx(found.traced_bytes, rel=0.01)
    assert found.trace.phase_bytes[EVALUATION] > 12 * 124_000_000  # weights and moments
    for name, (ledger, traced) in found.phases().items():
        assert ledger > 0, name
        assert traced > 0, name


def test_a_step_that_cannot_be_traced_is_refused() -> None:
    with pytest.raises(ConfigError, match="compiled=True cannot be traced"):
        verify(GPT2_SMALL, TrainingStep(context=1024, compiled=True))
