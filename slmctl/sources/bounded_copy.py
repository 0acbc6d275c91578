"""Bytes of a child process into a file, within a bound on time and size; a signal is heard at any moment."""

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
    """Copy what a pipe holds, from its descriptor to its end; returns the number of its lines.

    Errors name it by its title.

    Raises:
        DataError: A limit was reached.
    """
    end, left, lines = time.monotonic() + limits.timeout_s, limits.size_bytes, 0
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while True:
        remaining = end - time.monotonic()
        if remaining <= 0:
            raise DataError(
                f"{title} took longer than {limits.timeout_s:g} s (prepare.limits.timeout_s)",
                hint="a smaller query, or --set prepare.limits.timeout_s=SECONDS",
            )
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
    """Let no file grow beyond the limit inside the block; writing on raises OSError with EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    lower = limits.size_bytes if before[0] == resource.RLIM_INFINITY else min(limits.size_bytes, before[0])
    resource.setrlimit(resource.RLIMIT_FSIZE, (lower, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def too_large(title: str, limits: SourceLimits) -> DataError:
    """The error of a source whose copy would be larger than it may."""
    return DataError(
        f"{title} has more than {limits.size_gb:g} GB (prepare.limits.size_gb)",
        hint="fewer rows or columns, or --set prepare.limits.size_gb=GIGABYTES",
    )
