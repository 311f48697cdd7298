"""What it costs that OpenMP's threads wait for each other by spinning.

Times a training step of nanoGPT's small CPU model in processes of their own, with libgomp's default and
with the spin count that the ``gptfit`` command sets, on the machine as it is and beside one busy process;
all in turn, several rounds, medians and ratios.

    python benchmarks/spinning.py
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

ROUNDS = 5
STEPS = 20
SETTINGS = {"default": {}, "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"}}
BUSY = "while True: sum(range(10000))"


def step_milliseconds() -> float:
    """Median time of a step in this process."""
    import torch

    from gptfit.config import Recipe
    from gptfit.model import GPT2
    from gptfit.train.optimizer import Optimizer

    recipe = Recipe.resolve("nanogpt-shakespeare-char-cpu")
    model = GPT2(recipe.model)
    optimizer = Optimizer(model, recipe.train)
    shape = (recipe.train.batch_size, recipe.model.n_positions + 1)
    tokens = torch.randint(recipe.model.vocab_size, shape)
    durations = []
    for _ in range(2 * STEPS):
        started = time.perf_counter()
        model(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.step()
        durations.append(time.perf_counter() - started)
    return 1000 * statistics.median(durations[STEPS:])


def measure(setting: dict[str, str]) -> float:
    """The same in a process of its own, because libgomp reads its environment once."""
    environment = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"} | setting
    command = [sys.executable, __file__, "--step"]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(output.stdout)


def main() -> None:
    """Print the table."""
    times: dict[tuple[str, str], list[float]] = {}
    for number in range(ROUNDS):
        for company in ("alone", "beside a busy process"):
            busy = None if company == "alone" else subprocess.Popen([sys.executable, "-c", BUSY])
            for name, setting in SETTINGS.items():
                times.setdefault((company, name), []).append(measure(setting))
            if busy:
                busy.kill()
                busy.wait()
        print(f"round {number + 1} of {ROUNDS}", file=sys.stderr)
    for company in ("alone", "beside a busy process"):
        medians = {name: statistics.median(times[company, name]) for name in SETTINGS}
        for name, median in medians.items():
            ratio = median / medians["default"]
            print(f"{company:<22} {name:<21} {median:7.1f} ms a step   {ratio:.2f} of the default")


if __name__ == "__main__":
    print(step_milliseconds()) if "--step" in sys.argv else main()
