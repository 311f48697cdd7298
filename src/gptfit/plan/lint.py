"""Advice: configurations that run, but badly. What cannot run is refused by the config itself.

A rule is a function of the recipe that yields findings' message and fix; ``@rule`` files it in
``RULES`` with its code, severity, field and source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gptfit.config import GPT2Config, Recipe
from gptfit.config.recipe import DEFAULT
from gptfit.errors import ConfigError
from gptfit.plan.params import count_parameters

ERROR, WARNING, HINT = "error", "warning", "hint"
Advice = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Finding:
    """One remark: ``message`` says what and why, ``fix`` what to write instead."""

    code: str
    severity: str
    field: str
    message: str
    fix: str
    source: str = ""


@dataclass(frozen=True)
class Rule:
    """A named check; ``advise`` yields (message, fix) pairs, usually none."""

    code: str
    severity: str
    field: str
    source: str
    advise: Callable[[Recipe], Advice]


RULES: list[Rule] = []


def lint(recipe: Recipe) -> list[Finding]:
    """All findings of the advisory rules, in their order.

    Rules on training are silent where nothing about training was said, as in a bare model file.
    """
    said = any(
        key.startswith("train.") and origin != DEFAULT and not origin.startswith("follows")
        for key, origin in recipe.origins.items()
    )
    return [
        Finding(rule.code, rule.severity, rule.field, message, fix, rule.source)
        for rule in RULES
        if said or not rule.field.startswith("train.")
        for message, fix in rule.advise(recipe)
    ]


def hard_findings(error: ConfigError) -> list[Finding]:
    """The faults of a configuration that cannot run, as findings."""
    return [
        Finding("E", ERROR, problem.field, problem.message, problem.fix)
        for problem in error.problems
    ]


def rule(
    code: str, severity: str, field: str, source: str
) -> Callable[[Callable[[Recipe], Advice]], Callable[[Recipe], Advice]]:
    """File the decorated function in ``RULES``."""

    def register(advise: Callable[[Recipe], Advice]) -> Callable[[Recipe], Advice]:
        RULES.append(Rule(code, severity, field, source, advise))
        return advise

    return register


@rule("A06", WARNING, "layer_norm_epsilon", "GPT-2 uses 1e-5; layer norms run in float32 anyway")
def large_epsilon(recipe: Recipe) -> Advice:
    epsilon = recipe.model.layer_norm_epsilon
    if epsilon > 1e-3:
        yield f"layer_norm_epsilon={epsilon:g} is as large as the variances it guards", "use 1e-5"


@rule(
    "A12", HINT, "n_head", "tensor cores and flash attention: Anthony et al. 2024, arXiv 2401.14489"
)
def odd_head_dim(recipe: Recipe) -> Advice:
    model = recipe.model
    if model.n_embd >= 256 and model.head_dim not in (64, 128):
        wanted = [heads for heads in (model.n_embd // 64, model.n_embd // 128) if heads]
        fits = [str(heads) for heads in wanted if model.n_embd % heads == 0]
        fix = f"n_head={' or '.join(fits)}" if fits else "choose n_embd as a multiple of 64"
        yield f"heads of {model.head_dim} are slow on GPUs; 64 and 128 are fast", fix


@rule("A14", HINT, "n_embd", "arXiv 2401.14489; NVIDIA deep learning performance guide")
def odd_width(recipe: Recipe) -> Advice:
    width = recipe.model.n_embd
    if width > 64 and width % 64:
        low, high = width // 64 * 64, -(-width // 64) * 64
        yield f"n_embd={width} does not fill the tiles of matrix units", f"use {low} or {high}"


@rule("A15", WARNING, "n_inner", "GPT-2 and nearly all its kin use 4 * n_embd")
def odd_feed_forward(recipe: Recipe) -> Advice:
    ratio = recipe.model.n_inner / recipe.model.n_embd
    if not 2 <= ratio <= 8:
        yield f"n_inner is {ratio:.2g} times n_embd", f"{4 * recipe.model.n_embd} is usual"


@rule("A16", HINT, "n_layer", "Kaplan et al. 2020, arXiv 2001.08361, section 3.1")
def odd_aspect(recipe: Recipe) -> Advice:
    ratio = recipe.model.n_embd / recipe.model.n_layer
    if not 16 <= ratio <= 160:
        shape = "deep and narrow" if ratio < 16 else "wide and shallow"
        layers = max(1, round(recipe.model.n_embd / 64))
        yield f"n_embd/n_layer = {ratio:.3g} is {shape}; 16 to 160 train well", f"n_layer={layers}"


@rule("A18", WARNING, "initializer_range", "GPT-2 uses 0.02")
def large_initial_weights(recipe: Recipe) -> Advice:
    if recipe.model.initializer_range > 0.05:
        yield (
            f"initializer_range={recipe.model.initializer_range:g} starts far above ln(vocab_size)",
            "use 0.02",
        )


@rule("A20", WARNING, "scale_attn_weights", "Vaswani et al. 2017, section 3.2.1")
def unscaled_attention(recipe: Recipe) -> Advice:
    if not recipe.model.scale_attn_weights:
        yield "without the scaling by 1/sqrt(head_dim) the softmax saturates", "set it to true"


@rule("A21", HINT, "scale_attn_by_inverse_layer_idx", "Hugging Face's GPT2Config guide")
def shallow_inverse_scaling(recipe: Recipe) -> Advice:
    if recipe.model.scale_attn_by_inverse_layer_idx and recipe.model.n_layer < 24:
        yield (
            f"scaling by layer is meant for 24 layers and more, not {recipe.model.n_layer}",
            ("set it to false"),
        )


@rule("A22", HINT, "reorder_and_upcast_attn", "flash attention accumulates in float32")
def needless_upcast(recipe: Recipe) -> Advice:
    if recipe.model.reorder_and_upcast_attn:
        yield (
            "attention in explicit float32 keeps the whole score matrix in memory; with bfloat16 "
            "it is not needed",
            "set it to false",
        )


@rule("A24", HINT, "summary_type", "transformers: only GPT2DoubleHeadsModel reads them")
def unused_summary(recipe: Recipe) -> Advice:
    default = GPT2Config()
    names = ("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels")
    changed = [name for name in names if getattr(recipe.model, name) != getattr(default, name)]
    if changed:
        yield f"{', '.join(changed)}: a language model does not read it", "leave it out"


@rule("A26", HINT, "tie_word_embeddings", "Press and Wolf 2017, arXiv 1608.05859")
def costly_untied_head(recipe: Recipe) -> Advice:
    count = count_parameters(recipe.model)
    share = (count.untied - count.tied) / count.untied
    if not recipe.model.tie_word_embeddings and share > 0.3:
        yield (
            f"the untied output head is {share:.0%} of the parameters",
            ("tie_word_embeddings=true saves it"),
        )


@rule("A27", WARNING, "vocab_size", "small models spend their capacity better than on a word list")
def embedding_heavy(recipe: Recipe) -> Advice:
    model, count = recipe.model, count_parameters(recipe.model)
    share = model.vocab_size * model.n_embd / count.tied
    if share > 0.6 and model.vocab_size > 8192:
        yield (
            f"the token embedding is {share:.0%} of the parameters",
            ("train a tokenizer of 1,000 to 8,000 tokens (data.tokenizer=bpe)"),
        )


@rule("D06", WARNING, "resid_pdrop", "Hugging Face's GPT2Config guide calls 0.5 too high")
def heavy_dropout(recipe: Recipe) -> Advice:
    names = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
    heavy = [f"{name}={value:g}" for name in names if (value := getattr(recipe.model, name)) > 0.3]
    if heavy:
        yield f"{', '.join(heavy)}: so much hinders learning", "use 0.1 to 0.2"


@rule("T02", HINT, "train.warmup_steps", "1 to 5 % of the steps is usual")
def long_warmup(recipe: Recipe) -> Advice:
    train = recipe.train
    if train.max_steps is not None and train.warmup_steps > train.max_steps / 10:
        yield (
            f"warm-up takes {train.warmup_steps} of {train.max_steps} steps",
            (f"warmup_steps={max(1, train.max_steps // 20)}"),
        )


@rule("T05", HINT, "train.grad_clip", "GPT-2 and GPT-3 were trained with 1.0")
def unclipped(recipe: Recipe) -> Advice:
    train = recipe.train
    if train.grad_clip == 0 and train.learning_rate >= 3e-4:
        yield f"no gradient clipping at learning_rate={train.learning_rate:g}", "grad_clip=1.0"


@rule("T06", HINT, "train.beta2", "Porian et al. 2024, arXiv 2406.19146; nanoGPT's char recipes")
def short_memory(recipe: Recipe) -> Advice:
    train = recipe.train
    tokens = train.batch_size * recipe.model.n_positions
    if train.beta2 <= 0.95 and tokens < 2**16:
        yield f"beta2={train.beta2:g} forgets quickly for {tokens:,} tokens a step", "beta2=0.99"
