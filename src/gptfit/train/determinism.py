"""The same bits from the same run on the same machine, at some cost in speed."""

from __future__ import annotations

import os

import torch


def make_deterministic() -> None:
    """For this process, from here on; it holds for everything that runs in it.

    Promised for one kind of machine, one version of torch and one number of threads and processes.
    An operation that has no deterministic form raises ``RuntimeError`` instead of running.
    """
    # cuBLAS reads this once, when its first product is computed.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
