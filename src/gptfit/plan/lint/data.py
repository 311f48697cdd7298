"""D: rules on a recipe together with its data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gptfit.config import GPT2Config, Recipe, TrainConfig
from gptfit.plan.lint.architecture import DROPOUTS
from gptfit.plan.lint.rules import ERROR, HINT, WARNING, Advice, rule
from gptfit.plan.lint.subject import DataFacts, Subject
from gptfit.plan.params import count_parameters

MUENNIGHOFF = "Muennighoff et al. 2023, arXiv 2305.16264"
FREE_EPOCHS, USELESS_EPOCHS = 4, 16
"""Repeating text is nearly as good as new text up to 4 times; after about 16 (its R_D* is 15.4) hardly
anything is gained."""


@rule(
    "D01",
    ERROR,
    "model.n_positions",
    "fewer tokens than one window",
    "a window is n_positions tokens and the next one of each",
)
def too_few_tokens(model: GPT2Config, data: DataFacts) -> Iterator[Advice]:
    """There is nothing to draw a batch from, or nothing to evaluate on."""
    splits = {"training": data.train_tokens, "validation": data.val_tokens}
    known = {name: tokens for name, tokens in splits.items() if tokens is not None}
    short = {name: tokens for name, tokens in known.items() if tokens <= model.n_positions}
    if not short:
        return
    sizes = " and ".join(f"{tokens:,} {name} tokens" for name, tokens in short.items())
    fewest = min(short.values())
    changes = {"model.n_positions": 1 << ((fewest - 1).bit_length() - 1)} if fewest > 1 else {}
    message = f"{sizes} do not fill one window of n_positions={model.n_positions:,}"
    yield Advice(message, "" if changes else "use more text", changes)


@rule(
    "D02",
    WARNING,
    "data.val_fraction",
    "a validation split of fewer than 100 windows",
    "the standard error falls with the square root of the windows",
)
def noisy_validation(model: GPT2Config, data: DataFacts) -> Iterator[Advice]:
    """Differences between runs, and the choice of the best checkpoint, drown in the noise."""
    if data.val_tokens is None or data.val_tokens <= model.n_positions:
        return
    windows = data.val_tokens / model.n_positions
    if windows < 100:
        message = f"the validation split has {windows:.0f} windows; its loss is a noisy estimate"
        yield Advice(message, "use more text, a shorter context, or a larger data.val_fraction")


@rule("D03", HINT, "train.max_steps", "text that is repeated often", MUENNIGHOFF)
def many_epochs(model: GPT2Config, epochs: float, train: TrainConfig) -> Iterator[Advice]:
    """Up to 4 epochs are nearly as good as new text, from about 16 on hardly anything is gained; with
    dropout small models on small texts go further (nanoGPT's Shakespeare sees its text 82 times), so
    there it stays a hint."""
    if epochs <= FREE_EPOCHS:
        return
    severity = WARNING if epochs > USELESS_EPOCHS and not _has_dropout(model) else HINT
    yield Advice(
        f"the text is seen {epochs:,.0f} times; after {FREE_EPOCHS} it teaches less each time, after "
        f"{USELESS_EPOCHS} almost nothing",
        "more text, a smaller model, or fewer steps",
        severity=severity,
    )


def _has_dropout(model: GPT2Config) -> bool:
    return any(getattr(model, name) > 0 for name in DROPOUTS)


def _dropout(value: float) -> dict[str, Any]:
    return {f"model.{name}": value for name in DROPOUTS}


@rule(
    "D04",
    WARNING,
    "model.resid_pdrop",
    "repeated text without regularisation",
    "arXiv 2605.01640; nanoGPT's Shakespeare uses dropout 0.2",
)
def unregularised(model: GPT2Config, epochs: float, train: TrainConfig) -> Iterator[Advice]:
    """Seen often enough a text is learned by heart; dropout and weight decay delay that."""
    if epochs > FREE_EPOCHS and not _has_dropout(model) and train.weight_decay < 0.1:
        yield Advice(
            f"{epochs:,.0f} epochs without dropout and with weight_decay={train.weight_decay:g}",
            "dropout=0.1 (0.2 for many epochs), weight_decay=0.1 or more",
            _dropout(0.1),
        )


@rule(
    "D05",
    WARNING,
    "model.resid_pdrop",
    "dropout on text that is never repeated",
    "PaLM, Chowdhery et al. 2022, section 5: none in pretraining",
)
def useless_dropout(fresh: GPT2Config, epochs: float) -> Iterator[Advice]:
    """What is seen once cannot be learned by heart; dropout then only slows learning down."""
    if epochs <= 1 and _has_dropout(fresh):
        message = f"dropout, though the text is seen only {epochs:.2g} times"
        yield Advice(message, "dropout=0", _dropout(0.0))


@rule(
    "D06",
    WARNING,
    "model.resid_pdrop",
    "a dropout above 0.3",
    "Best Practices for GPT2Config Arguments calls 0.5 too high",
)
def heavy_dropout(model: GPT2Config) -> Iterator[Advice]:
    """So much is dropped that learning suffers more than overfitting."""
    heavy = {name: value for name in DROPOUTS if (value := getattr(model, name)) > 0.3}
    if heavy:
        shown = ", ".join(f"{name}={value:g}" for name, value in heavy.items())
        changes = {f"model.{name}": 0.2 for name in heavy}
        yield Advice(f"{shown}: so much hinders learning", "use 0.1 to 0.2", changes)


@rule(
    "D07",
    HINT,
    "train.max_steps",
    "few or very many tokens per parameter",
    "Besiroglu et al. 2024, arXiv 2404.10102: about 20 at equal compute",
)
def odd_ratio(model: GPT2Config, tokens: int, subject: Subject) -> Iterator[Advice]:
    """On text that is not repeated a smaller model trained longer beats a larger one trained less, and
    the other way round. Many tokens are right where the model will be used much; the ratio says
    nothing about small texts that are repeated."""
    count = count_parameters(model).total
    ratio = tokens / count
    once = subject.epochs is not None and subject.epochs <= 1
    if ratio < 5 and once:
        message = f"{ratio:.1f} tokens per parameter: a smaller model would reach a lower loss"
        yield Advice(
            message, "about 20 are best for their compute; train longer, or a smaller model"
        )
    if ratio > 200:
        message = f"{ratio:,.0f} tokens per parameter: a larger model would reach a lower loss"
        yield Advice(message, "right for a model that is used much; else take a larger one")


@rule(
    "D08",
    WARNING,
    "model.n_layer",
    "a model far larger than its text",
    "tinyshakespeare: 1.47 with 10.7M parameters on 1.0M tokens, no better with more",
)
def memorising(model: GPT2Config, data: DataFacts, subject: Subject) -> Iterator[Advice]:
    """With more than 20 parameters per token a model stores the text. Keeping the checkpoint that is
    best on validation (gptfit and nanoGPT do) limits the harm to lost time."""
    unique = data.unique_tokens or data.train_tokens
    count = count_parameters(model).total
    if not unique or count <= 20 * unique:
        return
    keeps_best = subject.program is None or subject.program.keeps_best
    yield Advice(
        f"{count / unique:,.0f} parameters for each token of the text: it is learned by heart",
        "a smaller model, more text, or stop at the best validation loss",
        severity=HINT if keeps_best else WARNING,
    )


@rule(
    "D09",
    WARNING,
    "data.tokenizer",
    "GPT-2's vocabulary on a small text",
    "most of its 50,257 rows are never or hardly ever seen",
)
def oversized_tokenizer(recipe: Recipe, data: DataFacts) -> Iterator[Advice]:
    """A row of the embedding that is seen a few times stays what it was drawn as; in 5 MB that is
    most of 50,257. Characters, or 1,000 to 4,000 tokens learned from the text, are seen often."""
    kind = data.tokenizer_kind or recipe.data.tokenizer
    if kind != "gpt2" or data.text_bytes is None or data.text_bytes >= 5e6:
        return
    small = data.text_bytes < 3e5
    changes: dict[str, Any] = {"data.tokenizer": "char" if small else "bpe"}
    # Tokens that are prepared already do not follow the recipe.
    changes = changes if recipe.data.tokenizer == "gpt2" and data.tokenizer_kind is None else {}
    message = f"GPT-2's 50,257 tokens for a text of {data.text_bytes / 1e6:.1f} MB"
    yield Advice(message, f"tokenizer={'char' if small else 'bpe'}", changes)


@rule(
    "D10",
    HINT,
    "model.n_positions",
    "a context far longer than the documents",
    "attention beyond a document's start sees another document",
)
def short_documents(model: GPT2Config, data: DataFacts) -> Iterator[Advice]:
    """A shorter context is cheaper and leaves more windows; packing several documents into one only
    teaches to ignore the earlier ones."""
    length = data.p95_document_tokens
    if length is not None and length < model.n_positions / 4:
        message = f"95 % of the documents have at most {length:,} tokens; n_positions={model.n_positions:,}"
        yield Advice(message, f"n_positions={1 << max(0, length - 1).bit_length()}")


@rule("D11", ERROR, "data.tokenizer", "ids that 16 bits cannot hold", "nanoGPT writes numpy.uint16")
def overflowing_ids(data: DataFacts) -> Iterator[Advice]:
    """Ids from 65,536 on wrap around in silence and become other tokens."""
    size = data.needed_vocab_size
    if data.token_dtype == "uint16" and size is not None and size > 2**16:
        message = f"{size:,} ids in uint16 files: those from 65,536 on have become others"
        yield Advice(message, "write uint32, as gptfit prepare does")
