"""Searches for sensitive data in a child process with a deadline: texts in, findings out.

`sensitive.find` takes time linear in its text, up to seconds for the longest conversation, and
holds the GIL. So a server searches in child processes, which are killed when they exceed the
deadline:

    python -m slmctl.sensitive.search_process
        lists of texts as JSON lines in, lists of findings out

Up to PROCESSES run at the same time; they are started when needed, restarted after a kill, and end
with their parent. One client's searches use at most SHARE of them, and the waiting client that was
served longest ago comes first, so long texts of one client delay another one by at most one search.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator

from slmctl import child, sensitive
from slmctl.errors import StageError
from slmctl.sensitive import Finding

PROCESSES = 2
SHARE = PROCESSES - 1  # most processes for one client
START_S = 60.0  # seconds until a process must be ready, on a busy machine
LIMIT_BYTES = 1 << 30  # of address space

_making = threading.Lock()  # so that threads share one pool


class SearchError(StageError):
    """A search has no result: it took longer than its deadline, or its process died."""


def find(texts: Iterable[str], *, timeout_s: float, client: str = "") -> list[list[Finding]]:
    """The findings of `sensitive.find` in each text.

    Args:
        texts: The texts, bounded in size by the caller. They are iterated when a process is free.
        timeout_s: Seconds for waiting and searching together. The start of a process is not
            counted.
        client: Name of the client's API key; without a name all processes may be used.

    Raises:
        SearchError: The search took longer, or its process died. The next search gets a new
            process.
    """
    with _making:
        pool = _pool(os.getpid())
    return pool.find(texts, timeout_s, client)


@functools.cache
def _pool(owner: int) -> _Pool:
    """The pool of the process `owner`; a fork gets its own."""
    pool = _Pool(owner)
    atexit.register(pool.close)
    return pool


class _Pool:
    def __init__(self, owner: int) -> None:
        self._owner = owner
        self.free = [child.LineChild(__spec__.name) for _ in range(PROCESSES)]
        self._turn = threading.Condition()  # protects `free` and all below
        self._waiting: list[str] = []  # client of each waiting search
        self._running = Counter[str]()  # number of running searches by client
        self._served = dict[str, int]()  # serial number of the last search by client
        self._numbers = itertools.count(1)

    def find(self, texts: Iterable[str], timeout_s: float, client: str = "") -> list[list[Finding]]:
        begun = time.monotonic()
        with self._process(client, timeout_s) as process:
            left_s = timeout_s - (time.monotonic() - begun)
            try:
                if not process.alive:
                    process.start(START_S)
                (line,) = process.answers(json.dumps(list(texts)).encode() + b"\n", 1, left_s)
            except child.LateError:
                raise SearchError(f"the search took longer than {timeout_s:g} s") from None
            except child.DiedError:
                raise SearchError("the process that searches died") from None
        return [[Finding(*finding) for finding in findings] for findings in json.loads(line)]

    @contextlib.contextmanager
    def _process(self, client: str, timeout_s: float) -> Iterator[child.LineChild]:
        """Yield a process when it is this client's turn; SearchError if none is free in time."""
        with self._turn:
            self._waiting.append(client)
            try:
                if not self._turn.wait_for(lambda: self._next() == client, timeout_s):
                    raise SearchError(f"no process was free to search within {timeout_s:g} s")
                process = self.free.pop()
                self._running[client] += 1
                self._served[client] = next(self._numbers)
            finally:
                self._waiting.remove(client)
                self._turn.notify_all()
        try:
            yield process
        finally:
            with self._turn:
                # living ones are used first
                self.free.insert(len(self.free) if process.alive else 0, process)
                self._running[client] -= 1
                self._turn.notify_all()

    def _next(self) -> str | None:
        """The client that may search next; None if no process is free for any."""
        may = [
            client
            for client in self._waiting
            if self._running[client] < (SHARE if client else PROCESSES)
        ]
        return (
            min(may, key=lambda client: self._served.get(client, 0), default=None)
            if self.free
            else None
        )

    def close(self) -> None:
        while os.getpid() == self._owner and self.free:
            self.free.pop().close()


def main() -> None:
    sensitive.find("0123456789")  # compile the patterns before the first deadline
    child.bound(memory=LIMIT_BYTES, file_bytes=0)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin.buffer:
        findings = [
            [dataclasses.astuple(finding) for finding in sensitive.find(text)]
            for text in json.loads(line)
        ]
        sys.stdout.write(json.dumps(findings) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
