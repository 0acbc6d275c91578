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
import sys
import threading
import time
from collections.abc import Sequence

from slmctl import child, sensitive
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
        self.free: queue.LifoQueue[child.LineChild] = queue.LifoQueue()
        for _ in range(PROCESSES):
            self.free.put(child.LineChild(__spec__.name))

    def find(self, texts: Sequence[str], timeout_s: float) -> list[list[Finding]]:
        begun = time.monotonic()
        try:
            process = self.free.get(timeout=timeout_s)
        except queue.Empty:
            raise SearchError(f"no process was free to search within {timeout_s:g} s") from None
        left_s = timeout_s - (time.monotonic() - begun)
        try:
            if not process.alive:
                process.start(START_S)
            (line,) = process.answers(json.dumps(list(texts)).encode() + b"\n", 1, left_s)
        except child.LateError:
            raise SearchError(f"the search took longer than {timeout_s:g} s") from None
        except child.DiedError:
            raise SearchError("the process that searches died") from None
        finally:
            self.free.put(process)
        return [[Finding(*finding) for finding in findings] for findings in json.loads(line)]

    def close(self) -> None:
        with contextlib.suppress(queue.Empty):
            while os.getpid() == self._owner:
                self.free.get_nowait().close()


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
