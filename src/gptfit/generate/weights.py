"""Smaller weights for generation on a CPU, which spends its time reading them.

A token of one text takes every weight once and computes next to nothing with it. The kernels here are
FBGEMM's, by way of torch: they read packed float16 as fast as the memory gives it, where torch's own
bfloat16 products for one row reach half of that. Both give a row the same numbers whatever else is in
the batch.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from gptfit.errors import ConfigError, Problem
from gptfit.model import GPT2

WEIGHTS = ("auto", "float32", "float16", "int8")
CACHED_BYTES = 2**25
"""float32 weights up to this size stay in a processor's cache, where smaller ones gain little."""


class Float16Linear(nn.Module):
    """A linear layer with packed float16 weights; inputs, sums and outputs are float32."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return torch.ops.quantized.linear_dynamic_fp16(x, self.packed)


class Int8Linear(nn.Module):
    """A linear layer in integers: 8 bits a weight with a scale for each output, and for each input row.

    The largest value of a row becomes 127, or 63 on a processor whose instructions add pairs of
    products in 16 bits (without VNNI), where more would overflow.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.levels = 127.0 if torch.cpu._is_vnni_supported() else 63.0
        scale = weight.abs().amax(dim=1).clamp(min=1e-30) / 127
        with warnings.catch_warnings():
            # Quantized tensors are to leave torch; there is no other way yet to this kernel.
            warnings.filterwarnings("ignore", message=".*deprecated", category=UserWarning)
            quantized = torch.quantize_per_channel(
                weight, scale, torch.zeros(len(scale), dtype=torch.int64), 0, torch.qint8
            )
        self.packed = torch.ops.quantized.linear_prepack(quantized, None)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        largest = x.abs().amax(dim=-1, keepdim=True)
        # A row of zeros becomes NaN and so any integers, which then are multiplied by zero.
        y = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            x / largest, 1 / self.levels, 128, self.packed
        )
        return torch.addcmul(self.bias, y, largest) if self.bias is not None else y * largest


PREPACK = {"float16": "linear_prepack_fp16", "int8": "linear_prepack"}
KINDS: dict[str, Any] = {"float16": Float16Linear, "int8": Int8Linear}


def with_weights(model: GPT2, weights: str = "auto") -> GPT2:
    """The model with its matrices as ``weights`` says; changes ``model``, which then only generates.

    ``auto`` takes float16 for a model on a CPU that does not fit its cache, where torch has the
    kernels, and leaves any other as it is. Raises ``ConfigError`` for what this machine has not.
    """
    if weights not in WEIGHTS:
        raise ConfigError(f"weights={weights} is not known; choose one of {', '.join(WEIGHTS)}")
    if weights == "auto":
        large = 4 * sum(parameter.numel() for parameter in model.parameters()) > CACHED_BYTES
        weights = "float16" if large and not _missing(model, "float16") else "float32"
    if weights == "float32":
        return model
    if reason := _missing(model, weights):
        raise ConfigError(Problem("weights", f"weights={weights} {reason}", "use float32"))
    embedding = model.wte.weight  # also the head's where they are tied
    for module in list(model.modules()):
        for name, linear in list(module.named_children()):
            if isinstance(linear, nn.Linear):
                bias = None if linear.bias is None else linear.bias.detach()
                setattr(module, name, KINDS[weights](linear.weight.detach().float(), bias))
    model.wte.weight = nn.Parameter(embedding.detach().half(), requires_grad=False)
    return model.requires_grad_(False)


def _missing(model: GPT2, weights: str) -> str:
    """Why the model cannot have such weights here; empty where it can."""
    if model.wpe.weight.device.type != "cpu":
        return f"is for a CPU, and the model is on {model.wpe.weight.device.type}"
    has_kernel = hasattr(torch.ops.quantized, PREPACK[weights])
    if torch.backends.quantized.engine not in ("x86", "fbgemm") or not has_kernel:
        return "needs torch's kernels for x86 processors, which this torch has not"
    limit = torch.finfo(torch.float16).max  # the embedding is float16 beside int8 matrices too
    for name, parameter in model.named_parameters():
        low, high = (bound.item() for bound in parameter.aminmax())
        if not (-low <= limit and high <= limit):  # NaN is not
            return f"holds weights up to 65,504, and {name} has {low:,.0f} to {high:,.0f}"
    return ""
