"""Estimate of the memory that a training on a CPU will take, before it starts."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from slmctl.config import FinetuneConfig
from slmctl.console import size
from slmctl.errors import StageError
from slmctl.model_files import safetensors_header

ALLOCATOR_OVERHEAD = 1.2  # heap held by the allocator over heap in use
FIXED_BYTES = 150e6  # optimizer code, thread pools, tokenized records
MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")  # the machine's memory, and a container's


def estimate_bytes(folder: Path, config: FinetuneConfig, tokens: int, keys: int = 0) -> int:
    """Estimated peak of this process in bytes: what it holds now, weights, activations for backward, adapter.

    The terms of a layer are the tensors that the autograd functions of `cpu_kernels` save.

    Args:
        folder: The base.
        tokens: Tokens of the largest batch computed at once, see `batches.largest_piece`.
        keys: Tokens attended to in it, if more.
    """
    trim_heap()  # an earlier stage of this process may have left much that is free, and will be used again
    width = 2 if config.matmul_dtype == "bfloat16" else 4  # bytes of an element in a product
    model: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).get_text_config()
    layers, hidden, rank = model.num_hidden_layers, model.hidden_size, config.lora.rank
    inner = getattr(model, "intermediate_size", None) or 4 * hidden  # as GPT-2, OPT, Falcon and BLOOM have it
    heads = model.num_attention_heads
    kv = getattr(model, "num_key_value_heads", None) or heads
    head = getattr(model, "head_dim", None) or hidden // heads
    saved = (  # bytes a token and layer
        4 * 4 * hidden  # residual stream and inputs of the norms
        + width * (2 * hidden + heads * head)  # inputs of the products
        + 4 * head * (2 * heads + 2 * kv)  # attention: queries, keys, values, result
        + width * 4 * inner  # gate, up, active, and the input of the last product
    )
    adapter = layers * rank * (hidden + heads * head + 2 * (hidden + kv * head) + heads * head + hidden)
    adapter += layers * rank * 3 * (hidden + inner)
    activations = tokens * (layers * saved + 8 * (4 * inner + 4 * hidden))
    activations += max(keys, tokens) * layers * 4 * head * 2 * kv  # keys and values, with the prefix before each record
    activations *= 4 if config.lora.dora else 1  # PEFT's own layers keep more
    weights = width * safetensors_header.parameter_count(folder)
    return int(_resident_bytes() + FIXED_BYTES + weights + 20 * adapter + ALLOCATOR_OVERHEAD * activations)


def require_free(needed: int, processes: int = 1) -> None:
    """Refuse a training of so many processes on this machine, `needed` bytes each, that does not fit.

    Raises:
        StageError: The estimate is more than the memory that is free.
    """
    have = available_bytes() + processes * _resident_bytes()
    if processes * needed > have:
        each = f" in {processes} processes" if processes > 1 else ""
        raise StageError(
            f"training needs about {size(processes * needed)} of memory{each}, and {size(have)} are free",
            hint="a smaller base, --set finetune.max_length=N with finetune.too_long=truncate, or a machine with more",
        )


def available_bytes() -> int:
    """Bytes that this process can still take: free on the machine, or in its control group where that is less."""
    free = next(
        int(line.split()[1]) * 1024
        for line in MEMINFO.read_text(encoding="ascii").splitlines()
        if line.startswith("MemAvailable")
    )
    try:
        limit = (CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((CGROUP / "memory.current").read_text(encoding="ascii"))
        counts = dict(line.split() for line in (CGROUP / "memory.stat").read_text(encoding="ascii").splitlines())
    except OSError:
        return free
    used -= int(counts.get("inactive_file", 0))  # pages of files, which the kernel drops when memory runs short
    return free if limit == "max" else min(free, int(limit) - used)


def trim_heap() -> None:
    """Return free heap to the system: batches of ever new shapes fragment it."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc's own
        libc.malloc_trim(0)


def reset_peak() -> None:
    """Restart the kernel's peak counter, where it allows that: an earlier stage of this process had its own peak."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes() -> int:
    """Peak resident size of this process in bytes since `reset_peak`."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def _resident_bytes() -> int:
    """Resident size of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
