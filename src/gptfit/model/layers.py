"""The parts of a transformer block.

Letters: B batch, T time, S time including the cached past, C n_embd, H heads, D head_dim, F n_inner.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptfit.config import GPT2Config
from gptfit.model.activations import ACTIVATIONS
from gptfit.model.attention import causal_attention
from gptfit.model.kv_cache import KVCache


class Linear(nn.Linear):
    """``nn.Linear`` that leaves its initial values to the manifest."""

    def reset_parameters(self) -> None:
        """Nothing is drawn twice."""


class Embedding(nn.Embedding):
    """``nn.Embedding`` that leaves its initial values to the manifest."""

    def reset_parameters(self) -> None:
        """Nothing is drawn twice."""


class MultiHeadAttention(nn.Module):
    """Causal self-attention: each position looks at itself and at what came before it."""

    def __init__(self, config: GPT2Config, layer: int = 0) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.layer = layer
        self.scale = attention_scale(config, layer)
        self.upcast = config.reorder_and_upcast_attn
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.attn_pdrop = config.attn_pdrop
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """(B, T, C) -> (B, T, C). ``mask`` (B, 1, T, S) is True where a query may look.

        Without a mask the queries are the first positions, or one query after all the cached ones.
        """
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, H, T, D)
            for part in self.c_attn(x).split(C, dim=2)
        )
        if cache is not None:
            k, v = cache.append(self.layer, torch.stack((k, v), dim=1))  # (B, H, S, D)
        y = self.attention(q, k, v, mask).transpose(1, 2).reshape(B, T, C)
        return self.resid_dropout(self.c_proj(y))

    def attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """What the queries (B, H, T, D) take from keys and values (B, H, S, D): (B, H, T, D)."""
        return (
            self._attend_in_float32(q, k, v, mask) if self.upcast else self._attend(q, k, v, mask)
        )

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        dropout = self.attn_pdrop if self.training else 0.0
        k, v = k.to(q.dtype), v.to(q.dtype)
        # One query sees all keys; several without a mask are a prefill from the first position.
        if mask is None and q.shape[2] == k.shape[2]:
            return causal_attention(q, k, v, self.scale, dropout)
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=self.scale)

    def _attend_in_float32(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """``reorder_and_upcast_attn``: scores and softmax in float32 whatever autocast says."""
        T, S = q.shape[2], k.shape[2]
        if mask is None:
            mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
        with torch.autocast(q.device.type, enabled=False):
            scores = (q.float() * self.scale) @ k.float().transpose(2, 3)  # (B, H, T, S)
            weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1).to(v.dtype)
            weights = F.dropout(weights, self.attn_pdrop, self.training)
            return weights @ v


def attention_scale(config: GPT2Config, layer: int) -> float:
    """The factor on the scores before the softmax."""
    scale = 1 / math.sqrt(config.head_dim) if config.scale_attn_weights else 1.0
    return scale / (layer + 1) if config.scale_attn_by_inverse_layer_idx else scale


class FeedForward(nn.Module):
    """Two linear layers with an activation between them, applied to each position alone."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, config.n_inner, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation_function]
        self.c_proj = Linear(config.n_inner, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.resid_dropout(self.c_proj(self.activation(self.c_fc(x))))


class TransformerBlock(nn.Module):
    """Attention, then feed-forward, each behind a layer norm and added to the residual stream."""

    def __init__(self, config: GPT2Config, layer: int = 0) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon, bias=config.bias)
        self.attn = MultiHeadAttention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon, bias=config.bias)
        self.mlp = FeedForward(config)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + self.attn(self.ln_1(x), mask, cache)
        x = x + self.mlp(self.ln_2(x))
        return x
