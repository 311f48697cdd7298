"""Fitting quantities that cannot be negative: costs, and the parts of a loss."""

from __future__ import annotations

from typing import Any


def non_negative_least_squares(matrix: Any, target: Any, rounds: int = 2000) -> Any:
    """x >= 0 that minimises |matrix·x - target|, by coordinate descent (Franc et al. 2005)."""
    import numpy as np

    scale = np.linalg.norm(matrix, axis=0)
    scaled = matrix / np.where(scale > 0, scale, 1)
    gram, projection = scaled.T @ scaled, scaled.T @ target
    x = np.zeros(matrix.shape[1])
    for _ in range(rounds):
        for j in range(len(x)):
            if gram[j, j] > 0:
                x[j] = max(0.0, x[j] + (projection[j] - gram[j] @ x) / gram[j, j])
    return x / np.where(scale > 0, scale, 1)
