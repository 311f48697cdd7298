"""The planner against a GPU: memory, time and verdicts of GPT-2 in three sizes.

Each model trains eager and compiled, with and without activation checkpointing, in bfloat16 and
float32, with three micro-batches. What the planner says stands beside what torch measures: the peak of
its allocator, what the device shows (total less free: it should be otherwise idle), the median time of
a step. What the planner calls NO is not run. Then the verdicts: on the device made small, the step must
run at the largest micro-batch that FITS, and out of memory before the first that is called NO.

    python benchmarks/planner_on_gpu.py [--minutes 9] [--json planner_on_gpu.json]

The most informative cases come first. What the JSON file has already is not measured again, so that
several short calls make one table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import count, product
from pathlib import Path
from typing import Any

import torch

from gptfit.config import GPT2Config, Recipe
from gptfit.plan.hardware import GIB, DeviceSpec, find_device
from gptfit.plan.memory import NO, largest_micro_batch, memory_ledger, verdict
from gptfit.plan.step import BFLOAT16, FLOAT32, TrainingStep
from gptfit.plan.time import Costs, step_time

SMALL_CARDS = {"gpt2": 16, "gpt2-medium": 16, "gpt2-xl": 48}  # GiB, for the verdicts
MODELS = tuple(SMALL_CARDS)  # 124M, 355M, 1558M
MICRO_BATCHES = (2, 8, 32)
JOBS = Path(__file__).with_name("steps_on_gpu.py")
LEAST_SECONDS = 15  # what a process needs to get to its first answer
QUANTITIES = {  # of the planner, of torch, unit
    "GiB allocated": ("allocated", "allocated", GIB),
    "GiB shown": ("shown", "shown", GIB),
    "ms by roofline": ("roofline", "seconds", 1e-3),
    "ms calibrated": ("calibrated", "seconds", 1e-3),
}

Question = list[Any]  # a job's name and its arguments
Found = list[tuple[Question, dict[str, Any]]]
NOT_RUN: dict[str, Any] = {"outcome": "not run"}


@dataclass(frozen=True)
class Case:
    """A preset without dropout, as models are pretrained today, and a way to train it."""

    model: str
    dtype: str
    compiled: bool
    checkpoints: bool
    batch: int = 1

    @cached_property
    def config(self) -> GPT2Config:
        """The model."""
        return Recipe.resolve(preset=self.model, overrides=["dropout=0"]).model

    @property
    def step(self) -> TrainingStep:
        """gptfit's training step."""
        return TrainingStep(
            micro_batch_size=self.batch,
            context=self.config.n_positions,
            dtype=self.dtype,
            compiled=self.compiled,
            checkpointed_blocks=self.config.n_layer if self.checkpoints else 0,
            vocab_multiple=64,
        )

    @property
    def unusual(self) -> int:
        """How far it is from the usual; large models take long to compile."""
        size = MODELS.index(self.model)
        compiling = (1 + 2 * size) * self.compiled
        return size + compiling + 2 * (self.dtype == FLOAT32) + self.checkpoints

    def predict(self, device: DeviceSpec, fitted: Mapping[str, Costs]) -> dict[str, Any]:
        """What the planner says: bytes and seconds, None where it says nothing."""
        ledger = memory_ledger(self.config, self.step, device)
        # gptfit calibrates eager steps alone.
        costs = None if self.compiled else fitted.get(self.dtype)
        roofline = step_time(self.config, self.step, device)
        calibrated = step_time(self.config, self.step, device, costs) if costs else None
        return {
            "verdict": verdict(ledger.total, device.usable_bytes),
            "allocated": ledger.training_peak.bytes,  # nothing is evaluated here
            "shown": ledger.total.best,
            "roofline": roofline and roofline.seconds.best,
            "calibrated": calibrated and calibrated.seconds.best,
        }


def groups() -> list[list[Case]]:
    """All cases, those of one way together, the most informative first."""
    ways = product(MODELS, (BFLOAT16, FLOAT32), (False, True), (False, True))
    cases = sorted((Case(*way) for way in ways), key=lambda case: case.unusual)
    return [[replace(case, batch=size) for size in MICRO_BATCHES] for case in cases]


