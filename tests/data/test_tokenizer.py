"""Tokenizers: GPT-2's ids, round trips, what transformers makes of the files, hostile files."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from gptfit.data import TextSource, Tokenizer, default_bpe_vocab_size, make_tokenizer
from gptfit.errors import DataError

NASTY = "One\n\n\ttwo  three   \r\n émigré 'll don't 😀👩‍👩‍👧 漢字 <|endoftext|> x1234 \u00a0\u2003\ufffd end  "
# A few kinds of character that meet at every boundary a pre-tokenizer knows.
PIECES = [
    "a",
    "word",
    " ",
    "  ",
    "\n",
    "\t",
    "'ll",
    "'",
    "12",
    "é",
    "漢",
    "😀",
    "!",
    "\u00a0",
    "\x1c",
    "\x85",
]
mixed = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)
texts = st.one_of(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), mixed)


@cache
def bpe() -> Tokenizer:
    return Tokenizer.train_bpe(["the cat and the hat, don't sit 12 345 😀\n  the end\n"] * 20, 280)


@cache
def gpt2(folder: Path) -> Tokenizer:
    return Tokenizer.gpt2(folder)


def test_char_ids_are_sorted() -> None:
    tokenizer = Tokenizer.char("banana split")
    assert "".join(tokenizer.characters or ()) == " abilnpst"
    assert (tokenizer.kind, tokenizer.vocab_size, tokenizer.eos_token_id) == ("char", 9, None)
    ids = tokenizer.encode("ban it")
    assert ids.dtype == np.uint32
    assert ids.tolist() == [2, 1, 5, 0, 3, 8]
    assert tokenizer.decode(ids) == "ban it"
    assert tokenizer.decode([]) == ""
    assert tokenizer.encode("").tolist() == []


@pytest.mark.parametrize("stranger", ["z", "\t", "é", "😀", "\ud800", "\x00"])
def test_unknown_character(stranger: str) -> None:
    code = f"U\\+{ord(stranger):04X}"
    with pytest.raises(DataError, match=rf"{code}\) at position 3 is not in the vocabulary of 4"):
        Tokenizer.char("abcd").encode("abc" + stranger + "q")


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_char_round_trip(text: str) -> None:
    tokenizer = Tokenizer.char(text)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    alphabet = sorted(set(text))
    assert ids.tolist() == [alphabet.index(character) for character in text]


def test_char_round_trip_of_a_megabyte(tinyshakespeare: Path) -> None:
    text = tinyshakespeare.read_text(encoding="utf-8")
    tokenizer = Tokenizer.char(text)
    assert tokenizer.vocab_size == 65
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_gpt2_known_ids(gpt2_bpe: Path) -> None:
    tokenizer = gpt2(gpt2_bpe)
    assert tokenizer.encode("Hello world").tolist() == [15496, 995]
    assert tokenizer.encode(" \n\n  a").tolist() == [220, 628, 220, 257]
    assert (tokenizer.kind, tokenizer.vocab_size, tokenizer.eos_token_id) == ("gpt2", 50257, 50256)
    assert tokenizer.encode("<|endoftext|>").tolist() == [27, 91, 437, 1659, 5239, 91, 29]
    assert tokenizer.encode("a<|endoftext|>b", special=True).tolist() == [64, 50256, 65]
    assert tokenizer.encode("a<|endoftext|>b").size == 9  # the switch is that one call's
    assert tokenizer.decode([50256, 15496]) == "<|endoftext|>Hello"


def test_gpt2_equals_tiktoken(gpt2_bpe: Path, tinyshakespeare: Path) -> None:
    import tiktoken
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks
    from tiktoken_ext.openai_public import r50k_pat_str

    files = str(gpt2_bpe / "vocab.bpe"), str(gpt2_bpe / "encoder.json")
    ranks = data_gym_to_mergeable_bpe_ranks(*files)
    reference = tiktoken.Encoding(
        "gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 50256}
    )
    for text in (tinyshakespeare.read_text(encoding="utf-8"), NASTY):
        expected = reference.encode_ordinary(text)
        assert gpt2(gpt2_bpe).encode(text).tolist() == expected
        assert gpt2(gpt2_bpe)._backend.encode(text).ids == expected  # what transformers runs


def test_gpt2_engines_agree_on_every_kind_of_character(gpt2_bpe: Path) -> None:
    """tiktoken encodes for us and tokenizers for transformers: both must split all scripts alike."""
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    texts = [f"a{c}b 1{c}2{c} {c} !{c}!" for c in characters[::37]]
    ours = gpt2(gpt2_bpe).encode_batch(texts)
    theirs = gpt2(gpt2_bpe)._backend.encode_batch_fast(texts, add_special_tokens=False)
    assert [ids.tolist() for ids in ours] == [encoding.ids for encoding in theirs]


@given(text=texts)
def test_gpt2_engines_agree(text: str, gpt2_bpe: Path) -> None:
    tokenizer = gpt2(gpt2_bpe)
    ids = tokenizer.encode(text).tolist()
    assert ids == tokenizer._backend.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text


@given(texts)
def test_bpe_round_trip(text: str) -> None:
    assert bpe().decode(bpe().encode(text)) == text


def test_encode_batch_is_encode() -> None:
    words = [NASTY, "", "the end", "\n"]
    for tokenizer in (bpe(), Tokenizer.char("".join(words))):
        batch = tokenizer.encode_batch(words)
        assert [ids.tolist() for ids in batch] == [tokenizer.encode(w).tolist() for w in words]


@given(mixed, st.integers(1, 9))
def test_pieces_give_the_tokens_of_the_whole(text: str, size: int) -> None:
    chunks = [text[i : i + size] for i in range(0, len(text), size)]
    cutter = bpe().cutter()
    pieces = [cutter.push(chunk) for chunk in chunks] + [cutter.flush()]
    assert "".join(pieces) == text
    assert [i for piece in pieces for i in bpe().encode(piece)] == bpe().encode(text).tolist()


def test_long_text_is_cut(gpt2_bpe: Path, tinyshakespeare: Path) -> None:
    text = tinyshakespeare.read_text(encoding="utf-8")
    cutter = gpt2(gpt2_bpe).cutter()
    pieces = [cutter.push(text[i : i + 1000]) for i in range(0, len(text), 1000)]
    pieces.append(cutter.flush())
    assert len([piece for piece in pieces if piece]) > 1000
    joined = np.concatenate(gpt2(gpt2_bpe).encode_batch(pieces))
    assert np.array_equal(joined, gpt2(gpt2_bpe).encode(text))


def test_bpe_layout() -> None:
    tokenizer = bpe()
    assert (tokenizer.kind, tokenizer.vocab_size, tokenizer.eos_token_id) == ("bpe", 280, 279)
    assert tokenizer.encode(" the").size == 1
    assert tokenizer.fingerprint == bpe.__wrapped__().fingerprint
    assert tokenizer.fingerprint != Tokenizer.train_bpe(["another text"], 280).fingerprint


def test_short_text_does_not_fill_the_vocabulary() -> None:
    tokenizer = Tokenizer.train_bpe(["abc"], 1000)
    assert tokenizer.vocab_size == 259  # 256 bytes, two merges, the end of text
    assert tokenizer.decode(tokenizer.encode(NASTY)) == NASTY


def test_smallest_bpe() -> None:
    assert Tokenizer.train_bpe(["abcabc"], 257).vocab_size == 257
    with pytest.raises(DataError, match="bpe_vocab_size=256 must be at least 257"):
        Tokenizer.train_bpe(["abc"], 256)


@pytest.mark.parametrize("kind", ["char", "bpe", "gpt2"])
def test_transformers_reads_the_same(kind: str, tmp_path: Path, gpt2_bpe: Path) -> None:
    made = {"char": lambda: Tokenizer.char(NASTY), "bpe": bpe, "gpt2": lambda: gpt2(gpt2_bpe)}
    tokenizer = made[kind]()
    tokenizer.save(tmp_path)
    config = {"model_type": "gpt2", "vocab_size": 50257, "architectures": ["GPT2LMHeadModel"]}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == tokenizer.vocab_size
    assert theirs.eos_token_id == tokenizer.eos_token_id
    for text in (
        NASTY.replace("<|endoftext|>", "<"),
        "\n",
        "  two",
        "\t",
        "😀",
        "a b",
        " , . ' n't",
    ):
        known = "".join(c for c in text if c in NASTY) if kind == "char" else text
        ids = tokenizer.encode(known).tolist()
        assert theirs(known)["input_ids"] == ids
        assert theirs.decode(ids) == known == tokenizer.decode(ids)
    again = Tokenizer.load(tmp_path)
    assert (again.kind, again.vocab_size) == (kind, tokenizer.vocab_size)
    assert (again.eos_token_id, again.fingerprint) == (
        tokenizer.eos_token_id,
        tokenizer.fingerprint,
    )
    if kind != "char":
        special = theirs("a<|endoftext|>b")["input_ids"]
        assert special == tokenizer.encode("a<|endoftext|>b", special=True).tolist()


@given(texts)
def test_stream_of_text(text: str) -> None:
    stream = bpe().stream()
    pieces = [stream.push(int(token)) for token in bpe().encode(text)] + [stream.flush()]
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


@given(st.lists(st.integers(0, 279), max_size=40))
def test_stream_of_any_tokens(ids: list[int]) -> None:
    stream = bpe().stream()
    assert "".join([stream.push(token) for token in ids] + [stream.flush()]) == bpe().decode(ids)


def test_stream_holds_back_half_a_character() -> None:
    tokenizer = Tokenizer.train_bpe(["abc"], 257)
    stream = tokenizer.stream()
    assert [stream.push(token) for token in tokenizer.encode("a😀b")] == [
        "a",
        "",
        "",
        "",
        "😀",
        "b",
    ]
    assert [stream.push(int(token)) for token in tokenizer.encode("é")[:1]] == [""]
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


@pytest.mark.parametrize("ids", [[-1], [0, 280], [2**40]])
def test_decode_refuses_foreign_ids(ids: list[int]) -> None:
    with pytest.raises(DataError, match=rf"token id {ids[-1]} is outside the vocabulary of 280"):
        bpe().decode(ids)


def test_half_a_character_is_refused(gpt2_bpe: Path) -> None:
    for tokenizer in (bpe(), gpt2(gpt2_bpe)):
        for special in (False, True):
            with pytest.raises(DataError, match=r"the surrogate U\+D83D\) at position 2"):
                tokenizer.encode("ab\ud83d", special=special)


def _with(document: dict[str, Any], **changes: Any) -> str:
    return json.dumps(document | changes)


def documents() -> dict[str, str]:
    char = json.loads(Tokenizer.char("ab").document)
    split = char["pre_tokenizer"]
    return {
        "empty": "",
        "not JSON": "{",
        "a list": "[]",
        "an empty object": "{}",
        "a number as model": _with(char, model=1),
        "deeply nested": "[" * 100_000,
        "a broken regex": _with(char, pre_tokenizer=split | {"pattern": {"Regex": "("}}),
        "no vocabulary": _with(char, model=char["model"] | {"vocab": {}}),
        "an id beyond 32 bits": _with(char, model=char["model"] | {"vocab": {"a": 2**33}}),
        "a negative id": _with(char, model=char["model"] | {"vocab": {"a": -1}}),
        "merges out of the vocabulary": json.dumps(
            {"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}
        ),
    }


@pytest.mark.parametrize("fault", documents())
def test_unusable_tokenizer_json(fault: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(documents()[fault], encoding="utf-8")
    with pytest.raises(DataError, match=r"tokenizer\.json is no usable tokenizer\.json"):
        Tokenizer.load(path)


def test_tokenizer_json_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(DataError, match="cannot be read as UTF-8"):
        Tokenizer.load(tmp_path)


def test_missing_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"tokenizer.json: no such file; name a tokenizer.json, a fol"
    ):
        Tokenizer.load(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        Tokenizer.load(tmp_path / "my.json")


def test_foreign_tokenizer(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers, processors

    words = {"<s>": 0, "hello": 1, "world": 2, "[UNK]": 3}
    backend = Backend(models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    backend.enable_truncation(1)
    backend.enable_padding(length=9)
    backend.save(str(tmp_path / "mine.json"))
    tokenizer = Tokenizer.load(tmp_path / "mine.json")
    assert tokenizer.kind == "file"
    assert tokenizer.eos_token_id is None
    assert tokenizer.encode("hello big world").tolist() == [1, 3, 2]
    cutter = tokenizer.cutter()
    assert [cutter.push("hello "), cutter.push("wor ld"), cutter.flush()] == [
        "",
        "",
        "hello wor ld",
    ]
    stream = tokenizer.stream()
    assert "".join([stream.push(i) for i in (1, 2, 1)] + [stream.flush()]) == tokenizer.decode(
        [1, 2, 1]
    )


def test_eos_of_a_foreign_configuration(tmp_path: Path) -> None:
    bpe().save(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    for eos in ("a", {"content": "a"}):
        config.write_text(json.dumps({"eos_token": eos}), encoding="utf-8")
        assert Tokenizer.load(tmp_path).eos_token_id == bpe().encode("a")[0]
    config.write_text('{"eos_token": "</s>"}', encoding="utf-8")
    with pytest.raises(DataError, match="the eos_token '</s>' is not in the vocabulary"):
        Tokenizer.load(tmp_path)
    config.write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match=r"tokenizer_config.json is not a JSON object"):
        Tokenizer.load(tmp_path)
    config.unlink()
    assert Tokenizer.load(tmp_path).eos_token_id == 279


def _source(folder: Path, text: str) -> TextSource:
    (folder / "text.txt").write_text(text, encoding="utf-8")
    return TextSource.from_paths([folder / "text.txt"])


def test_make_tokenizer(tmp_path: Path, gpt2_bpe: Path) -> None:
    source = _source(tmp_path, "to be or not to be, " * 50)
    assert make_tokenizer("char", None, source).vocab_size == 8
    assert make_tokenizer("bpe", 260, source).vocab_size == 260
    assert make_tokenizer("bpe", None, source).vocab_size < default_bpe_vocab_size(1000) == 512
    assert make_tokenizer("auto", None, source).kind == "char"
    assert make_tokenizer("auto", 270, source).kind == "bpe"
    assert make_tokenizer(str(gpt2_bpe), None, source).kind == "gpt2"
    bpe().save(tmp_path)
    assert make_tokenizer(str(tmp_path), None, source).fingerprint == bpe().fingerprint
    long = _source(tmp_path, "to be or not to be, " * 5000)
    assert make_tokenizer("auto", None, long).kind == "bpe"


@pytest.mark.parametrize("characters", ["", ["ab"], ["a", "a"], ["\ud800"]])
def test_impossible_character_vocabularies(characters: list[str]) -> None:
    with pytest.raises(DataError):
        Tokenizer.char_in_order(characters)
