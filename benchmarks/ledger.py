"""How well the memory ledger knows a training step: its peak against that of the step traced.

First GPT-2 124M in the ways people train it, then random models and steps of the sizes that people
use, for CUDA and for a CPU. Tracing runs the real step on tensors without memory, so no size is too
large; nothing is timed.

    python benchmarks/ledger.py [--count 200]
"""

from __future__ import annotations

import argparse
import random
import statistics
from dataclasses import replace
from typing import Any

from gptfit.config import GPT2Config
from gptfit.plan.memory import memory_ledger
from gptfit.plan.step import (
    BFLOAT16,
    CHUNKED,
    EAGER,
    FLOAT32,
    RECOMPUTED,
    SDPA,
    WHOLE,
    TrainingStep,
)
from gptfit.train.trace import trace_step

MIB = 2**20


def gpt2(dropout: float, **values: Any) -> GPT2Config:
    """GPT-2 124M where nothing else is said."""
    return GPT2Config(resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout, **values)


NANOGPT = gpt2(0.0, vocab_size=50304)
HUGGING_FACE = gpt2(0.1, activation_function="gelu_new")
FUSED_GELU = gpt2(0.0, activation_function="gelu_pytorch_tanh")
STEP = TrainingStep.nanogpt(NANOGPT, 12)
CHUNKS: dict[str, Any] = {"loss": RECOMPUTED, "loss_chunks": 12}

GPT2_124M = {
    "nanoGPT": (NANOGPT, STEP),
    "the same, logits dropped before backward": (NANOGPT, replace(STEP, keeps_logits=False)),
    "the same, all blocks checkpointed": (NANOGPT, replace(STEP, checkpointed_blocks=12)),
    "the same, loss in 12 recomputed chunks": (NANOGPT, replace(STEP, **CHUNKS)),
    "both": (NANOGPT, replace(STEP, checkpointed_blocks=12, **CHUNKS)),
    "transformers, `gelu_new`, dropout 0.1": (
        HUGGING_FACE,
        TrainingStep.huggingface(HUGGING_FACE, 12),
    ),
    "transformers, `gelu_pytorch_tanh`": (FUSED_GELU, TrainingStep.huggingface(FUSED_GELU, 12)),
    "transformers, `gelu_new`, dropout 0.1, eager attention": (
        HUGGING_FACE,
        replace(TrainingStep.huggingface(HUGGING_FACE, 12), attention=EAGER),
    ),
}
"""Micro-batch 12, context 1024, bfloat16 autocast, AdamW."""


def random_case(seed: int, device_kind: str) -> tuple[GPT2Config, TrainingStep]:
    """A model and a training step as somebody might ask for them, the same for the same seed."""
    draw = random.Random(seed)
    n_head, n_layer = draw.choice([2, 6, 8, 12]), draw.choice([1, 2, 4, 6])
    context = draw.choice([64, 256, 1000, 1024])
    loss = draw.choice([WHOLE, WHOLE, CHUNKED, RECOMPUTED])
    config = gpt2(
        draw.choice([0.0, 0.0, 0.1]),
        vocab_size=draw.choice([65, 1000, 50257]),
        n_positions=context,
        n_embd=n_head * draw.choice([20, 32, 64, 80]),
        n_head=n_head,
        n_layer=n_layer,
        activation_function=draw.choice(["gelu_new", "gelu_new", "gelu", "relu", "silu"]),
        bias=draw.random() < 0.7,
        tie_word_embeddings=draw.random() < 0.8,
    )
    step = TrainingStep(
        micro_batch_size=draw.choice([1, 2, 8, 12, 64]),
        context=context,
        grad_accum_steps=draw.choice([1, 1, 4]),
        device_kind=device_kind,
        dtype=draw.choice([FLOAT32, BFLOAT16]),
        attention=EAGER if device_kind == "cuda" and draw.random() < 0.2 else SDPA,
        fused_gelu=device_kind == "cpu" or draw.random() < 0.7,
        checkpointed_blocks=draw.choice([0, 0, n_layer, draw.randint(0, n_layer)]),
        loss=loss,
        loss_chunks=1 if loss == WHOLE else draw.choice([4, 8]),
        fused_optimizer=draw.random() < 0.8,
        vocab_multiple=draw.choice([1, 64]),
    )
    return config, step


def peaks(config: GPT2Config, step: TrainingStep) -> tuple[float, int]:
    """Bytes at the worst moment of a training step, by the ledger and in the trace."""
    return memory_ledger(config, step).training_peak.bytes, trace_step(config, step).peak_bytes


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--count", type=int, default=200, help="random cases for each kind of device"
    )
    options = parser.parse_args()
    print(
        "| GPT-2 124M, batch 12 x 1024, bf16 | ledger, MiB | traced, MiB | error |\n|---|---|---|---|"
    )
    for name, (config, step) in GPT2_124M.items():
        ledger, traced = peaks(config, step)
        error = abs(ledger / traced - 1)
        print(f"| {name} | {ledger / MIB:,.1f} | {traced / MIB:,.1f} | {error:.3%} |", flush=True)
    print("\n| random steps for | cases | median error | largest |\n|---|---|---|---|")
    for kind in ("cuda", "cpu"):
        errors = []
        for seed in range(options.count):
            ledger, traced = peaks(*random_case(seed, kind))
            errors.append(abs(ledger / traced - 1))
        worst = max(range(len(errors)), key=errors.__getitem__)
        median = statistics.median(errors)
        print(
            f"| {kind} | {len(errors)} | {median:.3%} | {errors[worst]:.2%} (seed {worst}) |",
            flush=True,
        )


if __name__ == "__main__":
    main()
