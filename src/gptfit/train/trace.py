"""One training step followed through every allocation and release, without any memory being used.

The step itself runs, on tensors that have shapes but no data: for a CPU on fake tensors, for CUDA on
meta tensors with CUDA's own choices made by ``cuda_emulation``. The peak, and what is alive then, are
exact for the tensors of the step. Not in it: room that kernels take for themselves, and the
allocator's rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from gptfit.config import GPT2Config, TrainConfig
from gptfit.errors import ConfigError, Problem
from gptfit.generate.evaluate import evaluation_batch_size
from gptfit.model import GPT2
from gptfit.model.activations import ACTIVATIONS, gelu_tanh
from gptfit.plan.step import (
    BFLOAT16,
    CHUNKED,
    EAGER,
    RECOMPUTED,
    SINGLE,
    TrainingStep,
)
from gptfit.train.cuda_emulation import CudaEmulation
from gptfit.train.optimizer import Optimizer
from gptfit.train.tracer import (
    EVALUATION,
    FORWARD,
    GRADIENTS,
    INPUTS,
    LOSS_BACKWARD,
    OPTIMIZER,
    OPTIMIZER_STEP,
    WEIGHTS,
    Trace,
    Tracer,
)
from gptfit.train.written_out import write_out

STEADY_STEPS = 2
"""The first update makes the optimizer's moments, the second one finds them."""


@dataclass
class Session:
    """Where a traced program makes its tensors, and the tracer, which it tells what they are for."""

    tracer: Tracer
    device: torch.device
    autocast: Callable[[], AbstractContextManager[Any]]
    kept: Any = None  # by the caller of the last loss

    def phase(self, name: str) -> None:
        """What follows belongs to this phase."""
        self.tracer.phase = name

    def train(
        self,
        model: nn.Module,
        optimizer: Optimizer | torch.optim.Optimizer,
        losses: Sequence[Callable[[], Any]],
        max_norm: float = 1.0,
    ) -> None:
        """One optimizer step: forward and backward for each of ``losses``, clipping, update.

        A loss function returns the loss, or (loss, what its caller keeps until it has the next one).
        """
        parameters = list(model.parameters())
        for loss_of in losses:
            self.phase(FORWARD)
            with self.autocast():
                result = loss_of()
            loss, self.kept = result if isinstance(result, tuple) else (result, None)
            del result
            self.phase(LOSS_BACKWARD)
            loss.backward()
            self.tracer.assign((p.grad for p in parameters if p.grad is not None), GRADIENTS)
            del loss
        self.phase(OPTIMIZER_STEP)
        # Meta tensors have no foreach norm; neither way takes memory worth a line.
        foreach = self.device.type != "meta"
        torch.nn.utils.clip_grad_norm_(parameters, max_norm, foreach=foreach)
        optimizer.step()
        self.tracer.assign(tensors_of(optimizer), OPTIMIZER)
        model.zero_grad(set_to_none=True)


@contextmanager
def session(device_kind: str, dtype: str) -> Iterator[Session]:
    """Inside, tensors have no memory and behave as on the device."""
    low = getattr(torch, dtype)
    if device_kind == "cpu":
        with FakeTensorMode(), Tracer("cpu") as tracer:
            yield Session(tracer, torch.device("cpu"), lambda: cpu_autocast(low))
    else:
        emulation = CudaEmulation(low)
        with emulation.active(), Tracer("meta") as tracer:
            yield Session(tracer, torch.device("meta"), lambda: emulation.autocast("cuda"))


