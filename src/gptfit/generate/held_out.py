"""A text to score: the ids that a model's tokenizer makes of it, and how many bytes they spell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gptfit.data import TextSource, TokenDataset, Tokenizer
from gptfit.data.preparation import require_characters
from gptfit.data.token_bytes import token_bytes
from gptfit.errors import DataError

COUNTED_TOKENS = 2**22
"""Whose bytes are added up at once."""


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Token ids (N,), and the bytes that each id of the vocabulary spells, where they are known."""

    tokens: np.ndarray
    token_bytes: np.ndarray | None

    @classmethod
    def of_text(cls, text: TextSource, tokenizer: Tokenizer) -> HeldOut:
        """Between two documents stands the end-of-text token, where there is one.

        Raises ``DataError`` for what is not text, and for characters without a token.
        """
        total_bytes = text.total_bytes
        way_out = "leave them out, or train a model with tokenizer=bpe, which knows all"
        require_characters(text, tokenizer, way_out)
        tokens = np.concatenate(list(_encoded(text, tokenizer)))
        return cls(tokens, _exact(token_bytes(tokenizer), tokens, total_bytes))

    @classmethod
    def of_dataset(cls, dataset: TokenDataset, tokenizer: Tokenizer) -> HeldOut:
        """The validation split. Raises ``DataError`` where another tokenizer has made it."""
        if dataset.tokenizer.fingerprint != tokenizer.fingerprint:
            raise DataError(
                f"{dataset.folder} was prepared with another tokenizer than the model's; give the "
                "text itself"
            )
        known = token_bytes(tokenizer)
        return cls(dataset.val, _exact(known, dataset.val, dataset.val_text_bytes))

    def bytes_of_targets(self, count: int) -> int | None:
        """Bytes of UTF-8 that the first ``count`` targets spell, None where that is not known.

        The first token of the text is no target: its bytes do not count, nor do its bits.
        """
        if self.token_bytes is None:
            return None
        return _spelled(self.tokens[1 : 1 + count], self.token_bytes)


def _encoded(text: TextSource, tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    cutter, eos = tokenizer.cutter(), tokenizer.eos_token_id
    for number, document in enumerate(text.documents()):
        if number and eos is not None:
            yield np.array([eos], dtype=np.uint32)
        for chunk in document:
            yield tokenizer.encode(cutter.push(chunk))
        yield tokenizer.encode(cutter.flush())


def _exact(
    lengths: np.ndarray | None, tokens: np.ndarray, text_bytes: int | None
) -> np.ndarray | None:
    """The bytes of each id, unless they do not add up to the text: some tokenizers change it."""
    if lengths is None or text_bytes not in (None, _spelled(tokens, lengths)):
        return None
    return lengths


def _spelled(tokens: np.ndarray, lengths: np.ndarray) -> int:
    starts = range(0, tokens.size, COUNTED_TOKENS)
    return sum(int(lengths[tokens[start : start + COUNTED_TOKENS]].sum()) for start in starts)
