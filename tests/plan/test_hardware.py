"""A device is known by its whole name or not at all."""

from __future__ import annotations

import pytest

from gptfit.plan.hardware import bf16_peak_flops


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA RTX A6000", 154.8),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA A10G", 70),
    ],
)
def test_known(name: str, tflops: float) -> None:
    assert bf16_peak_flops(name) == tflops * 1e12


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 3080 Ti",
        "NVIDIA H100 NVL",
        "NVIDIA GeForce GTX 1080",
        "Apple M2",
        "",
    ],
)
def test_unknown(name: str) -> None:
    assert bf16_peak_flops(name) is None
