"""The case ``challenge``: what ``gptfit fit`` makes of a text in a given time."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptfit.bench.figures import Setting, setting
from gptfit.bench.process import run_to_end
from gptfit.data import TextSource
from gptfit.data.sidecar import SIDECAR_FILE, Sidecar

REFERENCE = 1.4697
REFERENCE_TEXT = (
    "nanoGPT publishes 1.4697 on tiny Shakespeare after 3 minutes on an A100 (its README.md, an "
    "estimate from 200 batches)"
)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Mark:
    """An evaluation on the way."""

    seconds: float
    nats_per_character: float


@dataclass(frozen=True)
class ChallengeResult:
    """``nats_per_character`` over the whole validation split; ``seconds`` is the program's wall time."""

    text: str
    time: str
    command: str
    seconds: float
    nats_per_character: float
    bits_per_byte: float
    steps: int
    curve: tuple[Mark, ...]
    reference: str
    setting: Setting

    passed = True


def take_challenge(
    text: TextSource,
    files: Sequence[str],
    time: str,
    overrides: Sequence[str],
    folder: Path,
    say: Say,
) -> ChallengeResult:
    """``gptfit fit`` as a whole program."""
    run = folder / "run"
    paths = [str(Path(file).resolve()) for file in files]
    words = [*overrides, "--time", time]
    command = [sys.executable, "-m", "gptfit", "fit", *paths, *words, "--out", str(run), "--json"]
    say(f"gptfit fit, {time} of training on {text.description}")
    seconds, printed = run_to_end(command, "gptfit", folder, is_ours=True)
    outcome = json.loads(printed)
    per_bit = math.log(2) * bytes_per_character(text, run / "data")
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    return ChallengeResult(
        text=text.description,
        time=time,
        command=shlex.join(["gptfit", "fit", *files, *words]),
        seconds=seconds,
        nats_per_character=outcome["bits_per_byte"] * per_bit,
        bits_per_byte=outcome["bits_per_byte"],
        steps=outcome["step"],
        curve=tuple(
            Mark(event["elapsed_seconds"], event["bits_per_byte"] * per_bit)
            for event in events
            if event["event"] == "evaluation"
        ),
        reference=REFERENCE_TEXT,
        setting=setting(),
    )


def bytes_per_character(text: TextSource, prepared: Path) -> float:
    """Of the validation split: what comes after the training text's bytes."""
    sizes = Sidecar.read(prepared / SIDECAR_FILE).text_bytes
    skip, characters = sizes["train"], 0
    for document in text.documents():
        for chunk in document:
            content = chunk.encode("utf-8")
            characters += len(content[skip:].decode("utf-8"))
            skip = max(0, skip - len(content))
    return sizes["val"] / characters
