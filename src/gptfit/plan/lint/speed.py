"""R07 to R09, R12 to R16, R18: rules on speed, precision, and how a run begins."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gptfit.config import GPT2Config, TrainConfig
from gptfit.plan.flops import training_flops_per_token
from gptfit.plan.lint.architecture import TILE
from gptfit.plan.lint.rules import ERROR, HINT, WARNING, Advice, rule
from gptfit.plan.lint.subject import Program, Subject
from gptfit.plan.step import BFLOAT16, FLOAT32, TrainingStep

if TYPE_CHECKING:
    from gptfit.plan.hardware import DeviceSpec


LAUNCH_SECONDS = 6e-6
"""What a program needs to start one kernel: 5 to 10 µs (PyTorch eager, estimated)."""
KERNELS_PER_LAYER = 37
"""About 12 in the forward and 25 in the backward pass."""
USUAL_EFFICIENCY = 0.5
"""Of the peak, in large matrix products."""
FLOAT16, FLOAT8 = "float16", "float8"


@rule(
    "R07",
    ERROR,
    "run.dtype",
    "a precision that the device or the program does not bear",
    "native bfloat16 needs compute capability 8.0; torch.amp: float16 needs GradScaler",
)
def unsuitable_dtype(step: TrainingStep, subject: Subject) -> Iterator[Advice]:
    """bfloat16 without hardware for it is emulated or refused. float16 gradients below 6e-8 become 0
    unless the loss is scaled up before the backward pass."""
    device = subject.device
    if step.dtype == BFLOAT16 and device is not None and device.bfloat16 is False:
        changes = subject.changes_of_step({"dtype": FLOAT32}) or {}
        yield Advice(f"{device.name} has no bfloat16", "dtype=float32", changes)
    if step.dtype == FLOAT16 and subject.program and not subject.program.grad_scaler:
        yield Advice(
            "float16 without a gradient scaler loses small gradients",
            "use torch.amp.GradScaler",
            {"program.grad_scaler": True},
            severity=WARNING,
        )


@rule(
    "R08",
    WARNING,
    "run.dtype",
    "float32 products on a GPU with tensor cores",
    "Karpathy, build-nanogpt: 1000 ms a step in float32, 333 in TF32, 300 in bf16 (A100)",
)
def slow_float32(step: TrainingStep, device: DeviceSpec, subject: Subject) -> Iterator[Advice]:
    """TF32 keeps float32's range and uses tensor cores; bfloat16 also halves the memory of activations.
    The weights stay float32 either way."""
    peaks = device.peak_flops
    plain, fast = peaks.get(FLOAT32), peaks.get("tfloat32")
    has_tf32 = subject.program is not None and subject.program.tf32
    if step.dtype != FLOAT32 or has_tf32 or not plain or not fast or fast <= 1.5 * plain:
        return
    message = (
        f"float32 at {plain / 1e12:,.0f} TFLOP/s; {device.name} has {fast / 1e12:,.0f} in TF32"
    )
    if subject.is_gptfit:
        changes = subject.changes_of_step({"dtype": BFLOAT16}) or {}
        yield Advice(message, "dtype=bfloat16", changes)
    else:
        fix = 'torch.set_float32_matmul_precision("high"), or bfloat16 autocast'
        yield Advice(message, fix, {"program.tf32": True})


@rule(
    "R09",
    HINT,
    "step.compiled",
    "compilation left out, or not worth its time",
    "Karpathy, build-nanogpt: 300 to 130 ms a step (A100)",
)
def compilation(step: TrainingStep, program: Program, subject: Subject) -> Iterator[Advice]:
    """torch.compile fuses what lies between the matrix products. It takes one to three minutes to
    start, and needs Triton, which Windows lacks."""
    seconds = subject.train.max_seconds if subject.train else None
    short = seconds is not None and seconds < 120
    pays = program.operating_system == "linux" and step.device_kind == "cuda" and not short
    if program.can_compile and pays and not step.compiled:
        yield Advice("not compiled: about twice as slow on a GPU", "model = torch.compile(model)")
    if step.compiled and program.operating_system == "windows":
        yield Advice("torch.compile has no Triton on Windows", "train without, or under WSL")
    if step.compiled and short:
        yield Advice(f"compiling takes longer than the run of {seconds:g} s", "train without")


@rule(
    "R12",
    HINT,
    "train.micro_batch_size",
    "a GPU that waits for its program",
    "37 kernels a layer at about 6 µs each, against the roofline",
)
def starved_gpu(
    model: GPT2Config, train: TrainConfig, step: TrainingStep, device: DeviceSpec
) -> Iterator[Advice]:
    """When starting the kernels takes longer than running them, a larger batch is free."""
    peak = device.peak_flops.get(step.dtype) or device.peak_flops.get(FLOAT32)
    if step.device_kind not in ("cuda", "rocm") or step.compiled or not peak:
        return
    starting = LAUNCH_SECONDS * KERNELS_PER_LAYER * model.n_layer
    computing = training_flops_per_token(model) * step.tokens / (peak * USUAL_EFFICIENCY)
    if computing < starting:
        factor = math.ceil(starting / computing)
        yield Advice(
            f"{step.micro_batch_size} sequences compute for {1e3 * computing:.2g} ms, starting their "
            f"kernels takes {1e3 * starting:.2g}",
            f"micro_batch_size up to {factor * step.micro_batch_size}, or CUDA graphs",
        )


@rule(
    "R13",
    HINT,
    "train.micro_batch_size",
    "a batch that does not fill the tiles of matrix units",
    "arXiv 2401.14489; NVIDIA, Matrix Multiplication Background",
)
def odd_micro_batch(model: GPT2Config, train: TrainConfig, step: TrainingStep) -> Iterator[Advice]:
    """Products of n tokens are computed in tiles of 128 (or 64) rows. Multiples of 8 sequences also fit
    the attention kernels' blocks."""
    if step.device_kind not in ("cuda", "rocm"):
        return
    if step.tokens % 128:
        message = f"{step.tokens:,} tokens a micro-batch do not fill tiles of 128 rows"
        yield Advice(message, "make micro_batch_size · n_positions a multiple of 128")
    elif step.micro_batch_size > 8 and step.micro_batch_size % 4:
        larger = -(-step.micro_batch_size // 8) * 8
        message = f"micro_batch_size={step.micro_batch_size} is no multiple of 8"
        yield Advice(message, f"{larger} costs about the same")


@rule(
    "R14",
    HINT,
    "step.evaluation_batch_size",
    "evaluation in other batches than training",
    "axolotl, schemas/validation.py: eval_batch_size different from micro_batch_size",
)
def other_evaluation_batch(step: TrainingStep, subject: Subject) -> Iterator[Advice]:
    """The allocator keeps blocks of both sizes, and the peak may be the evaluation's. gptfit sizes its
    own by the logits."""
    batch = step.evaluation_batch_size
    if not subject.is_gptfit and batch is not None and batch != step.micro_batch_size:
        message = f"evaluation takes {batch} sequences, training {step.micro_batch_size}"
        yield Advice(message, f"evaluate {step.micro_batch_size} at a time")


@rule(
    "R15",
    WARNING,
    "step.dtype",
    "float8 on sizes that do not gain from it",
    "nanochat, dev/LOG.md, 2 February 2026: depth 12 slower, depth 26 17 % faster",
)
def small_float8(model: GPT2Config, step: TrainingStep) -> Iterator[Advice]:
    """float8 products need dimensions in multiples of 16, and win back the casts only when large."""
    if step.dtype != FLOAT8:
        return
    if model.n_embd % 16 or model.n_inner % 16:
        message = f"n_embd={model.n_embd}, n_inner={model.n_inner}: float8 needs multiples of 16"
        yield Advice(message, f"multiples of {TILE}")
    elif model.n_embd < 1536:
        message = f"at n_embd={model.n_embd} the casts cost more than float8 products save"
        yield Advice(message, "use bfloat16")


@rule(
    "R16",
    HINT,
    "model.n_positions",
    "far more positions than are trained",
    "a position that no window reaches keeps its first, random vector",
)
def unused_positions(model: GPT2Config, step: TrainingStep) -> Iterator[Advice]:
    """Unused positions cost parameters and, with a static cache, memory; using them later gives noise."""
    if step.context <= model.n_positions / 2:
        spare = (model.n_positions - step.context) * model.n_embd
        message = (
            f"windows of {step.context:,} tokens never reach n_positions={model.n_positions:,}: "
        )
        yield Advice(message + f"{spare:,} idle parameters", f"n_positions={step.context}")


@rule(
    "R18",
    WARNING,
    "model.initializer_range",
    "a first loss above that of a guess",
    "ln(vocab_size): every token equally likely",
)
def surprising_first_loss(
    model: GPT2Config, first_loss: float, subject: Subject
) -> Iterator[Advice]:
    """Before its first update a model can know nothing: ln(65) = 4.17, ln(50257) = 10.82. A higher loss
    says that initial weights, labels or the vocabulary are wrong; given weights start lower."""
    guess = math.log(model.vocab_size)
    if first_loss > guess + 0.3:
        message = f"the first loss is {first_loss:.2f}; guessing gives ln({model.vocab_size}) = {guess:.2f}"
        yield Advice(
            message, "check that labels are shifted once, the tokenizer, and initializer_range"
        )
