"""Copies the output of a child process into a file, within limits of time
and size; interruptible at any moment.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import time
from collections.abc import Iterator
from typing import IO

from slmctl.config import SourceLimits
from slmctl.errors import DataError

_PIECE = 1 << 20  # bytes
_TICK_S = 60.0


def copy(descriptor: int, out: IO[bytes], limits: SourceLimits, *, title: str) -> int:
    """Copy a pipe to its end; returns the number of lines. Errors name the source by `title`.

    Raises:
        DataError: The copy takes longer or is larger than `limits`.
    """
    end = time.monotonic() + limits.timeout_s
    left = limits.size_bytes
    lines = 0
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while True:
        remaining = end - time.monotonic()
        if remaining <= 0:
            raise too_slow(title, limits, "a smaller query")
        if not poll.poll(1000 * min(remaining, _TICK_S)):
            continue
        piece = os.read(descriptor, _PIECE)
        if not piece:
            return lines
        left -= len(piece)
        lines += piece.count(b"\n")
        if left < 0:
            raise too_large(title, limits)
        out.write(piece)


@contextlib.contextmanager
def files_of_at_most(limits: SourceLimits) -> Iterator[None]:
    """Limit the size of every file that this process writes inside the
    block; writing more raises OSError (EFBIG).
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    lower = (
        limits.size_bytes
        if before[0] == resource.RLIM_INFINITY
        else min(limits.size_bytes, before[0])
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (lower, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def too_slow(title: str, limits: SourceLimits, remedy: str) -> DataError:
    """The error for a source that takes longer than prepare.limits.timeout_s."""
    return DataError(
        f"{title} took longer than {limits.timeout_s:g} s (prepare.limits.timeout_s)",
        hint=f"{remedy}, or --set prepare.limits.timeout_s=SECONDS",
    )


def too_large(title: str, limits: SourceLimits) -> DataError:
    """The error for a source with a copy larger than prepare.limits.size_gb."""
    return DataError(
        f"{title} has more than {limits.size_gb:g} GB (prepare.limits.size_gb)",
        hint="fewer rows or columns, or --set prepare.limits.size_gb=GIGABYTES",
    )
