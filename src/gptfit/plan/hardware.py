"""What devices can do. A device that is not listed is unknown, never guessed."""

from __future__ import annotations

# Dense bf16 peaks with fp32 accumulation, in FLOP/s. Vendors' headline figures are often sparse or
# fp16-accumulate: half or a quarter of those. The longest name that is contained in the device's
# wins. Sources: NVIDIA datasheets as collected in nanochat common.py, torchtitan tools/utils.py and
# Lightning fabric throughput.py.
BF16_PEAK_FLOPS = {
    "A100": 312e12,
    "A10": 125e12,
    "A10G": 70e12,
    "A40": 149.7e12,
    "RTX A6000": 154.8e12,
    "H100": 989e12,
    "H100 PCIe": 756e12,
    "H200": 989e12,
    "B200": 2250e12,
    "L4": 121e12,
    "L40S": 362e12,
    "RTX 3060": 25.5e12,
    "RTX 3080": 59.5e12,
    "RTX 3090": 71e12,
    "RTX 4070 Ti": 80.2e12,
    "RTX 4080": 97.5e12,
    "RTX 4090": 165.2e12,
    "RTX 5090": 209.5e12,
}


def bf16_peak_flops(device_name: str) -> float | None:
    """The device's dense bf16 peak in FLOP/s, or None when it is not known.

    >>> bf16_peak_flops("NVIDIA H100 80GB HBM3"), bf16_peak_flops("NVIDIA GeForce GTX 1080")
    (989000000000000.0, None)
    """
    words = f" {device_name} ".replace("-", " ")
    known = [name for name in BF16_PEAK_FLOPS if f" {name} " in words]
    return BF16_PEAK_FLOPS[max(known, key=len)] if known else None
