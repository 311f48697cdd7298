"""Text to token ids and back. Every tokenizer is a Hugging Face ``tokenizer.json``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tiktoken import Encoding
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from gptfit.data.characters import ANY_CHARACTER, CharacterTable, character_vocabulary
from gptfit.data.gpt2_vocabulary import Vocabulary, find_gpt2, has_vocabulary, read_vocabulary
from gptfit.data.streams import ANYWHERE, BEFORE_SPACE, NOWHERE, Cutter, TextStream
from gptfit.errors import DataError

Kind = Literal["char", "bpe", "gpt2", "file"]
END_OF_TEXT = "<|endoftext|>"
TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
MIN_BPE_VOCAB_SIZE = 257
"""256 bytes and the end of text."""
MAX_FILE_BYTES = 2**27
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}


class Tokenizer:
    """Text to ids and back.

    ``encode`` adds no special tokens, and reads ``<|endoftext|>`` in a text as the thirteen
    characters that it is; only ``encode(text, special=True)`` reads it as the token.
    """

    def __init__(self, document: str, eos_token: str | None = None, source: str = "") -> None:
        """From ``document``, the text of a ``tokenizer.json``; ``source`` names it in errors."""
        self.document = document
        self._backend = _parse(document, source)
        self._values: dict[str, Any] = json.loads(document)
        characters = character_vocabulary(self._values)
        self._table = CharacterTable(characters) if characters else None
        self.vocab_size = 1 + max(self._backend.get_vocab().values())
        self.eos_token = eos_token
        self.eos_token_id: int | None = self._backend.token_to_id(eos_token) if eos_token else None
        if eos_token and self.eos_token_id is None:
            raise DataError(
                f"{source}: the eos_token {eos_token!r} is not in the vocabulary; name one that is in "
                f"{CONFIG_FILE}, or remove it there"
            )
        self.kind: Kind = self._find_kind()

    @classmethod
    def char(cls, characters: Iterable[str]) -> Tokenizer:
        """One token per character, in sorted order; a text, too, is an iterable of characters."""
        return cls.char_in_order(sorted(set(characters)))

    @classmethod
    def char_in_order(cls, characters: Sequence[str]) -> Tokenizer:
        """One token per character, where ``characters[i]`` has id ``i``."""
        if not characters:
            raise DataError(
                "a character vocabulary needs at least one character; the text has none"
            )
        ids = {character: index for index, character in enumerate(characters)}
        if len(ids) < len(characters) or any(len(character) != 1 for character in ids):
            raise DataError("a character vocabulary holds single characters, each once")
        _require_unicode("".join(characters))
        # No unknown token: an unknown character is an error, here and in transformers.
        backend = Backend(models.WordLevel(ids, unk_token=""))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(ANY_CHARACTER), "isolated")
        backend.decoder = decoders.Fuse()
        return cls(backend.to_str())

    @classmethod
    def train_bpe(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """A byte-level BPE learned from ``texts``, laid out like GPT-2's: the end of text comes last.

        A short text may not fill the vocabulary; ``vocab_size`` of the result says how far it came.
        """
        if vocab_size < MIN_BPE_VOCAB_SIZE:
            raise DataError(
                f"bpe_vocab_size={vocab_size} must be at least {MIN_BPE_VOCAB_SIZE}: 256 bytes and "
                "the end of text"
            )
        backend = _byte_level(models.BPE())
        trainer = trainers.BpeTrainer(  # type: ignore[call-arg, unused-ignore]
            vocab_size=vocab_size - 1,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        backend.train_from_iterator(iter(texts), trainer)
        return cls._with_end_of_text(backend)

    @classmethod
    def gpt2(cls, folder: Path | None = None) -> Tokenizer:
        """GPT-2's own vocabulary, from a folder with its two files or from where it can be found."""
        return cls._from_vocabulary(read_vocabulary(folder) if folder else find_gpt2(), str(folder))

    @classmethod
    def _from_vocabulary(cls, vocabulary: Vocabulary, source: str) -> Tokenizer:
        try:
            model = models.BPE(vocabulary.ids, vocabulary.merges)
        except Exception as error:
            raise DataError(f"{source} holds no usable vocabulary: {_line(error)}") from None
        return cls._with_end_of_text(_byte_level(model))

    @classmethod
    def _with_end_of_text(cls, backend: Backend) -> Tokenizer:
        backend.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
        return cls(backend.to_str(), END_OF_TEXT)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """From a ``tokenizer.json``, or a folder that holds one or GPT-2's two vocabulary files."""
        path = Path(path)
        file = path / TOKENIZER_FILE if path.is_dir() else path
        if path.is_dir() and not file.is_file() and has_vocabulary(path):
            return cls.gpt2(path)
        if not file.is_file():
            raise DataError(
                f"{file}: no such file; name a tokenizer.json, a folder that holds one, or use "
                "tokenizer=char, bpe or gpt2"
            )
        document = _read(file)
        return cls(document, _eos_token(file.with_name(CONFIG_FILE), document), str(file))

    def save(self, folder: str | Path) -> None:
        """Write the two files that ``transformers.AutoTokenizer`` loads into an existing folder."""
        config = {
            # Any other class lets transformers rebuild the tokenizer as its idea of GPT-2's.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "add_bos_token": False,
            "add_eos_token": False,
        }
        if self.eos_token is not None:
            config |= {"bos_token": self.eos_token, "eos_token": self.eos_token}
        Path(folder, TOKENIZER_FILE).write_text(self.document, encoding="utf-8")
        text = json.dumps(config, indent=2) + "\n"
        Path(folder, CONFIG_FILE).write_text(text, encoding="utf-8")

    def encode(self, text: str, *, special: bool = False) -> np.ndarray:
        """Ids, uint32, 1-D. ``special`` reads the names of special tokens as these tokens."""
        if special and self._table is None:
            return self._run([text], self._special_backend)[0]
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """``encode`` of each text, in threads."""
        if self._table is not None:
            return [self._table.encode(text) for text in texts]
        if self._fast is None:
            return self._run(texts, self._backend)
        for text in texts:
            _require_unicode(text)
        with ThreadPoolExecutor() as pool:
            return list(pool.map(self._fast.encode_to_numpy, texts))

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD."""
        array = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), dtype=np.int64)
        outside = array[(array < 0) | (array >= self.vocab_size)]
        if outside.size:
            raise DataError(
                f"token id {outside[0]} is outside the vocabulary of {self.vocab_size}; the ids "
                "come from another tokenizer"
            )
        if self._table is not None:
            return self._table.decode(array)
        return str(self._backend.decode(array.tolist(), skip_special_tokens=False))

    def stream(self) -> TextStream:
        """A decoder for ids that come one by one."""
        return TextStream(self.decode)

    def cutter(self) -> Cutter:
        """Cuts a long document into pieces whose tokens join to those of the whole.

        GPT-2 never joins a space or a newline to the character before it, so there is a safe place
        before each; between characters every place is safe. Of a foreign tokenizer nothing is known:
        its documents stay whole, and must fit into memory.
        """
        if self._table is not None:
            return Cutter(ANYWHERE)
        return Cutter(BEFORE_SPACE if self._splits_like_gpt2 else NOWHERE)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the canonical content of ``tokenizer.json``."""
        canonical = json.dumps(self._values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("utf-8")).hexdigest()

    @property
    def characters(self) -> tuple[str, ...] | None:
        """The vocabulary of a character tokenizer, in the order of the ids."""
        return self._table.characters if self._table is not None else None

    @cached_property
    def _fast(self) -> Encoding | None:
        model = self._values["model"]
        return Vocabulary.from_model(model).to_tiktoken() if self.kind == "gpt2" else None

    @cached_property
    def _special_backend(self) -> Backend:
        # The switch belongs to the whole backend, which other threads may be using: so, a second one.
        backend = _parse(self.document, "")
        backend.encode_special_tokens = False
        return backend

    def _run(self, texts: Sequence[str], backend: Backend) -> list[np.ndarray]:
        try:
            encodings = backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as error:
            for text in texts:
                _require_unicode(text)
            raise DataError(f"the tokenizer cannot encode this text: {_line(error)}") from None
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    @property
    def _splits_like_gpt2(self) -> bool:
        splitter = self._values.get("pre_tokenizer") or {}
        same = all(splitter.get(key) == value for key, value in BYTE_LEVEL.items())
        tokens = self._values.get("added_tokens") or []
        ordinary = any(not token["special"] for token in tokens)
        return same and self._values.get("normalizer") is None and not ordinary

    def _find_kind(self) -> Kind:
        if self._table is not None:
            return "char"
        model = self._values["model"]
        if not self._splits_like_gpt2 or model.get("type") != "BPE":
            return "file"
        return "gpt2" if Vocabulary.from_model(model).is_gpt2 else "bpe"


