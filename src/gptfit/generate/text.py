"""Prompts and continuations as text."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gptfit.data import Tokenizer
from gptfit.errors import DataError
from gptfit.generate.engine import generate
from gptfit.generate.sampling import SamplingOptions
from gptfit.model import GPT2


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


def generate_text(
    model: GPT2,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int,
    options: SamplingOptions | None = None,
    *,
    samples: int = 1,
    use_cache: bool | None = None,
    on_slide: Callable[[], None] | None = None,
) -> Iterator[list[str]]:
    """Yield the next piece of text of each of ``samples`` continuations, as the tokens come.

    Pieces join to the whole text; a piece is empty while a character is not complete.
    """
    if tokenizer.vocab_size > model.config.vocab_size:
        raise DataError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}: "
            "they do not belong together"
        )
    ids = encode_prompt(tokenizer, prompt)
    streams = [tokenizer.stream() for _ in range(samples)]
    steps = generate(
        model,
        [ids] * samples,
        max_new_tokens,
        options,
        stop_id=tokenizer.eos_token_id,
        vocab_size=tokenizer.vocab_size,
        use_cache=use_cache,
        on_slide=on_slide,
    )
    for step in steps:
        yield [
            stream.push(token) if token is not None else ""
            for stream, token in zip(streams, step, strict=True)
        ]
    yield [stream.flush() for stream in streams]
