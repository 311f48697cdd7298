"""Memory that did not suffice."""

from __future__ import annotations

import torch

# A GPU's allocator has a type for it, these have only words.
WORDS = ("DefaultCPUAllocator: can't allocate memory", "MPS backend out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an operation failed because its device had no room for the result."""
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in WORDS)


def give_back_unused() -> None:
    """Return to a GPU what a failed attempt has left reserved, in pieces of the wrong size."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
