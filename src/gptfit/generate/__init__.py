"""From a model and a prompt to text, and from a model and a text to its loss."""

from gptfit.generate.engine import Engine, Request, generate
from gptfit.generate.evaluate import Evaluation, evaluate
from gptfit.generate.sampling import SamplingOptions
from gptfit.generate.score import hidden_states, score
from gptfit.generate.sliding import evaluate_sliding
from gptfit.generate.text import generate_text
from gptfit.generate.weights import with_weights

__all__ = [
    "Engine",
    "Evaluation",
    "Request",
    "SamplingOptions",
    "evaluate",
    "evaluate_sliding",
    "generate",
    "generate_text",
    "hidden_states",
    "score",
    "with_weights",
]
