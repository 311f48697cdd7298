"""A server process for the benchmarks of the server, around a tiny model with random weights."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TEXT = "the cat and the hat, don't sit 12 345 😀\n  the end\n"
TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"


def make_model(folder: Path) -> Path:
    """A checkpoint folder of a GPT-2 with 2 layers, byte-level BPE and a chat template."""
    import json

    import torch

    from gptfit.config import GPT2Config
    from gptfit.data import Tokenizer
    from gptfit.formats.hf import save_model
    from gptfit.model import GPT2

    folder = folder / "tiny"
    folder.mkdir()
    tokenizer = Tokenizer.train_bpe([TEXT] * 20, 280)
    config = GPT2Config(
        vocab_size=tokenizer.vocab_size, n_positions=64, n_embd=32, n_layer=2, n_head=2,
        initializer_range=0.3, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = GPT2(config)
    model.init_weights(torch.Generator().manual_seed(0))
    save_model(folder, model, tokenizer)
    file = folder / "tokenizer_config.json"
    values = json.loads(file.read_text(encoding="utf-8")) | {"chat_template": TEMPLATE}
    file.write_text(json.dumps(values), encoding="utf-8")
    return folder


@dataclass
class Server:
    """A running ``gptfit serve``."""

    process: subprocess.Popen[str]
    url: str

    @property
    def rss_bytes(self) -> int:
        """Resident memory, on Linux."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Server]:
    """A server on a free port, ended by SIGTERM; what it says goes to stderr."""
    command = [sys.executable, "-m", "gptfit", "serve", str(folder), "--port=0", "--device=cpu"]
    process = subprocess.Popen(
        [*command, *options],
        stderr=subprocess.PIPE,
        text=True,
        env={"OMP_NUM_THREADS": "1"} | os.environ,
    )
    assert process.stderr is not None
    try:
        url = ""
        while not url:
            line = process.stderr.readline()
            if not line:
                sys.exit("the server did not start")
            found = re.search(r"url +(http://\S+)/v1", line)
            url = found[1] if found else ""
        yield Server(process, url)
    finally:
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
        said = "".join(line + "\n" for line in said.splitlines() if not line.startswith("  "))
        print(said, end="", file=sys.stderr)
