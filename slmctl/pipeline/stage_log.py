"""The log of a stage: the lines that it said, in `runs/.logs/`, as plain text without secrets and
within bounds.

A failed stage leaves its log too, and a run that resumes it appends to the same file.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from slmctl import child_environment, console
from slmctl.errors import IntegrityError, SlmctlError
from slmctl.pipeline.graph import STAGE_OF, StageRequest
from slmctl.pipeline.named import by_id

FOLDER, SUFFIX = ".logs", ".log"
MAX_BYTES = 1_000_000  # of a log
MAX_LINE = 2000  # characters
LEAST_SECRET = 6  # characters of a variable's value that is looked for


def path_of(artifact: Path) -> Path:
    """The log of an artifact, by the artifact's path below `runs/`; neither needs to exist."""
    return artifact.parent.parent / FOLDER / f"{artifact.parent.name}-{artifact.name}{SUFFIX}"


def artifact_of(log: Path) -> Path:
    """The path of the artifact that a log is about."""
    kind, _, name = log.name.removesuffix(SUFFIX).rpartition("-")
    return log.parent.parent / kind / name


@contextlib.contextmanager
def kept(request: StageRequest) -> Iterator[None]:
    """Log the lines printed inside the block, and its end. A log that
    cannot be written does not stop a stage.
    """
    path, begun = path_of(request.path), time.monotonic()
    try:
        log = _Log(path)
    except OSError:
        yield
        return
    with log, console.recorded(log.add):
        log.add(
            f"{console.timestamp()}  {request.stage.name}  "
            f"{request.path.parent.name}/{request.path.name}"
        )
        yield
        log.add(f"{console.timestamp()}  done in {console.duration(time.monotonic() - begun)}")


def find(root: Path, named: Path | None) -> Path:
    """The log of an artifact, by its path or the beginning of its id, or the last one of a kind;
    without a name the last one.

    Raises:
        IntegrityError: None is kept.
    """
    logs = sorted(
        (root / "runs" / FOLDER).glob("*-*" + SUFFIX), key=lambda path: path.stat().st_mtime
    )
    if (
        named is not None
        and re.fullmatch(r"[0-9a-f]{4,64}", str(named))
        and not os.path.lexists(named)
    ):
        # of failed stages, too
        logs = [path for path in logs if artifact_of(path).name.startswith(str(named)[:12])]
        if len(logs) != 1:
            logs = [path_of(by_id(root / "runs", str(named)))]
    elif str(named) in STAGE_OF and not os.path.lexists(str(named)):
        logs = [path for path in logs if artifact_of(path).parent.name == str(named)]
    elif named is not None:
        logs = [path_of(named.resolve())]
    if not logs or not logs[-1].is_file():
        raise IntegrityError(
            f"no log is kept of {named or 'any stage'} below {root / 'runs'}",
            hint="slmctl run leaves one of each stage",
        )
    return logs[-1]


class _Log(contextlib.AbstractContextManager["_Log"]):
    """A file to which lines are added; of one that is long already,
    the last half of the bound is kept.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        before = b""
        if path.exists() and path.stat().st_size > MAX_BYTES // 2:
            before = path.read_bytes()[-MAX_BYTES // 2 :].partition(b"\n")[2]
            path.unlink()
        self._stream: IO[bytes] | None = path.open("ab")
        self._secrets = [
            value
            for name, value in os.environ.items()
            if len(value) >= LEAST_SECRET and child_environment.is_secret(name, value)
        ]
        self._write(before)

    def add(self, text: str) -> None:
        """Add lines, cleaned of control characters and of secrets."""
        for line in console.clean(text).splitlines():
            self._write(self._masked(line[:MAX_LINE]).encode("utf-8", "replace") + b"\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        if isinstance(error, SlmctlError):
            self.add(f"error: {error.message}" + (f"\n hint: {error.hint}" if error.hint else ""))
        elif isinstance(error, KeyboardInterrupt):
            self.add(f"interrupted {error}".rstrip())
        elif isinstance(error, SystemExit):
            self.add("interrupted")
        elif error is not None:
            self.add("".join(traceback.format_exception(error)))
        if self._stream is not None:
            with contextlib.suppress(OSError):
                self._stream.close()

    def _masked(self, line: str) -> str:
        from slmctl import sensitive  # its patterns take a tenth of a second to build

        for secret in self._secrets:
            line = line.replace(secret, "[SECRET]")
        for span in reversed(sensitive.find(line, ("secret",))):
            line = f"{line[: span.start]}[SECRET]{line[span.end :]}"
        return line

    def _write(self, line: bytes) -> None:
        if self._stream is None:
            return
        try:
            if self._stream.tell() + len(line) > MAX_BYTES:
                self._stream.write(b"... the rest is not kept\n")
                raise OSError("the log is full")
            self._stream.write(line)
            self._stream.flush()
        except OSError:  # such as a full disk, on which the stage fails anyway
            with contextlib.suppress(OSError):
                self._stream.close()
            self._stream = None
