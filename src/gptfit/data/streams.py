"""Text that comes in parts: cut for the encoder, put together by the decoder."""

from __future__ import annotations

import re
from collections.abc import Callable

# What of a growing text is certain to be whole: everything, up to the last space, nothing.
ANYWHERE = re.compile(r"(?s).*")
BEFORE_SPACE = re.compile(r"(?s).*\S(?=[ \n])")
NOWHERE = re.compile(r"(?!)")


class Cutter:
    """Gives the text of one document after another back in pieces that can be encoded alone."""

    def __init__(self, certain: re.Pattern[str]) -> None:
        self._certain = certain
        self._parts: list[str] = []

    def push(self, chunk: str) -> str:
        """The text that is certain now; empty where the next chunk may still matter."""
        match = self._certain.match(chunk)
        if match is None:
            self._parts.append(chunk)
            return ""
        piece = "".join(self._parts) + match.group()
        self._parts = [chunk[match.end() :]]
        return piece

    def flush(self) -> str:
        """The rest, at the end of the document."""
        rest, self._parts = "".join(self._parts), []
        return rest


class TextStream:
    """Text from ids that come one by one; the pieces join to the decoded whole.

    A character whose bytes are spread over several tokens is held back until it is complete.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._shown = 0

    def push(self, token: int) -> str:
        """The text that became certain with this token, often a word, sometimes nothing."""
        self._window.append(int(token))
        text = self._decode(self._window)
        if text.endswith("\ufffd"):
            return ""
        piece = text[self._shown :]
        # The last token stays: some decoders treat the first one of a text in their own way.
        self._window = self._window[-1:]
        self._shown = len(self._decode(self._window))
        return piece

    def flush(self) -> str:
        """What is held back when no more tokens come."""
        piece = self._decode(self._window)[self._shown :]
        self._window, self._shown = [], 0
        return piece
