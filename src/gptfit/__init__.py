"""gptfit fits a GPT-2 to your data, your machine and your time."""

from typing import Any

from gptfit.config import GPT2Config, Recipe

__version__ = "0.1.0"
__all__ = ["GPT2Config", "Recipe", "__version__", "lint", "plan"]


def __getattr__(name: str) -> Any:
    """``gptfit.plan`` and ``gptfit.lint`` are imported when they are used."""
    from importlib import import_module

    if name == "plan":
        return import_module("gptfit.plan")
    if name == "lint":
        return import_module("gptfit.plan.lint").lint
    raise AttributeError(f"module 'gptfit' has no attribute {name!r}")
