"""The sections of a recipe: beside the model, which data, how to train and where to run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from gptfit.config import checks
from gptfit.config.checks import AUTO, Follows, Section, section, shown
from gptfit.config.gpt2 import GPT2Config
from gptfit.errors import Problem, did_you_mean

TOKENIZERS = ("auto", "char", "bpe", "gpt2")
SCHEDULES = ("cosine", "linear", "constant", "wsd")
OPTIMIZERS = ("adamw", "muon")
ON_NONFINITE = ("stop", "skip", "rewind")
COMPILE = ("auto", "on", "off")
PARALLEL = ("auto", "ddp", "fsdp")
SINKS = ("tensorboard", "wandb")
DEVICE_PATTERN = r"auto|cpu|cuda(:\d{1,4})?|mps"
DTYPES = ("auto", "float32", "bfloat16")
MAX_BATCH_SIZE = 2**20
BYTES = 256  # the base alphabet of a byte-level BPE


@section
@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """Which text, and how it becomes tokens.

    ``text`` holds files, folders and globs, or "-" for standard input. ``tokenizer`` is one of
    ``TOKENIZERS`` or the path of a ``tokenizer.json``. Of a JSON lines file, ``json_field`` is read.
    """

    text: tuple[str, ...] = ()
    tokenizer: str = "auto"
    bpe_vocab_size: int | None = None
    val_fraction: float = 0.1
    json_field: str = "text"

    ELSEWHERE: ClassVar[Mapping[str, str]] = {
        "dataset": "name the files or folders: text=...",
        "input_file": "use text=...",
        "tokenization": "use tokenizer=char, bpe or gpt2",
    }

    def rules(self) -> Iterator[Problem]:
        """What no corpus can be read or split with."""
        yield from self._tokenizer_exists()
        yield from checks.at_least(self, BYTES + 1, "bpe_vocab_size")
        yield from checks.at_most(self, {"bpe_vocab_size": 2**24, "val_fraction": 0.5})
        yield from checks.positive(self, "val_fraction")
        if checks.sound(self, "text") and "" in self.text:
            yield Problem("text", "text='' names no file", "give a path, or - for standard input")
        if self.json_field == "":
            yield Problem("json_field", "json_field='' names no field", 'the default is "text"')

    def _tokenizer_exists(self) -> Iterator[Problem]:
        if not checks.sound(self, "tokenizer") or self.tokenizer in TOKENIZERS:
            return
        if not re.search(r"[/\\]|\.json$", self.tokenizer):
            words = ", ".join(TOKENIZERS)
            fix = did_you_mean(self.tokenizer[:60], TOKENIZERS)
            fix = fix or f"choose one of {words}, or the path of a tokenizer.json"
            yield Problem("tokenizer", f"tokenizer={shown(self.tokenizer)} is not known", fix)


def _tenth(learning_rate: float) -> float:
    """Rounded, so that 3e-3 gives 3e-4 and not 3.0000000000000003e-4."""
    return float(f"{learning_rate / 10:.12g}")


@section
@dataclass(frozen=True, kw_only=True)
class TrainConfig(Section):
    """How to train.

    ``batch_size`` counts the sequences of one optimizer step over all processes,
    ``micro_batch_size`` those of one forward pass on one device. ``max_steps``, ``max_tokens`` and
    ``max_seconds`` are budgets: the first one reached ends the run. ``eval_tokens`` None is the
    whole validation split, ``sample_interval`` None is at every evaluation and 0 never, ``grad_clip``
    0 is off.

    With ``optimizer`` muon the matrices of the blocks are updated by Muon with the rate
    ``muon_learning_rate`` and everything else by AdamW with ``learning_rate``; both follow one
    schedule. ``wsd`` stays at the full rate and decays over the last ``decay_share`` of the budget.
    ``zero_init_projections`` starts each block as the identity. ``on_nonfinite`` says what a loss or
    gradient that is not finite leads to: stop, skip the batch, or rewind to the last checkpoint and
    skip the batches since; after ``max_nonfinite`` times in a row the run stops all the same.

    >>> config = TrainConfig(batch_size=48, micro_batch_size=12, lr=1e-3)
    >>> config.grad_accum_steps, config.min_lr
    (4, 0.0001)
    """

    batch_size: int = 12
    micro_batch_size: int = AUTO
    learning_rate: float = 4e-3
    min_lr: float = AUTO
    schedule: str = "cosine"
    decay_share: float = 0.3
    warmup_steps: int = 100
    optimizer: str = "muon"
    muon_learning_rate: float = 0.02
    muon_momentum: float = 0.95
    zero_init_projections: bool = False
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    adam_epsilon: float = 1e-8
    grad_clip: float = 1.0
    on_nonfinite: str = "stop"
    max_nonfinite: int = 5
    max_steps: int | None = None
    max_tokens: int | None = None
    max_seconds: float | None = None
    eval_interval: int = 250
    eval_tokens: int | None = None
    log_interval: int = 10
    sample_interval: int | None = None
    seed: int = 1337

    FOLLOWS: ClassVar[Follows] = {
        "micro_batch_size": ("batch_size", lambda batch_size: batch_size),
        "min_lr": ("learning_rate", _tenth),
    }
    ALIASES: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "lr": ("learning_rate",),
        "steps": ("max_steps",),
        "max_iters": ("max_steps",),
        "tokens": ("max_tokens",),
        "warmup_iters": ("warmup_steps",),
    }
    ELSEWHERE: ClassVar[Mapping[str, str]] = {
        "gradient_accumulation_steps": (
            "batch_size counts the sequences of a whole optimizer step; "
            "micro_batch_size says how many fit on the device at once"
        ),
        "eval_iters": "eval_tokens says how much of the validation split is read",
        "lr_decay_iters": "the learning rate decays over the whole budget, such as max_steps",
        "decay_lr": "use schedule=constant",
    }

    def rules(self) -> Iterator[Problem]:
        """What no run can be made with."""
        yield from checks.at_least(self, 1, "batch_size", "micro_batch_size")
        yield from self._micro_batches_fill_batch()
        yield from checks.positive(self, "learning_rate", "adam_epsilon")
        yield from self._rate_falls()
        yield from checks.positive(self, "muon_learning_rate", "decay_share")
        yield from checks.one_of(self, "schedule", SCHEDULES)
        yield from checks.one_of(self, "optimizer", OPTIMIZERS)
        yield from checks.one_of(self, "on_nonfinite", ON_NONFINITE)
        yield from checks.at_least(self, 0, "warmup_steps", "weight_decay", "grad_clip", "seed")
        yield from checks.fraction(self, "beta1", "beta2", "muon_momentum")
        yield from checks.at_most(self, {"decay_share": 1.0})
        yield from checks.at_least(self, 1, "max_nonfinite")
        yield from checks.positive(self, "max_steps", "max_tokens", "max_seconds", "eval_tokens")
        yield from checks.at_least(self, 1, "eval_interval", "log_interval")
        yield from checks.at_least(self, 0, "sample_interval", "min_lr")
        # numpy and torch take 64 bits; samples add their number to it.
        yield from checks.at_most(self, {"seed": 2**63 - 2**16, "batch_size": MAX_BATCH_SIZE})

    def _micro_batches_fill_batch(self) -> Iterator[Problem]:
        if not checks.sound(self, "batch_size", "micro_batch_size"):
            return
        batch, micro = self.batch_size, self.micro_batch_size
        if 1 <= batch <= MAX_BATCH_SIZE and micro >= 1 and batch % micro:
            fits = next(size for size in range(min(micro, batch), 0, -1) if batch % size == 0)
            message = f"micro_batch_size={shown(micro)} does not divide batch_size={batch}"
            yield Problem("micro_batch_size", message, f"try {fits}")

    def _rate_falls(self) -> Iterator[Problem]:
        if checks.sound(self, "learning_rate", "min_lr") and 0 < self.learning_rate < self.min_lr:
            message = f"min_lr={self.min_lr} is above learning_rate={self.learning_rate}"
            yield Problem("min_lr", message, f"use at most {self.learning_rate}")

    @property
    def has_end(self) -> bool:
        """Whether any budget is set."""
        return any(b is not None for b in (self.max_steps, self.max_tokens, self.max_seconds))

    @property
    def grad_accum_steps(self) -> int:
        """Forward and backward passes per optimizer step when one process runs."""
        return self.batch_size // self.micro_batch_size


@section
@dataclass(frozen=True, kw_only=True)
class RunConfig(Section):
    """Where to run and what to keep.

    ``device`` is auto, cpu, cuda, cuda:N or mps. ``pad_vocab_to_multiple`` None lets the trainer
    decide, 1 is none. ``keep_checkpoints`` counts the latest ones; the best one is kept besides, and
    every one whose step is a multiple of ``keep_every``. With ``async_checkpoints`` training goes on
    while a checkpoint is written. ``compile`` auto compiles where that pays within the run. ``parallel``
    says how several processes share the work. ``track`` names further places for the metrics.
    ``init_from`` is the model (a run, a folder or a hub id) whose weights the run starts from.

    Two ways to train the same model in less memory: the backward pass recomputes the activations of
    the first ``checkpointed_blocks`` blocks, at up to a third more time; the loss takes the tokens in
    ``loss_chunks`` parts, of which only one has its logits in memory.
    """

    device: str = "auto"
    dtype: str = "auto"
    pad_vocab_to_multiple: int | None = None
    checkpointed_blocks: int = 0
    loss_chunks: int = 1
    compile: str = "auto"
    parallel: str = "auto"
    deterministic: bool = False
    keep_checkpoints: int = 2
    keep_every: int | None = None
    async_checkpoints: bool = True
    track: tuple[str, ...] = ()
    init_from: str = ""
    sample_prompt: str = ""
    sample_tokens: int = 200

    def rules(self) -> Iterator[Problem]:
        """What no machine can run."""
        if checks.sound(self, "device") and not re.fullmatch(DEVICE_PATTERN, self.device):
            fix = "choose one of auto, cpu, cuda, cuda:N, mps"
            yield Problem("device", f"device={shown(self.device)} is not known", fix)
        yield from checks.one_of(self, "dtype", DTYPES)
        yield from checks.one_of(self, "compile", COMPILE)
        yield from checks.one_of(self, "parallel", PARALLEL)
        yield from checks.positive(self, "keep_every")
        if checks.sound(self, "track"):
            for unknown in set(self.track) - set(SINKS):
                fix = did_you_mean(unknown[:60], SINKS) or f"choose from {', '.join(SINKS)}"
                yield Problem("track", f"track={shown(unknown)} is not known", fix)
        yield from checks.at_least(self, 1, "pad_vocab_to_multiple", "keep_checkpoints")
        yield from checks.at_least(self, 1, "loss_chunks")
        yield from checks.at_least(self, 0, "checkpointed_blocks", "sample_tokens")
        yield from checks.at_most(self, {"pad_vocab_to_multiple": 2**16})


SECTIONS: Mapping[str, type[Section]] = {
    "model": GPT2Config,
    "data": DataConfig,
    "train": TrainConfig,
    "run": RunConfig,
}
