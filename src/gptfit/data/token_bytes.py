"""How many bytes of text each token stands for."""

from __future__ import annotations

import json

import numpy as np

from gptfit.data.tokenizer import Tokenizer


def token_bytes(tokenizer: Tokenizer) -> np.ndarray | None:
    """Bytes of UTF-8 that each id spells, (vocab_size,), int64; None where its kind does not tell.

    A character has its own, and a byte-level token, which may end inside a character, one for each
    letter of its name. A special token stands for no text.
    """
    if tokenizer.characters is not None:
        return np.array([len(character.encode("utf-8")) for character in tokenizer.characters])
    values = json.loads(tokenizer.document)
    if (values.get("decoder") or {}).get("type") != "ByteLevel":
        return None
    lengths = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    for name, index in values["model"]["vocab"].items():
        lengths[index] = len(name)
    for token in values.get("added_tokens") or []:
        spelled = "" if token["special"] else token["content"]
        lengths[token["id"]] = len(spelled.encode("utf-8"))
    return lengths
