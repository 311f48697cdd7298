"""The model that is served, with what tells it from others."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from gptfit.data import Tokenizer
from gptfit.data.gpt2_vocabulary import has_vocabulary
from gptfit.data.tokenizer import TOKENIZER_FILE
from gptfit.errors import DataError
from gptfit.formats.hf import PICKLED_WEIGHTS, weight_files
from gptfit.formats.integrity import MANIFEST, read_manifest, sha256
from gptfit.formats.locate import find_model
from gptfit.model import GPT2
from gptfit.serve.chat_template import ChatTemplate, find_chat_template
from gptfit.train.inference import load_for_inference


@dataclass(frozen=True)
class ServedModel:
    """Network and tokenizer; without a tokenizer there are only token ids, in prompts and answers.

    ``sha256`` has the hash of each file of weights, as they were when they were loaded.
    """

    id: str
    network: GPT2
    tokenizer: Tokenizer | None = None
    template: ChatTemplate | None = None
    sha256: dict[str, str] = field(default_factory=dict)
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        """A tokenizer whose ids the model does not have is another model's."""
        has = self.network.config.vocab_size
        if self.tokenizer is not None and self.tokenizer.vocab_size > has:
            raise DataError(
                f"the tokenizer has {self.tokenizer.vocab_size} tokens, the model {has}: they do "
                "not belong together"
            )

    @classmethod
    def load(
        cls, where: str, device: str = "auto", name: str | None = None, weights: str = "float32"
    ) -> ServedModel:
        """The model of a run, a checkpoint folder or a hub id, under the last part of its path."""
        folder = find_model(where)
        network, hashes = load_for_inference(folder, device, weights), _hashes(folder)
        path = Path(where)
        name = name or (path.resolve().name if path.exists() else where)
        if not (folder / TOKENIZER_FILE).is_file() and not has_vocabulary(folder):
            return cls(name, network, sha256=hashes)
        return cls(name, network, Tokenizer.load(folder), find_chat_template(folder), hashes)

    @property
    def context(self) -> int:
        """The longest prompt, in tokens."""
        return self.network.config.n_positions

    @property
    def vocab_size(self) -> int:
        """How many ids may be chosen; a model may have more than its tokenizer."""
        return self.tokenizer.vocab_size if self.tokenizer else self.network.config.vocab_size

    @property
    def stop_ids(self) -> frozenset[int]:
        """The end of text, where there is one."""
        source = self.tokenizer or self.network.config
        return frozenset() if source.eos_token_id is None else frozenset({source.eos_token_id})

    @property
    def fingerprint(self) -> str:
        """A short name of the weights."""
        return "gptfit-" + "-".join(digest[:12] for digest in self.sha256.values())


def _hashes(folder: Path) -> dict[str, str]:
    """sha256 of the weight files; the manifest's, which has just been verified, where it has them."""
    known = read_manifest(folder).files if (folder / MANIFEST).is_file() else {}
    return {
        path.name: known[path.name][1] if path.name in known else sha256(path)
        for path in weight_files(folder) or [folder / PICKLED_WEIGHTS]
    }
