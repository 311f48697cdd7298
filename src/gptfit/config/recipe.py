"""``Recipe``: everything that decides a run, and where each value came from."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptfit.config import checks
from gptfit.config.checks import Section, shown
from gptfit.config.dialects import HF_ENVELOPE, translate
from gptfit.config.files import read_config_file, write_toml
from gptfit.config.gpt2 import GPT2Config
from gptfit.config.overrides import (
    NULLS,
    Values,
    locate,
    meant,
    parse_overrides,
    read_overrides,
)
from gptfit.config.presets import find_preset
from gptfit.config.sections import SECTIONS, DataConfig, RunConfig, TrainConfig
from gptfit.errors import ConfigError, Problem

__all__ = ["Recipe", "parse_overrides"]

TITLES = ("preset", "name", "description")
"""The keys of a recipe file beside its sections."""

DEFAULT, COMMAND_LINE, RULE = "default", "command line", "rule: "
LEARNING_RATE, OPTIMIZER = "train.learning_rate", "train.optimizer"
FINE_TUNING = 0.1
"""Of the usual learning rate, for weights that are trained already."""


@dataclass(frozen=True)
class Recipe:
    """The model, its data, its training and its run.

    ``origins`` says where each value came from, such as ``origins["model.n_layer"] == "preset gpt2"``.

    >>> recipe = Recipe.resolve(preset="gpt2-xl", overrides=["n_layer=2", "lr=1e-3"])
    >>> recipe.model.n_embd, recipe.model.n_layer, recipe.train.learning_rate
    (1600, 2, 0.001)
    >>> recipe.origins["model.n_embd"], recipe.origins["model.n_layer"]
    ('preset gpt2-xl', 'command line')
    """

    model: GPT2Config = field(default_factory=GPT2Config)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=RunConfig)
    name: str = ""
    description: str = ""
    origins: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def resolve(
        cls,
        preset: str | None = None,
        file: str | Path | None = None,
        overrides: Mapping[str, Any] | Sequence[str] = (),
    ) -> Recipe:
        """Defaults, then the preset, then the file, then the overrides; all faults in one error.

        ``file`` is a recipe, or a model in any dialect. Overrides are ``key=value`` strings or, in
        a mapping, values as they are.
        """
        document = None
        if file is not None:
            document = _document(read_config_file(file), f"file {file}")
        return cls._from_layers(document, preset, overrides)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "dict") -> Recipe:
        """The recipe, or the model in any dialect, in ``values``."""
        return cls._from_layers(_document(values, source))

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """A recipe file."""
        return cls.resolve(file=path)

    @classmethod
    def _from_layers(
        cls,
        document: _Layer | None,
        preset: str | None = None,
        overrides: Mapping[str, Any] | Sequence[str] = (),
    ) -> Recipe:
        layers = []
        if document is not None:
            preset = _one_preset(preset, document)
            layers = [document]
        if preset is not None:
            layers = [_preset_layer(preset), *layers]
        values, problems = read_overrides(overrides)
        layers = [*layers, _Layer(COMMAND_LINE, values, problems=problems)]
        sections, origins = _build(layers)
        titles = {key: text for layer in layers for key, text in layer.titles.items()}
        name, description = titles.get("name", ""), titles.get("description", "")
        return cls(**sections, name=name, description=description, origins=origins)

    def override(
        self, overrides: Mapping[str, Any] | Sequence[str], origin: str = COMMAND_LINE
    ) -> Recipe:
        """A copy with overrides from ``origin``; every other value keeps its own origin."""
        given = {title: getattr(self, title).given() for title in SECTIONS}
        for key in (LEARNING_RATE, OPTIMIZER):  # another model has another one
            if self.origins.get(key, "").startswith(RULE):
                del given["train"][key.removeprefix("train.")]
        values, problems = read_overrides(overrides)
        base, changes = _Layer("", given), _Layer(origin, values, problems=problems)
        sections, origins = _build([base, changes])
        kept = {key: new or self.origins.get(key, DEFAULT) for key, new in origins.items()}
        return dataclasses.replace(self, **sections, origins=kept)

    def named(self, name: str) -> Recipe:
        """A copy with another name."""
        return dataclasses.replace(self, name=name)

    def with_model(self, config: GPT2Config, origin: str) -> Recipe:
        """A copy with another model; the values that changed come from ``origin``."""
        origins = self.origins | self._changed("model", config, origin)
        return dataclasses.replace(self, model=config, origins=origins)

    def _changed(self, title: str, config: Section, origin: str) -> dict[str, str]:
        before: Section = getattr(self, title)
        origins = {}
        for name in checks.names_of(config):
            if name in config.following:
                origins[f"{title}.{name}"] = f"follows {config.FOLLOWS[name][0]}"
            elif name in before.following or getattr(config, name) != getattr(before, name):
                origins[f"{title}.{name}"] = origin
        return origins

    def to_dict(self, resolved: bool = False) -> dict[str, Any]:
        """Names and sections.

        A field that follows another one is left out, so that it still does after ``from_dict``,
        unless ``resolved`` asks for the values of all.
        """
        titles = {"name": self.name, "description": self.description}
        values: dict[str, Any] = {key: text for key, text in titles.items() if text}
        for title, cls in SECTIONS.items():
            section: Section = getattr(self, title)
            names = checks.names_of(cls) if resolved else section.given()
            values[title] = {name: getattr(section, name) for name in names}
        values["data"]["text"] = list(self.data.text)
        values["run"]["track"] = list(self.run.track)
        return values

    def save(
        self, path: str | Path, preset: str | None = None, leave_out: Sequence[str] = ()
    ) -> None:
        """Write a ``.toml`` or ``.json`` file that ``load`` reads back equal.

        ``leave_out`` names values, such as ``model.vocab_size``, that the file leaves to ``preset``.
        """
        path = Path(path)
        writers = {".json": _to_json, ".toml": _to_toml}
        if path.suffix.lower() not in writers:
            message = f"unknown file type {path.suffix!r}; use .json or .toml"
            raise ConfigError(message, str(path))
        values = ({"preset": preset} if preset else {}) | self.to_dict()
        for key in leave_out:
            title, _, name = key.partition(".")
            values[title].pop(name, None)
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            temporary.write_text(writers[path.suffix.lower()](values), encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            raise ConfigError(f"cannot be written ({error.strerror})", str(path)) from None


@dataclass
class _Layer:
    """Values from one origin, in its own words, with the faults of its form."""

    origin: str
    values: Values
    titles: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def _build(layers: Sequence[_Layer]) -> tuple[dict[str, Any], dict[str, str]]:
    """The sections and the origin of each value, later layers above earlier ones."""
    problems = [_placed(fault, layer.origin) for layer in layers for fault in layer.problems]
    sections: dict[str, Any] = {}
    origins = {}
    for title, cls in SECTIONS.items():
        merged: dict[str, Any] = {}
        came_from: dict[str, str] = {}
        for layer in layers:
            known, faults = checks.resolve_names(cls, layer.values.get(title, {}))
            problems += [_placed(fault, layer.origin, title) for fault in faults]
            merged |= known
            came_from |= dict.fromkeys(known, layer.origin)
        try:
            sections[title] = cls(**merged)
        except ConfigError as error:
            problems += [
                _placed(fault, came_from.get(fault.field, DEFAULT), title)
                for fault in error.problems
            ]
            continue
        for name in checks.names_of(cls):
            follows = name in sections[title].following
            origin = f"follows {cls.FOLLOWS[name][0]}" if follows else came_from.get(name, DEFAULT)
            origins[f"{title}.{name}"] = origin
    if not problems:
        _apply_rules(sections, origins)
        problems += _between_sections(sections["model"], sections["run"])
    if problems:
        raise ConfigError(problems)
    return sections, origins


def is_given(origin: str) -> bool:
    """Whether somebody has set the value that came from ``origin``."""
    return origin != DEFAULT and not origin.startswith(("follows", RULE))


def usual_learning_rate(model: GPT2Config, optimizer: str) -> tuple[float, str]:
    """AdamW's rate for a model from scratch, where nobody has set one, and the rule it follows.

    Tried from 128 to 512 wide (docs/lab-book.md). Beside Muon only embeddings, norms and biases are
    left to AdamW, which bear a higher rate.

    >>> usual_learning_rate(GPT2Config(n_embd=256, n_head=4), "adamw")
    (0.002, '0.032/√n_embd')
    >>> usual_learning_rate(GPT2Config(), "muon")
    (0.004, 'for what Muon leaves')
    """
    if optimizer == "muon":
        return 4e-3, "for what Muon leaves"
    return float(f"{0.032 / math.sqrt(model.n_embd):.3g}"), "0.032/√n_embd"


def _apply_rules(sections: dict[str, Any], origins: dict[str, str]) -> None:
    """Values that follow from other sections, where nobody has set them."""
    model, train, run = sections["model"], sections["train"], sections["run"]
    if run.init_from and origins[OPTIMIZER] == DEFAULT:
        train = train.replace(optimizer="adamw")
        origins[OPTIMIZER] = f"{RULE}weights that AdamW has trained"
    if origins[LEARNING_RATE] == DEFAULT:
        rate, rule = usual_learning_rate(model, train.optimizer)
        if run.init_from:
            rate, rule = rate * FINE_TUNING, f"a tenth of {rule}"
        train = _with_rate(train, rate)
        origins[LEARNING_RATE] = f"{RULE}{rule}"
    sections["train"] = train


def _with_rate(train: TrainConfig, rate: float) -> TrainConfig:
    """The rate of the rule, or the lowest one that was written beside none."""
    known = "min_lr" not in train.following
    return train.replace(learning_rate=max(rate, train.min_lr) if known else rate)


def _between_sections(model: GPT2Config, run: RunConfig) -> Iterator[Problem]:
    """What each section allows, but not both together."""
    if run.checkpointed_blocks > model.n_layer:
        message = f"checkpointed_blocks={run.checkpointed_blocks} of n_layer={model.n_layer}"
        yield Problem("run.checkpointed_blocks", message, f"use at most {model.n_layer}")


def _placed(problem: Problem, origin: str, title: str = "") -> Problem:
    """The problem with its section and the origin of the value in front."""
    name, message = problem.field, problem.message
    if title:
        message = f"{title}.{message}" if message.startswith(name + "=") else f"[{title}] {message}"
        name = f"{title}.{name}"
    prefix = "" if origin in ("", DEFAULT) else f"{origin}: "
    return Problem(name, prefix + message, problem.fix)


def _one_preset(preset: str | None, document: _Layer) -> str | None:
    """The preset that a run starts from: named by the caller or by the file."""
    named = document.titles.get("preset")
    if named is None:
        return preset
    try:
        found = find_preset(named)
    except ConfigError as error:
        raise error.within(document.origin) from None
    if preset is None or find_preset(preset) == found:
        return named
    message = f"{document.origin} starts from preset {named!r}, but preset {preset!r} was asked for"
    raise ConfigError(Problem("preset", message, "name one of them"))


def _preset_layer(name: str) -> _Layer:
    preset = find_preset(name)
    titles = {"name": preset.name, "description": preset.description}
    return _Layer(f"preset {preset.name}", preset.recipe_values, titles)


def _document(values: Mapping[str, Any], origin: str) -> _Layer:
    """The layer of a recipe with sections, or of a model in any dialect."""
    if not isinstance(values, Mapping) or not _has_sections(values):
        return _model_document(values, origin)
    layer = _Layer(origin, {})
    for key, value in values.items():
        if key in SECTIONS and isinstance(value, Mapping):
            layer.values[key] = {word: meant(key, word, item) for word, item in value.items()}
        elif key in TITLES and isinstance(value, str):
            layer.titles[key] = value
        else:
            layer.problems += _misplaced(key, value)
    return layer


def _has_sections(values: Mapping[str, Any]) -> bool:
    """A table that no dialect has is taken for a section too, so that [modle] gets its suggestion."""
    tables = {key for key, value in values.items() if isinstance(value, Mapping)}
    sections = {*SECTIONS, "preset"} & values.keys()
    return bool(sections or tables - HF_ENVELOPE - {"model_args"})


def _model_document(values: Mapping[str, Any], origin: str) -> _Layer:
    translation = translate(values, origin)
    layer = _Layer(origin, {"model": translation.values}, problems=translation.problems)
    for key, value in translation.extras.items():
        if key == "batch_size":
            layer.values["train"] = {key: value}
        elif key == "device" and value is not None:
            layer.values["run"] = {key: value}
        elif key in TITLES and isinstance(value, str):
            layer.titles[key] = value
        elif key in TITLES:
            layer.problems += _misplaced(key, value)
    return layer


def _misplaced(key: Any, value: Any) -> Iterator[Problem]:
    """The problem of a top-level key of a recipe that is no section and no title."""
    if key in SECTIONS:
        message = f"{key}={shown(value)} must be a section"
        yield Problem(key, message, f"write its keys under [{key}]")
    elif key in TITLES:
        yield Problem(key, f"{key}={shown(value)} must be a string")
    elif isinstance(place := locate(str(key)), tuple):
        yield Problem(str(key), f"{key} is outside of any section", f"move it into [{place[0]}]")
    else:
        yield from checks.unknown_keys([key], [*TITLES, *SECTIONS])


def _to_json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2) + "\n"


def _to_toml(values: Mapping[str, Any]) -> str:
    """None is left out where it is the default, and written as the word "none" elsewhere."""
    document = dict(values)
    for title, cls in SECTIONS.items():
        defaults = {item.name: item.default for item in dataclasses.fields(cls)}
        document[title] = {
            name: NULLS[0] if value is None and defaults[name] is not None else value
            for name, value in values[title].items()
        }
    return write_toml(document)
