"""Child processes: a clean environment, limits, requests and answers as lines, and the reason why
one ended.

A child does work that may hang, grow or crash: native code, untrusted files and texts. It is a
module of this program; the parent starts it here, and it limits itself with `bound`.
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

_PIECE = 1 << 16  # bytes of a read or write
_REFUSAL = "slmctl refuses: "  # start of the stderr line with an expected error


class LateError(Exception):
    """A child exceeded its deadline, and was killed."""


class DiedError(Exception):
    """A child ended before its work was done.

    Attributes:
        code: Exit code, or the negative number of the signal that ended the child.
        log: Its stderr.
    """

    def __init__(self, code: int, log: str) -> None:
        self.code, self.log = code, log
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        super().__init__(f"its process was ended by {name}" if code < 0 else self.words)

    @property
    def words(self) -> str:
        """The last line of stderr that contains `error`, else the
        last line; at most 300 characters.
        """
        lines = [line.strip() for line in self.log.splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()] or lines
        return errors[-1][:300] if errors else "no reason given"

    @property
    def out_of_memory(self) -> bool:
        """True if the child reached its memory limit."""
        return "MemoryError" in self.log or "can't allocate memory" in self.log

    @property
    def refusal(self) -> errors.SlmctlError | None:
        """The expected error that the child passed to `refuse`; None if it ended in another way."""
        lines = [line for line in self.log.splitlines() if line.startswith(_REFUSAL)]
        if not lines:
            return None
        try:
            kind, *texts = json.loads(lines[-1].removeprefix(_REFUSAL))
            message, hint = texts
        except (ValueError, TypeError):  # a library printed the text of an untrusted file
            return None
        classes = {each.__name__: each for each in vars(errors).values() if isinstance(each, type)}
        error = classes.get(str(kind), ValueError)
        if not issubclass(error, errors.SlmctlError):
            return None
        return error(str(message), hint=str(hint))

    def require_packages(self) -> None:
        """Raise the ModuleNotFoundError that ended the child, if one did."""
        if "ModuleNotFoundError: No module named" in self.log:
            name = self.log.rpartition("No module named")[2].strip(" '\n")
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)


# For the parent


def start(
    target: str | Path, *arguments: str, env: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[Any]:
    """Start a module, or a file, in an environment without
    secrets; `options` are those of Popen.
    """
    # -P: modules in the working folder, which may hold untrusted data, are not imported
    program = [str(target)] if isinstance(target, Path) else ["-P", "-m", target]
    env = child_environment.bare() if env is None else env
    return subprocess.Popen([sys.executable, *program, *arguments], env=env, **options)


def run(
    target: str | Path,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a child to its end; returns its stdout and stderr.

    Raises:
        DiedError: The exit code is not 0.
        LateError: The child took longer than `timeout_s`.
    """
    pipes: dict[str, Any] = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
    }
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
    """Yield the stdout of a child that first reads its whole request; leaving the block early kills
    it.

    Raises:
        DiedError: The exit code is not 0; raised at the end of the block.
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
    """A child that reads requests and writes answers as lines, and
    can be started again after it ended.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        self._module, self._arguments = module, arguments
        self._process: subprocess.Popen[bytes] | None = None
        self._read = bytearray()  # bytes that were read and not yet returned

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
        """Start the child and wait for its first line, by which it reports that it is ready;
        returns the line.

        Raises:
            OSError: The system cannot start a process.
            DiedError: The child ended.
            LateError: The line took longer than `timeout_s`.
        """
        self.close()
        self._process = start(
            self._module,
            *self._arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        return next(self.answers(b"", 1, timeout_s))

    def close(self) -> None:
        """Kill the child."""
        process, self._process = self._process, None
        self._read = bytearray()
        if process is not None:
            process.kill()
            process.communicate()

    def answers(self, requests: bytes, count: int, budget_s: float) -> Generator[bytes, None, None]:
        """Write the requests, and yield `count` answers as they arrive; leaving the iteration early
        kills the child.

        Raises:
            DiedError: The child ended.
            LateError: An answer took longer than `budget_s`.
        """
        assert (
            self._process is not None
            and self._process.stdin is not None
            and self._process.stdout is not None
        )
        pipe, out = self._process.stdin.fileno(), self._process.stdout.fileno()
        whole, seen = False, 0  # seen: number of bytes without a line end
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
            if not whole:  # later answers would be taken for answers to the next requests
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


# For the child


def bound(
    *,
    memory: int | None = None,
    data: int | None = None,
    file_bytes: int | None = None,
    cpu_s: int | None = None,
) -> None:
    """Set resource limits of this process; core dumps are disabled.

    Args:
        memory: Bytes of address space.
        data: Bytes of private memory (RLIMIT_DATA).
        file_bytes: Bytes of the largest file that it may write.
        cpu_s: CPU seconds.
    """
    limits = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_DATA: data,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_CORE: 0,
    }
    for kind, limit in limits.items():
        if limit is not None:
            _, most = resource.getrlimit(kind)  # a lower limit of the user's stays
            limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
            resource.setrlimit(kind, (limit, limit))


def renew_cpu(seconds: int) -> None:
    """Let this process use so many CPU seconds from now on; the kernel kills it after them."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + seconds, hard))


def end_with_parent() -> None:
    """Let the kernel kill this process when its parent ends, for whatever reason (Linux only)."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def refuse(error: errors.SlmctlError) -> NoReturn:
    """End this process with an expected error, which the parent gets as `DiedError.refusal`."""
    sys.exit(_REFUSAL + json.dumps([type(error).__name__, error.message, error.hint]))


def private_stdout() -> TextIO:
    """A stream to stdout for answers only: output of libraries to
    stdout goes to stderr from now on.
    """
    own = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(own, "w", encoding="utf-8")
