"""Things in a folder that are no files."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path


def unix_socket(path: Path) -> None:
    """A socket at a path; its address has 108 bytes, so it is made from the path's own folder."""
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
