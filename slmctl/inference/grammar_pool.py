"""Grammars of JSON Schemas, each in its own process: a schema that hangs, grows or crashes costs
its own answers.

Clients send schemas, and a grammar's compiler takes seconds, gigabytes or the whole process for
some of them. Each schema is therefore compiled and followed in a process with a limit of memory and
a budget of time for every message, forked from one that holds the vocabulary. The thread that
decodes never waits for one.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import queue
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from slmctl import child
from slmctl.errors import DataError

COMPILE_S, TOKEN_S = 5.0, 2.0  # seconds for a schema, and for a token of an answer
GRACE_S = 5.0  # after which a process that did not end itself is given up
START_S = 200.0  # for the vocabulary to be read, on a machine that is busy
IDLE = 8  # compiled schemas that are kept while nobody uses them
LARGEST = 1 << 20  # characters of a schema


@dataclass(frozen=True)
class GrammarState:
    """An answer's place in its grammar.

    Attributes:
        forced: The tokens that must come next, whatever the model would choose.
        finished: True where nothing but the end of the turn may follow them.
        allowed: True for every token id that may follow them, and the end of the turn where the
            answer may end; (n_vocab rounded up to a multiple of 8,), or empty where the answer is
            finished.
    """

    forced: tuple[int, ...]
    finished: bool
    allowed: npt.NDArray[np.bool_]


class _Nursery:
    """The process that the others are forked from; started by the
    first schema, and again after its end.
    """

    def __init__(self, model: str | None) -> None:
        self._arguments = [model] if model is not None else []
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def connect(self) -> Connection:
        """A connection to a new fork.

        Raises:
            DataError: There is none to be had; the message says why.
        """
        try:
            with self._lock:
                self._start()
                assert self._control is not None
                own, other = socket.socketpair()
                with own, other:
                    socket.send_fds(self._control, [b"f"], [other.fileno()])
                    return Connection(own.detach())
        except OSError as error:
            raise DataError(f"no grammar can be made of the schema now: {error}") from None

    def prepare(self) -> None:
        """Start the process; one that does not start is tried again with
        the first schema, which gets its words.
        """
        with self._lock, contextlib.suppress(OSError):
            self._start()

    def _start(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        self._control, other = socket.socketpair()
        with other:
            self._process = child.start(
                "slmctl.inference.grammar_child",
                *self._arguments,
                stdin=other.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        self._control.settimeout(START_S)
        if self._control.recv(1) != b"r":
            assert self._process.stderr is not None
            self._process.kill()
            death = child.DiedError(1, self._process.stderr.read().decode(errors="replace"))
            raise OSError(f"its process does not start: {death}")

    def close(self) -> None:
        """End the process, and with it nothing that was forked."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


class _Grammar:
    """One schema's process."""

    def __init__(self, nursery: _Nursery, schema: str) -> None:
        self._nursery, self._schema = nursery, schema
        self._pipe: Connection | None = None
        self.large = False  # its process has grown, and is better not kept

    def state(self, walk: str, token: int | None = None) -> GrammarState:
        """The state of an answer at its beginning, or after one more token.

        Raises:
            DataError: The schema has no grammar, the grammar cannot go on, or its process died.
        """
        message: dict[str, Any] = {"walk": walk, "token": token, "budget_s": TOKEN_S}
        if self._pipe is None:
            self._pipe = self._nursery.connect()
            message |= {"schema": self._schema, "budget_s": COMPILE_S}
        sent, budget = time.monotonic(), message["budget_s"]
        try:
            self._pipe.send_bytes(json.dumps(message).encode())
            if not self._pipe.poll(budget + GRACE_S):
                raise EOFError
            head, _, mask = self._pipe.recv_bytes().partition(b"\n")
        except (EOFError, OSError):
            self._explain(time.monotonic() - sent, budget)
        state = json.loads(head)
        self.large = state["large"]
        if "fault" in state:
            raise DataError(state["fault"])
        bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")
        return GrammarState(tuple(state["forced"]), state["finished"], bits.view(np.bool_))

    @property
    def alive(self) -> bool:
        """True while its process runs, as far as is known."""
        return self._pipe is not None

    def end(self, walk: str) -> None:
        if self._pipe is not None:
            try:
                self._pipe.send_bytes(json.dumps({"end": walk}).encode())
            except OSError:
                self.close()

    def close(self) -> None:
        """End the process: it ends when its socket does, or else when its time is over."""
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.close()

    def _explain(self, took_s: float, budget_s: float) -> NoReturn:
        self.close()
        if took_s >= budget_s:
            raise DataError(
                f"no grammar can be made of the schema: it takes longer than {budget_s:g} s"
            )
        raise DataError(
            "no grammar can be made of the schema: it takes more memory than a grammar may have"
        )


