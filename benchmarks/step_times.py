"""How well a calibrated step time is predicted: twelve models from 0.8M to 124M parameters on this CPU.

None of them is among the models that the calibration measures. Prints prediction, measurement and
their ratio, and the median error.

    python benchmarks/step_times.py [--calibrate]
"""

from __future__ import annotations

import os
import statistics
import sys

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the command does

from gptfit.config import GPT2Config
from gptfit.plan.hardware import this_cpu
from gptfit.plan.params import count_parameters
from gptfit.plan.step import TrainingStep
from gptfit.plan.time import step_time
from gptfit.train.calibrate import calibrate, calibration_for, step_seconds
from gptfit.train.device import choose_device

# (n_layer, n_embd, n_head, context, micro-batch, vocabulary)
MODELS = (
    (4, 128, 4, 64, 12, 65),
    (6, 128, 2, 128, 8, 512),
    (3, 192, 3, 128, 16, 1024),
    (5, 192, 6, 64, 32, 2048),
    (4, 256, 4, 64, 16, 1024),
    (6, 256, 4, 128, 8, 4096),
    (5, 320, 5, 256, 4, 2048),
    (6, 384, 6, 256, 16, 65),
    (8, 512, 8, 128, 8, 8192),
    (6, 640, 10, 256, 4, 16384),
    (12, 768, 12, 128, 4, 8192),
    (12, 768, 12, 256, 2, 50257),
)


def main() -> None:
    """Print the table."""
    errors = []
    devices = [
        choose_device("cpu", "auto", GPT2Config(n_embd=size, n_head=1)) for size in (64, 256)
    ]
    known = calibrate if "--calibrate" in sys.argv else calibration_for
    calibrations = {device.dtype: known(device, print) for device in devices}
    print("| model | parameters | predicted | measured | ratio |\n|---|---|---|---|---|")
    for n_layer, n_embd, n_head, context, batch, vocab in MODELS:
        config = GPT2Config(
            n_layer=n_layer, n_embd=n_embd, n_head=n_head, n_positions=context, vocab_size=vocab,
            bias=False, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
        device = choose_device("cpu", "auto", config)
        step = TrainingStep(
            micro_batch_size=batch, context=context, device_kind="cpu", dtype=device.dtype_name
        )
        predicted = step_time(config, step, this_cpu(), calibrations[device.dtype].costs)
        assert predicted is not None
        measured = step_seconds(config, step, device, seconds=3.0)
        ratio = predicted.seconds.best / measured
        errors.append(abs(ratio - 1))
        name = f"{n_layer} x {n_embd}, {batch} x {context}, V {vocab}, {device.dtype_name}"
        print(
            f"| {name} | {count_parameters(config).total:,} | {1000 * predicted.seconds.best:,.0f} ms "
            f"| {1000 * measured:,.0f} ms | {ratio:.2f} |",
            flush=True,
        )
    print(f"\nmedian error {statistics.median(errors):.1%}, largest {max(errors):.1%}")


if __name__ == "__main__":
    main()
