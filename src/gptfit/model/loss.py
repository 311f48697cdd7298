"""Cross-entropy that never holds all logits: V = 50,000 of them per token are most of a small model's memory."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORED = -100  # torch's own mark of a target that does not count


def chunked_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, chunks: int, vocab_size: int
) -> Tensor:
    """Mean cross-entropy in nats of the logits ``x @ weight.T``, computed in so many chunks of rows.

    ``x`` is (N, C), ``weight`` (V or more, C), ``targets`` (N,); columns from ``vocab_size`` on are
    padding. Targets of -100 are left out. Equal to ``F.cross_entropy`` on all logits, in value and
    gradients, up to the order of sums.
    """
    return ChunkedCrossEntropy.apply(
        x, weight, targets, chunks, vocab_size, torch.is_grad_enabled()
    )


class ChunkedCrossEntropy(torch.autograd.Function):
    """The gradients are taken together with the loss while a chunk's logits are at hand, so nothing
    is recomputed; between forward and backward they take the room of ``x`` and ``weight``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        chunks: int,
        vocab_size: int,
        needs_gradients: bool,
    ) -> Tensor:
        counts = targets != IGNORED
        share = counts / counts.sum()  # of each row in the mean
        gradients = (torch.empty_like(x), torch.zeros_like(weight)) if needs_gradients else None
        loss = torch.zeros((), device=x.device)
        rows = max(1, -(-len(x) // chunks))
        for start in range(0, len(x), rows):
            part = slice(start, start + rows)
            loss += chunk_loss(x, weight, targets, share, vocab_size, part, gradients)
        ctx.save_for_backward(*gradients or ())
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_grad: Tensor) -> tuple[Tensor | None, ...]:
        x_grad, weight_grad = ctx.saved_tensors
        # In place: nobody else holds them, and a second backward pass would be refused by autograd.
        return x_grad.mul_(loss_grad), weight_grad.mul_(loss_grad), None, None, None, None


def chunk_loss(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    share: Tensor,
    vocab_size: int,
    part: slice,
    gradients: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """What the rows ``part`` add to the mean loss; their gradients are put into ``gradients``."""
    logits = F.linear(x[part], weight).float()  # (rows, V), the only one of its size
    logits[:, vocab_size:] = float("-inf")
    losses, logits_grad = cross_entropy_(logits, targets[part].clamp(min=0))
    if gradients is not None:
        x_grad, weight_grad = gradients
        logits_grad *= share[part, None]
        x_grad[part] = logits_grad @ weight
        weight_grad += logits_grad.T @ x[part]
    return (losses * share[part]).sum()


def cross_entropy_(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's loss (N,), and its gradient (N, V) in the place of the logits."""
    targets = targets[:, None]
    logits -= logits.amax(dim=1, keepdim=True)
    of_target = logits.gather(1, targets)
    sums = logits.exp_().sum(dim=1, keepdim=True)
    logits /= sums  # the softmax
    logits.scatter_add_(1, targets, torch.full_like(of_target, -1.0))
    return (sums.log() - of_target).squeeze(1), logits
