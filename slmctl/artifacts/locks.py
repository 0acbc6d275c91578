"""Locks on files, held against other processes and freed by the kernel when their holder dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

from slmctl import console
from slmctl.errors import LockedError


@contextlib.contextmanager
def lock(
    path: Path, *, wait: bool, on_wait: Callable[[str], None], needs: Iterable[str] = ()
) -> Iterator[None]:
    """Hold `path` against other processes; the kernel frees it when the holder dies.

    Args:
        needs: Digests of artifacts that must stay while it is held.

    Raises:
        LockedError: Another process holds it and `wait` is false.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as opened:
        stream = opened.enter_context(path.open("a+"))
        while not _hold(stream, path, wait=wait, on_wait=on_wait):
            stream = opened.enter_context(path.open("a+"))
        stream.seek(0)
        stream.truncate()
        since = console.timestamp()
        stream.write(
            f"pid {os.getpid()} on {socket.gethostname()} since {since}\n"
            + "".join(f"{n}\n" for n in needs)
        )
        stream.flush()
        try:
            yield
        finally:
            stream.truncate(0)


def _hold(stream: IO[str], path: Path, *, wait: bool, on_wait: Callable[[str], None]) -> bool:
    """Lock an open file; False if `path` no longer leads to it,
    since `gc` removes old lock files.
    """
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _holder(stream)
        if not wait:
            raise LockedError(
                f"{path.name} is locked by {holder}", hint="leave --no-wait out to wait for it"
            ) from None
        on_wait(holder)
        fcntl.flock(stream, fcntl.LOCK_EX)
    try:
        return os.path.samestat(path.stat(), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False


def _holder(stream: IO[str]) -> str:
    """The first line of a lock file (process, host, time), which its
    holder writes right after locking.
    """
    for _ in range(20):
        stream.seek(0)
        if line := stream.readline().strip():
            return line
        time.sleep(0.01)
    return "a process that has not yet said who it is"


def read_holder(path: Path) -> list[str] | None:
    """[holder of a lock, *digests of artifacts that it needs]; None if the lock is free."""
    try:
        with path.open("r+") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return [_holder(stream), *stream.read().split()]
    except FileNotFoundError:
        pass
    return None
