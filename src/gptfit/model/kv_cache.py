"""Keys and values of the tokens already seen, in buffers allocated once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gptfit.config import GPT2Config


class KVCache:
    """Static buffers of shape (L, B, H, S, D) that the attention layers append to.

    Row b has filled its first ``lengths[b]`` positions; the model moves them on after the last layer.
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
        self.lengths = [0] * batch_size

    @property
    def capacity(self) -> int:
        """The positions of a row."""
        return self.keys.shape[3]

    def rows(self, first: int, lengths: Sequence[int]) -> KVCache:
        """The rows from ``first`` on, which hold so many positions; the buffers are shared."""
        part = object.__new__(KVCache)
        part.keys = self.keys[:, first : first + len(lengths)]
        part.values = self.values[:, first : first + len(lengths)]
        part.lengths = list(lengths)
        return part

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Let ``target`` hold the first ``length`` positions of ``source``."""
        for buffer in (self.keys, self.values):
            buffer[:, target, :, :length] = buffer[:, source, :, :length]

    def reserve(self, T: int) -> Tensor:
        """Where the next T tokens of each row go: (B, T), or (1, T) where all rows are as long."""
        lengths = self.lengths[:1] if self.is_even else self.lengths
        start = torch.tensor(lengths, device=self.keys.device)
        self.places = start[:, None] + torch.arange(T, device=self.keys.device)
        return self.places

    @property
    def is_even(self) -> bool:
        """Whether all rows hold as many positions."""
        return len(set(self.lengths)) <= 1

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, H, T, D) of one layer where ``reserve`` said; return all its keys and values.

        They are (B, H, S, D), and S reaches to the end of the longest row: what lies behind the end
        of another row is not its own.
        """
        keys, values, end = self.keys[layer], self.values[layer], max(self.lengths) + k.shape[2]
        assert end <= self.capacity, f"{end} positions in a cache of {self.capacity}"
        if self.is_even:
            keys[:, :, end - k.shape[2] : end] = k
            values[:, :, end - k.shape[2] : end] = v
        else:
            rows = torch.arange(k.shape[0], device=k.device)[:, None]
            keys[rows, :, self.places] = k.transpose(1, 2).to(keys.dtype)
            values[rows, :, self.places] = v.transpose(1, 2).to(values.dtype)
        return keys[:, :, :end], values[:, :, :end]

    def advance(self, positions: int) -> None:
        """All layers have appended this many positions to every row."""
        self.lengths = [length + positions for length in self.lengths]
