"""Text sources: what is read, in which order, and which faults are named."""

from __future__ import annotations

import gc
import io
import json
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptfit.data import TextSource
from gptfit.data import text as module
from gptfit.errors import DataError


def documents(source: TextSource) -> list[str]:
    return ["".join(document) for document in source.documents()]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


def test_file(tmp_path: Path) -> None:
    path = write(tmp_path / "My Book.txt", "One\r\ntwo\rthree\n\u2028é😀")
    source = TextSource.from_paths([path])
    assert documents(source) == documents(source) == ["One\r\ntwo\rthree\n\u2028é😀"]
    assert source.total_bytes == path.stat().st_size
    assert (source.name, source.description, source.sources) == ("My-Book", str(path), (str(path),))
    assert source.characters == set("One\r\ntwo\rthree\n\u2028é😀")


def test_byte_order_mark_is_dropped_at_the_start_only(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\ufeffone \ufeff two")
    assert documents(TextSource.from_paths([path])) == ["one \ufeff two"]
    lines = write(tmp_path / "a.jsonl", '\ufeff{"text": "one"}\n')
    assert documents(TextSource.from_paths([lines])) == ["one"]


def test_folder(tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", "sub/c.TXT", "d.jsonl", "x.py", ".git/e.txt", ".f.txt"):
        write(tmp_path / name, '{"text": "from d"}' if name == "d.jsonl" else f"from {name}")
    write(tmp_path / "empty.txt", "")
    source = TextSource.from_paths([tmp_path])
    assert documents(source) == ["from a.md", "from b.txt", "from d", "from sub/c.TXT"]
    assert source.name == tmp_path.name


def test_glob_and_order(tmp_path: Path) -> None:
    for name in ("2.log", "1.log", "sub/3.log"):
        write(tmp_path / name, name)
    assert documents(TextSource.from_paths([f"{tmp_path}/*.log"])) == ["1.log", "2.log"]
    deep = [f"{tmp_path}/**/*.log"]
    assert documents(TextSource.from_paths(deep)) == ["1.log", "2.log", "sub/3.log"]
    given_order = [tmp_path / "2.log", tmp_path / "1.log"]
    assert documents(TextSource.from_paths(given_order)) == ["2.log", "1.log"]


def test_json_lines(tmp_path: Path) -> None:
    lines = [{"text": "one\ntwo", "n": 1}, {"text": ""}, {"text": "😀"}]
    path = write(tmp_path / "a.jsonl", "\n\n".join(json.dumps(line) for line in lines))
    assert documents(TextSource.from_paths([path])) == ["one\ntwo", "😀"]
    other = write(tmp_path / "b.jsonl", '{"body": "x"}\n{"body": "y"}\n')
    source = TextSource.from_paths([other], json_field="body")
    assert documents(source) == ["x", "y"]
    assert (source.summary.bytes, source.summary.documents) == (2, 2)


def test_standard_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("é piped".encode())))
    source = TextSource.from_paths(["-"])
    assert documents(source) == documents(source) == ["é piped"]
    assert source.name == "stdin"
    assert len(list(tmp_path.iterdir())) == 1
    del source
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_empty_standard_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(DataError, match="standard input is empty"):
        TextSource.from_paths(["-"])
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match="cannot be combined"):
        TextSource.from_paths(["-", "a.txt"])


def test_embedded() -> None:
    source = TextSource.embedded()
    assert source.name == "python-reference"
    assert f"Python {sys.version_info.major}.{sys.version_info.minor}" in source.description
    assert source.total_bytes > 400_000
    assert source.summary.documents > 50
    assert documents(source) == documents(TextSource.embedded())


def test_hash_knows_the_documents(tmp_path: Path) -> None:
    one = TextSource.from_paths([write(tmp_path / "a.txt", "abcd")])
    split = write(tmp_path / "a.jsonl", '{"text": "ab"}\n{"text": "cd"}')
    moved = TextSource.from_paths([write(tmp_path / "b.txt", "abcd")])
    assert one.summary == moved.summary
    assert one.summary.sha256 != TextSource.from_paths([split]).summary.sha256


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_chunks_do_not_change_the_text(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_BYTES", 3)
        path = write(Path(folder, "a.txt"), text)
        assert "".join(documents(TextSource.from_paths([path]))) == text.removeprefix("\ufeff")


@given(st.integers(0, 40), st.binary(min_size=1, max_size=4))
def test_position_of_what_is_not_utf8(position: int, bad: bytes) -> None:
    content = ("aé😀" * 20).encode()[:position] + bad + b"end"
    try:
        content.decode("utf-8")
        return
    except UnicodeDecodeError as error:
        expected = error.start
    if b"\0" in content or content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_BYTES", 5)
        source = TextSource.from_paths([write(Path(folder, "a.txt"), content)])
        with pytest.raises(DataError, match=rf"a\.txt is not UTF-8 at byte {expected}; convert it"):
            _ = source.summary


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "caf\xe9 au lait".encode("latin-1"),
            r"not UTF-8 at byte 3; convert it, .*iconv -f LATIN1",
        ),
        (b"cut \xf0\x9f", r"not UTF-8 at byte 4"),
        ("text".encode("utf-16"), r"is UTF-16, not UTF-8; convert it: iconv -f UTF-16"),
        (b"\x7fELF\x02\x01\x01\x00", r"is binary, not text: there is a zero byte at byte 7"),
        (b"\xef\xbb\xbf", r"holds no text"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, message: str) -> None:
    source = TextSource.from_paths([write(tmp_path / "a.txt", content)])
    with pytest.raises(DataError, match=message):
        _ = source.total_bytes


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", r"a\.jsonl:2 is not JSON"),
        (b"[" * 100_000, r"a\.jsonl:2 is not JSON"),
        (b'{"body": 1}', r"a\.jsonl:2 lacks the field 'text'; .*its keys: body"),
        (b"[1]", r"a\.jsonl:2 lacks the field 'text'"),
        (b'{"text": 5}', r"a\.jsonl:2: the field 'text' holds no string"),
        (b'{"text": "\xff"}', r"a\.jsonl:2 is not UTF-8 at byte 10"),
        (b'{"text": "\\ud800"}', r"a\.jsonl:2: the text holds a zero or half a character"),
        (b'{"text": "\\u0000"}', r"a\.jsonl:2: the text holds a zero or half a character"),
    ],
)
def test_bad_json_lines(tmp_path: Path, line: bytes, message: str) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(DataError, match=message):
        _ = TextSource.from_paths([path]).summary


def test_what_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.txt: no such file or folder"):
        TextSource.from_paths([tmp_path / "nowhere.txt"])
    with pytest.raises(DataError, match=r"\*\.txt: no file with text matches"):
        TextSource.from_paths([f"{tmp_path}/*.txt"])
    with pytest.raises(DataError, match=r"holds no text: no \.txt, .* with content"):
        TextSource.from_paths([tmp_path])
    with pytest.raises(DataError, match=r"empty\.txt is empty"):
        TextSource.from_paths([write(tmp_path / "empty.txt", "")])
    with pytest.raises(DataError, match=r"is no regular file; pipe it"):
        TextSource.from_paths(["/dev/null"])
    with pytest.raises(DataError, match="no text is named"):
        TextSource.from_paths([])


def test_named_twice(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "text")
    with pytest.raises(DataError, match=r"a\.txt is named twice"):
        TextSource.from_paths([tmp_path, path])
