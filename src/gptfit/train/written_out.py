"""The model as programs without fused kernels compute it: same function, more memory."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from gptfit.model import GPT2, MultiHeadAttention, TransformerBlock


def composite_gelu(x: Tensor) -> Tensor:
    """GELU's tanh approximation operation by operation, as transformers' ``gelu_new``."""
    inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))
    return 0.5 * x * (1.0 + torch.tanh(inner))


class EagerAttention(MultiHeadAttention):
    """Attention that holds the scores of all heads, as transformers' ``eager_attention_forward``."""

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        T = q.shape[2]
        # Built in every layer here and once in transformers: T² numbers, nothing beside H·T² scores.
        future = torch.full((T, T), float("-inf"), device=q.device).triu(1)
        scores = (q @ k.transpose(2, 3)) * self.scale + future  # (B, H, T, T)
        weights = scores.softmax(dim=-1).to(v.dtype)
        return F.dropout(weights, self.attn_pdrop, self.training) @ v


def write_out(model: GPT2, gelu: bool = False, attention: bool = False) -> None:
    """Let every block of the model compute these parts without their fused kernels."""
    for block in model.h:
        assert isinstance(block, TransformerBlock)
        if gelu:
            block.mlp.activation = composite_gelu
        if attention:
            block.attn.__class__ = EagerAttention