def questions(device: DeviceSpec) -> Iterator[list[Question]]:
    """All that is to be measured; each list is for one process."""
    for dtype in (BFLOAT16, FLOAT32):
        yield [["costs", {"dtype": dtype}]]
    for group in groups():
        first = group[0]
        if (first.dtype, first.compiled, first.checkpoints) == (BFLOAT16, False, False):
            yield [["proof", small_card(first, device) | asdict(first)]]
        runnable = [case for case in group if case.predict(device, {})["verdict"] != NO]
        yield [["steps", asdict(case)] for case in runnable]


def small_card(case: Case, device: DeviceSpec) -> dict[str, int]:
    """The largest micro-batch that FITS a small card, and the first for which the verdict is NO."""
    card_gib = SMALL_CARDS[case.model]

    def says_no(size: int) -> bool:
        ledger = memory_ledger(case.config, replace(case, batch=size).step, device)
        return verdict(ledger.total, card_gib * GIB) == NO

    fits = largest_micro_batch(case.config, case.step, card_gib * GIB, device)
    return {"card_gib": card_gib, "fits": fits, "no": next(filter(says_no, count(fits + 1)))}


def ask(asked: list[Question], seconds: float) -> Found:
    """The answers of a new process, those that it had given when it or its time ended."""
    command = [sys.executable, str(JOBS), json.dumps(asked)]
    with tempfile.TemporaryFile("w+") as output:
        try:
            subprocess.run(command, stdout=output, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            print("the time is over", file=sys.stderr)
        output.seek(0)
        return [json.loads(line) for line in output if line.startswith("[[")]


def report(found: Found, device: DeviceSpec) -> Iterator[str]:
    """The cases, how far the planner was off, and the verdicts, in Markdown."""
    fitted = {asked["dtype"]: Costs(**given) for (job, asked), given in found if job == "costs"}
    errors: dict[str, list[float]] = {}
    rows = []
    for case in (case for group in groups() for case in group):
        mode = "compiled" if case.compiled else "eager"
        says = case.predict(device, fitted)
        is_ = next((given for asked, given in found if asked == ["steps", asdict(case)]), NOT_RUN)
        blocks = "checkpointed" if case.checkpoints else ""
        row: list[Any] = [case.model, mode, case.dtype, blocks, case.batch]
        row.append(f"{says['verdict']} {is_.get('outcome', '')}")
        for name, (ours, theirs, unit) in QUANTITIES.items():
            pair = says[ours], is_.get(theirs)
            row.append(" / ".join(f"{value / unit:,.2f}" if value else "?" for value in pair))
            if all(pair):
                row[-1] += f" = {pair[0] / pair[1]:.3f}"
                errors.setdefault(f"{name}, {mode}", []).append(abs(pair[0] / pair[1] - 1))
        rows.append(row)
    yield table(("model", "mode", "dtype", "blocks", "batch", "verdict", *QUANTITIES), rows)
    off = [(k, f"{statistics.median(v):.1%}", f"{max(v):.1%}", len(v)) for k, v in errors.items()]
    yield table(("planner / torch - 1", "median", "largest", "cases"), off)
    proofs = [asked | given for (job, asked), given in found if job == "proof"]
    keys = ("model", "card_gib", "fits", "runs", "no")
    names = ("model", "card, GiB", "FITS up to", "runs up to", "NO from")
    yield table(names, ([proof[key] for key in keys] for proof in proofs))


def table(names: tuple[str, ...], rows: Iterable[Iterable[Any]]) -> str:
    """In Markdown."""
    lines = (names, ["---"] * len(names), *rows)
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def main() -> None:
    """Measure, save after every process, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=9.0, help="for all; 0 only predicts")
    parser.add_argument("--device", default="cuda", help="its name, where the driver hides it")
    parser.add_argument("--json", type=Path, default=Path("planner_on_gpu.json"))
    options = parser.parse_args()
    if options.minutes and not torch.cuda.is_available():
        sys.exit("this measures a GPU, and torch finds none here; --minutes 0 only predicts")
    deadline = time.monotonic() + 60 * options.minutes
    device = find_device(options.device)
    found: Found = json.loads(options.json.read_text()) if options.json.exists() else []
    for group in questions(device):
        asked = [question for question in group if question not in [known for known, _ in found]]
        if asked and deadline - time.monotonic() > LEAST_SECONDS:
            found += ask(asked, deadline - time.monotonic())
            options.json.write_text(json.dumps(found, indent=1))
    print(f"{device.name}, torch {torch.__version__}; planner / torch = ratio\n")
    print("\n".join(report(found, device)))


if __name__ == "__main__":
    main()
