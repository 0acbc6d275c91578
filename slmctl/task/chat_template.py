"""Renders chat templates, which are code of a model's author, in a process that can run nothing and take little.

jinja2's sandbox gives a template no files, no imports and nothing of Python's insides. That leaves time and memory:
every template is rendered by a child process with a budget of seconds for each text, a limit of memory, no secrets in
its environment, and no way to write a file. Many renders are sent together, and short ones are remembered.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from slmctl import child_environment
from slmctl.errors import DataError, StageError

LIMIT_S = 20.0  # for one text; the longest template known takes some milliseconds
MEMORY_MB = 512  # of address space in the child, which sets it
LONGEST_SOURCE = 1 << 18  # characters of a template; the longest of a known model has some 16,000
CHILDREN = 4  # processes at most: a slow text holds up one of them
START_S = 200.0  # seconds for a child to start, on a machine that is busy
REMEMBERED, SHORT = 256, 1 << 13  # texts that are kept, and bytes of one with its request
_PIECE = 1 << 16  # bytes a read or a write


class TemplateRefusedError(DataError):
    """A chat template is not valid, or refuses the messages, such as two turns of a user in a row."""


class TemplateLimitError(DataError):
    """A chat template takes more time or memory than it may have."""


def render(source: str, values: Mapping[str, Any], *, budget_s: float = LIMIT_S) -> str:
    """The text that a template makes of values that are JSON. It blocks: call it from a thread of an event loop.

    Raises:
        TemplateRefusedError: The template refuses the values, or is not valid.
        TemplateLimitError: It takes longer than `budget_s` seconds, or more memory than it may have.
        StageError: The process that renders it cannot run here.
    """
    (text,) = render_all(source, [values], budget_s=budget_s)
    return text


def render_all(source: str, values: Sequence[Mapping[str, Any]], *, budget_s: float = LIMIT_S) -> list[str]:
    """The texts of many values, in order, each within `budget_s` seconds; raises what `render` raises for the first."""
    if len(source) > LONGEST_SOURCE:
        raise TemplateLimitError(f"the chat template has more than {LONGEST_SOURCE} characters")
    requests = [json.dumps(value).encode() for value in values]
    texts = [_memory.get(source, request) for request in requests]
    missing = [at for at, text in enumerate(texts) if text is None]
    if missing:
        with _pool.child() as child:
            fresh = child.render(source, [requests[at] for at in missing], budget_s)
        for at, text in zip(missing, fresh, strict=True):
            texts[at] = text
            _memory.put(source, requests[at], text)
    return [text for text in texts if text is not None]


class _Memory:
    """The short texts that were rendered last: every prompt asks for what all of its task begin with."""

    def __init__(self) -> None:
        self._texts: OrderedDict[tuple[str, bytes], str] = OrderedDict()
        self._forget_lock()
        os.register_at_fork(after_in_child=self._forget_lock)

    def _forget_lock(self) -> None:
        self._lock = threading.Lock()  # another thread may have held it when this process was forked

    def get(self, source: str, request: bytes) -> str | None:
        with self._lock:
            text = self._texts.get((source, request))
            if text is not None:
                self._texts.move_to_end((source, request))
            return text

    def put(self, source: str, request: bytes, text: str) -> None:
        if len(text) + len(request) <= SHORT:
            with self._lock:
                self._texts[source, request] = text
                if len(self._texts) > REMEMBERED:
                    self._texts.popitem(last=False)


class _Child:
    """One process that renders; it is started by the first request, and again by the next after its end."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._source = ""  # the template that the process was sent last
        self._read = bytearray()  # from the process, of an answer that is not whole

    def render(self, source: str, requests: Sequence[bytes], budget_s: float) -> list[str]:
        """The texts of requests, which are values in JSON."""
        texts: list[str] = []
        while len(texts) < len(requests):
            if self._process is None or self._process.poll() is not None:
                self.close()
                self._start()
            head = b"{" if source == self._source else b'{"source": ' + json.dumps(source).encode() + b", "
            self._source = source
            rest = requests[len(texts) :]
            lines = [
                head + b'"values": ' + rest[0] + b"}\n",
                *(b'{"values": ' + request + b"}\n" for request in rest[1:]),
            ]
            with contextlib.closing(self._answers(b"".join([*lines, b"\n"]), len(rest), budget_s)) as answers:
                for answer in answers:
                    if answer.get("last"):  # it has grown, and ends; another one renders the rest
                        self.close()
                    texts.append(_text(answer))
                    if self._process is None:
                        break
        return texts

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        self._source, self._read = "", bytearray()
        if process is not None:
            process.kill()
            process.communicate()

    def _start(self) -> None:
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "slmctl.task.chat_template_child"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=child_environment.bare(),
            )  # fmt: skip
        except OSError as error:
            raise StageError(f"the process that renders chat templates cannot be started: {error}") from None
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        next(self._answers(b"", 1, START_S))

    def _answers(self, requests: bytes, count: int, budget_s: float) -> Generator[dict[str, Any], None, None]:
        """So many answers as they come, while the requests are written; a process that is late or has died is ended."""
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
                        yield json.loads(line)
                        continue
                    seen = len(self._read)
                    events = ready.select(max(0.0, deadline - time.monotonic()))
                    if not events:
                        raise TemplateLimitError(
                            f"the chat template takes longer than {budget_s:g} s",
                            hint="take a base whose chat template ends",
                        )
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
            self._explain_end()
        self._read += piece

    def _put(self, pipe: int, left: memoryview) -> memoryview:
        try:
            return left[os.write(pipe, left[:_PIECE]) :]
        except BrokenPipeError:
            self._explain_end()

    def _explain_end(self) -> NoReturn:
        """Raise what ended the process: its signal, or its exit code with its last words."""
        assert self._process is not None and self._process.stderr is not None
        code = self._process.wait()
        words = (self._process.stderr.read() or b"").decode(errors="replace").strip().splitlines()
        last = words[-1][:300] if words else "without a word"
        if last.startswith("MemoryError"):
            raise _out_of_memory()
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            raise TemplateLimitError(f"the process that rendered the chat template was ended by {name}")
        raise StageError(f"the process that renders chat templates ended with exit code {code}: {last}")


def _out_of_memory() -> TemplateLimitError:
    return TemplateLimitError(
        f"the chat template wants more than {MEMORY_MB} MB of memory",
        hint="shorten the messages, or take a base with a simpler chat template",
    )


def _text(answer: Mapping[str, Any]) -> str:
    if answer.get("kind") == "memory":
        raise _out_of_memory()
    if "fault" in answer:
        raise TemplateRefusedError(f"the chat template refuses the messages: {answer['fault']}")
    return str(answer["text"])


class _Pool:
    """The children of this process; a fork starts its own."""

    def __init__(self) -> None:
        self._all: list[_Child] = []
        self._forget()
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(self._end)

    def _forget(self) -> None:
        self._owner = os.getpid()
        self._places = threading.Semaphore(CHILDREN)
        self._idle: list[_Child] = []
        self._others, self._all = self._all, []  # kept, for Popen warns of a process that it loses

    @contextlib.contextmanager
    def child(self) -> Iterator[_Child]:
        """A child that nobody else uses meanwhile."""
        with self._places:
            try:
                child = self._idle.pop()
            except IndexError:
                child = _Child()
                self._all.append(child)
            try:
                yield child
            finally:
                self._idle.append(child)

    def _end(self) -> None:
        if self._owner == os.getpid():
            for child in self._all:
                child.close()


_memory = _Memory()
_pool = _Pool()
