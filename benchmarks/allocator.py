"""What it costs that glibc returns large blocks to the system after each step.

Times a training step whose tensors are larger than 32 MiB, in processes of their own, with the
allocator as it is and as ``gptfit`` sets it; in turn, several rounds, medians and their ratio.

    python benchmarks/allocator.py
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

ROUNDS = 3
MODELS = ((1, 384, 64, 32, 16384), (6, 384, 256, 16, 4096), (4, 256, 64, 16, 1024))
"""(n_layer, n_embd, context, batch, vocabulary)"""


def step_milliseconds(keeps: bool, model: int) -> float:
    """The median time of a step in this process."""
    from gptfit.config import GPT2Config
    from gptfit.plan.step import TrainingStep
    from gptfit.train import calibrate
    from gptfit.train.device import choose_device

    if not keeps:
        calibrate.keep_freed_pages = lambda: False
    n_layer, n_embd, context, batch, vocab = MODELS[model]
    config = GPT2Config(
        n_layer=n_layer, n_embd=n_embd, n_head=n_embd // 64, n_positions=context, vocab_size=vocab
    )
    device = choose_device("cpu", "auto", config)
    step = TrainingStep(micro_batch_size=batch, context=context, dtype=device.dtype_name)
    return 1000 * calibrate.step_seconds(config, step, device, seconds=4.0)


def main() -> None:
    """Print the table."""
    print("| model | as it is | keeps freed pages | ratio |\n|---|---|---|---|")
    environment = {"GOMP_SPINCOUNT": "10000"} | os.environ
    for model, sizes in enumerate(MODELS):
        times: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(ROUNDS):
            for keeps, found in times.items():
                command = [sys.executable, __file__, str(int(keeps)), str(model)]
                output = subprocess.run(
                    command, env=environment, capture_output=True, text=True, check=True
                )
                found.append(float(output.stdout))
        plain, kept = (statistics.median(times[keeps]) for keeps in (False, True))
        print(f"| {sizes} | {plain:.0f} ms | {kept:.0f} ms | {kept / plain:.2f} |")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(step_milliseconds(sys.argv[1] == "1", int(sys.argv[2])))
    else:
        main()
