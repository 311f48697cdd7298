"""The bytes of all tokens of a text add up to the text."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordPiece

from gptfit.data import Tokenizer
from gptfit.data.token_bytes import token_bytes

TEXT = "Zwölf 🦊 füchse\n\tjagen <|endoftext|> 愛 nothing but  the truth, ’tis said.\r\n"


@pytest.mark.parametrize(
    "tokenizer",
    [Tokenizer.char(TEXT), Tokenizer.train_bpe([TEXT * 3], 300), Tokenizer.train_bpe(["a"], 257)],
    ids=["char", "bpe", "bytes"],
)
def test_add_up(tokenizer: Tokenizer) -> None:
    lengths = token_bytes(tokenizer)
    assert lengths is not None
    assert len(lengths) == tokenizer.vocab_size
    ids = tokenizer.encode(TEXT)
    assert lengths[ids].sum() == len(TEXT.encode("utf-8"))


def test_gpt2(gpt2_bpe: Path) -> None:
    tokenizer = Tokenizer.gpt2(gpt2_bpe)
    lengths = token_bytes(tokenizer)
    assert lengths is not None
    assert lengths[tokenizer.encode(TEXT)].sum() == len(TEXT.encode("utf-8"))


def test_end_of_text_is_no_text() -> None:
    tokenizer = Tokenizer.train_bpe([TEXT], 300)
    lengths = token_bytes(tokenizer)
    assert lengths is not None
    assert lengths[tokenizer.eos_token_id] == 0
    assert (lengths == 0).sum() == 1


def test_unknown_where_tokens_are_no_bytes() -> None:
    backend = Backend(WordPiece({"a": 0, "##b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    assert token_bytes(Tokenizer(backend.to_str())) is None
