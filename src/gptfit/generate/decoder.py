"""One step of decoding, written out.

The computation is that of the model's modules. Their calls, which matter to nobody else, would take a
tenth of the time of a token of GPT-2 124M on a CPU, and more than half of that of a small model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptfit.model import GPT2, KVCache
from gptfit.model.gpt2 import attention_mask

Function = Callable[[Tensor], Tensor]


class Decoder:
    """Takes one token of each row; the letters are those of ``model.layers``."""

    def __init__(self, model: GPT2) -> None:
        self.config = model.config
        self.wte, self.wpe = model.wte.weight, model.wpe.weight
        self.blocks = [Block(block) for block in model.h]
        self.ln_f, self.lm_head = layer_norm(model.ln_f), linear(model.lm_head)

    def __call__(self, idx: Tensor, cache: KVCache) -> Tensor:
        """Logits (B, V) after the ids (B,), which continue the rows of the cache."""
        places = cache.reserve(1)
        mask = None
        if not cache.is_even:
            mask = attention_mask(None, places, max(cache.lengths) + 1)
        x = F.embedding(idx, self.wte) + F.embedding(places[:, 0], self.wpe)  # (B, C)
        for block in self.blocks:
            x += block.attend(block.ln_1(x), mask, cache)
            x += block.feed_forward(block.ln_2(x))
        cache.advance(1)
        return self.lm_head(self.ln_f(x))[:, : self.config.vocab_size]


class Block:
    """The functions of a transformer block."""

    def __init__(self, block: Any) -> None:
        self.ln_1, self.ln_2 = layer_norm(block.ln_1), layer_norm(block.ln_2)
        self.c_attn, self.c_proj = linear(block.attn.c_attn), linear(block.attn.c_proj)
        self.c_fc, self.activation = linear(block.mlp.c_fc), block.mlp.activation
        self.mlp_c_proj = linear(block.mlp.c_proj)
        self.layer, self.n_head = block.attn.layer, block.attn.n_head
        self.attention = block.attn.attention

    def attend(self, x: Tensor, mask: Tensor | None, cache: KVCache) -> Tensor:
        """(B, C) -> (B, C)."""
        B, C = x.shape
        qkv = self.c_attn(x).view(B, 3, self.n_head, 1, C // self.n_head)
        k, v = cache.append(self.layer, qkv[:, 1:])  # (B, H, S, D)
        return self.c_proj(self.attention(qkv[:, 0], k, v, mask).reshape(B, C))

    def feed_forward(self, x: Tensor) -> Tensor:
        """(B, C) -> (B, C)."""
        return self.mlp_c_proj(self.activation(self.c_fc(x)))


def layer_norm(module: nn.LayerNorm) -> Function:
    """The module as a function."""
    shape, weight, bias, eps = module.normalized_shape, module.weight, module.bias, module.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)


def linear(module: Any) -> Function:
    """The module as a function, whatever its weights are."""
    if isinstance(module, nn.Linear):
        weight, bias = module.weight, module.bias
        return lambda x: F.linear(x, weight, bias)
    forward: Function = module.forward
    return forward
