"""AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) by torch's fused kernel.

``torch.optim`` has the same step behind an import of torch's compiler, which takes longer than a small
training takes to set up.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class AdamW:
    """Updates parameters; each group of them has a weight decay of its own."""

    def __init__(
        self,
        groups: Sequence[tuple[Sequence[nn.Parameter], float]],
        betas: tuple[float, float],
        epsilon: float,
    ) -> None:
        self.groups = [group for group in groups if group[0]]
        self.betas = betas
        self.epsilon = epsilon
        self.forget()

    def forget(self) -> None:
        """As before the first step."""
        self.moments: dict[nn.Parameter, tuple[Tensor, Tensor]] = {}
        self.updates: Tensor | None = None

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """One update of every parameter; the gradients are dropped."""
        if self.updates is None:
            self.updates = torch.zeros((), device=self.groups[0][0][0].device)
        self.updates += 1
        for parameters, weight_decay in self.groups:
            moments = [self._moments(parameter) for parameter in parameters]
            torch._fused_adamw_(
                list(parameters),
                [_gradient(parameter) for parameter in parameters],
                [mean for mean, _ in moments],
                [square for _, square in moments],
                [],
                [self.updates] * len(parameters),  # one count serves all
                lr=learning_rate,
                beta1=self.betas[0],
                beta2=self.betas[1],
                weight_decay=weight_decay,
                eps=self.epsilon,
                amsgrad=False,
                maximize=False,
            )
            for parameter in parameters:
                parameter.grad = None

    def _moments(self, parameter: nn.Parameter) -> tuple[Tensor, Tensor]:
        """Running means of the gradient and of its square."""
        if parameter not in self.moments:
            self.moments[parameter] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return self.moments[parameter]


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
