"""Kill -9 at random times while checkpoints are written: what is left can be resumed, and nothing is lost.

A process that has everything imported forks children that take the run up and save as fast as they
can; each tells what it has written, and is killed. Then the newest checkpoint must be whole and no
older than what was told, and so must the one before it and the best.

    python benchmarks/kill_during_save.py --trials 200
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from gptfit.config import GPT2Config
from gptfit.data import Tokenizer
from gptfit.errors import CheckpointError
from gptfit.formats.hf import load_model
from gptfit.formats.integrity import verify
from gptfit.model import GPT2
from gptfit.train import recovery
from gptfit.train.checkpoint import CheckpointStore, TrainingState, read_state
from gptfit.train.lock import RunLock

LONGEST_SAVES = 4
"""How long a child lives at most, in times that a save takes here."""
CONFIG = GPT2Config(n_layer=1, n_head=1, n_embd=16, n_positions=8, vocab_size=3)
TOKENIZER = Tokenizer.char("abc")


def save_for_ever(run: Path, told: int, asynchronous: bool) -> None:
    """Take the run up, save one step after the other and say so; every third is the best so far."""
    with RunLock(run):
        recovery.clear(run)
        step, best = 0, None
        if recovery.has_checkpoint(run):
            checkpoint = recovery.newest(run)
            state = read_state(checkpoint)
            recovery.turn_to(run, checkpoint, state.best_step)
            step, best = state.step, state.best_step
        store = CheckpointStore(run, keep=2, asynchronous=asynchronous)
        model = GPT2(CONFIG)
        while True:
            step += 1
            best = step if step % 3 == 0 else best
            with torch.no_grad():
                model.wte.weight.fill_(step)
            moments = {name: weight.clone() for name, weight in model.named_parameters()}
            state = TrainingState(step, 0.0, None, best, "")
            store.save(model, TOKENIZER, moments, state, step == best)
            for written in store.finished():
                if written.error is not None:
                    raise written.error
                os.write(told, f"{written.step}\n".encode())


def trial(run: Path, seconds: float, asynchronous: bool) -> int:
    """Fork, wait, kill; the last step that the child had written."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            save_for_ever(run, writing, asynchronous)
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
        finally:
            os._exit(1)  # never back into the loop of the parent
    os.close(writing)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        raise SystemExit("a child ended by itself")
    with os.fdopen(reading) as pipe:
        steps = [int(line) for line in pipe]
    return steps[-1] if steps else 0


def losses(run: Path, told: int) -> list[str]:
    """What is wrong with the run after a kill, when ``told`` was known to be written."""
    recovery.clear(run)
    if not told and not recovery.has_checkpoint(run):
        return []
    try:
        checkpoint = recovery.newest(run)
    except CheckpointError as error:
        return [f"cannot be resumed: {error}"]
    faults = []
    state = read_state(checkpoint)
    if state.step < told or load_model(checkpoint).wte.weight[0, 0] != state.step:
        faults.append(f"{checkpoint} is not of step {told}")
    wanted = {step for step in (state.step - 1, state.best_step) if step}
    for step in wanted:
        try:
            verify(run / "checkpoints" / recovery.step_name(step))
        except CheckpointError as error:
            faults.append(f"lost: {error}")
    return faults


def save_seconds(folder: Path) -> float:
    """The time of a save on this disk, with a process that begins it."""
    run = folder / "warm"
    run.mkdir()
    started = time.perf_counter()
    state, model = TrainingState(1, 0.0, None, None, ""), GPT2(CONFIG)
    CheckpointStore(run).save(model, TOKENIZER, {}, state, is_best=False)
    return time.perf_counter() - started


def main() -> None:
    """Print the counts as JSON; end with 1 where a run was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the threads of a pool do not live on in a child
    chance = random.Random(arguments.seed)
    found: list[str] = []
    in_save = last = 0
    with tempfile.TemporaryDirectory(prefix="gptfit-kills-") as folder:
        run = Path(folder) / "run"
        run.mkdir()
        longest = LONGEST_SAVES * save_seconds(Path(folder))
        for number in range(arguments.trials):
            told = trial(run, chance.uniform(0, longest), asynchronous=bool(number % 2))
            in_save += any((run / "checkpoints").glob(".tmp-*"))
            last = max(last, told)
            found += losses(run, last)
    counts = {"trials": arguments.trials, "in_the_middle_of_a_save": in_save, "last_step": last}
    print(json.dumps(counts | {"losses": found}, indent=2))
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
