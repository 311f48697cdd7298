"""P: rules on training that starts from given weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gptfit.config import GPT2Config, TrainConfig
from gptfit.plan.lint.rules import ERROR, HINT, WARNING, Advice, rule
from gptfit.plan.lint.subject import (
    CLASSIFICATION,
    DataFacts,
    Pretrained,
    Program,
    Subject,
)
from gptfit.plan.step import TrainingStep

SHAPES = ("n_layer", "n_head", "n_embd", "n_inner", "bias", "tie_word_embeddings")
NUMERICS = (
    "activation_function",
    "layer_norm_epsilon",
    "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx",
)
SAME_FUNCTION = (
    {"gelu_new", "gelu_accurate", "gelu_fast", "gelu_python_tanh", "gelu_pytorch_tanh"},
    {"gelu", "gelu_python"},
    {"silu", "swish"},
)
"""Names under which transformers computes the same function, up to rounding."""
FINE_TUNING_RATE = 3e-5


@rule(
    "P01",
    ERROR,
    "model",
    "another architecture than the weights have",
    "nanoGPT, train.py: forced to be equal when resuming or starting from GPT-2",
)
def changed_architecture(
    model: GPT2Config, pretrained: Pretrained, subject: Subject
) -> Iterator[Advice]:
    """Weights fit one set of shapes and mean one function; another activation or epsilon runs without
    an error and computes something else. A vocabulary can be grown by resizing the embedding."""
    theirs = pretrained.config
    for name in (*SHAPES, *NUMERICS):
        mine, fixed = getattr(model, name), getattr(theirs, name)
        if mine != fixed and not _same_function(mine, fixed):
            message = f"{name}={mine}, but the weights were made with {fixed}"
            yield Advice(message, f"leave {name}={fixed}", field=f"model.{name}")
    vocabulary = subject.vocabulary
    if vocabulary is not None and not _same_rows(vocabulary, theirs.vocab_size):
        message = f"vocab_size={vocabulary:,}, but the weights have {theirs.vocab_size:,} rows"
        fix = f"leave vocab_size={theirs.vocab_size}, or resize the embedding (resize_token_embeddings)"
        yield Advice(message, fix, field="model.vocab_size")


def _same_function(mine: Any, theirs: Any) -> bool:
    return any(mine in names and theirs in names for names in SAME_FUNCTION)


def _same_rows(mine: int, theirs: int) -> bool:
    """Equal, or the one padded to a multiple of 64 or 128."""
    low, high = sorted((mine, theirs))
    return high in {low, -(-low // 64) * 64, -(-low // 128) * 128}


@rule(
    "P02",
    ERROR,
    "model.n_positions",
    "a longer context than the weights have positions for",
    "nanoGPT, model.py: crop_block_size only shrinks",
)
def longer_context(model: GPT2Config, pretrained: Pretrained) -> Iterator[Advice]:
    """GPT-2 learns one vector per position; there is none to start from beyond the last one."""
    limit = pretrained.config.n_positions
    if model.n_positions > limit:
        message = f"n_positions={model.n_positions:,}, but the weights know {limit:,} positions"
        yield Advice(message, f"n_positions={limit} or less")


@rule(
    "P03",
    HINT,
    "model.resid_pdrop",
    "a dropout that does not suit the amount of text",
    "nanoGPT's fine-tuning uses 0 to 0.1",
)
def odd_dropout(model: GPT2Config, pretrained: Pretrained, data: DataFacts) -> Iterator[Advice]:
    """Much text needs little dropout; weights that have seen everything learn a little by heart."""
    tokens = data.train_tokens
    if tokens is None:
        return
    if model.resid_pdrop > 0.1 and tokens > 1e7:
        message = f"resid_pdrop={model.resid_pdrop:g} hinders fine-tuning on {tokens:,} tokens"
        yield Advice(message, "dropout=0.05")
    if model.resid_pdrop == 0 and tokens < 1e6:
        yield Advice(f"no dropout: {tokens:,} tokens are soon learned by heart", "dropout=0.1")


@rule(
    "P04",
    WARNING,
    "train.learning_rate",
    "a learning rate that washes pretrained weights out",
    "nanoGPT, config/finetune_shakespeare.py: 3e-5",
)
def washed_out(train: TrainConfig, pretrained: Pretrained) -> Iterator[Advice]:
    """The rates of training from scratch undo in a few hundred steps what the weights know."""
    if train.learning_rate > 1e-4:
        changes = {"train.learning_rate": FINE_TUNING_RATE}
        if "min_lr" not in train.following and train.min_lr > FINE_TUNING_RATE:
            changes["train.min_lr"] = FINE_TUNING_RATE / 10
        message = f"learning_rate={train.learning_rate:g} is for training from scratch"
        yield Advice(message, changes=changes)


@rule(
    "P05",
    ERROR,
    "data.tokenizer",
    "data of another tokenizer than the weights'",
    "an id is a row of the embedding, whatever string it stood for",
)
def other_tokenizer(pretrained: Pretrained, data: DataFacts) -> Iterator[Advice]:
    """The ids of another tokenizer mean other strings: the model would start from noise, worse than
    from scratch."""
    ours, theirs = data.tokenizer, pretrained.tokenizer
    if ours is not None and theirs is not None and ours != theirs:
        message = f"the data's tokenizer ({ours[:8]}) is not that of the weights ({theirs[:8]})"
        yield Advice(message, "prepare the text with the tokenizer.json of the weights")


@rule(
    "P06",
    WARNING,
    "model.pad_token_id",
    "padding that is trained on, or missing",
    "transformers 5.23, modeling_gpt2.py:913",
)
def careless_padding(model: GPT2Config, program: Program, step: TrainingStep) -> Iterator[Advice]:
    """Labels on padding teach to pad, and where padding is the end token, to stop anywhere. A
    classifier needs a padding token to find the last word of each text in a batch. gptfit packs its
    windows and pads nothing but the last one, which it masks."""
    pad, eos = model.pad_token_id, model.eos_token_id
    if program.head == CLASSIFICATION and pad is None and step.micro_batch_size > 1:
        message = "a classifier without pad_token_id cannot handle batches (a ValueError)"
        changes = {"model.pad_token_id": eos if eos is not None else 0}
        yield Advice(message, changes=changes, severity=ERROR)
    elif pad is not None and pad == eos and not program.masks_padded_labels:
        yield Advice(
            "padding is the end token and is trained on",
            "set the labels of padding to -100, or choose another pad_token_id",
            {"program.masks_padded_labels": True},
        )
