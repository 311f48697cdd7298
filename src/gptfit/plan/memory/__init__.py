"""The memory ledger: what a training step holds, when, and by which formula."""

from gptfit.plan.memory.batch import FITS, NO, TIGHT, largest_micro_batch, verdict
from gptfit.plan.memory.ledger import Ledger, Phase, Term, memory_ledger, training_peak_bytes
from gptfit.plan.memory.overhead import Overhead
from gptfit.plan.memory.remedies import Remedy, remedies

__all__ = [
    "FITS",
    "NO",
    "TIGHT",
    "Ledger",
    "Overhead",
    "Phase",
    "Remedy",
    "Term",
    "largest_micro_batch",
    "memory_ledger",
    "remedies",
    "training_peak_bytes",
    "verdict",
]
