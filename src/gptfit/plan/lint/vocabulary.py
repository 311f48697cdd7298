"""A07 to A11, A26, A27: rules on the vocabulary and its embedding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gptfit.config import GPT2Config
from gptfit.config.gpt2 import GPT2_PADDED_VOCAB_SIZE, GPT2_VOCAB_SIZE, LIMITS
from gptfit.plan.lint.architecture import SHAPES, TILE
from gptfit.plan.lint.rules import (
    ERROR,
    HINT,
    WARNING,
    Advice,
    Refusal,
    refused,
    rule,
)
from gptfit.plan.lint.subject import DataFacts, Program, Subject, generation
from gptfit.plan.params import count_parameters
from gptfit.plan.step import TrainingStep

refused(
    "A07", "model.eos_token_id", "a special token outside the vocabulary",
    "GPT2Config's default 50256 with a vocabulary of 65 characters",
    "Looking its row up fails, on a GPU with a device-side assert that names nothing.",
    Refusal(
        "(bos|eos|pad)_token_id", "is outside the vocabulary", lambda p: {_dotted(p.field): None}
    ),
)  # fmt: skip


def _dotted(field: str) -> str:
    return field if "." in field else f"model.{field}"


@rule(
    "A08", ERROR, "model.vocab_size", "a vocabulary smaller than the data's ids",
    "torch.nn.functional.embedding",
    Refusal("vocab_size", "is smaller than the tokenizer's"),
)  # fmt: skip
def small_vocabulary(
    model: GPT2Config, vocabulary: int, data: DataFacts, subject: Subject
) -> Iterator[Advice]:
    """An id without a row stops training, on a GPU with a device-side assert that names nothing. Given
    weights have the rows that they have: more of them must be added (resize_token_embeddings)."""
    needed = data.needed_vocab_size
    if needed is not None and vocabulary < needed:
        message = f"vocab_size={vocabulary:,}, but the data has ids up to {needed - 1:,}"
        changes = {} if subject.pretrained else _vocabulary(model, needed)
        yield Advice(message, f"vocab_size={needed}", changes)


@rule(
    "A09", WARNING, "model.vocab_size", "a vocabulary far larger than the tokenizer's",
    "each row costs n_embd parameters and 14 bytes of logits per token",
)  # fmt: skip
def large_vocabulary(
    model: GPT2Config, fresh: GPT2Config, vocabulary: int, data: DataFacts
) -> Iterator[Advice]:
    """Rows that no id reaches are never trained, but are computed, stored and sampled from."""
    needed = data.needed_vocab_size
    if needed is not None and vocabulary > 1.1 * _padded(needed, 128):
        spare = vocabulary - needed
        message = (
            f"{spare:,} of {vocabulary:,} rows have no token: {spare * model.n_embd:,} parameters"
        )
        yield Advice(message, changes=_vocabulary(model, needed))


def _vocabulary(model: GPT2Config, size: int) -> dict[str, Any]:
    """Another vocabulary, without the special tokens that it would not have."""
    changes: dict[str, Any] = {"model.vocab_size": size}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        token = getattr(model, name)
        if name not in model.following and token is not None and token >= size:
            changes[f"model.{name}"] = None
    return changes


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


@rule(
    "A10", HINT, "model.vocab_size", "a vocabulary that does not fill the tiles of the output layer",
    f"{SHAPES}; Karpathy, build-nanogpt: 50257 to 50304 took a step from 96 to 93 ms",
)  # fmt: skip
def unpadded_vocabulary(
    fresh: GPT2Config, step: TrainingStep, subject: Subject
) -> Iterator[Advice]:
    """The output layer is the largest product of a small model; its width should be a multiple of 64,
    on Hopper and later of 128. gptfit pads inside the model, other programs by vocab_size."""
    if step.device_kind not in ("cuda", "rocm"):
        return
    tile = 128 if generation(subject.device) >= 90 else TILE
    width = _padded(fresh.vocab_size, step.vocab_multiple)
    if width % tile:
        changes: dict[str, Any] = {"run.pad_vocab_to_multiple": tile}
        if not subject.is_gptfit:
            changes = {"model.vocab_size": min(_padded(width, tile), LIMITS["vocab_size"])}
        yield Advice(f"the output layer is {width:,} wide, no multiple of {tile}", changes=changes)


@rule(
    "A11", WARNING, "program.masks_padded_vocabulary", "padded ids that can be sampled",
    "nanoGPT's generate() samples from all 50304 logits",
)  # fmt: skip
def sampled_padding(model: GPT2Config, program: Program, subject: Subject) -> Iterator[Advice]:
    """Logits of rows without a token must be masked before sampling: their ids decode to nothing.
    gptfit cuts them off."""
    known = subject.data.needed_vocab_size if subject.data else None
    if known is None and model.vocab_size == GPT2_PADDED_VOCAB_SIZE:
        known = GPT2_VOCAB_SIZE
    if known is not None and known < model.vocab_size and not program.masks_padded_vocabulary:
        yield Advice(
            f"ids {known:,} to {model.vocab_size - 1:,} are padding and can be sampled",
            f"mask logits[..., {known}:] when sampling",
            {"program.masks_padded_vocabulary": True},
        )


@rule(
    "A26",
    HINT,
    "model.tie_word_embeddings",
    "an untied output layer that weighs much",
    "Press and Wolf 2017, arXiv 1608.05859",
)
def costly_untied_head(fresh: GPT2Config, vocabulary: int) -> Iterator[Advice]:
    """Tying saves vocab_size · n_embd parameters; small models are as good or better with it."""
    count = count_parameters(fresh)
    share = (count.untied - count.tied) / count.untied
    if not fresh.tie_word_embeddings and share > 0.3:
        saved = count.untied - count.tied
        message = f"the untied output layer is {share:.0%} of the parameters, {saved:,}"
        yield Advice(message, "tie_word_embeddings=true saves it")


@rule(
    "A27",
    WARNING,
    "model.vocab_size",
    "a model that is mostly a word list",
    "a 1,024-token BPE reaches equal bits per byte with a third of the parameters",
)
def embedding_heavy(fresh: GPT2Config, vocabulary: int) -> Iterator[Advice]:
    """A small model spends its parameters better on layers. While the vocabulary is a preset's, the
    data decides and nothing is said."""
    share = vocabulary * fresh.n_embd / count_parameters(fresh).tied
    if share > 0.6 and vocabulary > 8192:
        message = f"the token embedding is {share:.0%} of the parameters"
        yield Advice(message, "train a tokenizer of 1,000 to 8,000 tokens (data.tokenizer=bpe)")
