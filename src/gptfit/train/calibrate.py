"""Measuring this device: real training steps of small and large models, and the costs they imply."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version

import torch

from gptfit.config import GPT2Config, Recipe, TrainConfig
from gptfit.model import GPT2
from gptfit.plan.calibration import Calibration, Fingerprint, Sample, fit_costs, load
from gptfit.plan.lattice import WIDTHS, Machine, is_asked
from gptfit.plan.memory import FITS, memory_ledger, verdict
from gptfit.plan.step import ADAMW, MUON, TrainingStep, usual_vocab_multiple
from gptfit.plan.time import letters_of
from gptfit.train.allocator import keep_freed_pages
from gptfit.train.device import Device, choose_device, usable_bytes
from gptfit.train.optimizer import Optimizer

# (n_layer, n_embd, context, micro-batch, vocabulary, micro-batches, optimizer): each is heavy in one
# kind of work, so that the costs of the kinds can be told apart.
ON_CPU = (
    (6, 64, 32, 2, 65, 1, ADAMW),
    (2, 64, 1024, 4, 65, 1, ADAMW),
    (4, 128, 64, 12, 65, 1, ADAMW),
    (4, 128, 64, 2, 65, 1, MUON),
    (2, 256, 1024, 2, 65, 1, ADAMW),
    (1, 256, 128, 8, 16384, 1, ADAMW),
    (2, 256, 32, 2, 65, 1, MUON),
    (4, 384, 256, 4, 4096, 1, ADAMW),
    (2, 512, 64, 16, 1024, 1, ADAMW),
    (4, 768, 64, 1, 16384, 1, ADAMW),
    (4, 768, 64, 1, 4096, 4, ADAMW),
    (1, 768, 256, 1, 50257, 1, ADAMW),
)
ON_GPU = (
    (6, 256, 64, 2, 65, 1, ADAMW),
    (12, 384, 256, 64, 65, 1, ADAMW),
    (2, 768, 4096, 4, 65, 1, ADAMW),
    (2, 768, 256, 16, 50304, 1, ADAMW),
    (12, 768, 1024, 4, 50304, 1, ADAMW),
    (12, 768, 1024, 16, 50304, 1, ADAMW),
    (4, 1600, 1024, 4, 1024, 1, ADAMW),
    (8, 1600, 64, 1, 50304, 4, ADAMW),
    (2, 768, 64, 2, 65, 1, MUON),
)
SECONDS_PER_SAMPLE = 0.5
LEAST_STEPS = 4
Say = Callable[[str], None]
Size = tuple[int, int, int, int, int, int, str]


def this_machine(base: Recipe, say: Say) -> Machine:
    """The device that the recipe asks for, in the precision it offers, with what work costs on it."""
    width = base.model.n_embd if is_asked(base, "model.n_embd") else min(WIDTHS)
    model = base.model.replace(n_embd=width, n_head=1)
    device = choose_device(base.run.device, base.run.dtype, model)
    costs = calibration_for(device, say).costs
    return Machine(device.torch_device.type, usable_bytes(device), device.dtype_name, costs)


def calibration_for(device: Device, say: Say = lambda line: None) -> Calibration:
    """The calibration of this device and precision: the stored one, or a new one of some ten seconds."""
    return load(fingerprint(device)) or calibrate(device, say)


def calibrate(device: Device, say: Say = lambda line: None) -> Calibration:
    """Measure, fit, store."""
    sizes: Sequence[Size] = ON_CPU if device.torch_device.type == "cpu" else ON_GPU
    say(f"measuring {device.name} in {device.dtype_name}, {len(sizes)} models of about a second")
    started = time.perf_counter()
    samples = tuple(
        measure(device, *question(device, size)) for size in sizes if fits(device, size)
    )
    seconds = time.perf_counter() - started
    calibration = Calibration(fingerprint(device), fit_costs(samples), samples, seconds)
    calibration.save()
    return calibration


def fingerprint(device: Device) -> Fingerprint:
    """What a measurement on this device holds for."""
    kind, torch_version = device.torch_device.type, version("torch")
    name, driver, threads = device.name, platform.platform(), 0
    if kind == "cpu":
        processor = Fingerprint.of_cpu(device.dtype_name)
        return replace(processor, threads=torch.get_num_threads())
    if kind == "cuda":
        driver = f"CUDA {torch.version.cuda}, {driver}"
    return Fingerprint(name, driver, torch_version, threads, device.dtype_name)


def question(device: Device, size: Size) -> tuple[GPT2Config, TrainingStep]:
    """The model of these sizes, and the step that is measured."""
    n_layer, n_embd, context, micro_batch_size, vocab_size, micro_batches, optimizer = size
    config = GPT2Config(
        n_layer=n_layer,
        n_embd=n_embd,
        n_head=max(1, n_embd // 64),
        n_positions=context,
        vocab_size=vocab_size,
        bias=False,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    step = TrainingStep(
        micro_batch_size=micro_batch_size,
        context=context,
        grad_accum_steps=micro_batches,
        device_kind=device.torch_device.type,
        dtype=device.dtype_name,
        optimizer=optimizer,
        vocab_multiple=usual_vocab_multiple(device.torch_device.type),
    )
    return config, step


def fits(device: Device, size: Size) -> bool:
    """Whether the device holds this step even in the least favourable case."""
    config, step = question(device, size)
    return verdict(memory_ledger(config, step).total, usable_bytes(device)) == FITS


def measure(device: Device, config: GPT2Config, step: TrainingStep) -> Sample:
    """The median time of a step of one model."""
    return Sample(letters_of(config, step), step_seconds(config, step, device))


def step_seconds(
    config: GPT2Config, step: TrainingStep, device: Device, seconds: float = SECONDS_PER_SAMPLE
) -> float:
    """Median time of real training steps on random tokens, without the first ones, which set up."""
    keep_freed_pages()
    model = GPT2(config, step.vocab_multiple).to(device.torch_device)
    model.spare_memory(step.checkpointed_blocks, step.loss_chunks)
    optimizer = Optimizer(model, TrainConfig(optimizer=step.optimizer), device.dtype)
    shape = (step.micro_batch_size, step.context + 1)
    tokens = torch.randint(config.vocab_size, shape, device=device.torch_device)
    durations: list[float] = []
    while sum(durations) < seconds or len(durations) < LEAST_STEPS:
        started = time.perf_counter()
        for _ in range(step.grad_accum_steps):
            with device.autocast():
                loss = model(tokens[:, :-1], tokens[:, 1:])
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        loss.item()  # waits for the device
        durations.append(time.perf_counter() - started)
    return statistics.median(durations[len(durations) // 2 :])
