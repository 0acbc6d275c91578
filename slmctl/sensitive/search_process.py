"""Searching for sensitive data in a process that can be ended: texts in, findings out, by a deadline.

`sensitive.find` takes time linear in its text, up to seconds for the longest conversation, and Python's patterns let no
other thread run meanwhile. A server therefore searches in a process that is killed where it is late:

    python -m slmctl.sensitive.search_process     lists of texts as JSON lines in, lists of findings out

PROCESSES search at the same time; they are started when they are first needed, again after one was ended, and end with
the process that started them. One client's searches hold SHARE of them at most, and of the clients that wait the one
that was served longest ago comes first, so long texts of one client cost another one no more than one search.
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
SHARE = PROCESSES - 1  # processes that one client's searches hold
START_S = 60.0  # for a process to be ready on a busy machine
LIMIT_BYTES = 1 << 30  # of address space

_making = threading.Lock()  # two threads that search first share their processes


class SearchError(StageError):
    """A search has no result: it took longer than its deadline, or its process died."""


def find(texts: Iterable[str], *, timeout_s: float, client: str = "") -> list[list[Finding]]:
    """The findings in each text, as `sensitive.find` has them.

    Args:
        texts: Any texts; bound them beforehand. They are read when a process is free.
        timeout_s: Seconds for the search, and for a process to be free. Starting one is not counted.
        client: Whose texts they are, by the name of a key; without a name all processes may be held.

    Raises:
        SearchError: The search took longer, or its process died. The next search has a new process.
    """
    with _making:
        pool = _pool(os.getpid())
    return pool.find(texts, timeout_s, client)


@functools.cache
def _pool(owner: int) -> _Pool:
    """The processes of this process (`owner`); a fork has its own."""
    pool = _Pool(owner)
    atexit.register(pool.close)
    return pool


class _Pool:
    def __init__(self, owner: int) -> None:
        self._owner = owner
        self.free = [child.LineChild(__spec__.name) for _ in range(PROCESSES)]
        self._turn = threading.Condition()  # around all that follows
        self._waiting: list[str] = []  # the client of each search that waits
        self._running = Counter[str]()  # searches, by client
        self._served = dict[str, int]()  # number of the last search, by client
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
        """A process for the length of a block, when it is this client's turn."""
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
                self.free.insert(len(self.free) if process.alive else 0, process)  # the next one takes the last
                self._running[client] -= 1
                self._turn.notify_all()

    def _next(self) -> str | None:
        """The client whose search comes next, where a process is free for it."""
        may = [client for client in self._waiting if self._running[client] < (SHARE if client else PROCESSES)]
        return min(may, key=lambda client: self._served.get(client, 0), default=None) if self.free else None

    def close(self) -> None:
        while os.getpid() == self._owner and self.free:
            self.free.pop().close()


def main() -> None:
    sensitive.find("0123456789")  # compiles the patterns before the first deadline
    child.bound(memory=LIMIT_BYTES, file_bytes=0)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin.buffer:
        findings = [[dataclasses.astuple(finding) for finding in sensitive.find(text)] for text in json.loads(line)]
        sys.stdout.write(json.dumps(findings) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
