"""What the rules look at: a recipe, and whatever else is known of the run that it is for."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gptfit.config import GPT2Config, Recipe, RunConfig, TrainConfig
from gptfit.config.checks import names_of
from gptfit.config.recipe import DEFAULT, is_given
from gptfit.errors import ConfigError, Problem, did_you_mean
from gptfit.plan.step import CHUNKED, SDPA, TrainingStep, usual_dtype

if TYPE_CHECKING:
    from gptfit.plan.hardware import DeviceSpec
    from gptfit.plan.memory import Ledger

GPTFIT, NANOGPT, HUGGINGFACE = "gptfit", "nanogpt", "huggingface"
PROGRAMS = (GPTFIT, NANOGPT, HUGGINGFACE)
STEP_OF_BATCH = ("micro_batch_size", "grad_accum_steps")
LANGUAGE_MODEL, CLASSIFICATION = "language model", "sequence classification"


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What is known of the data; None is unknown.

    ``vocab_size`` counts the tokenizer's ids, ``tokenizer`` is its fingerprint, ``tokenizer_kind`` one
    of char, bpe, gpt2, file. ``token_dtype`` is that of the token files. ``unique_tokens`` is less
    than ``train_tokens`` where the text repeats itself.
    """

    train_tokens: int | None = None
    val_tokens: int | None = None
    unique_tokens: int | None = None
    vocab_size: int | None = None
    max_token_id: int | None = None
    tokenizer: str | None = None
    tokenizer_kind: str | None = None
    text_bytes: int | None = None
    token_dtype: str | None = None
    p95_document_tokens: int | None = None

    @property
    def needed_vocab_size(self) -> int | None:
        """The smallest embedding that has a row for every id."""
        highest = -1 if self.max_token_id is None else self.max_token_id
        return max(self.vocab_size or 0, highest + 1) or None


@dataclass(frozen=True)
class Pretrained:
    """The weights that training starts from: their config, and their tokenizer's fingerprint."""

    config: GPT2Config
    tokenizer: str | None = None


@dataclass(frozen=True, kw_only=True)
class Program:
    """A training program other than ``gptfit train``, where habits and not recipes decide.

    ``step`` replaces fields of the ``TrainingStep`` that ``name`` stands for. ``decay_steps`` is the
    length of the learning rate's schedule, ``tokens_per_step`` what the program claims to take.
    """

    name: str = GPTFIT
    step: Mapping[str, Any] = field(default_factory=dict)
    head: str = LANGUAGE_MODEL
    residual_scaling: bool = True
    masks_padded_vocabulary: bool = True
    masks_padded_labels: bool = True
    keeps_best: bool = True
    decays_everything: bool = False
    grad_scaler: bool = True
    use_cache: bool = False
    tf32: bool = False
    can_compile: bool = False
    operating_system: str = "linux"
    decay_steps: int | None = None
    tokens_per_step: int | None = None

    @classmethod
    def named(cls, name: str, **habits: Any) -> Program:
        """gptfit, nanogpt, or huggingface: a plain loop over ``GPT2LMHeadModel``.

        nanoGPT, train.py: TF32 on, compiles, keeps the best, decays matrices only. The plain loop has
        torch's defaults: AdamW decays every parameter by 0.01, float32 products are float32.
        """
        if name not in PROGRAMS:
            near = did_you_mean(name, PROGRAMS) or f"known: {', '.join(PROGRAMS)}"
            raise ConfigError(f"unknown program {name!r}; {near}")
        own: dict[str, Any] = {
            GPTFIT: {},
            NANOGPT: {"tf32": True, "can_compile": True, "masks_padded_vocabulary": False},
            HUGGINGFACE: {
                "can_compile": True,
                "masks_padded_vocabulary": False,
                "masks_padded_labels": False,
                "keeps_best": False,
                "decays_everything": True,
                "use_cache": True,
            },
        }[name]
        return cls(name=name, **(own | habits))


