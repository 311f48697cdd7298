"""What the model writes while it learns."""

from __future__ import annotations

import re
from collections.abc import Callable

from gptfit.config import Recipe
from gptfit.data import TokenDataset
from gptfit.generate import SamplingOptions, generate_text
from gptfit.generate.evaluate import Abandoned
from gptfit.generate.text import encode_prompt
from gptfit.model import GPT2
from gptfit.train.device import Device


class SampleWriter:
    """Writes the same prompt's continuation at each stage, with the same random numbers."""

    def __init__(self, recipe: Recipe, dataset: TokenDataset, device: Device) -> None:
        """Raises ``DataError`` at once for a prompt that the tokenizer cannot encode."""
        self.tokenizer = dataset.tokenizer
        self.device = device
        self.prompt = recipe.run.sample_prompt or opening(dataset)
        self.length = recipe.run.sample_tokens
        self.interval = recipe.train.sample_interval
        self.options = SamplingOptions(temperature=0.7, top_k=50, seed=recipe.train.seed)
        encode_prompt(self.tokenizer, self.prompt)

    def is_due(self, step: int) -> bool:
        """Whether an evaluation after ``step`` comes with a sample."""
        if self.interval is None:
            return True
        return self.interval > 0 and step % self.interval == 0

    def write(self, model: GPT2, should_stop: Callable[[], bool] = lambda: False) -> str:
        """The prompt and how ``model`` goes on.

        Raises ``Abandoned`` when ``should_stop``, which is asked before each token.
        """
        was_training = model.training
        model.eval()
        text = self.prompt
        try:
            with self.device.autocast():
                pieces = generate_text(
                    model, self.tokenizer, self.prompt, self.length, self.options
                )
                for piece in pieces:
                    if should_stop():
                        raise Abandoned
                    text += piece[0]
        finally:
            model.train(was_training)
        return text


def opening(dataset: TokenDataset) -> str:
    """A prompt when none is given: the first three words in a row of the validation text, or its
    first token where there are none."""
    text = dataset.tokenizer.decode(dataset.val[:512])
    words = re.search(r"[^\W\d_]+ [^\W\d_]+ [^\W\d_]+", text)
    return words[0] if words else dataset.tokenizer.decode(dataset.val[:1])
