"""Vocabularies for a text, and how many tokens each makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptfit.config import DataConfig
from gptfit.data import TextSource, Tokenizer, make_tokenizer, vocabularies
from gptfit.data.compression import first_merges


@pytest.fixture(scope="module")
def text() -> TextSource:
    return TextSource.embedded()


def test_the_first_merges_are_the_smaller_bpe(text: TextSource) -> None:
    sample = list(text.beginning(0.2))
    large, small = (Tokenizer.train_bpe(sample, size) for size in (1024, 512))
    cut = first_merges(large, 512)
    assert cut.vocab_size == small.vocab_size == 512
    assert cut.encode(sample[0]).tolist() == small.encode(sample[0]).tolist()
    assert cut.eos_token_id == small.eos_token_id == 511


def test_larger_vocabularies_make_fewer_tokens(text: TextSource) -> None:
    found = vocabularies(text, DataConfig())
    assert [item.tokenizer for item in found] == ["char", "bpe", "bpe", "bpe"]
    rates = [item.tokens_per_byte for item in found]
    assert rates == sorted(rates, reverse=True)
    for item in found[1:]:
        tokenizer = make_tokenizer("bpe", item.size, text, 0.1)
        count = sum(tokenizer.encode(piece).size for piece in text.beginning(0.9))
        assert count / (0.9 * text.total_bytes) == pytest.approx(item.tokens_per_byte, rel=0.01)


def test_what_is_asked_for_is_not_chosen(text: TextSource) -> None:
    assert [v.size for v in vocabularies(text, DataConfig(bpe_vocab_size=700))] == [700]
    (char,) = vocabularies(text, DataConfig(tokenizer="char"))
    assert char.values == {"data.tokenizer": "char"}
    assert char.size == len(text.characters)


def test_a_short_text_gets_characters(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("to be or not to be " * 30)
    (only,) = vocabularies(TextSource.from_paths([str(path)]), DataConfig())
    assert (only.tokenizer, only.tokens_per_byte) == ("char", 1.0)


def test_a_bpe_does_not_see_the_validation_text(tmp_path: Path) -> None:
    path = tmp_path / "two.txt"
    path.write_text("abc " * 900 + "xyz " * 100)
    source = TextSource.from_paths([str(path)])
    honest = make_tokenizer("bpe", 300, source, 0.1)
    assert honest.encode(" xyz").size > honest.encode(" abc").size
    assert make_tokenizer("bpe", 300, source).encode(" xyz").size == 1
