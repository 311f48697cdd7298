"""T: rules on training."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gptfit.config import GPT2Config, TrainConfig
from gptfit.config.checks import AUTO
from gptfit.config.sections import MAX_BATCH_SIZE
from gptfit.errors import Problem
from gptfit.plan.lint.rules import ERROR, HINT, WARNING, Advice, Changes, Refusal, rule
from gptfit.plan.lint.subject import Program, Subject
from gptfit.plan.params import count_parameters
from gptfit.plan.rules_of_thumb import batch_range, rate_range
from gptfit.plan.step import ADAMW, TrainingStep

EVALUATION_SHARE = 0.1
FORWARD_SHARE = 1 / 3
"""Of the work of a training token: a backward pass is two forward passes."""


@rule(
    "T01",
    WARNING,
    "train.learning_rate",
    "a learning rate far from the laws",
    "Kaplan et al. 2020, appendix D.6; Step Law, arXiv 2503.04715",
)
def odd_learning_rate(fresh: GPT2Config, train: TrainConfig, subject: Subject) -> Iterator[Advice]:
    """Outside 0.3 to 3 times what both laws, which are AdamW's, span. Nothing is said of a low, constant rate without
    warm-up: that is how weights are fine-tuned, and --from says from which."""
    if train.optimizer != ADAMW:
        return
    parameters = count_parameters(fresh).non_embedding
    batch_tokens = train.batch_size * fresh.n_positions
    good = rate_range(parameters, batch_tokens, subject.tokens)
    rate = train.learning_rate
    low = rate < good.low and not _fine_tunes(train)
    if low or rate > good.high:
        where = "below" if low else "above"
        yield Advice(
            f"learning_rate={rate:g} is {where} {good.low:.1g} to {good.high:.1g}, the range for "
            f"{parameters / 1e6:,.1f}M parameters and {batch_tokens:,} tokens a step",
            f"about {good.best:.1g}",
        )


def _fine_tunes(train: TrainConfig) -> bool:
    return train.learning_rate <= 1e-4 and train.schedule == "constant" and train.warmup_steps == 0


@rule(
    "T02",
    HINT,
    "train.warmup_steps",
    "a warm-up that is very long, or missing",
    "1 to 5 % of the steps is usual; Porian et al. 2024, arXiv 2406.19146",
)
def odd_warmup(train: TrainConfig) -> Iterator[Advice]:
    """AdamW's first updates have full size while its moments are still unknown; a long warm-up leaves
    less of the run at full rate."""
    steps = train.max_steps
    if steps is not None and train.warmup_steps > steps / 10:
        message = f"warm-up takes {train.warmup_steps:,} of {steps:,} steps"
        yield Advice(message, f"warmup_steps={max(1, steps // 20)}")
    if train.warmup_steps == 0 and train.learning_rate >= 6e-4:
        message = f"no warm-up to learning_rate={train.learning_rate:g}"
        yield Advice(message, f"warmup_steps={max(1, min(100, (steps or 2000) // 20))}")


@rule(
    "T03", WARNING, "train.min_lr", "a schedule that does not end where training does",
    "nanoGPT, train.py: lr_decay_iters should be about max_iters",
    Refusal("min_lr", "is above learning_rate", lambda _: {"train.min_lr": AUTO}),
)  # fmt: skip
def odd_schedule(train: TrainConfig, program: Program) -> Iterator[Advice]:
    """Much of the final loss is won while the rate falls. A schedule that is longer than the run never
    gets there; a shorter one trains its rest at the lowest rate. gptfit's ends with its budget."""
    decay, steps = program.decay_steps, train.max_steps
    if decay is not None and steps is not None and decay != steps:
        message = f"the learning rate decays over {decay:,} steps, training takes {steps:,}"
        yield Advice(message, f"lr_decay_iters={steps}", {"program.decay_steps": steps})


@rule(
    "T04",
    WARNING,
    "train.batch_size",
    "a batch far from its best size",
    "Step Law, arXiv 2503.04715; Power Lines, arXiv 2505.13738; McCandlish et al. 2018, arXiv 1812.06162",
)
def odd_batch(fresh: GPT2Config, train: TrainConfig, tokens: int) -> Iterator[Advice]:
    """The best batch grows with the tokens of the run. Above it, updates are fewer than the text could
    pay for; far below, gradients are noise and the hardware idles."""
    batch_tokens = train.batch_size * fresh.n_positions
    good = batch_range(tokens)
    if good.low <= batch_tokens <= good.high:
        return
    where = "below" if batch_tokens < good.low else "above"
    size = max(1, min(MAX_BATCH_SIZE, round(good.best / fresh.n_positions)))
    yield Advice(
        f"{batch_tokens:,} tokens a step are {where} {good.low:,.0f} to {good.high:,.0f}, the range "
        f"for a run of {tokens:,} tokens",
        f"batch_size about {size}",
    )


