"""Matrix product benchmark of this processor; run as a module,
it prints GFLOP/s by type as JSON.
"""

from __future__ import annotations

import json
import sys
import time

import torch


def gflops(kind: torch.dtype, rows: int = 768, width: int = 1024, repeat: int = 12) -> float:
    """GFLOP/s of the fastest of `repeat` products (rows, width) x (width,
    width), the shape of a training batch.
    """
    x, weight = torch.randn(rows, width).to(kind), torch.randn(width, width).to(kind)
    best = float("inf")
    for _ in range(repeat):
        begun = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        best = min(best, time.perf_counter() - begun)
    return 2 * rows * width * width / best / 1e9


if __name__ == "__main__":
    rates = {name: round(gflops(getattr(torch, name)), 1) for name in ("float32", "bfloat16")}
    sys.stdout.write(json.dumps(rates) + "\n")
