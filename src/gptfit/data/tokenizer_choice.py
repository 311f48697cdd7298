"""A tokenizer from the word in a recipe."""

from __future__ import annotations

from pathlib import Path

from gptfit.data.text import TextSource
from gptfit.data.tokenizer import Tokenizer

# Below this size words come too seldom to be learned as tokens.
AUTO_CHAR_BYTES = 100_000
SMALLEST_BPE, LARGEST_BPE = 512, 32768
BYTES_PER_BPE_TOKEN = 256


def make_tokenizer(
    spec: str, bpe_vocab_size: int | None, text: TextSource, val_fraction: float = 0.0
) -> Tokenizer:
    """``spec`` is auto, char, bpe, gpt2, or a path that ``Tokenizer.load`` takes.

    auto is char for a short text and bpe, of a size that fits the text, for any other. A bpe is
    learned from the text without its last ``val_fraction``: a vocabulary that has seen the
    validation text spells it in fewer tokens than it will any other.
    """
    if spec == "auto":
        is_short = text.total_bytes < AUTO_CHAR_BYTES
        spec = "char" if bpe_vocab_size is None and is_short else "bpe"
    if spec == "char":
        return Tokenizer.char(text.characters)
    if spec == "gpt2":
        return Tokenizer.gpt2()
    if spec == "bpe":
        size = bpe_vocab_size or default_bpe_vocab_size(text.total_bytes)
        return Tokenizer.train_bpe(text.beginning(1 - val_fraction), size)
    return Tokenizer.load(Path(spec))


def default_bpe_vocab_size(text_bytes: int) -> int:
    """A power of two at which each token has been seen often: the text's bytes over 256, 512 to 32768.

    >>> [default_bpe_vocab_size(size) for size in (10_000, 1_115_394, 10**9)]
    [512, 4096, 32768]
    """
    size = min(max(text_bytes // BYTES_PER_BPE_TOKEN, SMALLEST_BPE), LARGEST_BPE)
    return 1 << (size.bit_length() - 1)
