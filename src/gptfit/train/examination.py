"""What a model has come to: its loss on the validation text, and a text of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from gptfit.config import Recipe
from gptfit.data import TokenDataset
from gptfit.formats.hf import load_model
from gptfit.formats.locate import find_checkpoint
from gptfit.generate import Evaluation, evaluate
from gptfit.model import GPT2
from gptfit.train.device import Device
from gptfit.train.events import Evaluated, Listener, Sampled
from gptfit.train.sample import SampleWriter
from gptfit.train.world import World

ShouldStop = Callable[[], bool]
"""Asked on the way; where it says so, ``Abandoned`` is raised."""


class Examiner:
    """Evaluates the models of one run, lets them write, and tells what came of it."""

    def __init__(
        self,
        run: Path,
        recipe: Recipe,
        dataset: TokenDataset,
        device: Device,
        world: World,
        tell: Listener,
    ) -> None:
        self.run = run
        self.config = recipe.train
        self.dataset = dataset
        self.device = device
        self.world = world
        self.tell = tell
        self.writer = SampleWriter(recipe, dataset, device)
        self.sampled_step: int | None = None
        """Whose sample has been told."""

    def examine(
        self, model: GPT2, step: int, should_stop: ShouldStop, is_last: bool
    ) -> tuple[Evaluation, str | None]:
        """Evaluate the model after ``step``; and its sample, if one is due and the loss is finite.

        After the last step none is due: then the best model writes.
        """
        self.world.of_main(self.dataset.require_unchanged)
        evaluation = self.evaluate(model, self.config.eval_tokens, should_stop)
        is_due = self.writer.is_due(step) and not is_last and math.isfinite(evaluation.loss)
        return evaluation, self.writer.write(model, should_stop) if is_due else None

    def best(
        self, best_step: int, model: GPT2, step: int, last: Evaluation, should_stop: ShouldStop
    ) -> Evaluation:
        """The model that is handed over, on every token of the validation split; and a sample.

        It is the checkpoint of ``best_step`` or, where that is ``step``, the ``model`` at hand, of
        which ``last`` is known.
        """
        if best_step != step:
            checkpoint = self.world.of_main(lambda: find_checkpoint(self.run, ("best",)))
            model = load_model(checkpoint, self.device.torch_device)
        if self.config.sample_interval != 0 and self.sampled_step != best_step:
            self._tell_sample(best_step, self.writer.write(model, should_stop))
        if best_step == step and last.tokens == len(self.dataset.val) - 1:
            return last
        return self.evaluate(model, None, should_stop)

    def evaluate(self, model: GPT2, max_tokens: int | None, should_stop: ShouldStop) -> Evaluation:
        """The loss over the validation split, or over about ``max_tokens`` of it."""
        world = self.world
        return evaluate(
            model,
            self.dataset.val,
            max_tokens,
            self.device.autocast(),
            world.rank,
            world.size,
            world.sum,
            should_stop,
        )

    def tell_of(
        self,
        step: int,
        evaluation: Evaluation,
        is_best: bool,
        elapsed_seconds: float,
        sample: str | None,
    ) -> None:
        """Tell what ``examine`` found after ``step``."""
        self.tell(
            Evaluated(
                step=step,
                loss=evaluation.loss,
                bits_per_byte=self.bits_per_byte(evaluation),
                tokens=evaluation.tokens,
                of_tokens=len(self.dataset.val) - 1,
                is_best=is_best,
                elapsed_seconds=elapsed_seconds,
            )
        )
        if sample is not None:
            self._tell_sample(step, sample)

    def bits_per_byte(self, evaluation: Evaluation) -> float | None:
        """None where the size of the validation text is not known."""
        tokens_per_byte = self.dataset.val_tokens_per_byte
        return evaluation.bits_per_byte(tokens_per_byte) if tokens_per_byte else None

    def _tell_sample(self, step: int, text: str) -> None:
        self.tell(Sampled(step, self.writer.prompt, text))
        self.sampled_step = step