def cpu_autocast(dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Autocast to ``dtype``, or none for float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast("cpu", dtype)


def trace(
    program: Callable[[Session], None], device_kind: str = "cuda", dtype: str = BFLOAT16
) -> Trace:
    """Trace what ``program`` does, from nothing on: its model is part of it."""
    with session(device_kind, dtype) as running:
        program(running)
        return running.tracer.result()


def trace_step(config: GPT2Config, step: TrainingStep, evaluates: bool = False) -> Trace:
    """gptfit's own model trained as ``step`` says, until a step repeats the one before.

    With ``evaluates`` an evaluation follows. Raises ``ConfigError`` for steps that run nowhere but on
    their device: compiled ones, and those of several devices.
    """
    require_traceable(step)

    def program(session: Session) -> None:
        model = build(config, step, session)
        optimizer = optimizer_of(model, step)
        for _ in range(STEADY_STEPS):
            inputs, targets = batch_of(step, session)
            # A third pass would repeat the second.
            pairs = list(zip(inputs, targets, strict=True))[:2]
            losses = [functools.partial(loss_of, model, step, *pair) for pair in pairs]
            session.train(model, optimizer, losses)
            del inputs, targets, pairs, losses
        if evaluates:
            evaluate(model, step, session)

    return trace(program, step.device_kind, step.dtype)


def require_traceable(step: TrainingStep) -> None:
    """Refuse what cannot be followed without the device."""
    reasons = {
        "compiled": step.compiled and "torch.compile makes its kernels on the device itself",
        "parallel": step.parallel != SINGLE and "one process cannot stand for several devices",
        "device_kind": step.device_kind not in ("cpu", "cuda") and "only cpu and cuda are known",
    }
    problems = [
        Problem(name, f"{name}={getattr(step, name)} cannot be traced: {why}", "trace it without")
        for name, why in reasons.items()
        if why
    ]
    if problems:
        raise ConfigError(problems)


def build(config: GPT2Config, step: TrainingStep, session: Session) -> GPT2:
    """The model, set up for the step."""
    with session.device:
        model = GPT2(config, step.vocab_multiple)
    session.tracer.assign([*model.parameters(), *model.buffers()], WEIGHTS)
    model.spare_memory(step.checkpointed_blocks, step.loss_chunks if step.loss == CHUNKED else 1)
    eager = step.attention == EAGER and not config.reorder_and_upcast_attn
    tanh = ACTIVATIONS[config.activation_function] is gelu_tanh
    write_out(model, gelu=tanh and not step.fused_gelu, attention=eager)
    return model


def batch_of(step: TrainingStep, session: Session) -> tuple[Tensor, Tensor]:
    """Inputs and targets of one optimizer step, (micro-batches, B, T)."""
    session.phase(FORWARD)
    shape = (step.grad_accum_steps, step.micro_batch_size, step.context)
    inputs = torch.zeros(shape, dtype=torch.int64, device=session.device)
    targets = torch.zeros_like(inputs)
    session.tracer.assign([inputs, targets], INPUTS)
    return inputs, targets


def evaluate(model: GPT2, step: TrainingStep, session: Session) -> None:
    """The loss of one batch, as ``gptfit.generate.evaluate`` takes it."""
    session.phase(EVALUATION)
    size = step.evaluation_batch_size or evaluation_batch_size(model.config)
    model.eval()
    with torch.inference_mode(), session.autocast():
        shape = (size, model.config.n_positions)
        ids, targets = (
            torch.zeros(shape, dtype=torch.int64, device=session.device) for _ in range(2)
        )
        loss_of(model, step, ids, targets)


def loss_of(model: GPT2, step: TrainingStep, inputs: Tensor, targets: Tensor) -> Any:
    """The loss; with it the logits where the caller keeps them, and there are any to keep."""
    if step.loss == RECOMPUTED:
        return recomputed_loss(model, inputs, targets, step.loss_chunks)
    if step.loss == CHUNKED or not step.keeps_logits:
        return model(inputs, targets)
    logits = model(inputs)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten()), logits


def recomputed_loss(model: GPT2, inputs: Tensor, targets: Tensor, chunks: int) -> Tensor:
    """The loss in chunks of tokens whose logits the backward pass computes again."""
    x, targets = model.hidden(inputs).flatten(0, 1), targets.flatten()
    rows = -(-len(x) // chunks)

    def part(x: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model.logits(x).float(), targets, reduction="sum")

    losses = [
        checkpoint(part, *pair, use_reentrant=False)
        for pair in zip(x.split(rows), targets.split(rows), strict=True)
    ]
    return torch.stack(losses).sum() / len(x)


def optimizer_of(model: GPT2, step: TrainingStep) -> Optimizer | torch.optim.Optimizer:
    """gptfit's own, or torch's default AdamW with its temporary copies."""
    if step.fused_optimizer:
        config = TrainConfig(optimizer=step.optimizer)
        return Optimizer(model, config, getattr(torch, step.dtype))
    return torch.optim.AdamW(model.parameters(), foreach=True)


def tensors_of(optimizer: Optimizer | torch.optim.Optimizer) -> list[Tensor]:
    """What an optimizer remembers."""
    if isinstance(optimizer, Optimizer):
        moments = list(optimizer.state().values())
        return [*moments, *([] if optimizer.adamw.updates is None else [optimizer.adamw.updates])]
    values = [value for state in optimizer.state.values() for value in state.values()]
    return [value for value in values if isinstance(value, Tensor)]
