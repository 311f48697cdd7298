"""A01 to A06, A12 to A16, A24, A25, A28: rules on names, sizes and their proportions."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from gptfit.config import GPT2Config
from gptfit.config.gpt2 import ACTIVATIONS, LIMITS
from gptfit.errors import Problem
from gptfit.plan.lint.rules import (
    HINT,
    WARNING,
    Advice,
    Changes,
    Refusal,
    refused,
    rule,
)
from gptfit.plan.lint.subject import HUGGINGFACE, Subject, generation, is_gpt2

if TYPE_CHECKING:
    from gptfit.plan.hardware import DeviceSpec


TILE = 64
"""Channels of a matrix unit's tile in bf16; below a multiple of 8 tensor cores are not used at all."""
NARROW = 256
"""Below this width a step is bound by launches, not by matrix units."""
SHAPES = "arXiv 2401.14489, The Case for Co-Designing Model Architectures with Hardware"
HF_GUIDE = "Best Practices for GPT2Config Arguments"
DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")


def _suggested(problem: Problem) -> str | None:
    """The word after "did you mean"."""
    match = re.search(r"did you mean '([\w.]+)'", problem.fix)
    return match[1] if match else None


def _nearest_activation(problem: Problem) -> Changes:
    name = _suggested(problem)
    return {"model.activation_function": name} if name else {}


def _right_key(problem: Problem) -> Mapping[str, str]:
    key = _suggested(problem)
    return {problem.field: key} if key else {}


refused(
    "A01", "model.n_head", "n_head does not divide n_embd", "Vaswani et al. 2017, section 3.2.2",
    "Each head gets n_embd / n_head channels. transformers finds out when the model is built.",
    Refusal("n_head", "does not divide n_embd"),
)  # fmt: skip


refused(
    "A02", "model.n_layer", "a size that is no positive integer", "transformers 5.23 builds n_layer=-1",
    "A layer count of 0 builds and learns nothing; the other sizes fail late.",
    Refusal("|".join(LIMITS), "must be positive|must be an integer|is beyond"),
)  # fmt: skip


refused(
    "A03", "model.resid_pdrop", "a dropout outside [0, 1)", "torch.nn.Dropout accepts 1.0",
    "A dropout of 1 drops everything: the model trains on zeros without an error.",
    Refusal(r"\w+_pdrop|summary_first_dropout", r"must be in \[0, 1\)"),
)  # fmt: skip


refused(
    "A04", "model", "an unknown key", "transformers 5.23 turns any key into an attribute",
    "A misspelt key leaves the default in force, and nobody says so.",
    Refusal(".*", "^([^:]*: )?.*unknown key", rename=_right_key),
)  # fmt: skip


refused(
    "A05", "model.activation_function", "an unknown activation", "transformers.activations.ACT2FN",
    f"Known are {', '.join(ACTIVATIONS)}.",
    Refusal("activation_function", "is not known", _nearest_activation),
)  # fmt: skip


@rule(
    "A06", WARNING, "model.layer_norm_epsilon", "an epsilon that is not small and positive",
    "GPT-2 uses 1e-5; autocast computes layer norms in float32",
    Refusal("layer_norm_epsilon", "must be positive", lambda _: {"model.layer_norm_epsilon": 1e-5}),
)  # fmt: skip
def large_epsilon(fresh: GPT2Config) -> Iterator[Advice]:
    """It guards a division by a variance of about 1 or less; a negative one gives a loss of nan."""
    epsilon = fresh.layer_norm_epsilon
    if epsilon > 1e-3:
        message = f"layer_norm_epsilon={epsilon:g} is as large as the variances it guards"
        yield Advice(message, changes={"model.layer_norm_epsilon": 1e-5})


