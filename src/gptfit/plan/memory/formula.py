"""The ledger's language: a formula is a string, and the string that is printed is the one evaluated.

It knows the letters below, numbers, ``+ - · / // ²``, brackets, ``max`` and ``min``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from types import CodeType
from typing import Any

LETTERS = {
    "V": "vocab_size",
    "P": "rows of the token embedding: vocab_size, padded",
    "R": "n_positions, rows of the position embedding",
    "T": "context of the step",
    "C": "n_embd",
    "F": "n_inner",
    "L": "n_layer",
    "H": "n_head",
    "B": "sequences of one micro-batch",
    "n": "tokens of one micro-batch, B·T",
    "A": "micro-batches of one optimizer step",
    "b": "1 with biases, else 0",
    "u": "1 when the output head is not tied to the embedding, else 0",
    "k": "checkpointed blocks",
    "K": "chunks of the loss",
    "c": "tokens of one chunk of the loss",
    "E": "sequences of one batch of the evaluation",
    "e": "tokens of one batch of the evaluation",
    "W": "devices",
    "o": "1 with Muon, else 0",
    "s": "bytes of a number that matrices are multiplied in",
    "h": "1 with several heads, else 0",
    "w": "1 with several heads of several sequences, else 0",
    "q": "multiple that the vocabulary is padded to",
    "d": "width of one head, padded to a multiple of 8",
    "m": "weights of one block's matrices",
    "a": "biases of one block's matrices",
    "G": "parameters of one block",
    "N": "parameters",
}

DERIVED = {
    "P": "-(-V // q)·q",
    "n": "B·T",
    "c": "-(-n // K)",
    "e": "E·R",
    "d": "-(-(C // H) // 8)·8",
    "h": "min(1, H - 1)",
    "w": "min(1, B - 1)·h",
    "m": "4·C² + 2·C·F",
    "a": "b·(5·C + F)",
    "G": "m + a + 2·(1 + b)·C",
    "N": "(1 + u)·P·C + R·C + L·G + (1 + b)·C",
}
"""Letters that follow from others, each from those before it."""

WORD = re.compile(r"[A-Za-z]+")


def complete(letters: Mapping[str, Any]) -> dict[str, Any]:
    """The letters with those that follow from them; values are numbers or numpy arrays."""
    values = dict(letters)
    for letter, formula in DERIVED.items():
        values[letter] = evaluate(formula, values)
    return values


def evaluate(formula: str, letters: Mapping[str, Any]) -> Any:
    """The formula's value; of arrays, if any letter is one.

    >>> evaluate("L·(4·C² + max(b, 2))", {"L": 2, "C": 3, "b": 0})
    76
    """
    return eval(compiled(formula), {"__builtins__": {}, **FUNCTIONS}, letters)


def numbers(formula: str, letters: Mapping[str, Any]) -> str:
    """The formula with the letters' values in their places.

    >>> numbers("L·(4·C² + max(b, 2))", {"L": 2, "C": 3, "b": 0})
    '2·(4·3² + max(0, 2))'
    """
    return WORD.sub(lambda word: str(letters.get(word[0], word[0])), formula)


@functools.cache
def compiled(formula: str) -> CodeType:
    """The formula as Python's code, made once."""
    return compile(formula.replace("·", "*").replace("²", "**2"), formula, "eval")


def largest(*values: Any) -> Any:
    """``max`` that takes arrays too, element by element."""
    if all(isinstance(value, int | float) for value in values):
        return max(values)
    from numpy import maximum

    return functools.reduce(maximum, values)


def smallest(*values: Any) -> Any:
    """``min`` that takes arrays too, element by element."""
    if all(isinstance(value, int | float) for value in values):
        return min(values)
    from numpy import minimum

    return functools.reduce(minimum, values)


FUNCTIONS = {"max": largest, "min": smallest}
