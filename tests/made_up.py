"""Made-up costs of a made-up machine, about those of two cores of a server."""

from __future__ import annotations

from gptfit.plan.time import Costs

COSTS = Costs(
    {
        "block products": 4e-12,
        "head products": 8e-12,
        "orthogonalization": 8e-12,
        "attention": 1e-11,
        "pointwise": 1e-8,
        "loss": 1e-9,
        "weights": 1e-10,
        "optimizer": 1e-9,
        "blocks": 5e-4,
        "passes": 5e-4,
    },
    doubt=0.1,
    calibrated=True,
)
