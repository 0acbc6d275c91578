"""Things in a folder that are no files, and files that may not grow."""

from __future__ import annotations

import contextlib
import resource
import socket
from collections.abc import Iterator
from pathlib import Path


def unix_socket(path: Path) -> None:
    """A socket at a path; its address has 108 bytes, so it is made from the path's own folder."""
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)


@contextlib.contextmanager
def growing_to(size: int) -> Iterator[None]:
    """Let no file of this process and of its children grow above so many bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
