"""Text from files, folders, globs, standard input or the Python that runs, as a stream of documents."""

from __future__ import annotations

import codecs
import glob
import hashlib
import json
import platform
import re
import shutil
import sys
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from gptfit.errors import DataError

Document = Iterator[str]
"""One document in chunks of at most ``CHUNK_BYTES``, or one line of a JSON lines file."""

CHUNK_BYTES = 2**17
PLAIN_SUFFIXES = (".txt", ".text", ".md")
JSONL_SUFFIXES = (".jsonl", ".ndjson")
STDIN = "-"
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class TextSummary:
    """What one pass over a text tells."""

    bytes: int
    documents: int
    sha256: str


@dataclass(frozen=True)
class TextSource:
    """Documents that can be read again and again, never all of them in memory at once.

    A plain file is one document, and so is each line of a JSON lines file. ``name`` is short and
    fit for a folder, ``description`` is for people, ``sources`` names the files.
    """

    name: str
    description: str
    sources: tuple[str, ...]
    _readers: tuple[Callable[[], Iterator[Document]], ...] = field(repr=False)

    @classmethod
    def from_paths(cls, paths: Sequence[str | Path], json_field: str = "text") -> TextSource:
        """Files, folders (searched for text files), globs, or "-" for standard input.

        Raises ``DataError`` at once for what does not exist or is empty, and at the first pass over
        the text for what is not text.
        """
        if not paths:
            raise DataError("no text is named; give files, folders, globs, or - for standard input")
        words = [str(path) for path in paths]
        if STDIN in words:
            return cls._from_stdin(words)
        files = [file for word in words for file in _find(word)]
        twice = [file for file, count in Counter(files).items() if count > 1]
        if twice:
            raise DataError(f"{twice[0]} is named twice, by {', '.join(words)}; name it once")
        readers = tuple(_reader(file, json_field) for file in files)
        names = tuple(str(file) for file in files)
        described = names[0] if len(names) == 1 else f"{len(names)} files: {', '.join(words)}"
        return cls(_short_name(words[0]), described, names, readers)

    @classmethod
    def embedded(cls) -> TextSource:
        """The Python language reference, which every CPython carries: 0.5 MB of English prose."""
        try:
            from pydoc_data.topics import topics
        except ImportError:
            raise DataError("this Python carries no pydoc_data.topics; name a text") from None

        def read() -> Iterator[Document]:
            return (iter([topics[topic]]) for topic in sorted(topics))

        version = ".".join(platform.python_version_tuple()[:2])
        description = f"the language reference of Python {version}"
        return cls("python-reference", description, ("pydoc_data.topics",), (read,))

    @classmethod
    def _from_stdin(cls, words: list[str]) -> TextSource:
        if words != [STDIN]:
            raise DataError("- (standard input) cannot be combined with files; name it alone")
        with tempfile.NamedTemporaryFile(prefix="gptfit-stdin-", delete=False) as spool:
            path = Path(spool.name)
            shutil.copyfileobj(sys.stdin.buffer, spool)
        if not path.stat().st_size:
            path.unlink()
            raise DataError("standard input is empty; pipe a text into it")
        source = cls(
            "stdin",
            "standard input",
            ("standard input",),
            (lambda: iter([_read_plain(path, "standard input")]),),
        )
        weakref.finalize(source, path.unlink, missing_ok=True)
        return source

    def documents(self) -> Iterator[Document]:
        """The documents in order. Read each one to its end before you take the next."""
        for read in self._readers:
            yield from read()

    def beginning(self, share: float) -> Iterator[str]:
        """The chunks of the first ``share`` of the text's bytes, the documents one behind another."""
        left = int(self.total_bytes * share)
        for chunk in (chunk for document in self.documents() for chunk in document):
            content = chunk.encode("utf-8")[:left]
            left -= len(content)
            if content:
                yield content.decode("utf-8", errors="ignore")  # half a character at the cut
            if not left:
                return

    @cached_property
    def summary(self) -> TextSummary:
        """Size and hash, from one pass over the whole text, which finds its faults."""
        digest = hashlib.sha256()
        size = documents = 0
        for document in self.documents():
            for chunk in document:
                content = chunk.encode("utf-8")
                size += len(content)
                digest.update(content)
            documents += 1
            digest.update(b"\0")  # no text holds this byte, so it marks the document's end
        if not size:
            raise DataError(f"{self.description}: holds no text")
        return TextSummary(size, documents, digest.hexdigest())

    @cached_property
    def characters(self) -> frozenset[str]:
        """The different characters of the whole text."""
        found: set[str] = set()
        for document in self.documents():
            for chunk in document:
                found.update(chunk)
        return frozenset(found)

    @property
    def total_bytes(self) -> int:
        """Size of all documents in UTF-8."""
        return self.summary.bytes


