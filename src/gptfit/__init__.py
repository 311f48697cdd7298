"""gptfit fits a GPT-2 to your data, your machine and your time."""

from gptfit.config import GPT2Config, Recipe

__version__ = "0.1.0"
__all__ = ["GPT2Config", "Recipe", "__version__"]
