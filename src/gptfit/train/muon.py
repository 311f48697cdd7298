"""Muon: momentum whose steps are orthogonalized (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

A matrix is moved by the orthogonal matrix nearest to its momentum, so that all directions learn at
the same pace. The query, key and value matrices, which GPT-2 keeps as one, are taken apart for it.
Matrices of one shape are orthogonalized together, in one batched product instead of a hundred.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# The polynomials a·x + b·x³ + c·x⁵ that, one after the other, take singular values between 1e-3 and
# 1 nearest to 1: Polar Express, Amsel et al. 2025 (arXiv 2505.16932), the first five of them.
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
MARGIN = 1.01
"""Rounding may leave a singular value slightly above 1, where the polynomials grow fast."""
TINY = 1e-7
"""A matrix without any gradient stays where it is."""


@dataclass(frozen=True)
class Part:
    """A parameter as ``count`` matrices of (rows, columns), rows being the shorter side."""

    name: str
    parameter: nn.Parameter
    count: int

    @property
    def is_tall(self) -> bool:
        """Whether the matrices are transposed to be worked on."""
        rows, columns = self.parameter.shape
        return rows // self.count > columns

    def matrices(self, tensor: Tensor) -> Tensor:
        """A tensor of the parameter's shape as (count, rows, columns), a view."""
        matrices = tensor.view(self.count, -1, tensor.shape[-1])
        return matrices.mT if self.is_tall else matrices

    def assembled(self, matrices: Tensor) -> Tensor:
        """The matrices (count, rows, columns) as one tensor of the parameter's shape."""
        return (matrices.mT if self.is_tall else matrices).reshape(self.parameter.shape)

    @property
    def scale(self) -> float:
        """What makes a step's size independent of the shape: sqrt(outputs / inputs), at least 1."""
        outputs, inputs = self.parameter.shape
        return max(1.0, outputs / self.count / inputs) ** 0.5


@dataclass
class Stack:
    """The parts whose matrices have one shape, with their momentum (n, rows, columns)."""

    parts: list[Part]
    momentum: Tensor

    @classmethod
    def of(cls, parts: list[Part]) -> Stack:
        """Parts of one shape, at rest."""
        shapes = [part.matrices(part.parameter.detach()).shape for part in parts]
        count = sum(shape[0] for shape in shapes)
        return cls(parts, parts[0].parameter.new_zeros((count, *shapes[0][1:])))

    def slices(self, stacked: Tensor) -> Iterator[tuple[Part, Tensor]]:
        """Each part with its own matrices of ``stacked``."""
        counts = [part.count for part in self.parts]
        yield from zip(self.parts, stacked.split(counts), strict=True)


class Muon:
    """Updates matrices; ``named`` yields each with its name and into how many it is to be cut.

    Their products are computed in ``dtype``; weights and momentum stay float32.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter, int]],
        momentum: float,
        weight_decay: float,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        by_shape = defaultdict(list)
        for item in named:
            part = Part(*item)
            by_shape[part.matrices(part.parameter.detach()).shape[1:]].append(part)
        self.stacks = [Stack.of(parts) for parts in by_shape.values()]
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.dtype = dtype

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """One update with Nesterov momentum and decoupled weight decay; the gradients are dropped."""
        for stack in self.stacks:
            self._move(stack, orthogonalized(self._directions(stack)), learning_rate)

    def _move(self, stack: Stack, updates: Tensor, learning_rate: float) -> None:
        for part, update in stack.slices(updates):
            weight = part.matrices(part.parameter)
            weight.mul_(1 - learning_rate * self.weight_decay)
            weight.add_(update, alpha=-learning_rate * part.scale)

    def _directions(self, stack: Stack) -> Tensor:
        """Where momentum and gradient point, scaled to a spectral norm below 1; takes the gradients."""
        gradients = torch.cat([part.matrices(_taken_gradient(part)) for part in stack.parts])
        stack.momentum.lerp_(gradients, 1 - self.momentum)
        gradients.lerp_(stack.momentum, self.momentum)
        gradients /= gradients.norm(dim=(1, 2), keepdim=True) * MARGIN + TINY
        return gradients.to(self.dtype)

    def state(self) -> dict[str, Tensor]:
        """The momentum of each parameter, in its shape."""
        return {
            part.name: part.assembled(momentum)
            for stack in self.stacks
            for part, momentum in stack.slices(stack.momentum)
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put back what ``state`` gave."""
        for stack in self.stacks:
            for part, momentum in stack.slices(stack.momentum):
                momentum.copy_(part.matrices(state[part.name].contiguous()))


def orthogonalized(x: Tensor) -> Tensor:
    """The nearest (semi-)orthogonal matrices to ``x`` (n, rows, columns), singular values to about 12 %.

    Those of ``x`` must lie below 1.
    """
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


def _taken_gradient(part: Part) -> Tensor:
    gradient, part.parameter.grad = part.parameter.grad, None
    assert gradient is not None
    return gradient
