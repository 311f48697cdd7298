"""Causal attention by the kernel that is fastest where it runs.

Letters: B batch, H heads, T time, D head_dim; N = B·H.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

QUERIES = 128
"""Queries that are scored together: enough for full products, few enough to skip most of the future."""


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float = 0.0) -> Tensor:
    """(B, H, T, D) each -> (B, H, T, D): every position looks at itself and at what came before.

    A CPU has no fused kernel for bfloat16 that is worth its name: torch's backward pass takes two to
    five times as long as the plain products of ``BlockedAttention``.
    """
    if dropout == 0 and writes_out(q.device.type, q.dtype):
        return BlockedAttention.apply(q, k, v, scale)
    return F.scaled_dot_product_attention(
        q, k, v, dropout_p=dropout, is_causal=q.shape[2] > 1, scale=scale
    )


def writes_out(device_type: str, dtype: torch.dtype) -> bool:
    """Whether attention without dropout keeps its weights for the backward pass."""
    return device_type == "cpu" and dtype == torch.bfloat16


class BlockedAttention(torch.autograd.Function):
    """Attention in blocks of queries, each scored against the keys up to its own end.

    The weights are kept for the backward pass; they take T/2 values per head and position.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        shape, keeps, kept = q.shape, any(ctx.needs_input_grad), []
        q, k, v = (x.reshape(-1, *shape[2:]) for x in (q, k, v))  # (N, T, D)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        for start, end in blocks(shape[2]):
            weights = weights_of(q[:, start:end], k[:, :end], scale)
            out[:, start:end] = weights @ v[:, :end]
            if keeps:
                kept.append(weights)
            del weights
        ctx.save_for_backward(q, k, v, *kept)
        ctx.scale, ctx.shape = scale, shape
        return out.view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        out_grad = out_grad.reshape(q.shape)
        q_grad = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        k_grad, v_grad = torch.zeros_like(q_grad), torch.zeros_like(q_grad)
        for (start, end), weights in zip(blocks(q.shape[1]), kept, strict=True):
            block_grad = out_grad[:, start:end]
            v_grad[:, :end] += weights.mT @ block_grad
            scores_grad = scores_gradient(weights, block_grad @ v[:, :end].mT)
            q_grad[:, start:end] = scores_grad @ k[:, :end]
            k_grad[:, :end] += scores_grad.mT @ q[:, start:end]
            del scores_grad
        q_grad *= ctx.scale
        k_grad *= ctx.scale
        return *(grad.view(ctx.shape) for grad in (q_grad, k_grad, v_grad)), None


def weights_of(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """What the last queries (N, t, D) give to the keys (N, S, D), none to those behind them: (N, t, S)."""
    t, S = q.shape[1], k.shape[1]
    future = q.new_full((t, S), float("-inf")).triu_(S - t + 1)
    return torch.baddbmm(future, q, k.mT, alpha=scale).softmax(-1)


def scores_gradient(weights: Tensor, weights_grad: Tensor) -> Tensor:
    """The softmax's gradient, given that of its output."""
    return torch._softmax_backward_data(weights_grad, weights, -1, weights.dtype)


def blocks(T: int) -> Iterator[tuple[int, int]]:
    """Start and end of each block of queries."""
    for start in range(0, T, QUERIES):
        yield start, min(start + QUERIES, T)
