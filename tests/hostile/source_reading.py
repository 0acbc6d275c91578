"""Sources read in forks of a process that has imported the readers, each with its code, its
sentences and its memory.

A case is over in milliseconds; an interpreter and its imports take half a second.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any


class SourceReading:
    """A process that forks a child for each source; the process gets `environment`."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def read(
        self, folder: Path, fields: dict[str, Any], limits: dict[str, float], *, timeout_s: int
    ) -> subprocess.CompletedProcess[str]:
        """Read a source in a child; its stdout is `[code, sentences, rows, peak memory in MB]`."""
        assert self._server.stdin is not None and self._server.stdout is not None
        order = [str(folder), fields, limits, timeout_s]
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        code, out, err = json.loads(self._server.stdout.readline())
        return subprocess.CompletedProcess([], code, out, err)

    def close(self) -> None:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(60)
        self._server.stdout.close()


def main() -> None:
    """Read what each line names, one after the other."""
    from slmctl.sources import snapshot  # noqa: F401  what each child has imported already
    from slmctl.sources.rows import read_rows  # noqa: F401

    for line in sys.stdin:
        with tempfile.TemporaryDirectory() as place:
            streams = [Path(place) / name for name in ("out", "err")]
            pid = os.fork()
            if pid == 0:
                be(json.loads(line), streams)
            _, status = os.waitpid(pid, 0)
            texts = [path.read_text(encoding="utf-8") for path in streams]
        sys.stdout.write(json.dumps([os.waitstatus_to_exitcode(status), *texts]) + "\n")
        sys.stdout.flush()


def be(order: list[Any], streams: list[Path]) -> None:
    """Be the child."""
    folder, fields, limits, timeout_s = order
    code = 1
    try:
        for number, path in enumerate(streams, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
        signal.alarm(timeout_s)
        sys.stdout.write(json.dumps(outcome(Path(folder), fields, limits)))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def outcome(folder: Path, fields: dict[str, Any], limits: dict[str, float]) -> list[Any]:
    """Gather and read a source, to the end or to an error of the product."""
    from slmctl.config import Source, SourceLimits
    from slmctl.errors import SlmctlError
    from slmctl.sources import snapshot
    from slmctl.sources.rows import read_rows

    code: int = 0
    said: list[str] = []
    rows = 0
    try:
        gathered = snapshot.gather(
            [Source.model_validate(fields)], folder / "runs" / ".sources", SourceLimits(**limits)
        )
        for source in gathered:
            source.title.encode()
            for row in read_rows(source.local, format=source.format):
                rows += 1
                said += [row.fault] if row.fault and len(said) < 3 else []
                json.dumps(row.columns, allow_nan=False).encode()
    except SlmctlError as error:
        code, said = error.code, [error.message, error.hint]
    own = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
    return [
        code,
        said,
        rows,
        max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) // 1024,
    ]


if __name__ == "__main__":
    main()
