"""The rate of matrix products on this machine: measured in a child process, and kept in the user's cache."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
from pathlib import Path

from slmctl import child, hardware
from slmctl.artifacts import atomic
from slmctl.errors import MissingError
from slmctl.hardware import usable_cores
from slmctl.installation import user_cache

TIMEOUT_S = 120


def measure() -> dict[str, float]:
    """GFLOP/s by type, measured now in some seconds, and kept for `stored`.

    Raises:
        MissingError: torch does not work.
    """
    try:
        done = child.run("slmctl.stages.finetune.matmul_benchmark", timeout_s=TIMEOUT_S)
    except child.DiedError as death:
        raise MissingError(f"torch does not work: {death}", hint="pip install --force-reinstall torch") from None
    rates: dict[str, float] = json.loads(done.stdout)
    path = _path()
    with contextlib.suppress(OSError):  # a cache that cannot be written is none
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.file(path) as draft:
            draft.write_text(json.dumps({"machine": _machine(), "rates": rates}), encoding="utf-8")
    return rates


def stored() -> dict[str, float] | None:
    """The rates of the last `measure` with this processor, these cores and this torch; None without one."""
    try:
        content = json.loads(_path().read_bytes())
        rates = {str(name): float(value) for name, value in content["rates"].items()}
        return rates if content["machine"] == _machine() and all(value > 0 for value in rates.values()) else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def torch_version() -> str:
    """The installed torch, or the empty text."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return ""


def _path() -> Path:
    return (user_cache() or Path(os.devnull)) / "matmul_rates.json"


def _machine() -> list[str]:
    """All that the rates depend on."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return [" ".join(sorted(hardware.cpu_flags())), str(usable_cores()), threads, torch_version()]
