"""Telling running servers that a key is revoked, without a file: it works where the disk is full or read-only.

Each server with a file of keys has a datagram socket in Linux's abstract namespace, whose name holds a hash of the
file's place. The kernel vouches for the user at either end: a server takes the word of its own user, of the owner of
the file and of root, and `revoke` takes no other's for an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PREFIX = "slmctl-keys-"
SOCKETS = Path("/proc/net/unix")
LONGEST = 4096  # bytes of a message
AT_ONCE = 16  # messages that are read in one turn of the loop
ANSWER_S = 2.0  # that a server has to answer
CREDENTIALS = struct.Struct("3i")  # process, user, group


@contextlib.contextmanager
def listening(path: Path, revoke: Callable[[str], None]) -> Iterator[None]:
    """Call `revoke` with the name of each key that is revoked while the block lasts, in the running event loop.

    Args:
        path: The file of keys.
    """
    loop = asyncio.get_running_loop()
    with _socket(_prefix(path) + secrets.token_hex(8)) as sock:

        def take() -> None:
            with contextlib.suppress(OSError):  # a sender that has gone, or is not there to be answered
                for _ in range(AT_ONCE):  # another user of this machine may send without end
                    raw, user, address = _receive(sock)
                    name = _name_in(raw)
                    if user in _trusted(path) and name is not None:
                        revoke(name)
                        sock.sendto(raw, address)

        loop.add_reader(sock, take)
        try:
            yield
        finally:
            loop.remove_reader(sock)


def tell(path: Path, name: str) -> tuple[int, int]:
    """Notify all running servers with this file of a revoked key: (number that answered, number that did not)."""
    servers = _servers(path)
    raw = json.dumps({"revoke": name}).encode()
    notified = 0
    with _socket(f"slmctl-revoke-{secrets.token_hex(8)}") as sock:
        waiting = set[bytes]()
        for server in servers:
            with contextlib.suppress(OSError):  # it has just ended
                sock.sendto(raw, server)
                waiting.add(server)
        ends_at = time.monotonic() + ANSWER_S
        silent = len(waiting)
        while waiting and time.monotonic() < ends_at:
            try:
                answer, user, address = _receive(sock)
            except BlockingIOError:
                time.sleep(0.01)
                continue
            if answer == raw and address in waiting and user in _trusted(path):
                waiting.discard(address)
                notified, silent = notified + 1, silent - 1
    return notified, silent


def _socket(name: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    sock.bind(b"\0" + name.encode())
    return sock


def _receive(sock: socket.socket) -> tuple[bytes, int, bytes]:
    """A message, the user who sent it by the kernel's word (-1 where it gives none), and the address of the sender."""
    raw, ancillary, _, address = sock.recvmsg(LONGEST, socket.CMSG_SPACE(CREDENTIALS.size))
    user = -1
    for level, kind, data in ancillary:
        if (level, kind, len(data)) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS, CREDENTIALS.size):
            user = CREDENTIALS.unpack(data)[1]
    return raw, user, address or b""


def _name_in(raw: bytes) -> str | None:
    try:
        message = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    name = message.get("revoke") if isinstance(message, dict) else None
    return name if isinstance(name, str) else None


def _trusted(path: Path) -> set[int]:
    """The users who may revoke: this process's, root, and the owner of the file."""
    with contextlib.suppress(OSError):
        return {0, os.geteuid(), path.stat().st_uid}
    return {0, os.geteuid()}


def _servers(path: Path) -> list[bytes]:
    """The addresses of the sockets of running servers with this file."""
    prefix = f"@{_prefix(path)}"
    try:
        lines = SOCKETS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    names = {line.split(" ")[-1] for line in lines}
    return [b"\0" + name[1:].encode() for name in sorted(names) if name.startswith(prefix)]


def _prefix(path: Path) -> str:
    """The prefix of socket names for one file of keys, by its folder and not by the path that leads there."""
    place = path.parent.resolve()
    try:
        state = place.stat()
        folder = f"{state.st_dev}/{state.st_ino}"
    except OSError:
        folder = str(place)
    return f"{PREFIX}{hashlib.sha256(f'{folder}/{path.name}'.encode(errors='surrogateescape')).hexdigest()[:32]}-"
