"""Searching for sensitive data in a process that can be ended: texts in, findings out, by a deadline.

`sensitive.find` takes time linear in its text, up to seconds for the longest conversation, and Python's patterns let no
other thread run meanwhile. A server therefore searches in a process that is killed where it is late:

    python -m slmctl.sensitive.search_process     lists of texts as JSON lines in, lists of findings out

One process searches at a time, PROCESSES at most; they are started when they are first needed, again after one was
ended, and end with the process that started them.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import json
import os
import queue
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

from slmctl import child_environment, sensitive
from slmctl.errors import StageError
from slmctl.sensitive import Finding

PROCESSES = 2
START_S = 60.0  # for a process to be ready on a busy machine
LIMIT_BYTES = 1 << 30  # of address space

_making = threading.Lock()  # two threads that search first share their processes


class SearchError(StageError):
    """A search has no result: it took longer than its deadline, or its process died."""


def find(texts: Sequence[str], *, timeout_s: float) -> list[list[Finding]]:
    """The findings in each text, as `sensitive.find` has them.

    Args:
        texts: Any texts; bound them beforehand.
        timeout_s: Seconds for the search, and for a process to be free. Starting one is not counted.

    Raises:
        SearchError: The search took longer, or its process died. The next search has a new process.
    """
    with _making:
        pool = _pool(os.getpid())
    return pool.find(texts, timeout_s)


@functools.cache
def _pool(owner: int) -> _Pool:
    """The processes of this process (`owner`); a fork has its own."""
    pool = _Pool(owner)
    atexit.register(pool.close)
    return pool


class _Pool:
    def __init__(self, owner: int) -> None:
        self._owner = owner
        self.free: queue.LifoQueue[_Process | None] = queue.LifoQueue()  # None: one more may be started
        for _ in range(PROCESSES):
            self.free.put(None)

    def find(self, texts: Sequence[str], timeout_s: float) -> list[list[Finding]]:
        begun, lines = time.monotonic(), b""
        try:
            process = self.free.get(timeout=timeout_s)
        except queue.Empty:
            raise SearchError(f"no process was free to search within {timeout_s:g} s") from None
        left_s = timeout_s - (time.monotonic() - begun)
        try:
            if process is not None and process.is_dead:
                process.end()
                process = None
            if process is None:
                process = _Process()
                process.ask(b"", START_S)
            lines = process.ask(json.dumps(list(texts)).encode() + b"\n", left_s)
        finally:
            if process is not None and not lines:  # what it still writes would be taken for the next answer
                process.end()
                process = None
            self.free.put(process)
        return [[Finding(*finding) for finding in findings] for findings in json.loads(lines)]

    def close(self) -> None:
        """End every process."""
        with contextlib.suppress(queue.Empty):
            while os.getpid() == self._owner:
                if process := self.free.get_nowait():
                    process.end()


class _Process:
    """One child, asked a line at a time."""

    def __init__(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", __spec__.name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=child_environment.bare(),
        )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def is_dead(self) -> bool:
        return self._child.poll() is not None

    def end(self) -> None:
        self._child.kill()
        self._child.wait()
        for pipe in self._pipes():
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def ask(self, request: bytes, timeout_s: float) -> bytes:
        """The line that answers a request; the empty request waits for the first line.

        Raises:
            SearchError: There is none in time, or the process died.
        """
        stdin, stdout = self._pipes()
        ends_at = time.monotonic() + timeout_s
        deadline = threading.Timer(timeout_s, self._child.kill)  # which ends a write and a read that wait
        deadline.start()
        try:
            with contextlib.suppress(BrokenPipeError):
                stdin.write(request)
                stdin.flush()
            answer = stdout.readline()
        finally:
            deadline.cancel()
        if not answer.endswith(b"\n"):
            is_late = time.monotonic() >= ends_at
            raise SearchError(
                f"the search took longer than {timeout_s:g} s" if is_late else "the process that searches died"
            )
        return answer

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        assert self._child.stdin is not None and self._child.stdout is not None
        return self._child.stdin, self._child.stdout


def main() -> None:
    """Be the child: search until stdin ends."""
    sensitive.find("0123456789")  # compiles the patterns before the first deadline
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    for kind in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(kind, (0, 0))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin.buffer:
        findings = [[dataclasses.astuple(finding) for finding in sensitive.find(text)] for text in json.loads(line)]
        sys.stdout.write(json.dumps(findings) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
