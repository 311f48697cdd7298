"""The shipped presets: GPT-2's sizes, nanoGPT's runs, a family by parameter count, and recipes.

A preset is a recipe file in ``preset_files`` with a few words about itself. It stores no parameter
count: what can be computed is not written down.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptfit.config.files import read_config_file
from gptfit.config.gpt2 import GPT2Config
from gptfit.errors import ConfigError, did_you_mean

FOLDER = Path(__file__).with_name("preset_files")
ORDER = (
    "gpt2",
    "gpt2-medium",
    "gpt2-large",
    "gpt2-xl",
    "nanogpt-shakespeare-char-cpu",
    "shakespeare-char-cpu-fast",
    "nanogpt-shakespeare-char",
    "nanogpt-124M",
    "tiny-char",
    "tiny",
    "small-char",
    "small",
    "150M",
    "200M",
    "250M",
    "150M-1024",
    "200M-1024",
    "250M-1024",
    "350M-1024",
    "400M-1024",
    "500M-1024",
    "1B-1024",
    "recipe-small-efficient",
    "recipe-balanced",
    "recipe-large",
    "recipe-domain",
    "recipe-finetune",
)
SECTION_TITLES = ("model", "data", "train", "run")


@dataclass(frozen=True)
class Preset:
    """A named recipe: ``recipe_values`` holds its sections, ``config`` its model.

    ``source`` says where it comes from, ``notes`` what to know about it, ``alias_notes`` what to
    know about one of its other names.
    """

    name: str
    description: str
    source: str
    aliases: tuple[str, ...]
    notes: tuple[str, ...]
    alias_notes: dict[str, str]
    recipe_values: dict[str, dict[str, Any]]
    config: GPT2Config

    def note(self, name: str) -> str:
        """What to know about calling this preset ``name``, or an empty string.

        >>> find_preset("345M").note("345M")
        '345M is the old name of gpt2-medium (355M): OpenAI corrected its counts'
        """
        notes = {normalised(alias): note for alias, note in self.alias_notes.items()}
        return notes.get(normalised(name), "")


@functools.cache
def presets() -> tuple[Preset, ...]:
    """Every shipped preset, family by family, small ones first."""
    return tuple(_read(FOLDER / f"{name}.toml") for name in ORDER)


def _read(path: Path) -> Preset:
    values = read_config_file(path)
    sections = {title: values.get(title, {}) for title in SECTION_TITLES}
    return Preset(
        name=path.stem,
        description=values["description"],
        source=values["source"],
        aliases=tuple(values.get("aliases", ())),
        notes=tuple(values.get("notes", ())),
        alias_notes=values.get("alias_notes", {}),
        recipe_values=sections,
        config=GPT2Config(**sections["model"]),
    )


def find_preset(name: str) -> Preset:
    """The preset of that name, alias or old file name.

    >>> find_preset("124M").name, find_preset("configs/150M_1024.json").name
    ('gpt2', '150M-1024')
    """
    names = _names()
    key = normalised(name)
    if key not in names:
        spelled = [other for preset in presets() for other in (preset.name, *preset.aliases)]
        fix = did_you_mean(name[:60], spelled)
        listing = "gptfit presets lists them"
        raise ConfigError(f"no preset is called {name[:60]!r}; {f'{fix} ' if fix else ''}{listing}")
    return names[key]


def normalised(name: str) -> str:
    """A name without folder and ``.json``, in lower case, with dashes."""
    last = re.split(r"[/\\]", name)[-1]
    return last.casefold().removesuffix(".json").replace("_", "-")


@functools.cache
def _names() -> dict[str, Preset]:
    return {
        normalised(name): preset
        for preset in presets()
        for name in (preset.name, *preset.aliases, *preset.alias_notes)
    }


def name_claims(preset: Preset) -> int | None:
    """The parameter count that a preset's name promises.

    >>> name_claims(find_preset("500M-1024")), name_claims(find_preset("tiny"))
    (500000000, None)
    """
    match = re.search(r"(?:^|-)(\d+(?:\.\d+)?)([MB])(?:-|$)", preset.name)
    return round(float(match[1]) * {"M": 10**6, "B": 10**9}[match[2]]) if match else None
