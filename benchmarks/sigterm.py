"""How long a run needs from SIGTERM to a whole checkpoint, and to its end.

Trains a model of ten million parameters by the command, sends SIGTERM at a random time after its start
has been told, in steps, evaluations, samples and saves alike, and resumes it for the next trial. A
trial counts as valid when the process ends with exit code 0, the checkpoint that ``last`` names is whole
by its hashes, and it stands at the last step that was trained.

    python benchmarks/sigterm.py [--trials 50] [--seed 0] [KEY=VALUE...]

Further settings change the model, for a trial of the trial: n_layer=1 n_embd=32.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODEL = ["n_layer=6", "n_embd=384", "n_head=6", "n_positions=128", "tokenizer=char"]
# Much happens besides steps, so that many signals meet it.
WORK = ["batch_size=8", "max_steps=1000000", "log_interval=1", "eval_interval=4"]
WORK += ["eval_tokens=8192", "sample_tokens=40", "device=cpu"]
LATEST = 6.0
"""Seconds after the start at which a signal may come."""


def train(run: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """The command, when it has told that it trains."""
    metrics = run / "metrics.jsonl"
    told = metrics.stat().st_size if metrics.exists() else 0
    process = subprocess.Popen(
        [sys.executable, "-m", "gptfit", "train", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={"GOMP_SPINCOUNT": "10000"} | os.environ,
    )
    assert process.stderr is not None
    while not metrics.exists() or metrics.stat().st_size <= told:
        if process.poll() is not None:
            sys.exit(process.stderr.read().decode())
        time.sleep(0.01)
    return process


def fault(run: Path, process: subprocess.Popen[bytes]) -> str:
    """What is wrong with how a run ended; nothing, if all is well."""
    from gptfit.errors import CheckpointError
    from gptfit.formats.integrity import verify
    from gptfit.formats.locate import find_checkpoint
    from gptfit.train.checkpoint import read_state
    from gptfit.train.events import MetricsFile

    if process.returncode != 0:
        return f"exit code {process.returncode}"
    try:
        checkpoint = find_checkpoint(run, ("last",))
        verify(checkpoint)
    except CheckpointError as error:
        return str(error)
    steps = [event["step"] for event in MetricsFile(run / "metrics.jsonl").read()]
    step = read_state(checkpoint).step
    return "" if step == max(steps) else f"step {step} saved of {max(steps)} trained"


def main() -> None:
    """Print each trial, then the largest time and how many were valid."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("settings", nargs="*")
    wish = parser.parse_args()
    rng = random.Random(wish.seed)
    saved, ended, valid = [], [], 0
    with tempfile.TemporaryDirectory(prefix="gptfit-sigterm-") as name:
        run = Path(name) / "run"
        begin = ["tiny-char", *MODEL, *WORK, *wish.settings, "--out", str(run)]
        for trial in range(wish.trials):
            process = train(run, *(["--resume", str(run)] if trial else begin))
            time.sleep(rng.uniform(0, LATEST))
            sent = time.time()  # the clock of the files' times
            process.send_signal(signal.SIGTERM)
            process.communicate()
            ended.append(time.time() - sent)
            found = fault(run, process)
            valid += not found
            pointer = run / "checkpoints/last.json"
            saved.append(max(0.0, pointer.stat().st_mtime - sent) if pointer.exists() else math.inf)
            seconds = f"{saved[-1]:6.2f} s to the checkpoint, {ended[-1]:6.2f} s to the end"
            print(f"{trial:>4}  {seconds}  {found or 'valid'}", flush=True)
    print(f"{valid} of {wish.trials} valid")
    for name, times in (("checkpoint", saved), ("end", ended)):
        median = statistics.median(times)
        print(f"SIGTERM to the {name}: median {median:.2f} s, largest {max(times):.2f} s")
    sys.exit(valid < wish.trials)


if __name__ == "__main__":
    main()
