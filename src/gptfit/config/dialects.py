"""The ways other programs write a GPT-2 down: Hugging Face, nanoGPT, and flat preset files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gptfit.config import checks
from gptfit.config.checks import shown
from gptfit.config.gpt2 import GPT2_PADDED_VOCAB_SIZE, NUMERICS, GPT2Config
from gptfit.errors import ConfigError, Problem

MODEL_WORDS = frozenset(checks.names_of(GPT2Config)) | frozenset(GPT2Config.ALIASES)

# Keys of config.json, transformers 2 to 5, that say nothing about what a GPT-2 computes.
HF_ENVELOPE = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash
    _name_or_path _num_labels architectures attn_implementation bad_words_ids begin_suppress_tokens
    chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id diversity_penalty
    do_sample dtype early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    gradient_checkpointing id2label is_decoder is_encoder_decoder label2id length_penalty max_length
    min_length model_type n_ctx name_or_path no_repeat_ngram_size num_beam_groups num_beams
    num_labels num_return_sequences output_attentions output_hidden_states output_past output_scores
    predict_special_tokens prefix problem_type pruned_heads remove_invalid_values repetition_penalty
    return_dict return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature
    tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript
    transformers_version typical_p use_bfloat16
    """.split()  # noqa: SIM905  (a list literal would take a line for each)
)
EXECUTES_CODE = ("auto_map", "trust_remote_code", "custom_pipelines")

# nanoGPT's GPTConfig (model.py:109-116) and the vocabulary its train.py falls back to.
NANOGPT_DEFAULTS: Mapping[str, Any] = {
    "block_size": 1024,
    "vocab_size": GPT2_PADDED_VOCAB_SIZE,
    "n_layer": 12,
    "n_head": 12,
    "n_embd": 768,
    "dropout": 0.0,
    "bias": True,
}
NANOGPT_WORDS = frozenset(NANOGPT_DEFAULTS)

FLAT_EXTRAS = ("name", "description", "batch_size", "device")
FLAT_DEFAULTS: Mapping[str, Any] = {"vocab_size": GPT2_PADDED_VOCAB_SIZE, "bias": False}
FLAT_DROPOUT = 0.2
DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")

# What a written configuration must bring back; the rest steers generation or initialisation.
COMPUTED = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_inner", *DROPOUTS, *NUMERICS)


@dataclass(frozen=True)
class Reading:
    """A configuration with the dialect it was written in.

    ``notes`` say what the dialect implied, ``extras`` hold what it says beside the model.
    """

    config: GPT2Config
    dialect: str
    notes: tuple[str, ...]
    extras: dict[str, Any]


@dataclass
class Translation:
    """Keyword arguments for ``GPT2Config``, not yet checked, and the faults of the dialect."""

    dialect: str
    values: dict[str, Any]
    extras: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def read_dialect(values: Mapping[str, Any], source: str = "") -> Reading:
    """The configuration in ``values``, whichever dialect it is; one ``ConfigError`` with all faults.

    >>> read_dialect({"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256}).dialect
    'nanogpt'
    """
    translation = translate(values, source)
    problems = translation.problems
    try:
        config = GPT2Config(**translation.values)
    except ConfigError as error:
        problems = problems + list(error.problems)
    if problems:
        raise ConfigError(problems, source)
    return Reading(config, translation.dialect, tuple(translation.notes), translation.extras)


def translate(values: Mapping[str, Any], source: str = "") -> Translation:
    """``values`` in ``GPT2Config``'s words; keys that nobody knows are left in for it to refuse."""
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{shown(values)} is no configuration; give keys and values", source)
    dialect = dialect_of(values)
    return {"hf": _from_hf, "nanogpt": _from_nanogpt, "flat": _from_flat}[dialect](values)


def dialect_of(values: Mapping[str, Any]) -> str:
    """``hf`` (also our own), ``nanogpt`` or ``flat``, by the keys.

    ``block_size`` alone does not make a file nanoGPT's: one word that only we or Hugging Face use
    makes it an alias.
    """
    keys = frozenset(values)
    if "model_args" in keys:
        return "nanogpt"
    if keys & frozenset(FLAT_EXTRAS) and "model_type" not in keys:
        return "flat"
    if "block_size" in keys and not keys & ((MODEL_WORDS | HF_ENVELOPE) - NANOGPT_WORDS):
        return "nanogpt"
    return "hf"


