"""Text around the engine: prompts that do not fit, stop strings, several texts."""

from __future__ import annotations

import random

import pytest
import torch

from gptfit.data import Tokenizer
from gptfit.errors import ConfigError, DataError
from gptfit.generate import SamplingOptions
from gptfit.generate.text import StoppingStream, Writer, generate_text, truncated
from gptfit.model import GPT2
from random_configs import random_config

LETTERS = Tokenizer.char("abcdefgh \n")


def letters(text: str) -> list[int]:
    return [int(token) for token in LETTERS.encode(text)]


@pytest.fixture(scope="module")
def model() -> GPT2:
    config = random_config(1, vocab_size=10, n_positions=32, initializer_range=0.3)
    return GPT2(config, generator=torch.Generator().manual_seed(1)).eval()


@pytest.mark.parametrize(
    ("text", "stop", "want"),
    [
        ("abcabd", ["abd"], "abc"),
        ("ababac", ["abac"], "ab"),
        ("abcdef", ["cd", "bc"], "a"),
        ("abcdef", ["x", "fe"], "abcdef"),
        ("abc", ["a"], ""),
        ("aaab", ["aab"], "a"),
        ("abcabc", [], "abcabc"),
    ],
)
def test_stop_strings(text: str, stop: list[str], want: str) -> None:
    stream = StoppingStream(Tokenizer.char("abcdefx"), stop)
    ids = Tokenizer.char("abcdefx").encode(text)
    pieces = [stream.push(int(token)) for token in ids]
    assert "".join(pieces) + stream.flush() == want
    assert stream.stopped == (want != text)


def test_stop_strings_against_the_definition() -> None:
    draw, tokenizer = random.Random(0), Tokenizer.char("ab")
    for _ in range(2000):
        text = "".join(draw.choices("ab", k=draw.randint(0, 12)))
        stop = [
            "".join(draw.choices("ab", k=draw.randint(1, 4))) for _ in range(draw.randint(0, 3))
        ]
        stream = StoppingStream(tokenizer, stop)
        shown = ""
        for length, token in enumerate(tokenizer.encode(text), start=1):
            shown += stream.push(int(token))
            before = [text[:length].find(one) for one in stop if one in text[:length]]
            assert stream.stopped == bool(before)
            if before:
                break
            assert text.startswith(shown)
        # Which stop string is met first by its end, not by its beginning, ends the text.
        whole = shown + stream.flush()
        assert text.startswith(whole)
        assert not any(one in whole for one in stop)
        assert stream.stopped or whole == text


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ConfigError, match="a stop string is empty"):
        StoppingStream(LETTERS, [""])


def test_prompts_beyond_the_context() -> None:
    assert truncated([1, 2, 3], 2) == [2, 3]
    assert truncated([1, 2, 3], 2, "right") == [1, 2]
    assert truncated([1, 2], 2, "error") == [1, 2]
    with pytest.raises(
        DataError, match="the prompt has 3 tokens, and the context holds 2; shorten"
    ):
        truncated([1, 2, 3], 2, "error")
    with pytest.raises(ConfigError, match="truncate=middle is not known"):
        truncated([1], 2, "middle")


def test_a_writer_ends_each_text_on_its_own(model: GPT2) -> None:
    writer = Writer(model, LETTERS, slots=3)
    options = SamplingOptions(seed=3)
    pieces = list(writer.write(letters("ab"), 60, options, samples=3, stop=["c", "e"]))
    texts = ["".join(parts) for parts in zip(*pieces, strict=True)]
    for number, one in enumerate(writer.completions):
        own = options.replace(seed=3 + number)
        plain = "".join(parts[0] for parts in generate_text(model, LETTERS, "ab", 60, own))
        ends = [at for stop in "ce" if (at := plain.find(stop)) >= 0]
        assert one.text == texts[number] == plain[: min(ends, default=None)]
        assert one.finish_reason == ("stop" if ends else "length")
        assert LETTERS.decode(one.ids).startswith(one.text)
    assert not writer.engine.rows


def test_a_text_that_nobody_waits_for_leaves_its_row(model: GPT2) -> None:
    writer = Writer(model, LETTERS)
    pieces = writer.write(letters("ab"), 20)
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert writer.engine.free == 1
    assert len(list(writer.write(letters("ab"), 3))) == 4
