"""Products with frozen weights of 8 and 4 bits on a CPU, beside bfloat16: what `finetune.load_in_4bit` costs in speed.

    python -m benchmarks.low_bit

The weights are those of an MLP of a 1B, and the rows a piece of a training batch. NF4 is slmctl's own, made whole in
room that is kept; the others are torch's weight-only kernels.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch

from benchmarks import result
from slmctl.stages.finetune.four_bit import FourBitWeight

ROWS, INNER, OUTER = 768, 2048, 8192  # a piece of a training batch; the MLP of a 1B
GROUP = 64  # weights that share a scale, of 4 bits
REPEAT = 7
GOAL = ">= 0.5"


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(ROWS, INNER).bfloat16()
    weight = torch.randn(OUTER, INNER) * 0.02
    products = {
        "bfloat16": _bfloat16(weight),
        "NF4, made whole for each product": _nf4(weight),
        "int8, torch's weight-only kernel": _int8(weight),
        "int4, torch's weight-only kernel": _int4(weight),
    }
    seconds: dict[str, list[float]] = {name: [] for name in products}
    errors = {}
    exact = x.float() @ weight.T
    with torch.no_grad():
        for name, product in products.items():  # warm, and seen to be the same product
            errors[name] = float((product(x).float() - exact).norm() / exact.norm())
        for _ in range(REPEAT):
            for name, product in products.items():
                begun = time.perf_counter()
                product(x)
                seconds[name].append(time.perf_counter() - begun)
    rate = {name: [2 * ROWS * INNER * OUTER / taken / 1e9 for taken in times] for name, times in seconds.items()}
    rows = [
        result.compared(f"{name}: GFLOP/s", rate[name], rate["bfloat16"], peer="bfloat16", goal=GOAL, digits=0)
        for name in rate
        if name != "bfloat16"
    ]
    result.write("low_bit", "python -m benchmarks.low_bit", rows, ("torch",), errors=errors)
    for name in rate:
        sys.stderr.write(f"{name}: {statistics.median(rate[name]):.0f} GFLOP/s, error {errors[name]:.4f}\n")


Product = Callable[[torch.Tensor], torch.Tensor]


def _bfloat16(weight: torch.Tensor) -> Product:
    low = weight.bfloat16()
    return lambda x: torch.nn.functional.linear(x, low)


def _nf4(weight: torch.Tensor) -> Product:
    packed, room = FourBitWeight(weight), torch.empty(OUTER, INNER, dtype=torch.bfloat16)

    def product(x: torch.Tensor) -> torch.Tensor:
        packed.write(room)
        return torch.nn.functional.linear(x, room)

    return product


def _int8(weight: torch.Tensor) -> Product:
    """A scale a row."""
    scale = weight.abs().amax(1) / 127
    whole, low = (weight / scale[:, None]).round().to(torch.int8), scale.bfloat16()
    return lambda x: torch.ops.aten._weight_int8pack_mm(x, whole, low)


def _int4(weight: torch.Tensor) -> Product:
    """A scale a group of weights."""
    grouped = weight.reshape(OUTER, -1, GROUP)
    scale = grouped.abs().amax(2) / 7
    whole = (grouped / scale[:, :, None]).round().clamp(-8, 7).add(8).to(torch.int32).reshape(OUTER, INNER)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(whole, 1)
    low = scale.bfloat16().T.contiguous()
    pairs = torch.stack((low, torch.zeros_like(low)), 2).contiguous()  # scale and zero, by group
    return lambda x: torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, GROUP, pairs)


if __name__ == "__main__":
    main()