@dataclass(frozen=True, kw_only=True)
class Subject:
    """All that is known. Its attributes are what rules may ask for; None is unknown.

    >>> Subject(recipe=Recipe()).step is None
    True
    """

    recipe: Recipe = field(default_factory=Recipe)
    data: DataFacts | None = None
    device: DeviceSpec | None = None
    pretrained: Pretrained | None = None
    program: Program | None = None
    first_loss: float | None = None
    """The loss before the first update, in nats per token."""

    @property
    def subject(self) -> Subject:
        """Itself, for rules whose parts may be missing."""
        return self

    @property
    def model(self) -> GPT2Config:
        """The architecture."""
        return self.recipe.model

    @property
    def fresh(self) -> GPT2Config | None:
        """The architecture while it is still free: None where pretrained weights have fixed it."""
        return self.recipe.model if self.pretrained is None else None

    @property
    def run(self) -> RunConfig:
        """Where to run."""
        return self.recipe.run

    @property
    def train(self) -> TrainConfig | None:
        """How to train, or None where nothing was said about it, as in a bare model file."""
        origins = self.recipe.origins
        if not origins:
            return self.recipe.train if self.recipe.train != TrainConfig() else None
        said = any(key.startswith("train.") and is_given(origin) for key, origin in origins.items())
        return self.recipe.train if said else None

    @property
    def vocabulary(self) -> int | None:
        """The vocabulary's size once it is decided.

        In gptfit the data decides, unless the user has: a preset's size is a placeholder until then.
        """
        origin = self.recipe.origins.get("model.vocab_size", "given")
        placeholder = origin == DEFAULT or origin.startswith("preset")
        return None if placeholder and self.is_gptfit else self.model.vocab_size

    @property
    def is_gptfit(self) -> bool:
        """Whether gptfit trains: then what a recipe cannot say is as gptfit does it."""
        return self.program is None or self.program.name == GPTFIT

    @cached_property
    def step(self) -> TrainingStep | None:
        """How a step is computed; None where neither the device nor the program is known."""
        if self.device is None and self.program is None:
            return None
        kind = self.device.torch_kind if self.device else "cuda"
        changes = dict(self.program.step) if self.program else {}
        return dataclasses.replace(self._usual_step(kind), **changes)

    def _usual_step(self, kind: str) -> TrainingStep:
        train = self.recipe.train
        if self.is_gptfit:
            return TrainingStep.gptfit(self.recipe, kind, self._dtype(kind))
        make = TrainingStep.nanogpt if self.program.name == NANOGPT else TrainingStep.huggingface  # type: ignore[union-attr]
        step = make(self.model, train.micro_batch_size)
        accumulated = train.grad_accum_steps
        return dataclasses.replace(step, device_kind=kind, grad_accum_steps=accumulated)

    def _dtype(self, kind: str) -> str:
        if self.run.dtype != "auto":
            return self.run.dtype
        native = self.device is None or bool(self.device.bfloat16)
        return usual_dtype(kind, native, self.model.n_embd)

    @cached_property
    def ledger(self) -> Ledger | None:
        """The memory of a training step on the device; None for a step that cannot be taken."""
        if self.step is None or self.device is None or self.problems:
            return None
        from gptfit.plan.memory import memory_ledger

        return memory_ledger(self.model, self.step, self.device)

    @cached_property
    def problems(self) -> tuple[Problem, ...]:
        """Why the model cannot take this step, such as windows beyond its last position."""
        if self.step is None:
            return ()
        from gptfit.plan.memory.ledger import require_possible

        try:
            require_possible(self.model, self.step)
        except ConfigError as error:
            return error.problems
        return ()

    @property
    def tokens(self) -> int | None:
        """Tokens that training will see, where its end is counted in steps or tokens."""
        if self.train is None:
            return None
        ends = [self.train.max_tokens, self._tokens_of_steps(self.train)]
        return min((end for end in ends if end is not None), default=None)

    def _tokens_of_steps(self, train: TrainConfig) -> int | None:
        if train.max_steps is None:
            return None
        return train.max_steps * train.batch_size * self.model.n_positions

    @property
    def epochs(self) -> float | None:
        """How often training will see its data."""
        if self.tokens is None or self.data is None or not self.data.train_tokens:
            return None
        return self.tokens / self.data.train_tokens

    def changes_of_step(self, step: Mapping[str, Any]) -> dict[str, Any] | None:
        """Changes of the ``TrainingStep`` as changes of this; None where its program cannot make them.

        gptfit does what a recipe can say. What a program fixes, or another program does, is changed
        there. The accumulation follows the micro-batch.
        """
        fixed = self.program.step if self.program else {}
        result: dict[str, Any] = {}
        for name, value in step.items():
            if name in fixed or not (self.is_gptfit or name in STEP_OF_BATCH):
                result[f"step.{name}"] = value
            elif name in STEP_OF_BATCH:
                result |= {"train.micro_batch_size": value} if name == "micro_batch_size" else {}
            elif name == "attention" and value == SDPA:
                result["model.reorder_and_upcast_attn"] = False
            elif name in names_of(RunConfig):
                result[f"run.{name}"] = value
            elif (name, value) != ("loss", CHUNKED):  # said by run.loss_chunks
                return None
        return result

    def changed(self, changes: Mapping[str, Any]) -> Subject:
        """A copy with these values by dotted name; ``ConfigError`` when they cannot be."""
        parts: dict[str, dict[str, Any]] = {"recipe": {}, "step": {}, "program": {}}
        for key, value in changes.items():
            title, _, name = key.partition(".")
            part = title if title in parts else "recipe"
            parts[part][key if part == "recipe" else name] = value
        program = self.program
        if parts["program"] or parts["step"]:
            program = program or Program()
            steps = dict(program.step) | parts["step"]
            program = dataclasses.replace(program, **parts["program"], step=steps)
        recipe = self.recipe.override(parts["recipe"], "lint") if parts["recipe"] else self.recipe
        return dataclasses.replace(self, recipe=recipe, program=program)


GPT2_SHAPES = {(12, 768), (24, 1024), (36, 1280), (48, 1600)}


def is_gpt2(model: GPT2Config) -> bool:
    """Whether this is a shape that OpenAI's weights have: then its details are not free."""
    return (model.n_layer, model.n_embd) in GPT2_SHAPES


def generation(device: DeviceSpec | None) -> int:
    """80 for an sm80; 0 where it is unknown or not NVIDIA's."""
    match = re.fullmatch(r"sm(\d+)", device.architecture) if device else None
    return int(match[1]) if match else 0