def _find(word: str) -> list[Path]:
    """The files that one word of the user means."""
    path = Path(word)
    if path.is_dir():
        return _find_in_folder(path)
    if path.is_file():
        if not path.stat().st_size:
            raise DataError(f"{path} is empty; name a file with text")
        return [path]
    if path.exists():
        raise DataError(f"{path} is no regular file; pipe it into standard input and name -")
    if glob.has_magic(word):
        matches = [Path(match) for match in sorted(glob.glob(word, recursive=True))]
        if files := [match for match in matches if match.is_file() and match.stat().st_size]:
            return files
        raise DataError(f"{word}: no file with text matches")
    raise DataError(f"{path}: no such file or folder; give files, folders, globs, or - for stdin")


def _find_in_folder(folder: Path) -> list[Path]:
    """Text files below a folder in sorted order; hidden and empty ones are passed over."""
    suffixes = PLAIN_SUFFIXES + JSONL_SUFFIXES
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in suffixes
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
        and path.stat().st_size
    ]
    if not files:
        raise DataError(
            f"{folder} holds no text: no {', '.join(suffixes)} with content; name other files by a "
            f"glob, such as '{folder}/**/*.html'"
        )
    return files


def _short_name(word: str) -> str:
    path = Path(word)
    parts = [part for part in path.parts if not glob.has_magic(part)]
    last = path.resolve().name if path.is_dir() else Path(*parts).stem
    return re.sub(r"[^\w.-]+", "-", last).strip("-.") or "text"


def _reader(file: Path, json_field: str) -> Callable[[], Iterator[Document]]:
    if file.suffix.lower() in JSONL_SUFFIXES:
        return lambda: _read_jsonl(file, json_field)
    return lambda: iter([_read_plain(file, str(file))])


def _read_plain(path: Path, source: str) -> Document:
    """Decode a file chunk by chunk; newlines stay as they are, a byte order mark is dropped."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    try:
        with path.open("rb") as file:
            while True:
                content = file.read(CHUNK_BYTES)
                held_back = len(decoder.getstate()[0])
                _require_text(content, offset, source)
                try:
                    text = decoder.decode(content, final=not content)
                except UnicodeDecodeError as error:
                    raise _not_utf8(source, offset - held_back + error.start) from None
                text = text.removeprefix("\ufeff") if offset == 0 else text
                offset += len(content)
                if text:
                    yield text
                if not content:
                    return
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror}") from None


def _require_text(content: bytes, offset: int, source: str) -> None:
    if offset == 0 and content.startswith(UTF16_MARKS):
        raise DataError(
            f"{source} is UTF-16, not UTF-8; convert it: iconv -f UTF-16 -t UTF-8 < old > new"
        )
    if (zero := content.find(b"\0")) >= 0:
        raise DataError(
            f"{source} is binary, not text: there is a zero byte at byte {offset + zero}; name text"
        )


def _not_utf8(source: str, position: int) -> DataError:
    return DataError(
        f"{source} is not UTF-8 at byte {position}; convert it, for example: "
        "iconv -f LATIN1 -t UTF-8 < old > new"
    )


def _read_jsonl(path: Path, field: str) -> Iterator[Document]:
    """One document a line; blank lines and empty texts are passed over."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip() and (text := _text_of(line, field, f"{path}:{number}")):
                    yield iter([text])
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def _text_of(line: bytes, field: str, place: str) -> str:
    try:
        values = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise _not_utf8(place, error.start) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place} is not JSON ({error}); each line is one object") from None
    if not isinstance(values, dict) or field not in values:
        keys = f"its keys: {', '.join(map(str, values))[:200]}" if isinstance(values, dict) else ""
        raise DataError(f"{place} lacks the field {field!r}; name another by json_field=... {keys}")
    text = values[field]
    if not isinstance(text, str):
        raise DataError(f"{place}: the field {field!r} holds no string; name another by json_field")
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise DataError(f"{place}: the text holds a zero or half a character; remove it")
    return text