def _parse(document: str, source: str) -> Backend:
    try:
        backend = Backend.from_str(document)
        # A file may carry the padding and truncation of somebody's last batch.
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic of the Rust library is no Exception
        raise DataError(f"{source} is no usable tokenizer.json: {_line(error)}") from None
    if not backend.get_vocab():
        raise DataError(f"{source} is no usable tokenizer.json: its vocabulary is empty")
    return backend


def _byte_level(model: models.Model) -> Backend:
    backend = Backend(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    return backend


def _read(path: Path) -> str:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise DataError(
            f"{path} is larger than {MAX_FILE_BYTES:,} bytes; this is no tokenizer.json"
        )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {_line(error)}") from None


def _eos_token(config: Path, document: str) -> str | None:
    """The end of text that the tokenizer's configuration names, else GPT-2's where it exists."""
    if config.is_file():
        try:
            token = json.loads(_read(config)).get("eos_token")
        except (ValueError, AttributeError, RecursionError) as error:
            raise DataError(f"{config} is not a JSON object: {_line(error)}") from None
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None:
            return str(token)
    return END_OF_TEXT if f'"{END_OF_TEXT}"' in document else None


def _require_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise DataError(
            f"the text holds half a character (the surrogate U+{code:04X}) at position "
            f"{error.start}; remove it"
        ) from None


def _line(error: BaseException) -> str:
    return str(error).split("\n", 1)[0][:200]
