"""The contract: a checked, immutable configuration, and the ways to write one down."""

from gptfit.config.gpt2 import GPT2Config
from gptfit.config.presets import Preset, find_preset, presets
from gptfit.config.recipe import Recipe
from gptfit.config.sections import DataConfig, RunConfig, TrainConfig

__all__ = [
    "DataConfig",
    "GPT2Config",
    "Preset",
    "Recipe",
    "RunConfig",
    "TrainConfig",
    "find_preset",
    "presets",
]
