"""Tiny runs that are interrupted at random and taken up again, compared with one that was not."""

from __future__ import annotations

import os
import random
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from gptfit.train import run as runs
from gptfit.train.events import MetricsFile
from gptfit.train.interrupt import Interrupt
from gptfit.train.loop import Trainer
from gptfit.train.recovery import has_checkpoint
from gptfit.train.run import SpentError
from several_processes import CONTEXT
from tiny_run import finish, make_trainer

# Dropout and two micro-batches a step; 25 steps are an epoch. The intervals do not divide each other.
CHAINED = ["max_steps=31", "eval_interval=8", "log_interval=3", "sample_tokens=3"]
LEAVE, CRASH, KILL = "leave", "crash", "kill"
KINDS = (LEAVE, CRASH, KILL)
FIELDS = {
    "step": ("loss", "learning_rate", "grad_norm", "tokens", "epoch", "progress"),
    "evaluation": ("loss", "bits_per_byte", "tokens", "is_best"),
    "nonfinite": ("batch", "loss", "grad_norm", "action"),
}
"""What a run and its repetition have in common; times and speeds they have not."""


class Crash(BaseException):
    """As if the process had ended here."""


class At(Interrupt):
    """Strikes when it has been asked so many times: between steps, in evaluations, in samples."""

    def __init__(self, asked: int, kind: str) -> None:
        self.asked = asked
        self.kind = kind
        self._left = asked

    @property
    def is_set(self) -> bool:
        self._left -= 1
        if self._left >= 0 or self.kind == LEAVE:
            return self._left < 0
        if self.kind == CRASH:
            raise Crash
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def take_up(run: Path, overrides: list[str]) -> Trainer:
    """From its newest checkpoint, or from the start where there is none."""
    return runs.resume(run) if has_checkpoint(run) else make_trainer(run, *overrides)


def train_until(run: Path, overrides: list[str], at: At) -> None:
    """One life of a run."""
    trainer = take_up(run, overrides)
    try:
        trainer.run(lambda event: None, at)
    except Crash:
        trainer.checkpoints.wait()


def chain(run: Path, overrides: list[str], rng: random.Random, kinds: tuple[str, ...]) -> list[At]:
    """A run of one to four interruptions, at random places and of random kinds."""
    planned = [At(rng.randrange(30), rng.choice(kinds)) for _ in range(rng.randint(1, 4))]
    for at in planned:
        try:
            if at.kind == KILL:
                process = CONTEXT.Process(target=train_until, args=(run, overrides, at))
                process.start()
                process.join(60)
                assert process.exitcode in (0, -signal.SIGKILL)
            else:
                train_until(run, overrides, at)
        except SpentError:
            return planned
    with suppress(SpentError):
        finish(take_up(run, overrides))
    return planned


def differences(run: Path, other: Path) -> list[str]:
    """Where two runs differ in their last and best checkpoints or in what they tell."""
    found = [name for name in ("last", "best") if _link(run, name) != _link(other, name)]
    for file in ("last/model", "best/model", "last/training/optimizer"):
        tensors, others = (
            load_file(path / f"checkpoints/{file}.safetensors") for path in (run, other)
        )
        if tensors.keys() != others.keys():
            found.append(file)
        else:
            found += [f"{file} {n}" for n, t in tensors.items() if not torch.equal(t, others[n])]
    if told(run) != told(other):
        found.append("metrics.jsonl")
    return found


def _link(run: Path, name: str) -> str:
    return (run / "checkpoints" / name).resolve().name


def told(run: Path) -> list[dict[str, Any]]:
    """What a run tells of itself, without times and speeds."""
    return [
        {name: event[name] for name in ("event", "step", *FIELDS[event["event"]])}
        for event in MetricsFile(run / "metrics.jsonl").read()
        if event["event"] in FIELDS
    ]
