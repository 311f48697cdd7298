"""R01 to R06, R10, R11, R17: rules on memory; they ask the planner's ledger."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gptfit.config import GPT2Config, TrainConfig
from gptfit.plan.interval import Interval
from gptfit.plan.lint.rules import ERROR, HINT, WARNING, Advice, assignments, rule
from gptfit.plan.lint.subject import Program, Subject
from gptfit.plan.params import count_parameters
from gptfit.plan.quantities import BYTES, text_of
from gptfit.plan.step import CHUNKED, DDP, EAGER, FLOAT32, SDPA, WHOLE, TrainingStep

if TYPE_CHECKING:
    from gptfit.plan.hardware import DeviceSpec
    from gptfit.plan.memory import Ledger


LOSS_CHUNKS = 8
FREE = {"loss", "loss_chunks", "fused_gelu", "attention", "fused_optimizer"}
"""What may be changed at no cost in time."""


def in_bytes(quantity: float | Interval) -> str:
    """Bytes as people read them."""
    return text_of(quantity, BYTES)


@rule(
    "R01",
    ERROR,
    "train.micro_batch_size",
    "a training step that does not fit the device",
    "the memory ledger: gptfit plan shows every term",
)
def too_large(
    train: TrainConfig, step: TrainingStep, device: DeviceSpec, ledger: Ledger, subject: Subject
) -> Iterator[Advice]:
    """An error when the expected need exceeds what the device can give, a warning when only the upper
    end of its interval does. The fix names the cheapest changes that suffice, then what each remedy saves."""
    from gptfit.plan.memory import FITS, NO, remedies, verdict

    need, usable = ledger.total, device.usable_bytes
    answer = verdict(need, usable)
    if answer == FITS:
        return
    possible = [
        (remedy, changes)
        for remedy in remedies(subject.model, step, device)
        if (changes := subject.changes_of_step(remedy.change))
    ]
    savings = [f"{remedy.name} saves {in_bytes(remedy.saves_bytes)}" for remedy, _ in possible[:4]]
    free = [changes for remedy, changes in possible if remedy.change.keys() <= FREE]
    enough = _enough(subject, device, free)
    advised = [f"{assignments(enough)} fits"] if enough else []
    yield Advice(
        f"a step needs {in_bytes(need)}, {device.name} has {in_bytes(usable)}",
        ", ".join([*advised, *savings]) or "a smaller model, a shorter context, a larger device",
        enough,
        severity=ERROR if answer == NO else WARNING,
    )


def _enough(subject: Subject, device: DeviceSpec, free: list[dict[str, Any]]) -> dict[str, Any]:
    """The changes that make a step fit at the least cost; none where nothing does.

    First what costs no time, then smaller micro-batches, then checkpointing too.
    """
    made: dict[str, Any] = {}
    for changes in free:
        made |= changes
        if _fits(subject.changed(made), device):
            return made
    blocks = subject.changes_of_step({"checkpointed_blocks": subject.model.n_layer}) or {}
    for changes in (made, made | blocks):
        smaller = changes | _largest_batch(subject.changed(changes), device)
        if smaller and _fits(subject.changed(smaller), device):
            return smaller
    return {}


def _fits(subject: Subject, device: DeviceSpec) -> bool:
    from gptfit.plan.memory import FITS, verdict

    ledger = subject.ledger
    return ledger is not None and verdict(ledger.total, device.usable_bytes) == FITS


def _largest_batch(subject: Subject, device: DeviceSpec) -> dict[str, Any]:
    """The largest micro-batch that divides the batch and fits."""
    from gptfit.plan.memory import largest_micro_batch

    batch, step = subject.recipe.train.batch_size, subject.step
    assert step is not None
    most = min(batch, largest_micro_batch(subject.model, step, device.usable_bytes, device))
    sizes = (size for size in range(most, 0, -1) if batch % (size * step.world_size) == 0)
    best = next(sizes, None)
    return {} if best is None else {"train.micro_batch_size": best}


@rule(
    "R02",
    WARNING,
    "model.activation_function",
    "GELU written out in elementary operations",
    "transformers 5.23, NewGELUActivation: traced 19,040 against 13,856 MiB for GPT-2 small, batch 12",
)
def composite_gelu(model: GPT2Config, step: TrainingStep) -> Iterator[Advice]:
    """Eager, each operation keeps its result for the backward pass, pow in float32: 12 bytes more per
    feed-forward channel and token. gelu_pytorch_tanh is the same function as one kernel; compilation
    fuses the others too."""
    written_out = not step.fused_gelu and not step.compiled
    if written_out and model.activation_function == "gelu_new":
        saved = 12 * model.n_inner * step.tokens * max(1, model.n_layer - step.checkpointed_blocks)
        yield Advice(
            f"gelu_new keeps {in_bytes(saved)} more than gelu_pytorch_tanh, the same function",
            "activation_function=gelu_pytorch_tanh",
            {"model.activation_function": "gelu_pytorch_tanh", "step.fused_gelu": True},
        )


@rule(
    "R03",
    WARNING,
    "step.attention",
    "attention that keeps its score matrix",
    "traced: 6·n_head·T bytes per token and layer in bf16, 7 with dropout",
)
def eager_attention(model: GPT2Config, step: TrainingStep, subject: Subject) -> Iterator[Advice]:
    """Eager attention writes n_head · T scores per token and layer, several times; scaled-dot-product
    attention never has them in memory and is faster. Only for reading attention weights it is needed."""
    if step.attention != EAGER or step.context < 512:
        return
    per_score = 7 if model.attn_pdrop else 6
    size = per_score * model.n_head * step.context * step.tokens * model.n_layer
    changes = subject.changes_of_step({"attention": SDPA})
    message = f"the score matrices take about {in_bytes(size)}"
    yield Advice(message, "" if subject.is_gptfit else "attn_implementation=sdpa", changes or {})


@rule(
    "R04",
    WARNING,
    "run.loss_chunks",
    "a loss on all logits at once",
    "traced: 14 bytes per token and vocabulary entry in bf16; Wijmans et al. 2024, arXiv 2411.09009",
)
def whole_loss(
    step: TrainingStep, device: DeviceSpec, ledger: Ledger, subject: Subject
) -> Iterator[Advice]:
    """Logits, their logarithms and their gradients are the largest thing in the memory of a small
    model. In chunks they exist for a few tokens at a time, at nearly no cost. A hint while the step
    takes less than half of the device."""
    if subject.model.vocab_size < 16_000 or step.tokens <= 8192 or step.loss != WHOLE:
        return
    changes = subject.changes_of_step({"loss": CHUNKED, "loss_chunks": LOSS_CHUNKS})
    if not changes:
        return
    chunked = dataclasses.replace(step, loss=CHUNKED, loss_chunks=LOSS_CHUNKS)
    saved = ledger.allocated.best - _allocated(subject, chunked)
    if saved <= 0:
        return
    peak = ledger.peak
    logits = sum(term.bytes for term in peak.terms if term.component == "logits and loss")
    yield Advice(
        f"logits and loss take {in_bytes(logits)} of {in_bytes(peak.bytes)}; in {LOSS_CHUNKS} chunks the step "
        f"takes {in_bytes(saved)} less",
        f"loss_chunks={LOSS_CHUNKS}",
        changes,
        severity=WARNING if ledger.total.best > device.usable_bytes / 2 else HINT,
    )


def _allocated(subject: Subject, step: TrainingStep) -> float:
    """Expected peak of the tensors, bytes."""
    from gptfit.plan.memory import memory_ledger

    return memory_ledger(subject.model, step, subject.device).allocated.best


@rule(
    "R05",
    HINT,
    "run.checkpointed_blocks",
    "checkpointing although everything fits",
    "a third more work: each block's forward pass runs twice",
)
def needless_checkpointing(
    model: GPT2Config, step: TrainingStep, device: DeviceSpec, ledger: Ledger, subject: Subject
) -> Iterator[Advice]:
    """Checkpointed blocks trade time for memory; where the memory is there, it is only slow."""
    if not step.checkpointed_blocks:
        return
    from gptfit.plan.memory import FITS, memory_ledger, verdict

    changes = subject.changes_of_step({"checkpointed_blocks": 0})
    plain = memory_ledger(model, dataclasses.replace(step, checkpointed_blocks=0), device)
    if changes and verdict(plain.total, device.usable_bytes) == FITS:
        share = step.checkpointed_blocks / model.n_layer
        message = (
            f"the step fits without ({in_bytes(plain.total.best)}); recomputing "
            f"{step.checkpointed_blocks} of {model.n_layer} blocks costs up to {share / 3:.0%} more time"
        )
        yield Advice(message, "checkpointed_blocks=0", changes)


@rule(
    "R06",
    WARNING,
    "model.use_cache",
    "a key-value cache during training",
    "transformers 5.23, modeling_layers.py:98 turns it off with a message",
)
def cache_in_training(model: GPT2Config, program: Program, step: TrainingStep) -> Iterator[Advice]:
    """The cache is for generating. In training it copies every layer's keys and values for nothing, and
    with checkpointing it is turned off behind your back. gptfit trains without."""
    if program.use_cache and model.use_cache:
        size = 4 * model.n_embd * model.n_layer * step.tokens
        message = f"the cache copies keys and values, {in_bytes(size)}, that training never reads"
        yield Advice(message, changes={"model.use_cache": False})


@rule(
    "R10",
    HINT,
    "step.bucket_views",
    "gradients copied into DDP's buckets",
    "PyTorch issue 41954: RoBERTa from 8,250 to 7,183 MB",
)
def copied_gradients(model: GPT2Config, step: TrainingStep) -> Iterator[Advice]:
    """By default DistributedDataParallel copies each gradient into a bucket of its own."""
    if step.parallel == DDP and step.world_size > 1 and not step.bucket_views:
        size = 4 * count_parameters(model).total
        message = f"DDP keeps a second copy of the gradients, {in_bytes(size)}"
        yield Advice(message, "gradient_as_bucket_view=True", {"step.bucket_views": True})


@rule(
    "R11",
    HINT,
    "step.fused_optimizer",
    "an optimizer with temporaries near the limit",
    "traced: foreach AdamW holds the square roots of all second moments at once",
)
def foreach_optimizer(
    model: GPT2Config, step: TrainingStep, device: DeviceSpec, ledger: Ledger
) -> Iterator[Advice]:
    """torch's default on GPUs is foreach; the fused one updates in place, in one kernel. gptfit's is
    fused."""
    if not step.fused_optimizer and ledger.total.high > 0.9 * device.usable_bytes:
        size = 4 * count_parameters(model).total
        message = (
            f"foreach AdamW needs {in_bytes(size)} of temporaries near the limit of {device.name}"
        )
        yield Advice(message, "AdamW(..., fused=True)", {"step.fused_optimizer": True})


@rule(
    "R17",
    HINT,
    "step.keeps_logits",
    "logits held through the backward pass",
    "traced: 13,864 against 12,685 MiB for GPT-2 small, batch 12",
)
def kept_logits(model: GPT2Config, step: TrainingStep) -> Iterator[Advice]:
    """A variable such as outputs.logits keeps them alive while their gradients are made. gptfit's model
    returns the loss alone."""
    if step.keeps_logits and step.loss == WHOLE:
        width = 2 if step.dtype != FLOAT32 else 4
        size = width * model.vocab_size * step.tokens
        message = f"the logits, {in_bytes(size)}, live on through the backward pass"
        yield Advice(message, "del logits before loss.backward()", {"step.keeps_logits": False})
