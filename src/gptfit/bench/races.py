"""The cases ``recipe`` and ``baby``: nanoGPT's Shakespeare recipes, as whole programs by the wall clock."""

from __future__ import annotations

import json
import math
import shlex
import shutil
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptfit.bench.figures import Setting, Spread, setting
from gptfit.bench.process import BenchError, run_to_end
from gptfit.config import GPT2Config
from gptfit.config.dialects import read_dialect
from gptfit.data import TextSource, TokenDataset, Tokenizer, prepare
from gptfit.formats.hf import build_model
from gptfit.generate import evaluate
from gptfit.model import GPT2

NANOGPT_PROGRAM = ("train.py", "model.py", "configurator.py", "config/train_shakespeare_char.py")
DATA_SET = "shakespeare_char"
CONFIG = "config/train_shakespeare_char.py"
OUT = "out-shakespeare-char"
TOLERANCE = 0.001
"""What of a loss is rounding."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Race:
    """nanoGPT's arguments, our recipe for the same data, and the loss to reach; None is nanoGPT's."""

    name: str
    device: str
    arguments: tuple[str, ...]
    recipe: str
    target: float | None
    source: str


RACES = {
    "recipe": Race(
        "recipe",
        "cpu",
        (
            "--device=cpu",
            "--compile=False",
            "--eval_iters=20",
            "--log_interval=1",
            "--block_size=64",
            "--batch_size=12",
            "--n_layer=4",
            "--n_head=4",
            "--n_embd=128",
            "--max_iters=2000",
            "--lr_decay_iters=2000",
            "--dropout=0.0",
            # Its last state counts, not the one of its best estimate from 20 batches.
            "--always_save_checkpoint=True",
        ),
        "shakespeare-char-cpu-fast",
        None,
        'nanoGPT, README.md, "I only have a macbook"',
    ),
    "baby": Race(
        "baby",
        "cuda",
        (),
        "nanogpt-shakespeare-char",
        1.4697,
        "nanoGPT, README.md: the best validation loss of its GPU recipe",
    ),
}


@dataclass(frozen=True)
class Finish:
    """One program's runs: wall seconds from start to end, and nats per character at the end.

    ``command`` leaves out where the data and the result lie.
    The losses are over the whole validation split in consecutive windows, measured by gptfit.
    """

    name: str
    command: str
    seconds: Spread
    losses: tuple[float, ...]

    @property
    def loss(self) -> float:
        """The median of the runs."""
        return statistics.median(self.losses)


@dataclass(frozen=True)
class RaceResult:
    """Both programs; ``times`` is nanoGPT's wall time over gptfit's."""

    case: str
    source: str
    text: str
    target: float
    times: float
    ours: Finish
    theirs: Finish
    setting: Setting

    @property
    def passed(self) -> bool:
        """Whether gptfit got as far as it had to."""
        return self.ours.loss <= self.target * (1 + TOLERANCE)


def run_race(
    race: Race,
    checkout: Path,
    text: TextSource,
    files: Sequence[str],
    recipe: str,
    overrides: Sequence[str],
    rounds: int,
    folder: Path,
    say: Say,
) -> RaceResult:
    """Both programs in turns, ``rounds`` times. ``files`` name ``text``; without any it is the embedded one.

    nanoGPT's code is copied into ``folder`` and executed there, on our tokens of its vocabulary.
    """
    dataset = prepare(text, Tokenizer.char(text.characters), folder / "tokens")
    _copy_nanogpt(checkout, dataset.folder, folder / "nanogpt")
    checkpoint = folder / "nanogpt" / OUT / "ckpt.pt"
    nanogpt = ["train.py", CONFIG, *race.arguments]
    gptfit = ["train", recipe, f"device={race.device}", *overrides]
    data = [word for file in files for word in ("--data", str(Path(file).resolve()))]
    theirs, ours = Runs("nanoGPT", ["python", *nanogpt]), Runs("gptfit", ["gptfit", *gptfit])
    for number in range(1, rounds + 1):
        say(f"round {number} of {rounds}, recipe of {race.source}")
        checkpoint.unlink(missing_ok=True)
        command = [sys.executable, *nanogpt]
        seconds, _ = run_to_end(command, "nanoGPT", folder / "nanogpt", is_ours=False)
        theirs.add(seconds, loss_of_nanogpt(checkpoint, dataset))
        say(f"nanoGPT: {theirs.last()}")
        out = ["--out", str(folder / f"run-{number}"), "--json"]
        command = [sys.executable, "-m", "gptfit", *gptfit, *data, *out]
        seconds, printed = run_to_end(command, "gptfit", folder, is_ours=True)
        ours.add(seconds, nats_per_character(json.loads(printed), dataset))
        say(f"gptfit: {ours.last()}")
    finished, peer = ours.finish(), theirs.finish()
    return RaceResult(
        case=race.name,
        source=race.source,
        text=text.description,
        target=peer.loss if race.target is None else race.target,
        times=peer.seconds.median / finished.seconds.median,
        ours=finished,
        theirs=peer,
        setting=setting(),
    )


class Runs:
    """The runs of one program as they come in."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self.command = shlex.join(command)
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def add(self, seconds: float, loss: float) -> None:
        """One more."""
        self.seconds.append(seconds)
        self.losses.append(loss)

    def last(self) -> str:
        """In words."""
        return f"{self.losses[-1]:.4f} nats per character after {self.seconds[-1]:,.1f} s"

    def finish(self) -> Finish:
        """All of them."""
        return Finish(self.name, self.command, Spread.of(self.seconds), tuple(self.losses))


def loss_of_nanogpt(checkpoint: Path, dataset: TokenDataset) -> float:
    """Nats per token of a ``ckpt.pt`` over the whole validation split; no code in it is executed."""
    if not checkpoint.is_file():
        raise BenchError(f"nanoGPT left no {checkpoint.name}")
    try:
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile pickle can raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BenchError(f"{checkpoint.name} was not opened: {reason}") from None
    config = read_dialect({"model_args": saved["model_args"]}).config
    return evaluate(_model_of(saved["model"], config), dataset.val).loss


def nats_per_character(outcome: dict[str, Any], dataset: TokenDataset) -> float:
    """Of what ``gptfit train --json`` printed; ``dataset`` has the characters as tokens."""
    assert dataset.val_text_bytes is not None
    bits: float = outcome["bits_per_byte"]
    return bits * math.log(2) * dataset.val_text_bytes / dataset.val.size


def _model_of(state: dict[str, torch.Tensor], config: GPT2Config) -> GPT2:
    """nanoGPT's tensors have our layout, and our names behind ``transformer.``."""
    bare = {
        name.removeprefix("_orig_mod.").removeprefix("transformer."): t for name, t in state.items()
    }
    return build_model(config, bare)


def _copy_nanogpt(checkout: Path, tokens: Path, target: Path) -> None:
    """The program and its data, as ``train.py`` looks for them from where it is started."""
    for name in NANOGPT_PROGRAM:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(checkout / name, target / name)
    data = target / "data" / DATA_SET
    data.mkdir(parents=True)
    for name in ("train.bin", "val.bin", "meta.pkl"):
        shutil.copy(tokens / name, data / name)
