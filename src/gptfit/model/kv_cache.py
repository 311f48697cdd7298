"""Keys and values of the tokens already seen, in buffers allocated once."""

from __future__ import annotations

import torch
from torch import Tensor

from gptfit.config import GPT2Config


class KVCache:
    """Static buffers of shape (L, B, H, S, D) that the attention layers append to.

    ``length`` is the number of positions filled; the model moves it on after the last layer.
    """

    def __init__(
        self,
        config: GPT2Config,
        batch_size: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (config.n_layer, batch_size, config.n_head, capacity, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.capacity = capacity
        self.length = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, H, T, D) of one layer; return all its keys and values, (B, H, length + T, D)."""
        end = self.length + k.shape[2]
        assert end <= self.capacity, f"{end} positions in a cache of {self.capacity}"
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, positions: int) -> None:
        """All layers have appended this many positions."""
        self.length += positions

    def clear(self) -> None:
        """Forget everything; the buffers stay."""
        self.length = 0
