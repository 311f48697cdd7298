"""The memory ledger held against a traced step."""

from __future__ import annotations

from dataclasses import dataclass

from gptfit.config import GPT2Config
from gptfit.plan.memory import Ledger, memory_ledger
from gptfit.plan.step import TrainingStep
from gptfit.train.trace import trace_step
from gptfit.train.tracer import Trace


@dataclass(frozen=True)
class Verification:
    """What the ledger says a step allocates, and what the step allocated when it ran without memory."""

    ledger: Ledger
    trace: Trace

    @property
    def ledger_bytes(self) -> float:
        """The ledger's peak in the phases that the trace knows."""
        return max(ours for ours, _ in self.phases().values())

    @property
    def traced_bytes(self) -> int:
        """The trace's."""
        return self.trace.peak_bytes

    @property
    def error(self) -> float:
        """How far the ledger is above the trace, as a share of the trace."""
        return self.ledger_bytes / self.traced_bytes - 1

    def phases(self) -> dict[str, tuple[float, int]]:
        """Ledger and trace in bytes for each phase that both know."""
        traced = self.trace.phase_bytes
        return {
            phase.name: (phase.bytes, traced[phase.name])
            for phase in self.ledger.phases
            if phase.name in traced
        }


def verify(config: GPT2Config, step: TrainingStep) -> Verification:
    """Trace ``step`` on tensors without memory and compare; ``ConfigError`` where it cannot be traced."""
    return Verification(memory_ledger(config, step), trace_step(config, step, evaluates=True))
