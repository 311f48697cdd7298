"""Configuration files: strict JSON and TOML in, TOML out."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gptfit.config.checks import shown
from gptfit.errors import ConfigError

MAX_BYTES = 2**20


def read_config_file(path: str | Path) -> dict[str, Any]:
    """The object in a ``.json`` file or the tables of a ``.toml`` file.

    Stricter than the standard library: no duplicate keys, no NaN or Infinity, no number beyond the
    floats, UTF-8 without a byte order mark, at most 1 MiB. Raises ``ConfigError`` naming the file.
    """
    path = Path(path)
    try:
        text = _read_text(path)
        values = _parser(path.suffix)(text)
    except RecursionError:
        raise ConfigError("nested too deeply; a configuration has two levels", str(path)) from None
    except ConfigError as error:
        raise error.within(str(path)) from None
    if not isinstance(values, dict):
        message = f"holds {shown(values)}; a configuration is an object: {{...}}"
        raise ConfigError(message, str(path))
    return values


def _read_text(path: Path) -> str:
    if path.is_dir():
        raise ConfigError("is a folder; name a .json or .toml file")
    if not path.exists():
        raise ConfigError("no such file")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise ConfigError(f"is larger than {MAX_BYTES:,} bytes; this is no configuration")
    return _decode(content)


def _parser(suffix: str) -> Callable[[str], Any]:
    parsers = {".json": _parse_json, ".toml": _parse_toml}
    if suffix.lower() not in parsers:
        raise ConfigError(f"unknown file type {shown(suffix)}; use .json or .toml")
    return parsers[suffix.lower()]


def _decode(content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\x00" in content:
        raise ConfigError("is UTF-16 or binary, not UTF-8; save it as UTF-8")
    if content.startswith(b"\xef\xbb\xbf"):
        raise ConfigError("starts with a byte order mark; save it as UTF-8 without BOM")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8 (byte {error.start}); save it as UTF-8") from None


def _parse_json(text: str) -> Any:
    try:
        return json.loads(
            text,
            object_pairs_hook=_unique,
            parse_float=_finite_float,
            parse_constant=_refuse_constant,
        )
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise ConfigError(f"not JSON at {place}: {_json_fault(error)}") from None
    except ConfigError:
        raise
    except ValueError:  # the interpreter's limit on the digits of an int
        raise ConfigError("holds an integer with thousands of digits") from None


def _json_fault(error: json.JSONDecodeError) -> str:
    before, rest = error.doc[: error.pos].rstrip(), error.doc[error.pos :].lstrip()
    if (before.endswith(",") and rest[:1] in ("}", "]")) or re.match(r",\s*[}\]]", rest):
        return "a comma with nothing after it; remove the comma"
    if rest[:1] == "'":
        return "strings take double quotes"
    if rest[:1] == "#" or rest[:2] in ("//", "/*"):
        return "JSON has no comments; use a .toml file for comments"
    return error.msg[:1].lower() + error.msg[1:]


def _parse_toml(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text, parse_float=_finite_float)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not TOML: {str(error)[:200]}") from None
    except ConfigError:
        raise
    except ValueError:
        raise ConfigError("holds an integer with thousands of digits") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise ConfigError(f"the key {shown(twice)} is given twice; keep one of them")
    return values


def _finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ConfigError(f"{text[:40]} is not a finite number")
    return number


def _refuse_constant(word: str) -> float:
    raise ConfigError(f"{word} is not a number in JSON; write a finite number")


def write_toml(document: Mapping[str, Any]) -> str:
    """TOML text with the document's values first and its mappings as tables; None is left out.

    >>> print(write_toml({"name": "baby", "train": {"lr": 1e-3, "text": ["a"], "seed": None}}), end="")
    name = "baby"
    <BLANKLINE>
    [train]
    lr = 0.001
    text = ["a"]
    """
    plain = {key: value for key, value in document.items() if not isinstance(value, Mapping)}
    blocks = [_lines(plain)] if plain else []
    for key, value in document.items():
        if isinstance(value, Mapping):
            blocks.append(f"[{_key(key)}]\n{_lines(value)}")
    return "\n".join(blocks)


def _lines(values: Mapping[str, Any]) -> str:
    return "".join(
        f"{_key(key)} = {_literal(value)}\n" for key, value in values.items() if value is not None
    )


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _literal(key)


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_literal(item) for item in value) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{value} is not a finite number and cannot be written")
    if isinstance(value, int | float):
        return repr(value)
    raise TypeError(f"write_toml has no form for {type(value).__name__}")


def _string(text: str) -> str:
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ConfigError(f"{shown(text)} is not valid Unicode and cannot be written")
    # A TOML basic string is a JSON string, except that DEL must be escaped too.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
