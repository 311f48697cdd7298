"""A17 to A23: rules on initial weights and on how attention is computed."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gptfit.config import GPT2Config
from gptfit.plan.lint.architecture import HF_GUIDE
from gptfit.plan.lint.rules import HINT, WARNING, Advice, Refusal, rule
from gptfit.plan.lint.subject import Program, Subject, is_gpt2
from gptfit.plan.step import EAGER, TrainingStep


@rule(
    "A17",
    WARNING,
    "program.residual_scaling",
    "a deep model without scaled residual writers",
    "Radford et al. 2019, section 2.3",
)
def unscaled_residuals(fresh: GPT2Config, program: Program) -> Iterator[Advice]:
    """Every block adds twice to the residual stream; drawing what it adds 1/sqrt(2 n_layer) smaller
    keeps the stream's variance independent of depth. gptfit and transformers do."""
    if fresh.n_layer >= 24 and not program.residual_scaling:
        std = fresh.initializer_range / math.sqrt(2 * fresh.n_layer)
        yield Advice(
            f"{fresh.n_layer} layers add up without the factor 1/sqrt(2·n_layer)",
            f"draw c_proj.weight with a deviation of {std:.2g}",
            {"program.residual_scaling": True},
        )


@rule(
    "A18", WARNING, "model.initializer_range", "initial weights that are too large or zero",
    "GPT-2 uses 0.02; 5.0 starts at a loss of 83 in transformers 5.23",
    Refusal("initializer_range", "must be positive", lambda _: {"model.initializer_range": 0.02}),
)  # fmt: skip
def large_initial_weights(fresh: GPT2Config) -> Iterator[Advice]:
    """A model should start knowing nothing, at a loss of ln(vocab_size); large weights start above."""
    std = fresh.initializer_range
    if std > 0.05:
        start = math.log(fresh.vocab_size)
        message = f"initializer_range={std:g} starts far above ln(vocab_size) = {start:.2f}"
        yield Advice(message, changes={"model.initializer_range": 0.02})


@rule(
    "A19",
    HINT,
    "model.initializer_range",
    "a wide model with the deviation of a narrow one",
    HF_GUIDE,
)
def wide_initial_weights(fresh: GPT2Config, program: Program) -> Iterator[Advice]:
    """A product over n_embd channels grows with sqrt(n_embd); without scaled residual writers a wide
    model wants a smaller deviation, about 1/sqrt(n_embd) halved."""
    if fresh.n_embd >= 1600 and fresh.initializer_range >= 0.02 and not program.residual_scaling:
        message = (
            f"initializer_range={fresh.initializer_range:g} at n_embd={fresh.n_embd} without "
            "scaled residual writers"
        )
        yield Advice(message, f"initializer_range={0.5 / math.sqrt(fresh.n_embd):.2g}")


@rule(
    "A20",
    WARNING,
    "model.scale_attn_weights",
    "attention without its scale",
    "Vaswani et al. 2017, section 3.2.1",
)
def unscaled_attention(fresh: GPT2Config) -> Iterator[Advice]:
    """Scores of heads D wide have a variance of D; undivided, the softmax saturates."""
    if not fresh.scale_attn_weights:
        message = f"without the scaling by 1/sqrt({fresh.head_dim}) the softmax saturates"
        yield Advice(message, changes={"model.scale_attn_weights": True})


@rule(
    "A21",
    HINT,
    "model.scale_attn_by_inverse_layer_idx",
    "scaling by layer where depth does not ask for it",
    HF_GUIDE,
)
def odd_inverse_scaling(fresh: GPT2Config) -> Iterator[Advice]:
    """Dividing the scores of layer i by i + 1 steadies very deep models in low precision (Mistral,
    Stanford CRFM); in shallow ones it only weakens the attention of the upper layers."""
    on = fresh.scale_attn_by_inverse_layer_idx
    if on and fresh.n_layer < 24:
        message = f"scaling by layer is meant for 24 layers and more, not {fresh.n_layer}"
        yield Advice(message, "scale_attn_by_inverse_layer_idx=false")
    if not on and fresh.n_layer >= 48 and not is_gpt2(fresh):
        message = f"{fresh.n_layer} layers train more steadily with scaling by layer"
        yield Advice(message, "scale_attn_by_inverse_layer_idx=true")


@rule(
    "A22",
    WARNING,
    "model.reorder_and_upcast_attn",
    "upcast attention that costs much or does nothing",
    "transformers 5.23, modeling_gpt2.py:206",
)
def needless_upcast(fresh: GPT2Config, subject: Subject) -> Iterator[Advice]:
    """Written for float16, whose range attention scores can leave. transformers ignores it unless
    attn_implementation is eager; where it works, the whole score matrix is kept in float32."""
    step = subject.step
    if not fresh.reorder_and_upcast_attn or (step is not None and _overflows(step)):
        return
    changes = {"model.reorder_and_upcast_attn": False}
    if step is not None and step.attention != EAGER:
        yield Advice("has no effect: the attention is not eager", changes=changes)
    else:
        message = "keeps the whole score matrix in float32, which bfloat16 does not need"
        yield Advice(message, changes=changes, severity=HINT)


def _overflows(step: TrainingStep) -> bool:
    return step.dtype == "float16" and step.attention == EAGER


@rule(
    "A23",
    WARNING,
    "model.reorder_and_upcast_attn",
    "float16 attention scores that can overflow",
    "Mistral, Stanford CRFM 2021; float16 ends at 65504",
)
def overflowing_attention(model: GPT2Config, step: TrainingStep) -> Iterator[Advice]:
    """Eager attention computes its scores in the dtype of the products; float16 overflows there."""
    if _overflows(step) and not model.reorder_and_upcast_attn:
        message = "eager attention in float16 overflows at scores beyond 65504"
        yield Advice(message, changes={"model.reorder_and_upcast_attn": True})
