"""nanoGPT's ``meta.pkl``, the vocabulary of a character data set, read without running anything."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from gptfit.errors import DataError

META_FILE = "meta.pkl"
MAX_BYTES = 2**24


class _PlainUnpickler(pickle.Unpickler):
    """Builds dicts, lists, strings and numbers; everything else a pickle can do is refused."""

    def find_class(self, module_name: str, global_name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it asks for an object from outside")


def read_meta_pkl(path: str | Path) -> list[str]:
    """The characters of a ``meta.pkl`` in the order of their ids.

    A pickle can run any code when it is loaded. This one is only read as plain data, and refused with
    a ``DataError`` if it holds anything else.
    """
    path = Path(path)
    if path.stat().st_size > MAX_BYTES:
        raise DataError(
            f"{path} is larger than {MAX_BYTES:,} bytes; this is no meta.pkl of nanoGPT"
        )
    try:
        with path.open("rb") as file:
            values = _PlainUnpickler(file).load()
    except Exception as error:
        raise DataError(
            f"{path} was not opened: {str(error)[:200] or type(error).__name__}. A meta.pkl holds "
            "only numbers and strings; prepare the text again, or write it anew with plain ones"
        ) from None
    return _characters(values, path)


def write_meta_pkl(path: Path, characters: Sequence[str]) -> None:
    """What nanoGPT's ``sample.py`` and ``train.py`` look for beside the token files."""
    meta = {
        "vocab_size": len(characters),
        "itos": dict(enumerate(characters)),
        "stoi": {character: index for index, character in enumerate(characters)},
    }
    path.write_bytes(pickle.dumps(meta, protocol=4))


def _characters(values: object, path: Path) -> list[str]:
    itos = values.get("itos") if isinstance(values, dict) else None
    if not isinstance(itos, dict) or not itos:
        raise DataError(
            f"{path} holds no dict 'itos' from ids to characters; prepare the text again"
        )
    if set(itos) != set(range(len(itos))) or any(type(index) is not int for index in itos):
        raise DataError(f"{path}: the ids in 'itos' are not 0 to {len(itos) - 1}")
    characters = [itos[index] for index in range(len(itos))]
    if not all(isinstance(character, str) and len(character) == 1 for character in characters):
        raise DataError(
            f"{path}: 'itos' holds more than single characters; put a tokenizer.json beside it"
        )
    return characters
