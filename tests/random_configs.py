"""Small random configurations that together visit every field of the architecture."""

from __future__ import annotations

import random
from typing import Any

from gptfit.config import GPT2Config
from gptfit.config.gpt2 import ACTIVATIONS


def random_config(seed: int, **fixed: Any) -> GPT2Config:
    """A valid, tiny configuration, the same for the same seed."""
    draw = random.Random(seed)
    n_head = draw.choice([1, 2, 3, 4])
    values: dict[str, Any] = {
        "vocab_size": draw.randint(5, 97),
        "n_positions": draw.choice([8, 17, 32]),
        "n_head": n_head,
        "n_embd": n_head * draw.choice([4, 6, 8]),
        "n_layer": draw.randint(1, 3),
        "n_inner": draw.choice([None, None, 7, 24]),
        "activation_function": ACTIVATIONS[seed % len(ACTIVATIONS)],
        "layer_norm_epsilon": draw.choice([1e-5, 1e-3, 0.1]),
        "initializer_range": draw.choice([0.02, 0.1, 0.3]),
        "bias": draw.random() < 0.7,
        "tie_word_embeddings": draw.random() < 0.6,
        "scale_attn_weights": draw.random() < 0.7,
        "scale_attn_by_inverse_layer_idx": draw.random() < 0.4,
        "reorder_and_upcast_attn": draw.random() < 0.4,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }
    return GPT2Config(**(values | fixed))
