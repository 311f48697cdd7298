"""Who takes part: gptfit, Hugging Face and nanoGPT, each as its users run it and as it runs best."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gptfit.bench.figures import Absent
from gptfit.config import GPT2Config, Recipe
from gptfit.config.dialects import to_nanogpt
from gptfit.errors import ConfigError, did_you_mean
from gptfit.plan.step import BFLOAT16, FLOAT32, TrainingStep

GPTFIT, HUGGING_FACE, NANOGPT = "gptfit", "huggingface", "nanogpt"
TUNED = "-tuned"
KEYS = (GPTFIT, HUGGING_FACE + TUNED, HUGGING_FACE, NANOGPT + TUNED, NANOGPT)
NAMES = {GPTFIT: "gptfit", HUGGING_FACE: "Hugging Face", NANOGPT: "nanoGPT"}

NANOGPT_ADDRESS = "https://github.com/karpathy/nanoGPT"
NANOGPT_STEP = ("model.py",)
GELUS = ("gelu", "gelu_new")
"""nanoGPT computes the exact GELU, which the loss cannot tell from the approximation."""


@dataclass(frozen=True)
class Contestant:
    """One program, and how it computes its step. ``checkout`` is the folder with nanoGPT's code."""

    code: str
    recipe: Recipe
    dtype: str
    fused: bool
    compiled: bool
    tuned: bool = False
    checkout: Path | None = None

    @property
    def key(self) -> str:
        """One of ``KEYS``."""
        return self.code + (TUNED if self.tuned else "")

    @property
    def name(self) -> str:
        """For people."""
        return NAMES[self.code] + (", tuned" if self.tuned else "")

    @property
    def settings(self) -> str:
        """What distinguishes its step from the others'."""
        optimizer = "fused AdamW" if self.fused else "AdamW"
        return ", ".join([self.dtype, optimizer, *(["compiled"] if self.compiled else [])])

    def step(self, device_kind: str) -> TrainingStep:
        """As the memory ledger sees it."""
        if self.code == GPTFIT:
            return TrainingStep.gptfit(self.recipe, device_kind, self.dtype)
        of = {HUGGING_FACE: TrainingStep.huggingface, NANOGPT: TrainingStep.nanogpt}[self.code]
        train = self.recipe.train
        return replace(
            of(self.recipe.model, train.micro_batch_size),
            grad_accum_steps=train.grad_accum_steps,
            device_kind=device_kind,
            dtype=self.dtype,
            fused_optimizer=self.fused,
            compiled=self.compiled,
        )

    def to_dict(self) -> dict[str, Any]:
        """What a process of its own has to know, as JSON can say it."""
        recipe = self.recipe.override({"run.dtype": self.dtype})
        return {
            "code": self.code,
            "recipe": recipe.to_dict(),
            "fused": self.fused,
            "compiled": self.compiled,
            "checkout": str(self.checkout.resolve()) if self.checkout else None,
        }


def assemble(
    recipe: Recipe, device_kind: str, dtype: str, checkout: Path | None, keys: Sequence[str] = KEYS
) -> tuple[list[Contestant], list[Absent]]:
    """Who can take part among ``keys``, and who cannot for what reason.

    ``dtype`` is gptfit's, and that of a tuned peer. Raises ``ConfigError`` for a key that nobody has
    and a ``checkout`` that is none.
    """
    for key in keys:
        if key not in KEYS:
            fix = did_you_mean(key, KEYS) or f"choose from {', '.join(KEYS)}"
            raise ConfigError(f"no contestant is called {key!r}; {fix}")
    if checkout is not None:
        require_checkout(checkout, NANOGPT_STEP)
    all_of_them = contestants(recipe, device_kind, dtype, checkout)
    wanted = [one for one in all_of_them if one.key in keys or one.code == GPTFIT]
    reasons = {one.key: _obstacle(one) for one in wanted}
    absent = [Absent(one.name, reason) for one in wanted if (reason := reasons[one.key])]
    return [one for one in wanted if not reasons[one.key]], absent


def contestants(
    recipe: Recipe, device_kind: str, dtype: str, checkout: Path | None
) -> Iterator[Contestant]:
    """Everybody, whether they can take part or not."""
    on_gpu = device_kind == "cuda"
    ours = recipe.override({"run.compile": "on"}, "bench") if on_gpu and _auto(recipe) else recipe
    compiled = ours.run.compile == "on"
    yield Contestant(GPTFIT, ours, dtype, fused=True, compiled=compiled)
    yield Contestant(HUGGING_FACE, recipe, dtype, fused=True, compiled=on_gpu, tuned=True)
    yield Contestant(HUGGING_FACE, recipe, FLOAT32, fused=False, compiled=False)
    if not on_gpu:  # there its own settings are these
        yield Contestant(
            NANOGPT, recipe, dtype, fused=True, compiled=False, tuned=True, checkout=checkout
        )
    theirs = BFLOAT16 if on_gpu else FLOAT32
    yield Contestant(NANOGPT, recipe, theirs, fused=on_gpu, compiled=on_gpu, checkout=checkout)


def nanogpt_words(config: GPT2Config) -> dict[str, Any]:
    """nanoGPT's ``model_args`` for this model. Raises ``ConfigError`` with what it cannot say."""
    if config.activation_function in GELUS:
        config = config.replace(activation_function="gelu")
    return to_nanogpt(config)


def require_checkout(folder: Path, files: Sequence[str]) -> None:
    """Refuse a folder that is no checkout of nanoGPT."""
    if missing := [name for name in files if not (folder / name).is_file()]:
        raise ConfigError(
            f"{folder} holds no {missing[0]}; --nanogpt takes a checkout of {NANOGPT_ADDRESS}"
        )


def _auto(recipe: Recipe) -> bool:
    return recipe.run.compile == "auto"


def _obstacle(one: Contestant) -> str:
    """Why it cannot take part; empty if it can."""
    config = one.recipe.model
    if one.code == HUGGING_FACE:
        if not find_spec("transformers"):
            return "transformers is not installed; pip install 'gptfit[hf]'"
        return "" if config.bias else "its GPT-2 has no form without biases"
    if one.code == NANOGPT:
        if one.checkout is None:
            return f"no --nanogpt DIR was given; git clone {NANOGPT_ADDRESS}"
        try:
            nanogpt_words(config)
        except ConfigError as error:
            return error.problems[0].message
    return ""
