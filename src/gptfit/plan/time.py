"""How long a training step takes: the work in it, times what a unit of each kind of work costs.

The costs come from a device's peaks (a roofline with stated efficiencies) or from measuring real
steps on the device (``calibration``); the work is the same either way, so both are one sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gptfit.config import GPT2Config
from gptfit.plan.flops import flops_per_token
from gptfit.plan.hardware import DeviceSpec
from gptfit.plan.interval import Interval
from gptfit.plan.memory.case import Case
from gptfit.plan.memory.formula import complete, evaluate
from gptfit.plan.step import DDP, FSDP, SINGLE, TrainingStep

# What an optimizer step consists of, in the ledger's letters; A counts its micro-batches. Backward is
# twice the forward; a checkpointed block runs forward once more. Attention counts its causal half,
# and the product that flash attention's backward repeats. Muon multiplies matrices by their own kind,
# three times over (train/muon.py).
WORK = {
    "block products": "A·n·m·(6·L + 2·k)",
    "head products": "A·n·6·P·C",
    "orthogonalization": "o·L·(72·C²·C + 24·min(C, F)²·max(C, F) + 12·min(C, F)²·min(C, F))",
    "attention": "A·n·T·C·(7·L + 2·k)",
    "pointwise": "A·n·C·(L + k / 3)",
    "loss": "A·n·P",
    "weights": "A·N",
    "optimizer": "N",
    "blocks": "A·(L + k / 3)",
    "passes": "A",
}

MATMUL_EFFICIENCY, ATTENTION_EFFICIENCY, COPY_EFFICIENCY = 0.75, 0.45, 0.85
"""Shares of the peaks that big shapes reach; arXiv 2401.14489 and the anchors of docs/planner.md."""
# Bytes that a token moves through memory for each unit of C in a block, forward and backward, and
# for each logit; compilation fuses most of the passes.
POINTWISE_BYTES = {False: 250, True: 90}
LOSS_BYTES = {False: 30, True: 10}
OPTIMIZER_BYTES = {
    True: 28,
    False: 56,
}  # fused AdamW reads and writes p, g, m, v once; foreach twice
WEIGHT_BYTES = 10  # the cast to bf16 and the gradient that is added to
LAUNCH_SECONDS = 6e-6
KERNELS = {False: (60, 40), True: (22, 30)}  # for each block, and beside the blocks
SYSTEM_FACTOR = 1.3
"""What runs take beyond the sum of their kernels: two published ones 93 ms for 75 and 134 for 98."""
DOUBT = {"compiled": 0.20, "eager": 0.35}


@dataclass(frozen=True)
class StepTime:
    """The time of one optimizer step; ``parts`` are seconds by kind of work and add up to the best."""

    seconds: Interval
    tokens_per_second: Interval
    parts: Mapping[str, float]
    calibrated: bool
    model_flops_utilization: float | None


@dataclass(frozen=True)
class Costs:
    """Seconds for a unit of each kind of ``WORK``; ``doubt`` is the relative spread of a prediction."""

    seconds: Mapping[str, float]
    doubt: float
    calibrated: bool = False

    hides_launches: bool = False

    def parts(self, letters: Mapping[str, Any]) -> dict[str, Any]:
        """Seconds of a step by kind of work; numbers or arrays, as the letters are."""
        parts = {kind: evaluate(WORK[kind], letters) * cost for kind, cost in self.seconds.items()}
        if not self.hides_launches:
            return parts
        # A GPU computes while the CPU launches: only the launches that outlast it are waited for.
        waiting = parts.pop("blocks") + parts.pop("passes") - sum(parts.values())
        return parts | {"launches": (waiting + abs(waiting)) / 2}


def letters_of(config: GPT2Config, step: TrainingStep) -> dict[str, Any]:
    """What the letters of ``WORK`` stand for."""
    return complete(Case(config, step).letters())


def roofline(device: DeviceSpec, step: TrainingStep) -> Costs | None:
    """Costs from the device's peaks; None where they are not known."""
    peak = device.peak_flops.get(step.dtype)
    if peak is None or device.bandwidth is None:
        return None
    byte = 1 / (device.bandwidth * COPY_EFFICIENCY)
    width = 1 if step.dtype == "bfloat16" else 2
    launch = 0.0 if device.kind == "cpu" else LAUNCH_SECONDS
    per_block, beside = KERNELS[step.compiled]
    seconds = {
        "block products": 1 / (peak * MATMUL_EFFICIENCY),
        "head products": 1 / (peak * MATMUL_EFFICIENCY),
        "orthogonalization": 1 / (peak * MATMUL_EFFICIENCY),
        "attention": 1 / (peak * ATTENTION_EFFICIENCY),
        "pointwise": POINTWISE_BYTES[step.compiled] * width * byte,
        "loss": LOSS_BYTES[step.compiled] * byte,
        "weights": WEIGHT_BYTES * byte,
        "optimizer": OPTIMIZER_BYTES[step.fused_optimizer] * byte,
        "blocks": per_block * launch,
        "passes": beside * launch,
    }
    factored = {kind: cost * SYSTEM_FACTOR for kind, cost in seconds.items()}
    doubt = DOUBT["compiled" if step.compiled else "eager"]
    return Costs(factored, doubt, hides_launches=device.kind != "cpu")


def step_time(
    config: GPT2Config, step: TrainingStep, device: DeviceSpec, costs: Costs | None = None
) -> StepTime | None:
    """The time of one step on ``device``, or None where nothing is known of its speed."""
    costs = costs or roofline(device, step)
    if costs is None or (step.parallel != SINGLE and device.link is None):
        return None
    parts = costs.parts(letters_of(config, step))
    if step.parallel != SINGLE:
        parts["communication"] = exposed_communication(config, step, device, sum(parts.values()))
    seconds = Interval.around(sum(parts.values()), costs.doubt)
    tokens = step.tokens_per_step
    peak = device.peak_flops.get(step.dtype)
    flops = flops_per_token(config, step).total * tokens / step.world_size
    return StepTime(
        seconds=seconds,
        tokens_per_second=Interval(
            *(tokens / s for s in (seconds.high, seconds.best, seconds.low))
        ),
        parts=parts,
        calibrated=costs.calibrated,
        model_flops_utilization=flops / seconds.best / peak if peak else None,
    )


def exposed_communication(
    config: GPT2Config, step: TrainingStep, device: DeviceSpec, compute_seconds: float
) -> float:
    """Seconds of communication that computing does not hide.

    A ring moves 2·(W - 1)/W of the gradients under DDP, hidden behind the backward pass (half of a
    step's time, say); FSDP gathers the weights twice besides.
    """
    assert device.link is not None
    W = step.world_size
    gradients: float = 4 * letters_of(config, step)["N"]
    volume = {DDP: 2.0, FSDP: 3.0}[step.parallel] * (W - 1) / W * gradients
    return max(0.0, volume / device.link - compute_seconds / 2)
