"""The optimizer of a run: AdamW in two groups, matrices decay, biases and norms do not."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gptfit.config import TrainConfig
from gptfit.model import GPT2
from gptfit.plan.manifest import manifest

MOMENTS = ("exp_avg", "exp_avg_sq")


class Optimizer:
    """What updates a model's parameters, and the tensors it remembers between updates."""

    def __init__(self, model: GPT2, config: TrainConfig) -> None:
        self.model = model
        self.config = config
        specs = [spec for spec in manifest(model.config) if not spec.tied_to]
        groups = [
            {
                "params": [
                    model.get_parameter(spec.name) for spec in specs if spec.decayed == decayed
                ],
                "weight_decay": config.weight_decay if decayed else 0.0,
            }
            for decayed in (True, False)
        ]
        self.adamw = torch.optim.AdamW(
            groups,
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            eps=config.adam_epsilon,
            fused=True,
        )

    def step(self, factor: float = 1.0) -> None:
        """Update the parameters at ``factor`` of the full learning rate, and drop the gradients."""
        for group in self.adamw.param_groups:
            group["lr"] = factor * self.config.learning_rate
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """The moments by ``moment/parameter``, without rows that only pad the vocabulary.

        The tensors may be those that the next step changes.
        """
        state = {}
        for spec in manifest(self.model.config):
            moments = self.adamw.state.get(self.model.get_parameter(spec.name))
            if moments and not spec.tied_to:
                for moment in MOMENTS:
                    state[f"{moment}/{spec.name}"] = moments[moment][: spec.shape[0]]
        return state

    def restore(self, state: Mapping[str, Tensor], step: int) -> None:
        """Put what ``state`` gave back, after ``step`` updates."""
        for spec in manifest(self.model.config):
            if spec.tied_to or step == 0:
                continue
            parameter = self.model.get_parameter(spec.name)
            moments = {moment: torch.zeros_like(parameter) for moment in MOMENTS}
            for moment in MOMENTS:
                kept = state[f"{moment}/{spec.name}"].to(parameter.device)
                moments[moment][: spec.shape[0]] = kept
            updates = torch.tensor(float(step), device=parameter.device)
            self.adamw.state[parameter] = {"step": updates, **moments}