@rule(
    "T05",
    HINT,
    "train.beta2",
    "gradients unclipped, or a short memory of them",
    "GPT-3: clip 1.0; Porian et al. 2024, arXiv 2406.19146; nanoGPT's char recipes: beta2 0.99",
)
def careless_moments(fresh: GPT2Config, train: TrainConfig) -> Iterator[Advice]:
    """One batch with a huge gradient can undo many steps. AdamW averages squared gradients over about
    1 / (1 - beta2) steps; of small batches it needs more of them."""
    rate, tokens = train.learning_rate, train.batch_size * fresh.n_positions
    if train.grad_clip == 0 and rate >= 3e-4:
        message = f"no gradient clipping at learning_rate={rate:g}"
        yield Advice(message, changes={"train.grad_clip": 1.0}, field="train.grad_clip")
    if train.beta2 <= 0.95 and tokens < 2**16:
        message = f"beta2={train.beta2:g} forgets quickly for {tokens:,} tokens a step"
        yield Advice(message, changes={"train.beta2": 0.99})


@rule(
    "T06",
    HINT,
    "train.weight_decay",
    "weight decay on biases and layer norms",
    "nanoGPT, model.py, configure_optimizers: only what has two dimensions decays",
)
def decayed_norms(train: TrainConfig, program: Program) -> Iterator[Advice]:
    """Decay pulls a layer norm's scale to 0, where it silences its layer, instead of bounding a
    product. gptfit decays matrices and embeddings only."""
    if program.decays_everything and train.weight_decay > 0:
        yield Advice(
            f"weight_decay={train.weight_decay:g} on all parameters, layer norms and biases too",
            "two parameter groups: decay those with two dimensions only",
            {"program.decays_everything": False},
        )


def _dividing_micro_batch(problem: Problem) -> Changes:
    match = re.search(r"try (\d+)", problem.fix)
    return {"train.micro_batch_size": int(match[1])} if match else {}


@rule(
    "T07", ERROR, "train.batch_size", "micro-batches that do not make up the batch",
    "nanoGPT, train.py asserts gradient_accumulation_steps % world_size == 0",
    Refusal("micro_batch_size", "does not divide batch_size", _dividing_micro_batch),
)  # fmt: skip
def broken_accumulation(
    train: TrainConfig, step: TrainingStep, subject: Subject
) -> Iterator[Advice]:
    """batch_size counts the sequences of a step over all processes, each of which takes whole
    micro-batches; a program's own figure of tokens per step must agree."""
    together = train.micro_batch_size * step.world_size
    if train.batch_size % together:
        batch = max(1, round(train.batch_size / together)) * together
        message = (
            f"batch_size={train.batch_size} is no multiple of {train.micro_batch_size} sequences on "
            f"{step.world_size} devices"
        )
        changes = {"train.batch_size": batch} if batch <= MAX_BATCH_SIZE else {}
        if "micro_batch_size" in train.following:
            changes["train.micro_batch_size"] = train.micro_batch_size
        yield Advice(message, changes=changes)
    claimed = subject.program.tokens_per_step if subject.program else None
    taken = train.batch_size * step.context
    if claimed is not None and claimed != taken:
        yield Advice(
            f"the program counts {claimed:,} tokens a step, the batch has {taken:,}",
            changes={"program.tokens_per_step": taken},
        )


@rule(
    "T08",
    HINT,
    "train.eval_interval",
    "evaluation that takes a large share of the time",
    "a forward pass is a third of a training step's work",
)
def frequent_evaluation(
    model: GPT2Config, train: TrainConfig, subject: Subject
) -> Iterator[Advice]:
    """Above a tenth of the run, evaluation costs more training than its finer curve tells."""
    val_tokens = subject.data.val_tokens if subject.data else None
    known = [tokens for tokens in (train.eval_tokens, val_tokens) if tokens is not None]
    if not known:
        return
    between = train.eval_interval * train.batch_size * model.n_positions
    cost = FORWARD_SHARE * min(known)
    share = cost / (cost + between)
    if share > EVALUATION_SHARE:
        per_step = train.batch_size * model.n_positions
        enough = round(cost * (1 / EVALUATION_SHARE - 1) / per_step) + 1
        message = f"evaluation takes about {share:.0%} of the time"
        yield Advice(message, f"eval_interval={enough}, or a smaller eval_tokens")
