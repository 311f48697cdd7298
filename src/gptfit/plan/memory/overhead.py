"""From the tensors to what the device shows: the allocator's rounding, workspaces, the context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gptfit.plan.interval import Interval
from gptfit.plan.memory.activation import UNSURE
from gptfit.plan.memory.case import Case

if TYPE_CHECKING:
    from gptfit.plan.hardware import DeviceSpec

MIB = 2**20


@dataclass(frozen=True)
class Overhead:
    """``doubt`` is the ledger's own as a share of 1, ``factor`` the allocator's, ``fixed`` in bytes."""

    doubt: Interval
    factor: Interval
    fixed: Interval
    source: str

    def allocated(self, peak: float) -> Interval:
        """The tensors' peak with the ledger's doubt."""
        return self.doubt.times(peak)

    def total(self, allocated: Interval) -> Interval:
        """What the device shows."""
        return Interval(
            allocated.low * self.factor.low + self.fixed.low,
            allocated.best * self.factor.best + self.fixed.best,
            allocated.high * self.factor.high + self.fixed.high,
        )

    def most_allocated(self, usable_bytes: float) -> float:
        """The peak of tensors whose total may be as high as this."""
        return (usable_bytes - self.fixed.high) / (self.factor.high * self.doubt.high)


CPU = (
    Interval(1.05, 1.15, 1.33),
    Interval.exactly(0),
    "resident memory over allocated tensors in four measured steps of 490 to 1280 MiB on a CPU",
)
CUDA_FACTOR = Interval(1.0, 1.03, 1.08)
"""Reserved over allocated in steady training of one shape: blocks are rounded to 512 bytes, large
ones to 2 MiB (pytorch, c10/core/AllocatorConfig.h)."""
CUDA_CONTEXT = Interval(300 * MIB, 450 * MIB, 620 * MIB)
"""The driver's context and the kernels that are loaded; 0.3 to 0.6 GiB are reported."""
WORKSPACES = {
    True: Interval(32 * MIB, 64 * MIB, 96 * MIB),
    False: Interval(8 * MIB, 12 * MIB, 24 * MIB),
    None: Interval(8 * MIB, 32 * MIB, 96 * MIB),
}
"""cuBLAS and cublasLt, by whether the card is Hopper or newer: 8,519,680 bytes per handle before,
32 MiB each since (pytorch issue 120925)."""
COMMUNICATOR = Interval(200 * MIB, 400 * MIB, 1024 * MIB)
"""NCCL's own buffers for one group of devices."""


def overhead_of(case: Case, device: DeviceSpec | None = None) -> Overhead:
    """What is assumed without a measurement."""
    doubt = Interval.around(1.0, doubt_of(case))
    if case.cpu:
        return Overhead(doubt, *CPU)
    fixed = CUDA_CONTEXT + WORKSPACES[is_hopper_or_newer(device)]
    if case.ddp or case.fsdp:
        fixed = fixed + COMMUNICATOR
    source = "PyTorch's caching allocator, cuBLAS's workspaces and CUDA's context"
    return Overhead(doubt, CUDA_FACTOR, fixed, source)


def doubt_of(case: Case) -> float:
    """How far the ledger may be off, as a share. What is held against traces has none; the rest is
    derived from other people's figures, or not checked on a device."""
    shares = [0.0]
    if case.compiled:
        shares.append(0.15)
    if case.fsdp:
        shares.append(0.10)
    if case.ddp or case.muon or case.eager:
        shares.append(0.05)
    if case.composite_gelu or case.config.activation_function in UNSURE:
        shares.append(0.05)
    if case.step.device_kind == "mps":
        shares.append(0.15)
    return max(shares)


def is_hopper_or_newer(device: DeviceSpec | None) -> bool | None:
    """None where nobody said."""
    digits = device.architecture.removeprefix("sm") if device else ""
    return int(digits) >= 90 if digits.isdigit() else None
