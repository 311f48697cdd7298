"""The device a run computes on, and in which precision."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from gptfit.config import GPT2Config
from gptfit.errors import ConfigError, Problem
from gptfit.plan.hardware import bf16_peak_flops
from gptfit.plan.params import count_parameters

# Below this width the casts cost a CPU more than its bf16 instructions save: measured with 2 cores
# and AMX, nanoGPT's 128-wide model takes 34 ms a step in fp32 and 42 in bf16, at 384 wide 647 and 319.
BF16_MIN_WIDTH_ON_CPU = 256


@dataclass(frozen=True)
class Device:
    """Where to compute and in which precision; weights are always float32."""

    torch_device: torch.device
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """A GPU as its maker calls it, a CPU with its threads."""
        if self.torch_device.type == "cuda":
            return torch.cuda.get_device_name(self.torch_device)
        if self.torch_device.type == "cpu":
            return f"cpu ({torch.get_num_threads()} threads)"
        return self.torch_device.type

    @property
    def dtype_name(self) -> str:
        """``float32`` or ``bfloat16``."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def peak_flops(self) -> float | None:
        """Dense bf16 peak in FLOP/s where it is known."""
        return bf16_peak_flops(self.name) if self.torch_device.type == "cuda" else None

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which forward passes run."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.torch_device.type, dtype=self.dtype)


def choose_device(name: str, dtype: str, config: GPT2Config) -> Device:
    """Resolve ``auto`` and refuse what the machine has not.

    bfloat16 is chosen where instructions for it exist and pay; it is never emulated.
    """
    device = torch.device(_available(name))
    has_bf16 = _has_bf16(device)
    if dtype == "bfloat16" and not has_bf16:
        raise ConfigError(
            Problem("run.dtype", f"dtype=bfloat16 is not supported by {device}", "use float32")
        )
    if dtype == "auto":
        pays = device.type != "cpu" or config.n_embd >= BF16_MIN_WIDTH_ON_CPU
        dtype = "bfloat16" if has_bf16 and pays else "float32"
    return Device(device, getattr(torch, dtype))


def require_memory(config: GPT2Config, device: Device) -> None:
    """Refuse a model whose weights, gradients and two moments alone exceed the device's memory."""
    needed = 16 * count_parameters(config).total
    if device.torch_device.type == "cuda":
        memory = torch.cuda.get_device_properties(device.torch_device).total_memory
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        message = (
            f"{count_parameters(config).total:,} parameters need {needed / 1e9:,.0f} GB for weights, "
            f"gradients and AdamW, and {device.name} has {memory / 1e9:,.0f} GB"
        )
        raise ConfigError(Problem("model.n_layer", message, "choose a smaller model"))


def _available(name: str) -> str:
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next((kind for kind, available in present.items() if available), "cpu")
    kind, _, index = name.partition(":")
    if not present.get(kind, True) or (index and int(index) >= torch.cuda.device_count()):
        have = ["cpu", *(kind for kind, available in present.items() if available)]
        message = f"device={name} is not available on this machine"
        raise ConfigError(Problem("run.device", message, f"use {' or '.join(have)}"))
    return name


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return False
