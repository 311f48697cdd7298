"""From a model and a prompt to text, and from a model and a text to its loss."""

from gptfit.generate.engine import generate
from gptfit.generate.evaluate import Evaluation, evaluate
from gptfit.generate.sampling import SamplingOptions
from gptfit.generate.text import generate_text

__all__ = ["Evaluation", "SamplingOptions", "evaluate", "generate", "generate_text"]
