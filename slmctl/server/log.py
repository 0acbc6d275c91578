"""One JSON object a line, on stderr: requests without their texts, and events of the server."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import queue
import sys
import threading
import time
from typing import Any, TextIO

TOGETHER = 1000  # lines written at once, at most
REPEATED_S = 10.0  # between two lines that a library logs from the same place
KEPT = 10_000  # lines that wait to be written; more are dropped, and counted


class Log:
    """Writes lines in its own thread: a log that is not read, or
    cannot be written, delays no answer.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._unread, self._unwritten = 0, 0  # each counted in one thread
        self._stream = stream or sys.stderr
        self._lines: queue.Queue[str | None] = queue.Queue(KEPT)
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def event(self, name: str, **fields: Any) -> None:
        now = time.time()
        stamp = (
            time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        )
        self.line({"time": stamp, "event": name, **fields})

    def line(self, fields: dict[str, Any]) -> None:
        """A line of these fields and no others."""
        try:
            self._lines.put_nowait(json.dumps(fields))
        except queue.Full:
            self._unread += 1

    @property
    def dropped(self) -> int:
        """Lines that were lost: the log was not read in time, or could not be written."""
        return self._unread + self._unwritten

    def close(self, *, stream: bool = False) -> None:
        """Write the waiting lines, unless the log is not read; close the
        stream too where it is this log's own.
        """
        try:
            self._lines.put(None, timeout=1)
        except queue.Full:
            return
        self._thread.join(timeout=2)
        if stream and not self._thread.is_alive():
            # lines that a full disk did not take have been counted
            with contextlib.suppress(OSError):
                self._stream.close()

    def _write(self) -> None:
        more = True
        while more:
            lines = [self._lines.get()]
            while not self._lines.empty() and len(lines) < TOGETHER:
                lines.append(self._lines.get())
            more = None not in lines
            try:
                self._stream.write("".join(f"{line}\n" for line in lines if line is not None))
                self._stream.flush()
            except OSError:  # the reader of the log has gone, or the disk is full
                self._unwritten += sum(line is not None for line in lines)
            except ValueError:  # it was closed
                return


class ToLog(logging.Handler):
    """Messages of libraries as lines of the log: one of each kind in
    `REPEATED_S`, with the number left out since.
    """

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log
        # (time of the last line, number left out since), by the place in the library's source and
        # the kind of error
        self._kinds: dict[tuple[str, int, str], tuple[float, int]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[0] if record.exc_info else None
        place, now = (
            (record.pathname, record.lineno, error.__name__ if error else ""),
            time.monotonic(),
        )
        logged_at, left_out = self._kinds.get(place, (-math.inf, 0))
        if now - logged_at < REPEATED_S:
            self._kinds[place] = (logged_at, left_out + 1)
            return
        self._kinds[place] = (now, 0)
        trace = (
            {"trace": logging.Formatter().formatException(record.exc_info)}
            if record.exc_info
            else {}
        )
        more = {"left_out": left_out} if left_out else {}
        self._log.event(
            record.levelname.lower(),
            message=record.getMessage(),
            source=record.name,
            **trace,
            **more,
        )
