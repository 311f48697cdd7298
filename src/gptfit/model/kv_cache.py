"""Keys and values of the tokens already seen, in buffers allocated once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gptfit.config import GPT2Config


class KVCache:
    """A static buffer of shape (L, B, 2, H, S, D), keys before values, that the layers append to.

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
        shape = (config.n_layer, batch_size, 2, config.n_head, capacity, config.head_dim)
        self.buffer = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = [0] * batch_size

    @property
    def capacity(self) -> int:
        """The positions of a row."""
        return self.buffer.shape[4]

    def rows(self, first: int, lengths: Sequence[int]) -> KVCache:
        """The rows from ``first`` on, which hold so many positions; the buffer is shared."""
        part = object.__new__(KVCache)
        part.buffer = self.buffer[:, first : first + len(lengths)]
        part.lengths = list(lengths)
        return part

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Let ``target`` hold the first ``length`` positions of ``source``."""
        self.buffer[:, target, :, :, :length] = self.buffer[:, source, :, :, :length]

    @property
    def is_even(self) -> bool:
        """Whether all rows hold as many positions."""
        return len(set(self.lengths)) <= 1

    def reserve(self, T: int) -> Tensor:
        """Where the next T tokens of each row go: (B, T), or (1, T) where all rows are as long."""
        end, device = max(self.lengths) + T, self.buffer.device
        assert end <= self.capacity, f"{end} positions in a cache of {self.capacity}"
        start = torch.tensor(self.lengths[:1] if self.is_even else self.lengths, device=device)
        self.places = start[:, None] + torch.arange(T, device=device)
        # Cut for all layers at once: to cut is a good part of what a small model's token takes.
        self._held = self.buffer[..., :end, :].unbind(0)
        self._new = self.buffer[..., end - T : end, :].unbind(0) if self.is_even else None
        return self.places

    def append(self, layer: int, kv: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values (B, 2, H, T, D) of one layer where ``reserve`` said; return all.

        They are (B, H, S, D) each, and S reaches to the end of the longest row: what lies behind the
        end of another row is not its own.
        """
        held = self._held[layer]
        if self._new is not None:
            self._new[layer].copy_(kv)
        else:
            rows = torch.arange(kv.shape[0], device=kv.device)[:, None]
            held[rows, :, :, self.places] = kv.permute(0, 3, 1, 2, 4).to(held.dtype)
        keys, values = held.unbind(1)
        return keys, values

    def advance(self, positions: int) -> None:
        """All layers have appended this many positions to every row."""
        self.lengths = [length + positions for length in self.lengths]