def _from_hf(values: Mapping[str, Any]) -> Translation:
    words = {key: value for key, value in values.items() if key not in HF_ENVELOPE}
    result = Translation("hf", {k: v for k, v in words.items() if k not in EXECUTES_CODE})
    for key in EXECUTES_CODE:
        if key in words:
            message = f"{key}={shown(words[key])} asks to run code that comes with the model"
            result.problems.append(Problem(key, message, "gptfit never does; remove the key"))
    result.problems += _hf_contradictions(values)
    return result


def _hf_contradictions(values: Mapping[str, Any]) -> Iterator[Problem]:
    kind = values.get("model_type", "gpt2")
    if kind != "gpt2":
        yield Problem("model_type", f"model_type={shown(kind)} is no GPT-2", "only gpt2 is read")
    positions = values.get("n_positions", values.get("max_position_embeddings", 1024))
    if "n_ctx" in values and values["n_ctx"] != positions:
        message = f"n_ctx={shown(values['n_ctx'])} and n_positions={shown(positions)} differ"
        yield Problem("n_ctx", message, "they are one size; remove n_ctx")
    for key in ("pruned_heads", "is_encoder_decoder"):
        if values.get(key):
            message = f"{key}={shown(values[key])} is a shape that a GPT-2 does not have"
            yield Problem(key, message, "remove the key")


def _from_nanogpt(values: Mapping[str, Any]) -> Translation:
    result = Translation("nanogpt", {})
    model_args = values.get("model_args", values)
    if not isinstance(model_args, Mapping) or not all(isinstance(key, str) for key in model_args):
        message = f"model_args={shown(model_args)} must be an object"
        result.problems.append(Problem("model_args", message))
        return result
    if "model_args" in values:
        result.problems += checks.unknown_keys(
            [k for k in values if k != "model_args"], ["model_args"]
        )
    result.problems += checks.unknown_keys(
        [key for key in model_args if key not in NANOGPT_WORDS], NANOGPT_WORDS
    )
    given = {k: v for k, v in model_args.items() if k in NANOGPT_WORDS}
    if given.get("vocab_size", 0) is None:  # "from the dataset", in its train.py
        del given["vocab_size"]
    result.values = {**NANOGPT_DEFAULTS, **given, "activation_function": "gelu"}
    result.notes = ["activation_function is gelu: nanoGPT computes the exact GELU"]
    result.notes += _assumed(NANOGPT_DEFAULTS, given)
    return result


def _from_flat(values: Mapping[str, Any]) -> Translation:
    defaults = dict(FLAT_DEFAULTS)
    if not any(key in values for key in ("dropout", *DROPOUTS)):
        defaults["dropout"] = FLAT_DROPOUT
    words = {key: value for key, value in values.items() if key not in FLAT_EXTRAS}
    extras = {key: values[key] for key in FLAT_EXTRAS if key in values}
    return Translation("flat", defaults | words, extras, _assumed(defaults, words))


def _assumed(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    return [f"{key} was not given: {value}" for key, value in defaults.items() if key not in given]


def to_hf(config: GPT2Config) -> dict[str, Any]:
    """The ``config.json`` of a ``GPT2LMHeadModel``."""
    return {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"} | config.to_dict()


def to_nanogpt(config: GPT2Config) -> dict[str, Any]:
    """nanoGPT's ``model_args``. Raises ``ConfigError`` with everything that nanoGPT cannot say."""
    written = _block_words(config)
    _refuse_losses(written, config, "nanoGPT")
    return written


def to_flat(
    config: GPT2Config, name: str, description: str, batch_size: int, device: str | None = None
) -> dict[str, Any]:
    """A flat preset file. Raises ``ConfigError`` with everything that such a file cannot say."""
    written = {"name": name, "description": description, "batch_size": batch_size}
    written |= _block_words(config) | ({"device": device} if device is not None else {})
    _refuse_losses(written, config, "a flat file")
    return written


def _block_words(config: GPT2Config) -> dict[str, Any]:
    words = {"block_size": "n_positions", "dropout": "resid_pdrop"}
    return {word: getattr(config, words.get(word, word)) for word in NANOGPT_DEFAULTS}


def _refuse_losses(written: Mapping[str, Any], config: GPT2Config, program: str) -> None:
    back = read_dialect(written).config
    problems = []
    for name in COMPUTED:
        value, theirs = getattr(config, name), getattr(back, name)
        if value != theirs:
            message = f"{program} cannot say {name}={shown(value)}; it would read {shown(theirs)}"
            problems.append(Problem(name, message, "save a Hugging Face config.json instead"))
    if problems:
        raise ConfigError(problems)
