"""The rate of matrix products on this machine: measured in a child
process, and kept in the user's cache.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
from dataclasses import dataclass
from pathlib import Path

from slmctl import child, hardware
from slmctl.artifacts import atomic
from slmctl.console import count
from slmctl.errors import MissingError
from slmctl.hardware import usable_cores
from slmctl.installation import user_cache

TIMEOUT_S = 120
BUSY = 1.5  # processes a core of the last minute, from which a measurement says little


@dataclass(frozen=True)
class MeasuredRates:
    """GFLOP/s by type: measured now, the best ever on this processor, and
    those kept before; `load` in words or ''.
    """

    now: dict[str, float]
    best: dict[str, float]
    before: dict[str, float]
    load: str

    @property
    def is_slow(self) -> bool:
        """True if this machine is less than half as fast now as it was before."""
        return any(rate < self.before.get(name, 0) / 2 for name, rate in self.now.items())


def measure() -> MeasuredRates:
    """Measure in some seconds, and keep the best rates for `stored`, since other processes only
    ever slow it down.

    Raises:
        MissingError: torch does not work.
    """
    try:
        done = child.run("slmctl.stages.finetune.matmul_benchmark", timeout_s=TIMEOUT_S)
    except child.DiedError as death:
        raise MissingError(
            f"torch does not work: {death}", hint="pip install --force-reinstall torch"
        ) from None
    now: dict[str, float] = json.loads(done.stdout)
    before, busy = stored() or {}, load()
    kept = "" if before and not stored_load() else busy  # rates of an idle machine stay the best
    best = {name: max(rate, before.get(name, 0.0)) for name, rate in now.items()}
    with contextlib.suppress(OSError):  # a cache that cannot be written is none
        atomic.write(
            _path(), json.dumps({"machine": _machine(), "rates": best, "load": kept}).encode()
        )
    return MeasuredRates(now, best, before, busy)


def load() -> str:
    """The processes that want this machine's cores, in words, where
    these are more than BUSY a core; else ''.
    """
    wanting, cores = os.getloadavg()[0], os.cpu_count() or 1
    return f"{wanting:.0f} processes want {count(cores, 'core')}" if wanting > BUSY * cores else ""


def stored() -> dict[str, float] | None:
    """The best rates that `measure` has found with this processor, these
    cores and this torch; None without one.
    """
    try:
        content = json.loads(_path().read_bytes())
        rates = {str(name): float(value) for name, value in content["rates"].items()}
        return (
            rates
            if content["machine"] == _machine() and all(value > 0 for value in rates.values())
            else None
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def stored_load() -> str:
    """The load under which all measurements behind the stored
    rates were made, in words; else ''.
    """
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        return str(json.loads(_path().read_bytes())["load"])
    return ""


def remark() -> str:
    """A sentence on times by the stored rates, where this machine is busy or
    was busy at their measurement; else ''.
    """
    if kept := stored_load():
        return (
            f"the rates are those of a busy machine ({kept}), so times are too long: slmctl "
            "doctor measures again"
        )
    busy = load()
    return f"this machine is busy ({busy}), so a run takes longer than this now" if busy else ""


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
