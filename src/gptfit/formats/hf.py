"""The native checkpoint: a folder that ``transformers`` loads as it is.

``config.json``, ``model.safetensors``, ``generation_config.json`` and the tokenizer's files. Loading is
strict: nothing is missing, left over, misshaped or computed with other numerics than it was made for.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gptfit.config import GPT2Config
from gptfit.config.dialects import to_hf
from gptfit.config.files import read_config_file
from gptfit.data import Tokenizer
from gptfit.errors import CheckpointError, ConfigError
from gptfit.formats.safetensors_header import read_header
from gptfit.formats.safetensors_writer import save_tensors
from gptfit.model import GPT2
from gptfit.plan.manifest import TensorSpec, manifest

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED_WEIGHTS = "pytorch_model.bin"
FINGERPRINT = "gptfit.numerics"
"""Key of the safetensors metadata under which the numerics of the weights travel with them."""


def save_model(folder: Path, model: GPT2, tokenizer: Tokenizer | None = None) -> dict[str, str]:
    """Write model and tokenizer into ``folder``, which must exist; the weights' sha256 by file name.

    Biases that the config leaves out are written as zeros, because Hugging Face's GPT-2 has no
    bias-free form; ``bias: false`` in the config brings them off again when gptfit loads.
    """
    config = model.config
    (folder / CONFIG).write_text(json.dumps(to_hf(config), indent=2) + "\n", encoding="utf-8")
    tokens = {
        name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    generation = {name: value for name, value in tokens.items() if value is not None}
    (folder / "generation_config.json").write_text(
        json.dumps(generation, indent=2) + "\n", encoding="utf-8"
    )
    fingerprint = json.dumps(config.numerics())
    metadata = {"format": "pt", FINGERPRINT: fingerprint}
    digest = save_tensors(folder / WEIGHTS, to_hf_state(model), metadata)
    if tokenizer is not None:
        tokenizer.save(folder)
    return {WEIGHTS: digest}


def load_model(
    folder: str | Path,
    device: torch.device | str = "cpu",
    changes: Mapping[str, Any] | None = None,
    pad_vocab_to_multiple: int = 1,
) -> GPT2:
    """The model of a Hugging Face GPT-2 folder, in float32.

    ``changes`` may alter what leaves the weights' meaning alone (dropout, token ids); a change of
    shape or numerics raises ``CheckpointError``, and so does any tensor that does not fit.
    """
    folder = Path(folder)
    config = load_config(folder)
    if changes:
        config = _changed(config, changes)
    state = from_hf_state(_read_weights(folder, config), config, folder)
    return build_model(config, state, device, pad_vocab_to_multiple)


def load_config(folder: Path) -> GPT2Config:
    """The config of a checkpoint folder, with errors that name the folder."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} holds no {CONFIG}: it is no checkpoint folder")
    return GPT2Config.from_file(folder / CONFIG)


def build_model(
    config: GPT2Config,
    state: Mapping[str, Tensor],
    device: torch.device | str = "cpu",
    pad_vocab_to_multiple: int = 1,
) -> GPT2:
    """A model around tensors that already have our names and shapes."""
    with torch.device("meta"):
        model = GPT2(config, pad_vocab_to_multiple)
    model.to_empty(device=device)
    model.tie_weights()
    with torch.no_grad():
        for spec in manifest(config):
            if not spec.tied_to:
                weight = model.get_parameter(spec.name)
                weight.zero_()
                weight[: spec.shape[0]].copy_(state[spec.name])
    return model


def to_hf_state(model: GPT2) -> dict[str, Tensor]:
    """The model's tensors under Hugging Face's names and layout; views, where they are."""
    state = {}
    for spec in manifest(model.config):
        if not spec.tied_to:
            weight = model.get_parameter(spec.name).detach()[: spec.shape[0]]
            state[hf_name(spec)] = weight.t() if spec.transposed_in_hf else weight
    for spec in absent_biases(model.config):
        state[hf_name(spec)] = torch.zeros(spec.shape)
    return state


def from_hf_state(state: dict[str, Tensor], config: GPT2Config, source: Path) -> dict[str, Tensor]:
    """Tensors under our names and layout, after every one of them was accounted for."""
    state = {_bare(name): tensor for name, tensor in state.items() if not _is_legacy_buffer(name)}
    _check_names_and_shapes({name: tuple(t.shape) for name, t in state.items()}, config, source)
    if faults := [f"{n} holds {t.dtype}" for n, t in state.items() if not t.is_floating_point()]:
        raise CheckpointError(_listing(f"{source}: weights are floating point numbers", faults))
    for spec in absent_biases(config):
        bias = state.pop(spec.name, None)
        if bias is not None and bias.any():
            raise CheckpointError(
                f"{source}: {spec.name} is not zero, but the config says bias=false; "
                "set bias to true in its config.json"
            )
    for spec in manifest(config):
        if spec.tied_to and spec.name in state and not state[spec.name].equal(state[spec.tied_to]):
            raise CheckpointError(
                f"{source}: {spec.name} differs from {spec.tied_to}, but the config ties them; "
                "set tie_word_embeddings to false in its config.json"
            )
    return {
        spec.name: state[spec.name].t() if spec.transposed_in_hf else state[spec.name]
        for spec in manifest(config)
        if not spec.tied_to
    }


