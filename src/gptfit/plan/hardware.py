"""What devices can do. A device that is not listed is unknown, never guessed."""

from __future__ import annotations

import re

# Dense bf16 peaks with fp32 accumulation, in FLOP/s. Vendors' headline figures are often sparse or
# fp16-accumulate: half or a quarter of those. Sources: NVIDIA datasheets as collected in nanochat common.py, torchtitan tools/utils.py and
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


# What may stand behind a name without making it another device.
FORM = re.compile(r"(?i)\d+GB|HBM\d\w*|SXM\d?|PCIE|GPU|Tensor|Core")


def bf16_peak_flops(device_name: str) -> float | None:
    """The device's dense bf16 peak in FLOP/s, or None when it is not known.

    >>> bf16_peak_flops("NVIDIA H100 80GB HBM3"), bf16_peak_flops("NVIDIA GeForce RTX 4090 Laptop GPU")
    (989000000000000.0, None)
    """
    words = device_name.replace("-", " ").split()
    for name, peak in sorted(BF16_PEAK_FLOPS.items(), key=lambda item: -len(item[0])):
        parts = name.split()
        for start in range(len(words)):
            rest = words[start + len(parts) :]
            if words[start : start + len(parts)] == parts and all(map(FORM.fullmatch, rest)):
                return peak
    return None
