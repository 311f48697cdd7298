"""What would save memory, by how much, and at what cost."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gptfit.config import GPT2Config
from gptfit.plan.memory.batch import FITS, verdict
from gptfit.plan.memory.case import Case
from gptfit.plan.memory.ledger import memory_ledger
from gptfit.plan.step import CHUNKED, FSDP, SDPA, SINGLE, WHOLE, TrainingStep

if TYPE_CHECKING:
    from gptfit.plan.hardware import DeviceSpec

Candidate = tuple[str, dict[str, Any], str]
LOSS_CHUNKS = 8


@dataclass(frozen=True)
class Remedy:
    """``change`` names the fields of ``TrainingStep`` to set; ``saves_bytes`` is off the total."""

    name: str
    change: Mapping[str, Any]
    saves_bytes: int
    cost: str


def remedies(
    config: GPT2Config, step: TrainingStep, device: DeviceSpec | None = None
) -> tuple[Remedy, ...]:
    """All that help, the one that saves most first; the ledger itself says how much."""

    def total(step: TrainingStep) -> float:
        return memory_ledger(config, step, device).total.best

    now = total(step)
    found = [
        Remedy(name, change, int(now - total(replace(step, **change))), cost)
        for name, change, cost in candidates(config, step, device)
    ]
    return tuple(sorted((r for r in found if r.saves_bytes > 0), key=lambda r: -r.saves_bytes))


def candidates(
    config: GPT2Config, step: TrainingStep, device: DeviceSpec | None
) -> Iterator[Candidate]:
    """What could be changed, whether it helps or not."""
    if step.loss == WHOLE:
        change = {"loss": CHUNKED, "loss_chunks": LOSS_CHUNKS, "keeps_logits": False}
        yield "loss in chunks", change, "hardly any time"
    if Case(config, step).composite_gelu:
        yield "fused GELU", {"fused_gelu": True}, "none: faster, and equal up to rounding"
    if step.attention != SDPA:
        yield "fused attention", {"attention": SDPA}, "none: faster, and equal up to rounding"
    if not step.compiled and step.device_kind == "cuda":
        yield "torch.compile", {"compiled": True}, "one to three minutes at the start"
    if step.checkpointed_blocks < config.n_layer:
        yield checkpointing(config, step, device)
    if step.micro_batch_size % 2 == 0:
        halves = {
            "micro_batch_size": step.micro_batch_size // 2,
            "grad_accum_steps": step.grad_accum_steps * 2,
        }
        yield "half the micro-batch, twice as many", halves, "smaller matrices to multiply at once"
    if not step.fused_optimizer:
        yield "fused optimizer", {"fused_optimizer": True}, "none: faster"
    if step.parallel == SINGLE:
        yield "FSDP over 2 devices", {"parallel": FSDP, "world_size": 2}, "a second device"


def checkpointing(config: GPT2Config, step: TrainingStep, device: DeviceSpec | None) -> Candidate:
    """As few blocks as are enough for the device, all of them if none is."""
    blocks = range(step.checkpointed_blocks + 1, config.n_layer)
    place = bisect_left(blocks, True, key=lambda k: fits_with(config, step, k, device))
    fewest = step.checkpointed_blocks + 1 + place
    share = (fewest - step.checkpointed_blocks) / config.n_layer
    cost = f"the forward pass of {fewest} blocks again: about {share / 3:.0%} more time"
    return f"checkpointing {fewest} blocks", {"checkpointed_blocks": fewest}, cost


def fits_with(
    config: GPT2Config, step: TrainingStep, blocks: int, device: DeviceSpec | None
) -> bool:
    """Whether that many checkpointed blocks make it fit."""
    if device is None:
        return False
    ledger = memory_ledger(config, replace(step, checkpointed_blocks=blocks), device)
    return verdict(ledger.total, device.usable_bytes) == FITS
