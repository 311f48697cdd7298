"""One question to the ledger: this model, trained by this step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gptfit.config import GPT2Config
from gptfit.plan.memory.formula import complete, evaluate
from gptfit.plan.step import (
    ADAMW,
    BFLOAT16,
    CHUNKED,
    DDP,
    EAGER,
    FSDP,
    MUON,
    RECOMPUTED,
    WHOLE,
    TrainingStep,
)

TANH_GELU = {
    "gelu_new",
    "gelu_accurate",
    "gelu_fast",
    "gelu_python_tanh",
    "gelu_pytorch_tanh",
}
LOGITS_LIMIT = 2**24
"""Elements of the logits of one batch of ``gptfit.generate.evaluate``, which a test holds it to."""


@dataclass(frozen=True)
class Case:
    """What the conditions of rows ask about, in words."""

    config: GPT2Config
    step: TrainingStep

    def letters(self) -> dict[str, Any]:
        """The values of the formulas' letters."""
        config, step = self.config, self.step
        return {
            "V": config.vocab_size,
            "R": config.n_positions,
            "T": step.context,
            "C": config.n_embd,
            "F": config.n_inner,
            "L": config.n_layer,
            "H": config.n_head,
            "B": step.micro_batch_size,
            "E": self.evaluation_batch,
        } | self.options()

    def options(self) -> dict[str, Any]:
        """The letters that a search does not vary within one case."""
        return {
            "q": self.step.vocab_multiple,
            "s": 2 if self.autocast else 4,
            "A": self.step.grad_accum_steps,
            "b": int(self.config.bias),
            "u": int(not self.config.tie_word_embeddings),
            "k": self.step.checkpointed_blocks,
            "K": self.step.loss_chunks if self.step.loss != WHOLE else 1,
            "W": self.step.world_size,
            "o": int(self.muon),
        }

    @property
    def autocast(self) -> bool:
        """Whether matrices are multiplied in bfloat16."""
        return self.step.dtype == BFLOAT16

    @property
    def evaluation_batch(self) -> int:
        """Sequences of one batch of the evaluation; ``gptfit.generate.evaluate`` bounds the logits."""
        logits = self.config.n_positions * self.config.vocab_size
        return self.step.evaluation_batch_size or max(1, min(64, LOGITS_LIMIT // logits))

    @property
    def keeps_logits(self) -> bool:
        """Whether the caller holds on to the logits."""
        return self.step.keeps_logits and self.whole_loss

    @property
    def pads(self) -> bool:
        """Whether the vocabulary is padded."""
        return self.config.vocab_size % self.step.vocab_multiple > 0

    @property
    def checkpoints(self) -> bool:
        """Whether blocks are computed again in the backward pass."""
        return self.step.checkpointed_blocks > 0

    @property
    def cpu(self) -> bool:
        """Whether the step runs on a CPU."""
        return self.step.device_kind == "cpu"

    @property
    def compiled(self) -> bool:
        """Whether torch.compile made the step."""
        return self.step.compiled

    @property
    def upcast(self) -> bool:
        """Whether attention computes its scores in float32, one operation after the other."""
        return self.config.reorder_and_upcast_attn

    @property
    def eager(self) -> bool:
        """Whether attention is written out in elementary operations, as Hugging Face can."""
        return self.step.attention == EAGER

    @property
    def flash(self) -> bool:
        """Whether attention is one kernel, which never holds the scores of all heads."""
        return not (self.cpu and self.attn_dropout)

    @property
    def blocked(self) -> bool:
        """Whether attention is ``gptfit.model.attention.BlockedAttention``, which keeps its weights."""
        return self.cpu and self.autocast and not self.attn_dropout

    @property
    def pads_heads(self) -> bool:
        """Whether CUDA's flash attention gets copies with wider heads."""
        return self.autocast and not self.cpu and self.config.head_dim % 8 > 0

    def mask_of(self, on_cpu: str, elsewhere: str) -> str:
        """The bytes of a dropout's mask: bool in CUDA's kernel, a tensor like the input on a CPU."""
        return on_cpu if self.cpu else elsewhere

    @property
    def resid_dropout(self) -> bool:
        return self.config.resid_pdrop > 0

    @property
    def embd_dropout(self) -> bool:
        return self.config.embd_pdrop > 0

    @property
    def attn_dropout(self) -> bool:
        return self.config.attn_pdrop > 0

    @property
    def accumulates(self) -> bool:
        """Whether gradients of earlier micro-batches are held."""
        return self.step.grad_accum_steps > 1

    @property
    def grads_in_buckets(self) -> bool:
        """Whether gradients are views of DDP's buckets and take no memory of their own."""
        return self.ddp and self.step.bucket_views

    @property
    def adds_up(self) -> bool:
        """Whether there is room for gradients before the backward pass, to which it adds its own."""
        return self.accumulates or self.fsdp or self.grads_in_buckets

    @property
    def casts(self) -> bool:
        """Whether autocast keeps copies of the weights. FSDP gathers them in bfloat16 instead."""
        return self.autocast and not self.fsdp

    @property
    def tied(self) -> bool:
        return self.config.tie_word_embeddings

    @property
    def muon(self) -> bool:
        return self.step.optimizer == MUON

    @property
    def adamw(self) -> bool:
        return self.step.optimizer == ADAMW

    @property
    def ddp(self) -> bool:
        return self.step.parallel == DDP and self.step.world_size > 1

    @property
    def fsdp(self) -> bool:
        return self.step.parallel == FSDP and self.step.world_size > 1

    @property
    def composite_gelu(self) -> bool:
        """Whether the tanh approximation of GELU is written out in elementary operations."""
        named = self.config.activation_function in TANH_GELU
        return named and not self.step.fused_gelu and not self.compiled

    @property
    def whole_loss(self) -> bool:
        return self.step.loss == WHOLE

    @property
    def recomputed_loss(self) -> bool:
        return self.step.loss == RECOMPUTED

    @property
    def chunked_loss(self) -> bool:
        return self.step.loss == CHUNKED


def letters_of_sizes(
    sizes: Mapping[str, Any], step: TrainingStep, config: GPT2Config | None = None
) -> dict[str, Any]:
    """All letters of many models at once, from V, T, C, F, L, H and B as numbers or numpy arrays.

    Other letters may be given too (A, k); what else the architecture decides is ``config``'s.
    """
    case = Case(config or GPT2Config(), step)
    batch = step.evaluation_batch_size
    limit = f"max(1, min(64, {LOGITS_LIMIT} // (T·V)))" if batch is None else str(batch)
    rest = {"R": sizes["T"], "E": evaluate(limit, sizes)}
    return complete({**rest, **case.options(), **sizes})
