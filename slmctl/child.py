"""Child processes: a clean environment, limits, lines each way, and the reason of an end.

A child computes what may hang, grow or crash: native code, files and texts of strangers. It is a module of this
program, which the parent starts here and which bounds itself with `bound`.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NoReturn, TextIO

from slmctl import child_environment, errors

_PIECE = 1 << 16  # bytes a read or a write
_REFUSAL = "slmctl refuses: "  # begins the line of stderr with an expected error


class LateError(Exception):
    """A child took longer than it may; it has been ended."""


class DiedError(Exception):
    """A child ended before it had done its work.

    Attributes:
        code: Its exit code, or the negative number of the signal that ended it.
        log: Its stderr.
    """

    def __init__(self, code: int, log: str) -> None:
        self.code, self.log = code, log
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        super().__init__(f"its process was ended by {name}" if code < 0 else self.words)

    @property
    def words(self) -> str:
        """The last line of stderr that speaks of an error, else the last one; at most 300 characters."""
        lines = [line.strip() for line in self.log.splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()] or lines
        return errors[-1][:300] if errors else "no reason given"

    @property
    def out_of_memory(self) -> bool:
        """True if it reached its limit of memory."""
        return "MemoryError" in self.log or "can't allocate memory" in self.log

    @property
    def refusal(self) -> errors.SlmctlError | None:
        """The expected error that it ended with; None where it ended otherwise."""
        lines = [line for line in self.log.splitlines() if line.startswith(_REFUSAL)]
        if not lines:
            return None
        try:
            kind, message, hint = json.loads(lines[-1].removeprefix(_REFUSAL))
        except (ValueError, TypeError):  # printed by a library that a file led there
            return None
        classes = {each.__name__: each for each in vars(errors).values() if isinstance(each, type)}
        error = classes.get(str(kind), ValueError)
        return error(str(message), hint=str(hint)) if issubclass(error, errors.SlmctlError) else None

    def require_packages(self) -> None:
        """Raise the ModuleNotFoundError that ended the child, if one did."""
        if "ModuleNotFoundError: No module named" in self.log:
            name = self.log.rpartition("No module named")[2].strip(" '\n")
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)


# The parent's side


def start(
    target: str | Path, *arguments: str, env: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[Any]:
    """Start a module, or a file, in an environment without secrets; `options` are those of Popen."""
    # -P: a module that lies in the folder of the data is not ours
    program = [str(target)] if isinstance(target, Path) else ["-P", "-m", target]
    env = child_environment.bare() if env is None else env
    return subprocess.Popen([sys.executable, *program, *arguments], env=env, **options)


def run(
    target: str | Path, *arguments: str, env: Mapping[str, str] | None = None, timeout_s: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a child to its end; returns its stdout and stderr.

    Raises:
        DiedError: Its exit code is not 0.
        LateError: It took longer than `timeout_s`.
    """
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with start(target, *arguments, env=env, text=True, errors="replace", **pipes) as child:
        try:
            out, log = child.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise LateError from None
        finally:
            child.kill()
    if child.returncode != 0:
        raise DiedError(child.returncode, log)
    return subprocess.CompletedProcess(arguments, 0, out, log)


@contextlib.contextmanager
def output(
    module: str, *arguments: str, request: bytes = b"", env: Mapping[str, str] | None = None
) -> Iterator[IO[bytes]]:
    """The stdout of a child that reads its whole request first; leaving the block early ends it.

    Raises:
        DiedError: At the end of the block; its exit code is not 0.
    """
    with tempfile.TemporaryFile() as log:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
        child = start(module, *arguments, env=env, **pipes)
        assert child.stdin is not None and child.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError), child.stdin as stdin:
                stdin.write(request)
            with child.stdout as lines:
                yield lines
            child.wait()
        finally:
            child.kill()
            child.wait()
        if child.returncode != 0:
            log.seek(0)
            raise DiedError(child.returncode, log.read().decode(errors="replace"))


