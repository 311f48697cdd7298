"""For each rule a subject that it remarks on, and one that it has nothing to say about."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from gptfit.config import GPT2Config, Recipe
from gptfit.plan.hardware import DeviceSpec
from gptfit.plan.lint import DataFacts, Pretrained, Program, Subject

GIB = 2**30
TERA = 1e12

AMPERE = DeviceSpec(
    name="a card",
    kind="cuda",
    architecture="sm80",
    memory_bytes=24 * GIB,
    usable_bytes=23 * GIB,
    bandwidth=1e12,
    peak_flops={"float32": 20 * TERA, "tfloat32": 156 * TERA, "bfloat16": 312 * TERA},
    bfloat16=True,
    source="made up",
    confidence="uncertain",
)
HOPPER = dataclasses.replace(AMPERE, architecture="sm90", usable_bytes=140 * GIB)
TURING = dataclasses.replace(
    AMPERE, architecture="sm75", peak_flops={"float32": 8 * TERA}, bfloat16=False
)
SMALL_CARD = dataclasses.replace(AMPERE, usable_bytes=10 * GIB)
SMALLEST_CARD = dataclasses.replace(AMPERE, usable_bytes=2 * GIB)
NARROW = ["n_layer=2", "n_embd=64", "n_head=2", "n_positions=64"]
SHAPED = ["n_layer=8", "n_embd=512", "n_head=8"]
GPT2 = Pretrained(GPT2Config(), tokenizer="a" * 64)
HF = Program.named("huggingface")
NANOGPT = Program.named("nanogpt")
TEXT = DataFacts(train_tokens=10**6, val_tokens=10**5, vocab_size=65, text_bytes=11 * 10**5)


def subject(*overrides: str, preset: str | None = None, **known: Any) -> Subject:
    """A recipe with overrides, and what is known beside it."""
    return Subject(recipe=Recipe.resolve(preset=preset, overrides=overrides), **known)


def epochs(number: float, *overrides: str, **known: Any) -> Subject:
    """A small run that sees its 983,040 tokens this often."""
    steps = max(1, round(number * 60))
    batch = ["batch_size=64", "n_positions=256", f"max_steps={steps}", "vocab_size=65"]
    data = dataclasses.replace(TEXT, train_tokens=60 * 64 * 256)
    return subject(*batch, *overrides, data=data, **known)


def habits(**values: Any) -> Program:
    """Hugging Face's plain loop with other habits."""
    return dataclasses.replace(HF, **values)


def step(program: Program = HF, **values: Any) -> Program:
    """A program with another training step."""
    return dataclasses.replace(program, step=values)


# Of the rules that the configuration itself enforces: overrides that break them, and that do not.
REFUSED: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "A01": (["n_head=10"], ["n_head=8"]),
    "A02": (["n_layer=0"], ["n_layer=1"]),
    "A03": (["resid_pdrop=1.0"], ["resid_pdrop=0.9"]),
    "A04": (["n_emb=768"], ["n_embd=768"]),
    "A05": (["activation_function=gleu"], ["activation_function=gelu"]),
    "A06": (["layer_norm_epsilon=-1"], ["layer_norm_epsilon=1e-5"]),
    "A07": (["vocab_size=65", "eos_token_id=50256"], ["vocab_size=65", "eos_token_id=64"]),
    "A18": (["initializer_range=0"], ["initializer_range=0.02"]),
    "A25": (["summary_type=attn"], ["summary_type=mean"]),
    "T03": (["learning_rate=1e-4", "min_lr=1e-3"], ["learning_rate=1e-3", "min_lr=1e-3"]),
    "T07": (["batch_size=12", "micro_batch_size=5"], ["batch_size=12", "micro_batch_size=4"]),
}

