"""How much memory a training on a CPU will take, estimated before it starts."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import AutoConfig

from slmctl.config import FinetuneConfig
from slmctl.console import size
from slmctl.errors import StageError

PIECE = 768  # tokens computed at once on a CPU: enough for full products, little enough for the cache
SPARE = 1.2  # what the allocator holds beside what is in use
FIXED = 150e6  # bytes: optimizer code, thread pools, tokenized records
MEMINFO, GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")  # the machine's memory, and a container's


def estimate(folder: Path, config: FinetuneConfig, tokens: int) -> int:
    """Peak resident bytes of this process: what it has now, the weights, what backward needs, the adapter.

    `tokens` is what a step computes at once, see `fullest`. The terms of a layer follow what `_fast` saves.
    """
    trim()  # an earlier stage of this process may have left much that is free, and will be used again
    width = 2 if config.matmul_dtype == "bfloat16" else 4
    model: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).get_text_config()
    parameters = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                count = 1
                for dimension in file.get_slice(name).get_shape():
                    count *= dimension
                parameters += count
    hidden = model.hidden_size
    inner = getattr(model, "intermediate_size", None) or 4 * hidden  # as GPT-2, OPT, Falcon and BLOOM have it
    heads = model.num_attention_heads
    kv = getattr(model, "num_key_value_heads", None) or heads
    head = getattr(model, "head_dim", None) or hidden // heads
    saved = (
        4 * 4 * hidden  # residual stream and what is normed
        + width * (2 * hidden + heads * head)  # inputs of the products
        + 4 * head * (2 * heads + 4 * kv)  # attention: queries, keys, values with the prefix, result
        + width * 4 * inner  # gate, up, active, and the input of the last product
    )
    rank = config.lora.rank
    adapter = (
        model.num_hidden_layers * rank * (hidden + heads * head + 2 * (hidden + kv * head) + heads * head + hidden)
    )
    adapter += model.num_hidden_layers * rank * 3 * (hidden + inner)
    activations = tokens * (model.num_hidden_layers * saved + 8 * (4 * inner + 4 * hidden))
    slow = 4 if config.lora.dora else 1  # PEFT's own layers keep more
    return int(_now() + FIXED + parameters * width + 20 * adapter + SPARE * slow * activations)


def fullest(lengths: Sequence[int], together: int) -> int:
    """The most tokens that are computed at once, of records of these lengths, `together` a step."""
    longest = max(lengths)
    return max(longest, min(PIECE, sum(sorted(lengths)[-together:])))


def require(needed: int, processes: int = 1) -> None:
    """Refuse what cannot fit, of so many processes on this machine that need as much each.

    Raises:
        StageError: The estimate is more than the memory that is free.
    """
    have = available() + processes * _now()
    if processes * needed > have:
        each = f" in {processes} processes" if processes > 1 else ""
        raise StageError(
            f"training needs about {size(processes * needed)} of memory{each}, and {size(have)} are free",
            hint="a smaller base, --set finetune.max_length=N with finetune.too_long=truncate, or a machine with more",
        )


def available() -> int:
    """Bytes that this process can still take: the machine's, or its control group's where that is less."""
    free = next(
        int(line.split()[1]) * 1024
        for line in MEMINFO.read_text(encoding="ascii").splitlines()
        if line.startswith("MemAvailable")
    )
    try:
        limit = (GROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((GROUP / "memory.current").read_text(encoding="ascii"))
        counts = dict(line.split() for line in (GROUP / "memory.stat").read_text(encoding="ascii").splitlines())
    except OSError:
        return free
    used -= int(counts.get("inactive_file", 0))  # pages of files, which the kernel drops when memory is wanted
    return free if limit == "max" else min(free, int(limit) - used)


def trim() -> None:
    """Give memory that is free back to the system: batches of ever new shapes leave the heap full of holes."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc's own
        libc.malloc_trim(0)


def forget_peak() -> None:
    """Measure the peak from here on, where the system allows that: an earlier stage had its own."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak() -> int:
    """The most this process has held, in bytes, since `forget_peak`."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def _now() -> int:
    """Bytes this process holds."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