@dataclass(frozen=True)
class _Job:
    walk: str
    token: int | None = None
    end: bool = False


class Grammars:
    """The grammars of the answers in progress, each asked in its own thread.

    Args:
        model: The GGUF file with the vocabulary of the grammars.
        deliver: Called from these threads with an answer's id and its state, or the sentence that
            ends it.
    """

    def __init__(self, model: str, deliver: Callable[[str, GrammarState | str], None]) -> None:
        self._nursery, self._deliver = _Nursery(model), deliver
        # by schema, the one used last at the end
        self._lines: dict[str, queue.SimpleQueue[_Job | None]] = {}
        self._schemas: dict[str, str] = {}  # of each answer

    def prepare(self) -> None:
        """Have the vocabulary read from now on, for the first answer."""
        threading.Thread(target=self._nursery.prepare, daemon=True).start()

    def begin(self, walk: str, schema: str) -> None:
        """Begin an answer under a schema; its state is delivered."""
        self._schemas[walk] = schema
        line = self._lines.pop(schema, None)
        if line is None:
            line = queue.SimpleQueue()
            threading.Thread(
                target=self._run, args=(line, _Grammar(self._nursery, schema)), daemon=True
            ).start()
        self._lines[schema] = line
        line.put(_Job(walk))

    def accept(self, walk: str, token: int) -> None:
        """Take a token that was chosen; the state after it is delivered."""
        self._lines[self._schemas[walk]].put(_Job(walk, token))

    def end(self, walk: str) -> None:
        """Drop an answer; an unknown one is ignored. A state that is on its
        way may still be delivered: ignore it.
        """
        schema = self._schemas.pop(walk, None)
        if schema is None:
            return
        self._lines[schema].put(_Job(walk, end=True))
        used = set(self._schemas.values())
        for idle in [schema for schema in self._lines if schema not in used][:-IDLE]:
            self._lines.pop(idle).put(None)

    def _run(self, line: queue.SimpleQueue[_Job | None], grammar: _Grammar) -> None:
        failed: set[str] = set()  # answers that lost their process: no other one knows their state
        walks: set[str] = set()
        while (job := line.get()) is not None:
            if job.end:
                grammar.end(job.walk)
                walks.discard(job.walk)
                failed.discard(job.walk)
                if grammar.large and not walks:
                    grammar.close()
                continue
            try:
                if job.walk in failed:
                    raise DataError("the grammar's process died with another answer")
                walks.add(job.walk)
                self._deliver(job.walk, grammar.state(job.walk, job.token))
            except DataError as error:
                if not grammar.alive:
                    failed |= walks
                self._deliver(job.walk, error.message)
        grammar.close()


_checks = _Nursery(None)


def fault_of(schema: str) -> str:
    """The reason why no answer can be held to a schema, or to a call's grammar; empty where answers
    can.

    It is compiled, and its first tokens found, by another process, in at most COMPILE_S seconds.
    """
    if len(schema) > LARGEST:
        return f"no grammar can be made of the schema: it has more than {LARGEST} characters"
    grammar = _Grammar(_checks, schema)
    try:
        grammar.state("check")
    except DataError as error:
        return error.message
    finally:
        grammar.close()
    return ""


atexit.register(_checks.close)
