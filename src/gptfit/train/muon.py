"""Muon: momentum whose steps are orthogonalized (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

A matrix is moved by the orthogonal matrix nearest to its momentum, so that all directions learn at
the same pace. The query, key and value matrices, which GPT-2 keeps as one, are taken apart for it.
Matrices of one shape are orthogonalized together, in one batched product instead of a hundred.
Several processes share them out, and give each other what they have computed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gptfit.train.world import World

# Polynomials a·x + b·x³ + c·x⁵ that, one after the other, take singular values from 1e-3 on towards 1:
# Polar Express, Amsel et al. 2025 (arXiv 2505.16932). Of its series these three are enough: with five
# the loss is no lower (docs/lab-book.md).
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
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
    def shape(self) -> tuple[int, int]:
        """Rows and columns of each matrix."""
        rows, columns = self.parameter.shape[0] // self.count, self.parameter.shape[1]
        return (columns, rows) if self.is_tall else (rows, columns)

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
    """The parts whose matrices have one shape, ``count`` of them all together.

    This process moves those at ``mine``, and has only their momentum (n, rows, columns).
    """

    parts: list[Part]
    count: int
    mine: slice
    momentum: Tensor

    @classmethod
    def of(cls, parts: list[Part], world: World) -> Stack:
        """Parts of one shape, at rest."""
        count = sum(part.count for part in parts)
        mine = world.mine(count)
        shape = (mine.stop - mine.start, *parts[0].shape)
        return cls(parts, count, mine, torch.zeros(shape, device=parts[0].parameter.device))

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
        world: World | None = None,
    ) -> None:
        self.world = world or World()
        by_shape = defaultdict(list)
        for item in named:
            part = Part(*item)
            by_shape[part.shape].append(part)
        self.stacks = [Stack.of(parts, self.world) for parts in by_shape.values()]
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.dtype = dtype

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """One update with Nesterov momentum and decoupled weight decay; the gradients are dropped."""
        for stack in self.stacks:
            updates = self.world.gathered(orthogonalized(self._directions(stack)), stack.count)
            self._move(stack, updates, learning_rate)
            del updates

    def _move(self, stack: Stack, updates: Tensor, learning_rate: float) -> None:
        for part, update in stack.slices(updates):
            update = self.world.like(part.assembled(update), part.parameter)
            part.parameter.mul_(1 - learning_rate * self.weight_decay)
            part.parameter.add_(update, alpha=-learning_rate * part.scale)

    def _directions(self, stack: Stack) -> Tensor:
        """Where momentum and gradient point, scaled to a spectral norm below 1; takes the gradients."""
        whole = (self.world.full(_taken_gradient(part)) for part in stack.parts)
        of_parts = zip(stack.parts, whole, strict=True)
        gradients = torch.cat([part.matrices(one) for part, one in of_parts])[stack.mine]
        stack.momentum.lerp_(gradients, 1 - self.momentum)
        gradients.lerp_(stack.momentum, self.momentum)
        gradients /= gradients.norm(dim=(1, 2), keepdim=True) * MARGIN + TINY
        return gradients.to(self.dtype)

    def state(self) -> dict[str, Tensor]:
        """The momentum of each parameter, in its shape."""
        return {
            part.name: part.assembled(momentum)
            for stack in self.stacks
            for part, momentum in stack.slices(self.world.gathered(stack.momentum, stack.count))
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put back what ``state`` gave."""
        for stack in self.stacks:
            kept = [part.matrices(state[part.name].contiguous()) for part in stack.parts]
            stack.momentum.copy_(torch.cat(kept)[stack.mine])


def orthogonalized(x: Tensor) -> Tensor:
    """The nearest (semi-)orthogonal matrices to ``x`` (n, rows, columns), roughly.

    The singular values of ``x`` must lie below 1; those above 0.005 come to between 0.18 and 1.87.
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
