"""Searching for sensitive data in a process that can be ended: texts in, findings out, by a deadline.

`sensitive.find` takes time linear in its text, but Python's patterns let no other thread run meanwhile, and presidio's
are not ours. A server therefore searches in a process of its own kind, which is killed where it is late:

    python -m slmctl.sensitive.search_process rules     lists of texts as JSON lines in, lists of findings out

One process searches at a time, PROCESSES at most for each detector; they are started when they are first needed, again
after one was ended, and end with the process that started them.
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
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

from slmctl import child_environment, sensitive
from slmctl.errors import StageError
from slmctl.sensitive import Engine, Finding

PROCESSES = 2
START_S = 60.0  # for a process to be ready on a busy machine: presidio takes seconds to import
LIMIT_BYTES = 1 << 30  # of address space, for the rules
_BLOCK = 1 << 16


_making = threading.Lock()  # two threads that search first share their processes


class SearchError(StageError):
    """A search has no result: it took longer than its deadline, or its process died."""


def find(texts: Sequence[str], *, engine: Engine = "rules", timeout_s: float) -> list[list[Finding]]:
    """The findings in each text, as `sensitive.find` has them.

    Args:
        texts: Any texts; bound them beforehand.
        engine: The detector.
        timeout_s: Seconds for the search, and for a process to be free. Starting one is not counted.

    Raises:
        ModuleNotFoundError: The detector is not installed.
        SearchError: The search took longer, or its process died. The next search has a new process.
    """
    sensitive.require(engine)
    with _making:
        pool = _pool(engine, os.getpid())
    return pool.find(texts, timeout_s)


@functools.cache
def _pool(engine: Engine, owner: int) -> _Pool:
    """The processes of this process (`owner`) for a detector; a fork has its own."""
    pool = _Pool(engine, owner)
    atexit.register(pool.close)
    return pool


class _Pool:
    def __init__(self, engine: Engine, owner: int) -> None:
        self.engine, self.owner = engine, owner
        self._lock = threading.Lock()
        self._alive: set[_Process] = set()
        self._free: queue.LifoQueue[_Process | None] = queue.LifoQueue()  # None: one more may be started
        for _ in range(PROCESSES):
            self._free.put(None)

    def find(self, texts: Sequence[str], timeout_s: float) -> list[list[Finding]]:
        begun, answered = time.monotonic(), False
        try:
            process = self._free.get(timeout=timeout_s)
        except queue.Empty:
            raise SearchError(f"no process was free to search within {timeout_s:g} s") from None
        waited = time.monotonic() - begun
        try:
            if process is None or process.is_dead:
                process = None
                process = self._started()
            lines = process.ask(json.dumps(list(texts)), timeout_s - waited)
            answered = True
        finally:
            if process is not None and not answered:  # what it still writes would be taken for the next answer
                self._end(process)
                process = None
            self._free.put(process)
        return [[Finding(*finding) for finding in findings] for findings in json.loads(lines)]

    def close(self) -> None:
        """End every process."""
        if self.owner == os.getpid():
            with self._lock:
                alive = list(self._alive)
            for process in alive:
                self._end(process)

    def _started(self) -> _Process:
        process = _Process(self.engine)
        with self._lock:
            self._alive.add(process)
        try:
            process.ask("", START_S)
        except SearchError:
            self._end(process)
            raise
        return process

    def _end(self, process: _Process) -> None:
        with self._lock:
            self._alive.discard(process)
        process.kill()


class _Process:
    """One child, asked a line at a time; neither side's pipe can block it beyond a deadline."""

    def __init__(self, engine: Engine) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", __spec__.name, engine],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=child_environment.bare(),
        )  # fmt: skip
        for pipe in self._pipes():
            os.set_blocking(pipe.fileno(), False)

    @property
    def is_dead(self) -> bool:
        return self._child.poll() is not None

    def kill(self) -> None:
        self._child.kill()
        self._child.wait()
        for pipe in self._pipes():
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def ask(self, request: str, timeout_s: float) -> bytes:
        """The line that answers a request; an empty request waits for the first line.

        Raises:
            SearchError: There is none in time, or the process died.
        """
        stdin, stdout = self._pipes()
        ends_at = time.monotonic() + timeout_s
        left, answer = memoryview(request.encode() + b"\n" if request else b""), bytearray()
        with selectors.DefaultSelector() as ready:
            ready.register(stdout, selectors.EVENT_READ)
            if left:
                ready.register(stdin, selectors.EVENT_WRITE)
            while not answer.endswith(b"\n"):
                events = ready.select(max(0.0, ends_at - time.monotonic()))
                if not events:
                    raise SearchError(f"the search took longer than {timeout_s:g} s")
                for key, _ in events:
                    if key.fileobj is stdin:
                        left = self._written(left)
                        if not left:
                            ready.unregister(stdin)
                    else:
                        block = os.read(stdout.fileno(), _BLOCK)
                        if not block:
                            raise SearchError("the process that searches died")
                        answer += block
        return bytes(answer)

    def _written(self, left: memoryview) -> memoryview:
        try:
            return left[os.write(self._pipes()[0].fileno(), left[:_BLOCK]) :]
        except BrokenPipeError:
            raise SearchError("the process that searches died") from None

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        assert self._child.stdin is not None and self._child.stdout is not None
        return self._child.stdin, self._child.stdout


def _answers(requests: Iterable[bytes], engine: Engine) -> Iterator[str]:
    yield json.dumps({"ready": True})
    for line in requests:
        yield json.dumps(
            [
                [dataclasses.astuple(finding) for finding in sensitive.find(text, engine=engine)]
                for text in json.loads(line)
            ]
        )


def main(engine: Engine) -> None:
    """Be the child: search until stdin ends."""
    sensitive.find("0123456789", engine=engine)  # loads the detector before the first deadline
    if engine == "rules":
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    for kind in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(kind, (0, 0))
    for answer in _answers(sys.stdin.buffer, engine):
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main("presidio" if sys.argv[1:] == ["presidio"] else "rules")
