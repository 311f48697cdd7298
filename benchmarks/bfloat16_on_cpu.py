"""What bfloat16 saves on this CPU: attention by blocks beside torch's own kernel, and whole steps.

    python benchmarks/bfloat16_on_cpu.py

Milliseconds, the medians of turns taken one after the other; ratios are what counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F

from gptfit.config import GPT2Config, TrainConfig
from gptfit.model import GPT2
from gptfit.model.attention import causal_attention
from gptfit.train.allocator import keep_freed_pages
from gptfit.train.device import Device
from gptfit.train.optimizer import Optimizer

SHAPES = ((12, 4, 64, 32), (16, 8, 64, 64), (16, 8, 128, 64), (4, 8, 256, 64), (1, 12, 1024, 64))
"""Batch, heads, context, head width."""
MODELS = ((4, 32, 64, 12), (4, 64, 64, 12), (4, 128, 64, 12), (2, 512, 64, 16), (6, 384, 256, 8))
"""Layers, width, context, batch."""
TURNS = 15


def medians(contestants: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Milliseconds of each, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(TURNS + 3):
        for name, run in contestants.items():
            started = time.perf_counter()
            run()
            if turn >= 3:
                times[name].append(time.perf_counter() - started)
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def attention(B: int, H: int, T: int, D: int) -> dict[str, float]:
    """Forward and backward of torch's kernel and of ours."""
    qkv = torch.randn(B, T, 3 * H * D, dtype=torch.bfloat16).requires_grad_()
    q, k, v = (part.view(B, T, H, D).transpose(1, 2) for part in qkv.split(H * D, dim=2))
    out_grad = torch.randn(B, T, H, D, dtype=torch.bfloat16).transpose(1, 2)

    def torch_kernel() -> object:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return torch.autograd.grad(out, qkv, out_grad, retain_graph=True)

    def blocks() -> object:
        out = causal_attention(q, k, v, D**-0.5)
        return torch.autograd.grad(out, qkv, out_grad, retain_graph=True)

    return medians({"torch": torch_kernel, "blocks": blocks})


def stepper(n_layer: int, n_embd: int, T: int, B: int, dtype: torch.dtype) -> Callable[[], None]:
    """A training step of a character model in ``dtype``."""
    device = Device(torch.device("cpu"), dtype)
    heads = max(1, n_embd // 64)
    sizes = {"n_layer": n_layer, "n_embd": n_embd, "n_head": heads, "n_positions": T}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model = GPT2(GPT2Config(vocab_size=65, bias=False, **sizes, **dropout))
    optimizer = Optimizer(model, TrainConfig(optimizer="adamw"), dtype)
    tokens = torch.randint(65, (B, T + 1))

    def step() -> None:
        with device.autocast():
            loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()

    return step


def main() -> None:
    """Print both tables."""
    keep_freed_pages()
    print(
        "| attention (batch, heads, context, head width) | torch | blocks | ratio |\n|---|---|---|---|"
    )
    for shape in SHAPES:
        found = attention(*shape)
        ratio = found["blocks"] / found["torch"]
        print(
            f"| {shape} | {found['torch']:.2f} | {found['blocks']:.2f} | {ratio:.2f} |", flush=True
        )
    print(
        "\n| step (layers, width, context, batch) | float32 | bfloat16 | ratio |\n|---|---|---|---|"
    )
    for model in MODELS:
        dtypes = (torch.float32, torch.bfloat16)
        found = medians({str(dtype): stepper(*model, dtype) for dtype in dtypes})
        fp32, bf16 = found.values()
        print(f"| {model} | {fp32:.1f} | {bf16:.1f} | {bf16 / fp32:.2f} |", flush=True)


if __name__ == "__main__":
    main()
