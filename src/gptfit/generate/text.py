"""Prompts and continuations as text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from gptfit.data import Tokenizer
from gptfit.errors import ConfigError, DataError
from gptfit.generate.engine import Engine, Request, Row
from gptfit.generate.sampling import SamplingOptions
from gptfit.model import GPT2

TRUNCATE = ("left", "right", "error")


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The ids of a prompt, in which <|endoftext|> is the token.

    An empty prompt starts where texts start: after an end of text, or on a new line.
    """
    if prompt:
        return [int(token) for token in tokenizer.encode(prompt, special=True)]
    if tokenizer.eos_token_id is not None:
        return [tokenizer.eos_token_id]
    try:
        return [int(token) for token in tokenizer.encode("\n")]
    except DataError:
        raise DataError(
            "an empty prompt needs an end-of-text token or a newline to start from, and this "
            "vocabulary has neither; give a prompt"
        ) from None


def truncated(ids: list[int], n_positions: int, truncate: str = "left") -> list[int]:
    """The ids that fit a context: the last of them, or for ``right`` the first.

    Raises ``DataError`` for ``error`` where they do not fit.
    """
    if truncate not in TRUNCATE:
        raise ConfigError(f"truncate={truncate} is not known; choose one of {', '.join(TRUNCATE)}")
    if len(ids) > n_positions and truncate == "error":
        raise DataError(
            f"the prompt has {len(ids):,} tokens, and the context holds {n_positions:,}; shorten "
            "it, or say truncate=left or right"
        )
    return ids[:n_positions] if truncate == "right" else ids[-n_positions:]


class StoppingStream:
    """Text from ids that come one by one, up to the first of the ``stop`` strings.

    Pieces join to the text before it. What may be the beginning of a stop string, or part of a
    character, is held back until it is certain.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        if not all(stop):
            raise ConfigError("a stop string is empty; it would stop before the first character")
        self.stopped = False
        self._stream, self._stop, self._held = tokenizer.stream(), tuple(stop), ""

    def push(self, token: int) -> str:
        """The text that became certain with this token; nothing once ``stopped``."""
        return self._pass_on(self._stream.push(token))

    def flush(self) -> str:
        """What is held back when no more tokens come."""
        piece = self._pass_on(self._stream.flush()) + ("" if self.stopped else self._held)
        self._held = ""
        return piece

    def _pass_on(self, piece: str) -> str:
        if self.stopped:
            return ""
        text = self._held + piece
        ends = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """The most letters at the end of ``text`` with which ``stop`` begins."""
    return next(n for n in range(min(len(text), len(stop) - 1), -1, -1) if text.endswith(stop[:n]))


class Completion:
    """One text in the making: its tokens, its certain text, and why it ended.

    The ``ids`` are those after the prompt, with those of a stop string.
    """

    def __init__(self, row: Row, stream: StoppingStream) -> None:
        self.row, self._stream = row, stream
        self.ids: list[int] = []
        self.text = ""

    @property
    def finish_reason(self) -> str | None:
        """``stop``, ``length``, or None while it goes on."""
        return "stop" if self._stream.stopped else self.row.finish_reason

    def push(self, token: int) -> str:
        """The text that became certain."""
        if self._stream.stopped:  # a row that looks ahead may tell more
            return ""
        self.ids.append(token)
        return self._add(self._stream.push(token))

    def flush(self) -> str:
        """The rest, at the end."""
        return self._add(self._stream.flush())

    def _add(self, piece: str) -> str:
        self.text += piece
        return piece


class Writer:
    """Continues prompts with a model and its tokenizer, one after the other.

    What a prompt has in common with the one before is not computed again. ``slots`` texts can be
    written at once; the other arguments are those of ``Engine``.
    """

    def __init__(
        self,
        model: GPT2,
        tokenizer: Tokenizer,
        slots: int = 1,
        *,
        capacity: int | None = None,
        lookup: int = 0,
        use_cache: bool | None = None,
    ) -> None:
        if tokenizer.vocab_size > model.config.vocab_size:
            raise DataError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model "
                f"{model.config.vocab_size}: they do not belong together"
            )
        self.tokenizer = tokenizer
        self.engine = Engine(
            model,
            slots,
            vocab_size=tokenizer.vocab_size,
            capacity=capacity,
            lookup=lookup,
            use_cache=model.config.use_cache if use_cache is None else use_cache,
        )
        self.completions: list[Completion] = []

    def write(
        self,
        ids: list[int],
        max_new_tokens: int,
        options: SamplingOptions | None = None,
        *,
        samples: int = 1,
        stop: Sequence[str] = (),
    ) -> Iterator[list[str]]:
        """Yield the next piece of each of ``samples`` texts; sample i draws from seed + i.

        Pieces join to the whole text; a piece is empty while nothing is certain. ``completions``
        holds what has come of each.
        """
        options = options or SamplingOptions()
        eos = self.tokenizer.eos_token_id
        stop_ids = frozenset[int]() if eos is None else frozenset({eos})
        self.completions = []
        for number in range(samples):
            request = Request(
                prompt=ids,
                max_new_tokens=max_new_tokens,
                options=options.replace(seed=options.seed + number),
                stop_ids=stop_ids,
            )
            stream = StoppingStream(self.tokenizer, stop)
            self.completions.append(Completion(self.engine.add(request), stream))
        owner = {completion.row: completion for completion in self.completions}
        try:
            while self.engine.rows:
                pieces = dict.fromkeys(owner, "")
                for row, token in self.engine.step():
                    pieces[row] += owner[row].push(token.id)
                    if owner[row].finish_reason:
                        self.engine.remove(row)
                yield list(pieces.values())
            yield [completion.flush() for completion in self.completions]
        finally:
            for row in owner:
                self.engine.remove(row)


def generate_text(
    model: GPT2,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int,
    options: SamplingOptions | None = None,
    *,
    samples: int = 1,
    stop: Sequence[str] = (),
    use_cache: bool | None = None,
    on_slide: Callable[[], None] | None = None,
) -> Iterator[list[str]]:
    """Yield the next piece of text of each of ``samples`` continuations, as the tokens come.

    As ``Writer.write``; ``on_slide`` is called when the context is full for the first time.
    """
    ids = encode_prompt(tokenizer, prompt)
    capacity = len(ids) + max_new_tokens
    writer = Writer(model, tokenizer, samples, capacity=capacity, use_cache=use_cache)
    for pieces in writer.write(ids, max_new_tokens, options, samples=samples, stop=stop):
        if writer.engine.slid and on_slide is not None:
            on_slide()
            on_slide = None
        yield pieces
