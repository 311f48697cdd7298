"""GPT-2 in PyTorch."""

from gptfit.model.gpt2 import GPT2
from gptfit.model.kv_cache import KVCache
from gptfit.model.layers import FeedForward, MultiHeadAttention, TransformerBlock

__all__ = ["GPT2", "FeedForward", "KVCache", "MultiHeadAttention", "TransformerBlock"]
