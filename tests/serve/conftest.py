"""A tiny model with a tokenizer, and servers around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from gptfit.config import GPT2Config
from gptfit.data import Tokenizer
from gptfit.formats.hf import save_model
from gptfit.model import GPT2
from gptfit.serve import ServedModel
from running_server import Running, running

TEXT = "the cat and the hat, don't sit 12 345 😀\n  the end\n"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder with a model that writes anything but the same word."""
    folder = tmp_path_factory.mktemp("serve") / "tiny"
    folder.mkdir()
    tokenizer = Tokenizer.train_bpe([TEXT] * 20, 280)
    eos = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=tokenizer.vocab_size, n_positions=48, n_embd=32, n_layer=2, n_head=2,
        initializer_range=0.3, eos_token_id=eos, bos_token_id=eos,
    )  # fmt: skip
    model = GPT2(config)
    model.init_weights(torch.Generator().manual_seed(0))
    save_model(folder, model, tokenizer)
    return folder


@pytest.fixture(scope="session")
def model(folder: Path) -> ServedModel:
    return ServedModel.load(str(folder), "cpu")


@pytest.fixture(scope="session")
def server(model: ServedModel) -> Iterator[Running]:
    with running(model) as server:
        yield server


@pytest.fixture
def start(model: ServedModel) -> Iterator[Callable[..., Running]]:
    """Start further servers, of this or another model, with other options."""
    with ExitStack() as stack:
        yield lambda other=None, **options: stack.enter_context(running(other or model, **options))
