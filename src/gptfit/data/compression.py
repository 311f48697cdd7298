"""How many tokens a text makes in the vocabularies that could be made for it."""

from __future__ import annotations

import bz2
import json
from collections.abc import Iterator
from dataclasses import dataclass

from gptfit.config import DataConfig
from gptfit.data.text import TextSource
from gptfit.data.tokenizer import MIN_BPE_VOCAB_SIZE, Tokenizer
from gptfit.data.tokenizer_choice import make_tokenizer

BPE_SIZES = (512, 1024, 2048, 4096, 8192, 16384, 32768)
SAMPLE_BYTES = 2**22
BYTES_PER_TOKEN_OF_BPE = 128
"""A vocabulary larger than the text's bytes over this has tokens that hardly occur."""


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer that a text could have: the recipe's words for it, its size, tokens for a byte."""

    tokenizer: str
    size: int
    tokens_per_byte: float

    @property
    def values(self) -> dict[str, object]:
        """The recipe's values that make this tokenizer."""
        size = {"data.bpe_vocab_size": self.size} if self.tokenizer == "bpe" else {}
        return {"data.tokenizer": self.tokenizer, **size}


def compressed_bits(text: TextSource, val_fraction: float) -> float:
    """Bits per byte that bzip2 needs for the beginning of the training part: how hard it is to predict."""
    share = min(1 - val_fraction, SAMPLE_BYTES / text.total_bytes)
    sample = "".join(text.beginning(share)).encode("utf-8")
    return 8 * len(bz2.compress(sample)) / len(sample)


def vocabularies(text: TextSource, data: DataConfig) -> tuple[Vocabulary, ...]:
    """The vocabularies to choose from: the one that ``data`` asks for, else those that the text supports.

    Counted on the beginning of the training part. A BPE's merges are learned in order, so those of a
    smaller vocabulary are the first ones of a larger: one training serves for all sizes.
    """
    share = min(1 - data.val_fraction, SAMPLE_BYTES / text.total_bytes)
    sample = list(text.beginning(share))
    if data.tokenizer != "auto":
        tokenizer = make_tokenizer(data.tokenizer, data.bpe_vocab_size, text, data.val_fraction)
        return (_counted(data.tokenizer, tokenizer, sample),)
    if data.bpe_vocab_size is not None:
        return (_counted("bpe", Tokenizer.train_bpe(sample, data.bpe_vocab_size), sample),)
    return (_counted("char", Tokenizer.char(text.characters), sample), *_bpes(text, sample))


def _bpes(text: TextSource, sample: list[str]) -> Iterator[Vocabulary]:
    sizes = [size for size in BPE_SIZES if size * BYTES_PER_TOKEN_OF_BPE <= text.total_bytes]
    if not sizes:
        return
    largest = Tokenizer.train_bpe(sample, sizes[-1])
    for size in sizes:
        if size <= largest.vocab_size:
            yield _counted("bpe", first_merges(largest, size), sample)


def _counted(spec: str, tokenizer: Tokenizer, sample: list[str]) -> Vocabulary:
    size = sum(len(piece.encode("utf-8")) for piece in sample)
    tokens = sum(ids.size for ids in tokenizer.encode_batch(sample))
    return Vocabulary(spec, tokenizer.vocab_size, tokens / size)


def first_merges(bpe: Tokenizer, size: int) -> Tokenizer:
    """The BPE of ``size`` tokens that learning would have passed through on the way to ``bpe``."""
    document = json.loads(bpe.document)
    model = document["model"]
    end_of_text = size - 1
    model["vocab"] = {
        token: index for token, index in model["vocab"].items() if index < end_of_text
    }
    model["merges"] = model["merges"][: size - MIN_BPE_VOCAB_SIZE]
    for token in document["added_tokens"]:
        token["id"] = end_of_text
    return Tokenizer(json.dumps(document), bpe.eos_token)