@rule("A12", HINT, "model.n_head", "heads that are neither 64 nor 128 wide", SHAPES)
def odd_head_dim(fresh: GPT2Config) -> Iterator[Advice]:
    """Flash attention and tensor cores are written for heads of 64 and 128; a width that 8 does not
    divide is padded in memory first."""
    if fresh.n_embd < NARROW or fresh.head_dim in (64, 128):
        return
    wanted = [fresh.n_embd // width for width in (64, 128) if fresh.n_embd % width == 0]
    fix = " or ".join(f"n_head={heads}" for heads in wanted)
    severity = WARNING if fresh.head_dim % 8 else HINT
    message = f"heads of {fresh.head_dim} are slow on GPUs; 64 and 128 are fast"
    yield Advice(message, fix or "choose n_embd as a multiple of 64", severity=severity)


@rule(
    "A13",
    HINT,
    "model.n_head",
    "heads of 64 on Hopper or later",
    "nanochat, dev/LOG.md, 17 January 2026",
)
def narrow_heads(fresh: GPT2Config, device: DeviceSpec) -> Iterator[Advice]:
    """On an H100, heads of 128 were faster than heads of 64 at equal loss. Nothing is said on narrow
    models, which would be left with a few heads, nor on shapes that OpenAI's weights have."""
    wide = fresh.n_embd >= 512 and fresh.n_embd % 128 == 0 and not is_gpt2(fresh)
    if generation(device) >= 90 and fresh.head_dim == 64 and wide:
        message = f"{device.name} prefers heads of 128 to heads of 64"
        yield Advice(message, f"n_head={fresh.n_embd // 128}")


@rule(
    "A14", HINT, "model.n_embd", "widths that are no multiple of 64",
    f"{SHAPES}; NVIDIA, Matrix Multiplication Background",
)  # fmt: skip
def odd_width(fresh: GPT2Config) -> Iterator[Advice]:
    """Matrix units work in tiles; what does not fill the last one is computed all the same. Where 8
    does not divide a width, kernels fall back to slower ones."""
    if fresh.n_embd <= TILE:
        return
    odd = [f"{n}={v}" for n in ("n_embd", "n_inner") if (v := getattr(fresh, n)) % TILE]
    if odd:
        severity = WARNING if fresh.n_embd % 8 or fresh.n_inner % 8 else HINT
        message = f"{' and '.join(odd)}: the tiles of matrix units are {TILE} wide"
        yield Advice(message, changes=_tiled(fresh), severity=severity)


def _tiled(model: GPT2Config) -> dict[str, Any]:
    """The nearest width in whole tiles, with as many heads if these divide one that is near."""
    width = max(TILE, round(model.n_embd / TILE) * TILE)
    with_heads = math.lcm(TILE, model.n_head)
    near = max(1, round(model.n_embd / with_heads)) * with_heads
    changes: dict[str, Any] = {}
    fits = abs(near - model.n_embd) <= model.n_embd / 8 and near <= LIMITS["n_embd"]
    if model.n_embd % TILE and fits:
        width = near
    elif model.n_embd % TILE:
        changes["model.n_head"] = max(1, width // TILE)
    if model.n_embd % TILE:
        changes["model.n_embd"] = width
    else:
        width = model.n_embd
    if "n_inner" not in model.following:
        inner = max(1, round(model.n_inner / model.n_embd * width / TILE)) * TILE
        changes["model.n_inner"] = min(inner, LIMITS["n_inner"])
    return changes


@rule(
    "A15",
    WARNING,
    "model.n_inner",
    "a feed-forward width outside 2 to 8 times n_embd",
    "GPT-2 and nearly all its kin use 4",
)
def odd_feed_forward(fresh: GPT2Config) -> Iterator[Advice]:
    """The loss is flat around 4 and rises on both sides (Kaplan et al. 2020, figure 5)."""
    ratio = fresh.n_inner / fresh.n_embd
    if not 2 <= ratio <= 8:
        yield Advice(f"n_inner is {ratio:.2g} times n_embd", f"n_inner={4 * fresh.n_embd} is usual")


@rule(
    "A16",
    HINT,
    "model.n_layer",
    "much too deep or too shallow for its width",
    "Kaplan et al. 2020, arXiv 2001.08361, figure 5",
)
def odd_aspect(fresh: GPT2Config) -> Iterator[Advice]:
    """At equal parameters the loss hardly depends on n_embd / n_layer, within a wide middle."""
    ratio = fresh.n_embd / fresh.n_layer
    if not 16 <= ratio <= 160:
        shape = "deep and narrow" if ratio < 16 else "wide and shallow"
        layers = max(1, round(fresh.n_embd / 64))
        message = f"n_embd/n_layer = {ratio:.3g} is {shape}; 16 to 160 train well"
        yield Advice(message, f"n_layer={layers}")


@rule(
    "A24",
    HINT,
    "model.summary_type",
    "summary_* on a language model",
    "transformers: only GPT2DoubleHeadsModel reads them",
)
def unused_summary(model: GPT2Config) -> Iterator[Advice]:
    """They describe the second head of GPT2DoubleHeadsModel."""
    default = GPT2Config()
    names = ("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels")
    changed = [name for name in names if getattr(model, name) != getattr(default, name)]
    if changed:
        yield Advice(f"{', '.join(changed)}: a language model does not read it", "leave it out")


refused(
    "A25", "model.summary_type", "a summary that is not implemented", "transformers, GPT2Config's docstring",
    'summary_type="attn" is documented as not implemented; transformers fails when it is used.',
    Refusal("summary_type", "is not known"),
)  # fmt: skip


@rule(
    "A28",
    HINT,
    "model.bias",
    "biases in a new model",
    "nanoGPT, model.py: False is a bit better and faster",
)
def needless_biases(fresh: GPT2Config, subject: Subject) -> Iterator[Advice]:
    """Linear layers and layer norms do without; only OpenAI's weights need them. Nothing is said on
    shapes that those weights have, nor to transformers, whose GPT-2 cannot leave them out."""
    bound = subject.program is not None and subject.program.name == HUGGINGFACE
    if fresh.bias and not is_gpt2(fresh) and not bound:
        yield Advice("a new model is a little faster and as good without biases", "bias=false")