# Of the others: a subject that the rule remarks on, and its neighbour that is fine.
ADVISED: dict[str, tuple[Subject, Subject]] = {
    "A06": (subject("layer_norm_epsilon=0.01"), subject("layer_norm_epsilon=1e-3")),
    "A08": (
        subject("vocab_size=64", data=TEXT),
        subject("vocab_size=65", data=TEXT),
    ),
    "A09": (
        subject("vocab_size=50257", data=TEXT),
        subject("vocab_size=128", data=TEXT),
    ),
    "A10": (subject(program=HF), subject("vocab_size=50304", program=HF)),
    "A11": (
        subject("vocab_size=50304", program=NANOGPT),
        subject("vocab_size=50304", program=habits(masks_padded_vocabulary=True)),
    ),
    "A12": (subject("n_head=32"), subject("n_head=6")),
    "A13": (
        subject(*SHAPED, device=HOPPER),
        subject(*SHAPED, device=AMPERE),
    ),
    "A14": (subject("n_embd=780", "n_head=13"), subject("n_embd=832", "n_head=13")),
    "A15": (subject("n_inner=1024"), subject("n_inner=1536")),
    "A16": (subject("n_layer=96"), subject("n_layer=48")),
    "A17": (
        subject("n_layer=24", program=habits(residual_scaling=False)),
        subject("n_layer=24", program=HF),
    ),
    "A18": (subject("initializer_range=0.2"), subject("initializer_range=0.05")),
    "A19": (
        subject("n_embd=1600", "n_head=25", program=habits(residual_scaling=False)),
        subject("n_embd=1536", program=habits(residual_scaling=False)),
    ),
    "A20": (subject("scale_attn_weights=false"), subject()),
    "A21": (
        subject("scale_attn_by_inverse_layer_idx=true"),
        subject("scale_attn_by_inverse_layer_idx=true", "n_layer=24"),
    ),
    "A22": (subject("reorder_and_upcast_attn=true", program=HF), subject(program=HF)),
    "A23": (
        subject(program=step(dtype="float16", attention="eager")),
        subject(program=step(dtype="float16", attention="sdpa")),
    ),
    "A24": (subject("summary_type=mean"), subject("summary_first_dropout=0.2")),
    "A26": (
        subject("tie_word_embeddings=false", "vocab_size=50257", *SHAPED),
        subject("tie_word_embeddings=true", "vocab_size=50257", *SHAPED),
    ),
    "A27": (
        subject("n_embd=128", "n_head=2", "n_layer=4", "vocab_size=50257"),
        subject("n_embd=128", "n_head=2", "n_layer=4"),
    ),
    "A28": (subject(*SHAPED), subject("bias=false", *SHAPED)),
    "P01": (subject("n_layer=6", pretrained=GPT2), subject("dropout=0", pretrained=GPT2)),
    "P02": (
        subject("n_positions=2048", pretrained=GPT2),
        subject("n_positions=512", pretrained=GPT2),
    ),
    "P03": (
        subject("dropout=0.2", pretrained=GPT2, data=DataFacts(train_tokens=10**8)),
        subject("dropout=0.2", pretrained=GPT2, data=DataFacts(train_tokens=10**6)),
    ),
    "P04": (subject("lr=6e-4", pretrained=GPT2), subject("lr=1e-4", pretrained=GPT2)),
    "P05": (
        subject(pretrained=GPT2, data=DataFacts(tokenizer="b" * 64)),
        subject(pretrained=GPT2, data=DataFacts(tokenizer="a" * 64)),
    ),
    "P06": (
        subject("pad_token_id=50256", program=HF),
        subject("pad_token_id=50255", program=HF),
    ),
    "D01": (
        subject("n_positions=100000", "vocab_size=65", data=TEXT),
        subject("n_positions=99999", "vocab_size=65", data=TEXT),
    ),
    "D02": (subject("n_positions=1024", data=TEXT), subject("n_positions=1000", data=TEXT)),
    "D03": (epochs(5), epochs(3)),
    "D04": (
        epochs(5, "dropout=0", "weight_decay=0.01"),
        epochs(5, "dropout=0.1", "weight_decay=0.01"),
    ),
    "D05": (epochs(1, "dropout=0.1"), epochs(2, "dropout=0.1")),
    "D06": (subject("attn_pdrop=0.5"), subject("attn_pdrop=0.3")),
    "D07": (epochs(1), epochs(1, *NARROW, "n_positions=256")),
    "D08": (epochs(1), epochs(1, *NARROW, "n_positions=256")),
    "D09": (
        subject("tokenizer=gpt2", data=DataFacts(text_bytes=10**6)),
        subject("tokenizer=gpt2", data=DataFacts(text_bytes=10**7)),
    ),
    "D10": (
        subject(data=DataFacts(p95_document_tokens=200)),
        subject(data=DataFacts(p95_document_tokens=300)),
    ),
    "D11": (
        subject(data=DataFacts(vocab_size=65537, token_dtype="uint16")),
        subject(data=DataFacts(vocab_size=65536, token_dtype="uint16")),
    ),
    "T01": (subject("lr=0.1", "optimizer=adamw"), subject("lr=6e-4", "optimizer=adamw")),
    "T02": (
        subject("max_steps=100", "warmup_steps=50"),
        subject("max_steps=100", "warmup_steps=10"),
    ),
    "T03": (
        subject("max_steps=100", program=habits(decay_steps=200)),
        subject("max_steps=100", program=habits(decay_steps=100)),
    ),
    "T04": (
        subject("max_tokens=10000000000", "batch_size=1"),
        subject("max_tokens=10000000000", "batch_size=256"),
    ),
    "T05": (subject("beta2=0.9"), subject("beta2=0.99")),
    "T06": (
        subject("weight_decay=0.1", program=HF),
        subject("weight_decay=0", program=HF),
    ),
    "T07": (
        subject("batch_size=12", program=step(world_size=8, parallel="ddp")),
        subject("batch_size=16", "micro_batch_size=2", program=step(world_size=8, parallel="ddp")),
    ),
    "T08": (
        subject("eval_interval=1", "eval_tokens=100000"),
        subject("eval_interval=100", "eval_tokens=100000"),
    ),
    "R01": (subject("batch_size=12", device=SMALL_CARD), subject("batch_size=12", device=HOPPER)),
    "R02": (subject(program=HF), subject("activation_function=gelu_pytorch_tanh", program=HF)),
    "R03": (
        subject("n_positions=512", program=step(attention="eager")),
        subject("n_positions=256", program=step(attention="eager")),
    ),
    "R04": (
        subject("batch_size=12", device=AMPERE),
        subject("batch_size=12", "loss_chunks=8", device=AMPERE),
    ),
    "R05": (
        subject("batch_size=2", "checkpointed_blocks=12", device=AMPERE),
        subject("batch_size=2", "checkpointed_blocks=0", device=AMPERE),
    ),
    "R06": (subject(program=HF), subject("use_cache=false", program=HF)),
    "R07": (subject("dtype=bfloat16", device=TURING), subject("dtype=float32", device=TURING)),
    "R08": (subject("dtype=float32", device=AMPERE), subject("dtype=bfloat16", device=AMPERE)),
    "R09": (subject(program=HF), subject(program=step(compiled=True))),
    "R10": (
        subject(program=step(parallel="ddp", world_size=2)),
        subject(program=step(parallel="ddp", world_size=2, bucket_views=True)),
    ),
    "R11": (
        subject("batch_size=1", program=HF, device=SMALLEST_CARD),
        subject("batch_size=1", program=HF, device=HOPPER),
    ),
    "R12": (
        subject(*NARROW, "batch_size=1", device=AMPERE),
        subject("batch_size=12", device=AMPERE),
    ),
    "R13": (
        subject("batch_size=13", "n_positions=64", device=AMPERE),
        subject("batch_size=16", "n_positions=64", device=AMPERE),
    ),
    "R14": (
        subject("batch_size=8", program=step(evaluation_batch_size=16)),
        subject("batch_size=8", program=step(evaluation_batch_size=8)),
    ),
    "R15": (
        subject(program=step(dtype="float8")),
        subject("n_embd=1536", program=step(dtype="float8")),
    ),
    "R16": (subject(program=step(context=256)), subject(program=step(context=1024))),
    "R17": (subject(program=HF), subject(program=step(keeps_logits=False))),
    "R18": (subject(first_loss=11.5), subject(first_loss=10.9)),
}
