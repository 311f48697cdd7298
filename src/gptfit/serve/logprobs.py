"""Log-probabilities in the form of OpenAI's completions: four lists, one entry a token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from gptfit.data import Tokenizer
from gptfit.generate.engine import Token
from gptfit.model import GPT2

LEAST = -9999.0
"""OpenAI's word for minus infinity, which JSON does not have."""
UNSPOKEN = "token_id:"
KEYS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


Entry = tuple[str, float | None, dict[str, float] | None, int]


class Logprobs:
    """The entries of one continuation, handed out when the text that they belong to is.

    ``text_offset`` counts characters from the beginning of the choice's text. A token that is no whole
    character, or of a model without tokenizer, is called ``token_id:N``.
    """

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._held: list[Entry] = []
        self._begin(0)

    def push(self, token: Token) -> None:
        """Take a token in."""
        name, logprob, likeliest = self._name(token.id), None, None
        if token.logprob is not None:
            logprob = max(token.logprob, LEAST)
            likeliest = {self._name(id): max(value, LEAST) for id, value in reversed(token.top)}
            likeliest[name] = logprob
        start = self._offset
        self._offset += len(self._stream.push(token.id)) if self._stream else 0
        if not name.startswith(UNSPOKEN):  # before it there may be what was no character after all
            start = max(start, self._offset - len(name))
        self._held.append((name, logprob, likeliest, start))

    def push_prompt(self, tokens: Iterable[Token], text: str) -> None:
        """Take the tokens of an echoed prompt in, whose ``text`` comes before all others."""
        for token in tokens:
            self.push(token)
        self._begin(len(text))

    def take(self, length: int | None = None) -> dict[str, list[Any]]:
        """The entries of tokens that begin within the first ``length`` characters; None means all."""
        count = sum(length is None or entry[-1] < length for entry in self._held)
        taken, self._held = self._held[:count], self._held[count:]
        return {key: [entry[place] for entry in taken] for place, key in enumerate(KEYS)}

    def _begin(self, offset: int) -> None:
        self._stream = self._tokenizer.stream() if self._tokenizer else None
        self._offset = offset

    def _name(self, id: int) -> str:
        text = self._tokenizer.decode([id]) if self._tokenizer else ""
        return text if text and "\ufffd" not in text else f"{UNSPOKEN}{id}"


@torch.inference_mode()
def prompt_tokens(model: GPT2, ids: Sequence[int], top: int, vocab_size: int) -> list[Token]:
    """The tokens of a prompt within the context, each with what the model made of it; the first without."""
    logits = model(torch.tensor([ids], device=model.wpe.weight.device))[0, :-1, :vocab_size]
    logprobs = logits.float().log_softmax(dim=-1)
    likeliest = logprobs.topk(min(top, vocab_size))
    tops = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
    tokens = [Token(ids[0])]
    for row, (id, (indices, values)) in enumerate(zip(ids[1:], tops, strict=True)):
        pairs = zip(indices, values, strict=True)
        tokens.append(Token(id, logprobs[row, id].item(), tuple(pairs)))
    return tokens


def joined(parts: Iterable[dict[str, list[Any]]]) -> dict[str, list[Any]]:
    """The entries of several parts as one."""
    parts = list(parts)
    return {key: [entry for part in parts for entry in part[key]] for key in KEYS}
