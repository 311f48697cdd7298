"""How a training step is computed: what memory and time depend on beside the model's sizes."""

from __future__ import annotations

from dataclasses import dataclass

from gptfit.config import GPT2Config, Recipe

FLOAT32, BFLOAT16 = "float32", "bfloat16"
SDPA, EAGER = "sdpa", "eager"
WHOLE, CHUNKED, RECOMPUTED = "whole", "chunked", "recomputed"
ADAMW, MUON = "adamw", "muon"
SINGLE, DDP, FSDP = "single", "ddp", "fsdp"

BF16_MIN_WIDTH_ON_CPU = 64
"""Below this width the casts cost a CPU more than its bf16 instructions save (docs/lab-book.md)."""


def usual_dtype(device_kind: str, has_bfloat16: bool, n_embd: int) -> str:
    """What ``dtype=auto`` comes to: bfloat16 where it is native and pays."""
    pays = device_kind != "cpu" or n_embd >= BF16_MIN_WIDTH_ON_CPU
    return BFLOAT16 if has_bfloat16 and pays else FLOAT32


def usual_vocab_multiple(device_kind: str) -> int:
    """Tensor cores want the vocabulary's matrices in whole tiles: 50257 becomes 50304 inside."""
    return 64 if device_kind == "cuda" else 1


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """One optimizer step, as a program computes it. Weights and moments are float32.

    ``dtype`` bfloat16 means autocast. ``attention`` eager materialises the scores. ``fused_gelu``
    is one kernel; without it the tanh approximation is written out in elementary operations, as
    Hugging Face's ``gelu_new`` is. ``loss`` is computed on all logits at once (whole), in
    ``loss_chunks`` chunks whose gradient is taken in the same pass (chunked), or in chunks that the
    backward pass recomputes (recomputed). ``keeps_logits``: the caller holds on to them.
    ``bucket_views``: DDP's gradients are views of its buckets instead of copies.
    ``evaluation_batch_size`` None is what ``gptfit.generate.evaluate`` takes.
    """

    micro_batch_size: int = 1
    context: int
    grad_accum_steps: int = 1
    device_kind: str = "cuda"
    dtype: str = BFLOAT16
    attention: str = SDPA
    fused_gelu: bool = True
    compiled: bool = False
    checkpointed_blocks: int = 0
    loss: str = WHOLE
    loss_chunks: int = 1
    keeps_logits: bool = False
    optimizer: str = ADAMW
    fused_optimizer: bool = True
    vocab_multiple: int = 1
    parallel: str = SINGLE
    world_size: int = 1
    bucket_views: bool = False
    evaluation_batch_size: int | None = None

    @property
    def tokens(self) -> int:
        """Tokens of one forward pass on one device."""
        return self.micro_batch_size * self.context

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step over all devices."""
        return self.tokens * self.grad_accum_steps * self.world_size

    @classmethod
    def gptfit(cls, recipe: Recipe, device_kind: str, dtype: str) -> TrainingStep:
        """The step that ``gptfit train`` takes for this recipe."""
        model, train = recipe.model, recipe.train
        pad = recipe.run.pad_vocab_to_multiple
        return cls(
            micro_batch_size=train.micro_batch_size,
            context=model.n_positions,
            grad_accum_steps=train.grad_accum_steps,
            device_kind=device_kind,
            dtype=dtype,
            attention=EAGER if model.reorder_and_upcast_attn else SDPA,
            checkpointed_blocks=recipe.run.checkpointed_blocks,
            optimizer=train.optimizer,
            loss=CHUNKED if recipe.run.loss_chunks > 1 else WHOLE,
            loss_chunks=recipe.run.loss_chunks,
            vocab_multiple=usual_vocab_multiple(device_kind) if pad is None else pad,
        )

    @classmethod
    def nanogpt(cls, config: GPT2Config, micro_batch_size: int) -> TrainingStep:
        """nanoGPT's ``train.py`` on a GPU, without compilation."""
        return cls(
            micro_batch_size=micro_batch_size,
            context=config.n_positions,
            keeps_logits=True,
            evaluation_batch_size=micro_batch_size,
        )

    @classmethod
    def huggingface(cls, config: GPT2Config, micro_batch_size: int) -> TrainingStep:
        """A plain loop over ``GPT2LMHeadModel`` with bf16 autocast and torch's default AdamW."""
        return cls(
            micro_batch_size=micro_batch_size,
            context=config.n_positions,
            fused_gelu=config.activation_function != "gelu_new",
            keeps_logits=True,
            fused_optimizer=False,
            evaluation_batch_size=micro_batch_size,
        )
