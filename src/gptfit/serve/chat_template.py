"""Conversations as prompts, by the template that a tokenizer carries."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gptfit.data.tokenizer import CONFIG_FILE
from gptfit.errors import DataError

TEMPLATE_FILE = "chat_template.jinja"


class ChatTemplate:
    """Renders messages as ``transformers`` does; in a sandbox, for a template is a stranger's program."""

    def __init__(self, source: str, tokens: Mapping[str, str], name: str = "") -> None:
        """From Jinja ``source``; ``tokens`` are names such as bos_token, ``name`` tells of errors."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _raise
        environment.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)
        self._tokens = dict(tokens)
        try:
            self._template = environment.from_string(source)
        except (TemplateError, RecursionError) as error:
            raise DataError(
                f"{name}: its chat template is no Jinja: {error}; correct or remove it"
            ) from None

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt at whose end the assistant speaks. Raises ``DataError`` if the template does."""
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=True, **self._tokens
            )
        except Exception as error:  # whatever a stranger's program runs into
            raise DataError(f"the chat template refuses these messages: {error}") from None


def find_chat_template(folder: Path) -> ChatTemplate | None:
    """The template in a tokenizer's folder, or None."""
    path, own = folder / CONFIG_FILE, folder / TEMPLATE_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        source = own.read_text(encoding="utf-8") if own.is_file() else config.get("chat_template")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{folder}: no chat template can be read: {error}") from None
    if isinstance(source, list):  # several under names
        named = {one.get("name"): one.get("template") for one in source if isinstance(one, dict)}
        source = named.get("default")
    if source is None:
        return None
    if not isinstance(source, str):
        raise DataError(f"{path}: its chat_template is no text; correct or remove it")
    return ChatTemplate(source, _special_tokens(config), str(folder))


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    tokens = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        token = config.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        tokens[name] = str(token) if token is not None else ""
    return tokens


def _raise(message: str) -> None:
    raise TemplateError(message)
