"""Going on with a run by another recipe: what may change, and what would make another run of it."""

from __future__ import annotations

from typing import Any

from gptfit.config import Recipe
from gptfit.config.recipe import is_given
from gptfit.errors import ConfigError, Problem
from gptfit.train.starting_point import is_written_down

DECIDED_BY_DATA = (
    "model.vocab_size",
    "model.bos_token_id",
    "model.eos_token_id",
    "model.pad_token_id",
    "data.tokenizer",
    "data.bpe_vocab_size",
)

# What may differ between a run and its continuation: where it ends and what it tells on the way.
CONTINUABLE = {
    "train": {
        "max_steps",
        "max_tokens",
        "max_seconds",
        "eval_interval",
        "log_interval",
        "sample_interval",
        "micro_batch_size",
        "on_nonfinite",
        "max_nonfinite",
    },
    "run": {
        "device",
        "dtype",
        "checkpointed_blocks",
        "loss_chunks",
        "keep_checkpoints",
        "keep_every",
        "async_checkpoints",
        "compile",
        "parallel",
        "track",
        "sample_prompt",
        "sample_tokens",
        "pad_vocab_to_multiple",
    },
}


def continued(before: Recipe, wanted: Recipe) -> Recipe:
    """The recipe of a run with every value that ``wanted`` was given.

    Where data or weights had decided what the run was made with, a preset does not object.
    """
    return before.override(
        {
            key: _value(wanted, key)
            for key, origin in wanted.origins.items()
            if is_given(origin) and (is_written_down(origin) or not _is_decided(before, key))
        }
    )


def _is_decided(recipe: Recipe, key: str) -> bool:
    by_weights = recipe.run.init_from != "" and key.startswith("model.")
    return by_weights or key in DECIDED_BY_DATA


def require_same_run(before: Recipe, after: Recipe, new_data: bool = False) -> None:
    """Refuse what would make another run of it; ``new_data`` allows another text."""
    problems = []
    for key in before.origins:
        section, _, name = key.partition(".")
        was, now = _value(before, key), _value(after, key)
        if was == now or name in CONTINUABLE.get(section, ()) or (new_data and key == "data.text"):
            continue
        message = f"{name}={now!r} conflicts with {name}={was!r} of the run being resumed"
        fix = (
            "add --new-data if that is meant" if key == "data.text" else "start a new run for that"
        )
        problems.append(Problem(key, message, fix))
    if problems:
        raise ConfigError(problems)


def _value(recipe: Recipe, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(recipe, section), name)
