"""Plans with round numbers, for the faces that show them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gptfit.config import GPT2Config
from gptfit.plan.flops import flops_per_token
from gptfit.plan.hardware import GIB, find_device
from gptfit.plan.interval import Interval
from gptfit.plan.memory import Ledger, Phase, Remedy, Term
from gptfit.plan.plan import Budget, LossForecast, Plan
from gptfit.plan.step import TrainingStep
from gptfit.plan.time import StepTime


def _phase(name: str, **gib: float) -> Phase:
    terms = (
        Term(component.replace("_", " "), size * GIB, "4·N", "4·124439808", "the example")
        for component, size in gib.items()
    )
    return Phase(name, tuple(terms))


def example_plan(**changes: Any) -> Plan:
    """GPT-2 small on an RTX 4090: 12 GiB of tensors, 13 GiB in all, 2 hours for 0.40 USD each."""
    phases = (
        _phase("forward", weights=1, optimizer=1, activations=4, logits_and_loss=4),
        _phase("loss backward", weights=1, optimizer=1, activations=4, logits_and_loss=6),
        _phase("block backward", weights=1, gradients=1, optimizer=1, activations=4),
        _phase("optimizer step", weights=1, gradients=1, optimizer=2),
    )
    total = Interval(12.5 * GIB, 13 * GIB, 14.2 * GIB)
    step = TrainingStep(micro_batch_size=12, context=1024)
    device = find_device("rtx4090")
    plan = Plan(
        recipe_name="gpt2",
        parameters=124_439_808,
        device=device,
        step=step,
        verdict="FITS",
        ledger=Ledger(phases, Interval.exactly(12 * GIB), total),
        usable_bytes=device.usable_bytes,
        largest_micro_batch=21,
        flops=flops_per_token(GPT2Config(), step),
        time=StepTime(
            Interval(0.09, 0.1, 0.12),
            Interval(102_400, 122_880, 136_533),
            {"attention": 0.1},
            False,
            0.38,
        ),
        budget=Budget(
            tokens=1e9,
            steps=81_380,
            hours=Interval(1.8, 2.0, 2.4),
            kilowatt_hours=Interval(0.65, 0.72, 0.86),
            cost=Interval(0.72, 0.8, 0.96),
            currency="USD",
        ),
        remedies=(
            Remedy("chunked loss", {"loss": "chunked"}, 5 * GIB, "no time worth a line"),
            Remedy(
                "checkpoint all blocks", {"checkpointed_blocks": 12}, 3 * GIB, "a third more time"
            ),
            Remedy("torch.compile", {"compiled": True}, 2 * GIB, "minutes at the start"),
            Remedy("a fourth", {}, GIB, "nothing"),
        ),
        loss=LossForecast(Interval(3.2, 3.3, 3.5), "a law", "good for comparing, not a promise"),
        notes=("time by roofline",),
    )
    return replace(plan, **changes)
