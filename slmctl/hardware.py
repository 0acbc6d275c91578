"""The accelerator, the processor, the free memory and the C++ compiler of
this machine, without importing torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import shutil
import sys
from pathlib import Path

# Device nodes of the drivers of NVIDIA (dxg: inside WSL2) and AMD.
DEVICE_NODES = {
    "/dev/nvidia0": "cuda",
    "/dev/nvidiactl": "cuda",
    "/dev/dxg": "cuda",
    "/dev/kfd": "rocm",
}

# the machine's memory, and a container's
MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")

# Parameters of mallopt(3), and the largest value that it takes.
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
_MOST = 2**31 - 1


def accelerator() -> str:
    """`cuda` or `rocm`; '' without an accelerator, or if CUDA_VISIBLE_DEVICES hides it."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return ""
    return next((kind for node, kind in DEVICE_NODES.items() if Path(node).exists()), "")


def cpu_flags() -> frozenset[str]:
    """The CPU flags in /proc/cpuinfo, such as `avx512_bf16`; empty if it cannot be read."""
    return frozenset(_cpu_fact("flags", "Features").split())


def processor() -> str:
    """Processor, usable cores and accelerator: `AMD EPYC 7B13, 2 cores`;
    machines with the same take the same time.
    """
    name = _cpu_fact("model name") or platform.machine()
    return ", ".join(filter(None, (name, f"{usable_cores()} cores", accelerator())))


def _cpu_fact(*names: str) -> str:
    """The value of the first line of /proc/cpuinfo that begins
    with a name; empty if there is none.
    """
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    return next(
        (line.partition(":")[2].strip() for line in text.splitlines() if line.startswith(names)), ""
    )


def usable_cores() -> int:
    """Number of cores that this process may run on; in a container
    possibly fewer than the machine has.
    """
    return len(os.sched_getaffinity(0))


def cpp_compiler() -> str:
    """The first of c++, g++ and clang++ on PATH; '' without one."""
    return next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), "")


def held_bytes() -> int:
    """Bytes of anonymous memory of this process."""
    resident, shared = Path("/proc/self/statm").read_text(encoding="ascii").split()[1:3]
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def available_bytes() -> int:
    """Bytes that this process can still allocate: available on the
    machine, or in its cgroup if that is less.
    """
    free = next(
        int(line.split()[1]) * 1024
        for line in MEMINFO.read_text(encoding="ascii").splitlines()
        if line.startswith("MemAvailable")
    )
    try:
        limit = (CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((CGROUP / "memory.current").read_text(encoding="ascii"))
        counts = dict(
            line.split()
            for line in (CGROUP / "memory.stat").read_text(encoding="ascii").splitlines()
        )
    except OSError:
        return free
    # page cache, which the kernel reclaims when memory is short
    used -= int(counts.get("inactive_file", 0))
    return free if limit == "max" else min(free, int(limit) - used)


def address_space() -> int:
    """Bytes of address space that this process may have (`ulimit
    -v`); a huge number without a limit.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


def reuse_freed_memory() -> None:
    """Let malloc keep the freed memory of large tensors for the next ones; a no-op without glibc.

    By default glibc returns blocks of over 32 MB to the kernel at once, which clears every page of
    the next one: that took a quarter of the CPU time when transformers classified texts with long
    prompts.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:  # musl has none
            mallopt(_MMAP_THRESHOLD, _MOST)
            mallopt(_TRIM_THRESHOLD, _MOST)


def process_bytes(pid: int) -> int:
    """Bytes of memory (PSS: shared pages count in part) of a process
    and its descendants; 0 if it has ended.
    """
    folder, started = Path("/proc") / str(pid), set[int]()
    try:
        lines = (folder / "smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    for thread in folder.glob("task/*/children"):
        with contextlib.suppress(OSError):  # that thread has ended
            started.update(map(int, thread.read_text(encoding="ascii").split()))
    own = 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return own + sum(process_bytes(each) for each in started)