def hf_name(spec: TensorSpec) -> str:
    """Hugging Face's name of a tensor: everything but the head lives under ``transformer``."""
    return spec.name if spec.name.startswith("lm_head.") else f"transformer.{spec.name}"


def absent_biases(config: GPT2Config) -> Iterator[TensorSpec]:
    """The biases that Hugging Face's layout has and a bias-free config has not."""
    if not config.bias:
        present = {spec.name for spec in manifest(config)}
        yield from (s for s in manifest(config.replace(bias=True)) if s.name not in present)


def check_weights(folder: Path, config: GPT2Config) -> None:
    """Hold the weight files' headers against the config, before anything is allocated."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        header = read_header(path)
        shapes |= header.shapes
        if FINGERPRINT in header.metadata:
            _check_numerics(header.metadata[FINGERPRINT], config, path)
    shapes = {_bare(name): shape for name, shape in shapes.items() if not _is_legacy_buffer(name)}
    _check_names_and_shapes(shapes, config, folder)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, whole or sharded; empty when it has none."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        return []
    names = read_config_file(folder / INDEX).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{folder / INDEX} holds no weight_map")
    shards = sorted(set(names.values()))
    for shard in shards:
        if Path(shard).name != shard:
            raise CheckpointError(f"{folder / INDEX} points outside its folder: {shard!r}")
    return [folder / shard for shard in shards]


def _read_weights(folder: Path, config: GPT2Config) -> dict[str, Tensor]:
    paths = weight_files(folder)
    if not paths and (folder / PICKLED_WEIGHTS).is_file():
        return _read_pickled(folder / PICKLED_WEIGHTS)
    if not paths:
        raise CheckpointError(f"{folder} holds no weights ({WEIGHTS} or {PICKLED_WEIGHTS})")
    check_weights(folder, config)
    state: dict[str, Tensor] = {}
    for path in paths:
        try:
            state |= load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from None
    return state


def _read_pickled(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an unusual pickle is refused below, if at all
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile pickle can raise anything
        raise CheckpointError(
            f"{path} is damaged or holds more than plain tensors; nothing in it was executed. "
            f"Ask for a {WEIGHTS} instead ({type(error).__name__})"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise CheckpointError(f"{path} does not hold a table of tensors")
    return {str(name): tensor for name, tensor in state.items()}


def _check_names_and_shapes(
    shapes: Mapping[str, tuple[int, ...]], config: GPT2Config, source: Path
) -> None:
    wanted = {spec.name: spec for spec in manifest(config)}
    allowed = wanted | {spec.name: spec for spec in absent_biases(config)}
    faults = [
        f"missing {name}" for name, s in wanted.items() if not s.tied_to and name not in shapes
    ]
    faults += [f"unexpected {name}" for name in shapes if name not in allowed]
    for name, spec in allowed.items():
        shape = spec.shape[::-1] if spec.transposed_in_hf else spec.shape
        if name in shapes and shapes[name] != shape:
            faults.append(f"{name} is {list(shapes[name])} where the config says {list(shape)}")
    if faults:
        raise CheckpointError(_listing(f"{source}: the weights do not fit the config", faults))


def _listing(title: str, faults: list[str], limit: int = 12) -> str:
    if len(faults) == 1:
        return f"{title}: {faults[0]}"
    more = [f"... and {len(faults) - limit} more"] if len(faults) > limit else []
    lines = [f"  - {fault}" for fault in faults[:limit] + more]
    return "\n".join([f"{title}, {len(faults)} differences:", *lines])


def _check_numerics(fingerprint: str, config: GPT2Config, source: Path) -> None:
    now = config.numerics()
    try:
        made_with = dict(json.loads(fingerprint))
    except (ValueError, TypeError):
        raise CheckpointError(f"{source}: its {FINGERPRINT} is damaged; export it again") from None
    faults = [
        f"{name}={now[name]!r}, but the weights were made with {made_with[name]!r}"
        for name in now
        if name in made_with and made_with[name] != now[name]
    ]
    if faults:
        raise CheckpointError(
            _listing(f"{source}: the config would compute something else", faults)
        )


def _changed(config: GPT2Config, changes: Mapping[str, Any]) -> GPT2Config:
    changed = config.replace(**changes)
    before, after = ([(s.name, s.shape) for s in manifest(c)] for c in (config, changed))
    numerics = changed.numerics() != config.numerics()
    if numerics or before != after:
        raise ConfigError(
            f"{', '.join(changes)} cannot change under given weights; "
            "only dropout, token ids and use_cache can"
        )
    return changed


def _bare(name: str) -> str:
    return name.removeprefix("transformer.")


def _is_legacy_buffer(name: str) -> bool:
    """Causal masks that older releases of transformers stored beside the weights."""
    return name.endswith((".attn.bias", ".attn.masked_bias"))
