"""The device a run computes on, and in which precision."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from gptfit.config import GPT2Config, Recipe
from gptfit.errors import ConfigError, Problem
from gptfit.plan.hardware import bf16_peak_flops, this_cpu
from gptfit.plan.memory import NO, largest_micro_batch, memory_ledger, verdict
from gptfit.plan.step import DDP, FSDP, SINGLE, TrainingStep, usual_dtype


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
        dtype = usual_dtype(device.type, has_bf16, config.n_embd)
    return Device(device, getattr(torch, dtype))


def usable_bytes(device: Device) -> int:
    """What a training may take: a GPU's free memory, or what this machine can lend a process.

    Processes that torchrun has started on one machine share its memory.
    """
    if device.torch_device.type == "cuda":
        return torch.cuda.mem_get_info(device.torch_device)[0]
    return this_cpu().usable_bytes // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def training_step(
    recipe: Recipe, device: Device, parallel: str = SINGLE, processes: int = 1
) -> TrainingStep:
    """The step that each of so many processes takes."""
    step = TrainingStep.gptfit(recipe, device.torch_device.type, device.dtype_name)
    return replace(step, **shared(recipe, parallel, processes))


def shared(recipe: Recipe, parallel: str, processes: int) -> dict[str, Any]:
    """The fields of a training step that depend on how many processes take it."""
    share = recipe.train.batch_size // processes
    micro = min(recipe.train.micro_batch_size, share)
    return {
        "micro_batch_size": micro,
        "grad_accum_steps": share // micro,
        "parallel": parallel,
        "world_size": processes,
        "bucket_views": parallel == DDP,
    }


def require_memory(
    recipe: Recipe, device: Device, parallel: str = SINGLE, processes: int = 1
) -> None:
    """Refuse a training that will not fit, with the changes that would make it fit."""
    step = training_step(recipe, device, parallel, processes)
    ledger = memory_ledger(recipe.model, step)
    usable = usable_bytes(device)
    if verdict(ledger.total, usable) != NO:
        return
    each = f" in each of {processes} processes" if processes > 1 else ""
    message = (
        f"a training step needs about {ledger.total.best / 1e9:,.1f} GB{each} and {device.name} has "
        f"{usable / 1e9:,.1f} GB"
    )
    raise ConfigError(Problem("train.micro_batch_size", message, _way_out(recipe, step, usable)))


def _way_out(recipe: Recipe, step: TrainingStep, usable: int) -> str:
    if size := largest_micro_batch(recipe.model, step, usable):
        share = recipe.train.batch_size // step.world_size
        part = next(part for part in range(size, 0, -1) if share % part == 0)
        return f"micro_batch_size={part} fits"
    return "choose a smaller model; `gptfit plan` shows what each part takes"


def choose_parallel(recipe: Recipe, device: Device, processes: int) -> str:
    """What ``run.parallel`` says; where it is auto, replicas unless they do not fit."""
    if recipe.run.parallel != "auto":
        return recipe.run.parallel
    total = memory_ledger(recipe.model, training_step(recipe, device, DDP, processes)).total
    return FSDP if verdict(total, usable_bytes(device)) == NO else DDP


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
