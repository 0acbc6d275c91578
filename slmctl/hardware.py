"""The accelerator and the processor of this machine, detected without importing torch."""

from __future__ import annotations

import os
from pathlib import Path

# The device nodes that the drivers of NVIDIA (dxg: inside WSL2) and AMD make.
DEVICE_NODES = {"/dev/nvidia0": "cuda", "/dev/nvidiactl": "cuda", "/dev/dxg": "cuda", "/dev/kfd": "rocm"}


def accelerator() -> str:
    """`cuda`, `rocm`, or the empty text without an accelerator or where CUDA_VISIBLE_DEVICES hides it."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return ""
    return next((kind for node, kind in DEVICE_NODES.items() if Path(node).exists()), "")


def cpu_flags() -> frozenset[str]:
    """The flags in /proc/cpuinfo, such as `avx512_bf16`; empty where it cannot be read."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    lines = (line for line in text.splitlines() if line.startswith(("flags", "Features")))
    return frozenset(next(lines, "").partition(":")[2].split())