class LineChild:
    """A child that answers lines with lines, and can be started again after its end."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._module, self._arguments = module, arguments
        self._process: subprocess.Popen[bytes] | None = None
        self._read = bytearray()  # of an answer that is not whole

    @property
    def alive(self) -> bool:
        """True while the child runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The id of the child; 0 without one."""
        process = self._process
        return process.pid if process is not None else 0

    def start(self, timeout_s: float) -> bytes:
        """Start a child, and wait for its first line, which says that it is ready; that line.

        Raises:
            OSError: The system has no room for a process.
            DiedError: It ended.
            LateError: It took longer.
        """
        self.close()
        self._process = start(
            self._module, *self._arguments,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
        )  # fmt: skip
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        return next(self.answers(b"", 1, timeout_s))

    def close(self) -> None:
        """End the child."""
        process, self._process = self._process, None
        self._read = bytearray()
        if process is not None:
            process.kill()
            process.communicate()

    def answers(self, requests: bytes, count: int, budget_s: float) -> Generator[bytes, None, None]:
        """So many answers as they come, while the requests are written; an iteration that is left early ends the child.

        Raises:
            DiedError: The child ended.
            LateError: An answer took longer than `budget_s`.
        """
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        pipe, out = self._process.stdin.fileno(), self._process.stdout.fileno()
        whole, seen = False, 0  # bytes in which no line ends
        left, deadline = memoryview(requests), time.monotonic() + budget_s
        try:
            with selectors.DefaultSelector() as ready:
                ready.register(out, selectors.EVENT_READ)
                if left:
                    ready.register(pipe, selectors.EVENT_WRITE)
                while count:
                    if (end := self._read.find(b"\n", seen)) >= 0:
                        line, seen = bytes(self._read[:end]), 0
                        del self._read[: end + 1]
                        count, deadline = count - 1, time.monotonic() + budget_s
                        whole = not count
                        yield line
                        continue
                    seen = len(self._read)
                    events = ready.select(max(0.0, deadline - time.monotonic()))
                    if not events:
                        raise LateError
                    for key, _ in events:
                        if key.fd == out:
                            self._take(out)
                        else:
                            left = self._put(pipe, left)
                            if not left:
                                ready.unregister(pipe)
        finally:
            if not whole:  # answers to come would be taken for those of the next requests
                self.close()

    def _take(self, out: int) -> None:
        piece = os.read(out, _PIECE)
        if not piece:
            raise self._death()
        self._read += piece

    def _put(self, pipe: int, left: memoryview) -> memoryview:
        try:
            return left[os.write(pipe, left[:_PIECE]) :]
        except BrokenPipeError:
            raise self._death() from None

    def _death(self) -> DiedError:
        assert self._process is not None and self._process.stderr is not None
        code = self._process.wait()
        return DiedError(code, (self._process.stderr.read() or b"").decode(errors="replace"))


# The child's side


def bound(
    *, memory: int | None = None, data: int | None = None, file_bytes: int | None = None, cpu_s: int | None = None
) -> None:
    """Limit this process, which leaves no core dump.

    Args:
        memory: Bytes of address space.
        data: Bytes of memory that it may fill.
        file_bytes: Bytes of the largest file that it may write.
        cpu_s: Seconds of the processor.
    """
    limits = {
        resource.RLIMIT_AS: memory, resource.RLIMIT_DATA: data, resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_CPU: cpu_s, resource.RLIMIT_CORE: 0,
    }  # fmt: skip
    for kind, limit in limits.items():
        if limit is not None:
            resource.setrlimit(kind, (limit, limit))


def end_with_parent() -> None:
    """Have the kernel end this process with its parent, however that ends, where it is Linux."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def refuse(error: errors.SlmctlError) -> NoReturn:
    """End this process with an expected error, which is the parent's `DiedError.refusal`."""
    sys.exit(_REFUSAL + json.dumps([type(error).__name__, error.message, error.hint]))


def private_stdout() -> TextIO:
    """Stdout for answers alone: whatever a library prints goes to stderr from now on."""
    own = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(own, "w", encoding="utf-8")
