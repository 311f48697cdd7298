"""The products of a few rows with a matrix that lies in memory, by the kernels that a CPU has in torch.

    python benchmarks/row_products.py [--outputs 2304] [--inputs 768]

Microseconds of processor time of one thread, the least of ten rounds. There are enough matrices that
none is left in a cache when its turn comes again; GB/s are those of its weights for one row.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from gptfit.generate.weights import Float16Linear, Int8Linear

ROWS = (1, 8)
ALL_WEIGHTS = 150_000_000
ROUNDS = 10

Product = Callable[[Tensor], object]


def bfloat16(weight: Tensor) -> Product:
    """torch's own."""
    narrow = weight.bfloat16()
    return lambda x: F.linear(x.bfloat16(), narrow)


def packed_bfloat16(weight: Tensor) -> Product:
    """oneDNN's, in the layout that it asks for."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.bfloat16(), max(ROWS))
    return lambda x: torch.ops.mkldnn._linear_pointwise(x.bfloat16(), packed, None, "none", [], "")


def weight_only_int8(weight: Tensor) -> Product:
    """torch's, of bfloat16 rows with int8 weights."""
    scale = weight.abs().amax(dim=1) / 127
    narrow, factor = (weight / scale[:, None]).round().to(torch.int8), scale.bfloat16()
    return lambda x: torch.ops.aten._weight_int8pack_mm(x.bfloat16(), narrow, factor)


KERNELS: dict[str, tuple[int, Callable[[Tensor], Product]]] = {
    "float32": (4, lambda weight: lambda x: F.linear(x, weight)),
    "bfloat16": (2, bfloat16),
    "bfloat16, packed by oneDNN": (2, packed_bfloat16),
    "float16, packed by FBGEMM (gptfit)": (2, lambda weight: Float16Linear(weight, None)),
    "int8, weights only": (1, weight_only_int8),
    "int8, packed by FBGEMM (gptfit)": (1, lambda weight: Int8Linear(weight, None)),
}


def least(products: list[Product], x: Tensor) -> float:
    """Seconds of one product."""
    taken = []
    for _ in range(ROUNDS + 1):
        started = time.thread_time()
        for product in products:
            product(x)
        taken.append((time.thread_time() - started) / len(products))
    return min(taken[1:])


@torch.inference_mode()
def main() -> None:
    """Print a line for each kernel."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--outputs", type=int, default=2304)
    parser.add_argument("--inputs", type=int, default=768)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    size = arguments.outputs * arguments.inputs
    print(
        f"| {arguments.outputs} x {arguments.inputs} | 1 row | GB/s | 8 rows |\n|---|---|---|---|"
    )
    for name, (width, make) in KERNELS.items():
        weights = torch.randn(ALL_WEIGHTS // size, arguments.outputs, arguments.inputs)
        products = [make(weight) for weight in weights]
        del weights
        one, eight = (least(products, torch.randn(rows, arguments.inputs)) for rows in ROWS)
        print(
            f"| {name} | {1e6 * one:.0f} µs | {size * width / one / 1e9:.0f} | {1e6 * eight:.0f} µs |"
        )


if __name__ == "__main__":
    main()
