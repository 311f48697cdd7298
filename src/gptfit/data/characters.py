"""The vocabulary of a character tokenizer, as two lookup tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gptfit.errors import DataError

UNKNOWN = -1


class CharacterTable:
    """Characters to ids and back; ``characters[i]`` has id ``i``.

    A megabyte is encoded in milliseconds: one lookup per character, no loop in Python.
    """

    def __init__(self, characters: Sequence[str]) -> None:
        self.characters = tuple(characters)
        self._codes = _codes("".join(characters))
        # One entry more than the largest character: everything beyond lands there, unknown.
        self._ids = np.full(int(self._codes.max()) + 2, UNKNOWN, dtype=np.int32)
        self._ids[self._codes] = np.arange(len(characters))

    def encode(self, text: str) -> np.ndarray:
        """Ids, uint32. Raises ``DataError`` naming the first character that has none."""
        codes = _codes(text)
        ids = self._ids[np.minimum(codes, len(self._ids) - 1)]
        unknown = np.flatnonzero(ids == UNKNOWN)
        if unknown.size:
            position = int(unknown[0])
            character = text[position]
            raise DataError(
                f"the character {character!r} (U+{ord(character):04X}) at position {position} is "
                f"not in the vocabulary of {len(self.characters)} characters; leave it out, or "
                "prepare and train with a text that has it, or with tokenizer=bpe, which knows all"
            )
        encoded: np.ndarray = ids.astype(np.uint32)
        return encoded

    def decode(self, ids: np.ndarray) -> str:
        """The text of ids that are all inside the vocabulary."""
        return str(self._codes[ids].tobytes(), "utf-32-le")


def character_vocabulary(document: dict[str, Any]) -> list[str] | None:
    """The characters of a ``tokenizer.json`` that is a plain character tokenizer, else None."""
    model = document.get("model") or {}
    splitter = document.get("pre_tokenizer") or {}
    plain = not document.get("added_tokens") and document.get("normalizer") is None
    if not plain or model.get("type") != "WordLevel" or splitter.get("type") != "Split":
        return None
    if splitter.get("pattern") != {"Regex": ANY_CHARACTER} or splitter["behavior"] != "Isolated":
        return None
    vocabulary = sorted(model["vocab"], key=model["vocab"].__getitem__)
    consecutive = [model["vocab"][word] for word in vocabulary] == list(range(len(vocabulary)))
    single = all(len(word) == 1 for word in vocabulary)
    return vocabulary if vocabulary and consecutive and single else None


ANY_CHARACTER = r"[\s\S]"
"""Also matches a newline, which ``.`` does not."""


def _codes(text: str) -> np.ndarray:
    # A lone surrogate is no character of any vocabulary; it is reported, so it must get through.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
