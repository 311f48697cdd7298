"""The contract: a checked, immutable configuration, and the ways to write one down."""

from gptfit.config.gpt2 import GPT2Config

__all__ = ["GPT2Config"]
