"""A child process that answers messages by their ids; it is watched and restarted, and lost
messages get an error.

llama.cpp runs in such a child, that of `engine`. `Supervised` is the parent's half, `Parent` the
child's.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, ClassVar, Literal

from slmctl.child import DiedError, private_stdout, start
from slmctl.errors import StageError
from slmctl.hardware import process_bytes
from slmctl.inference.events import Event

State = Literal["ready", "hung", "dead"]
Message = dict[str, Any]

HEARTBEAT_S = 1.0  # between two questions whether the process lives
DOUBT_S = 4.0  # without a reply, after which it counts as hung
HANG_S = 20.0  # after which it is killed
LOAD_S = 1800.0  # that a file may take to load


class EngineError(StageError):
    """The engine could not answer: a request that does not fit, or a child that died."""


class EngineDiedError(EngineError):
    """The child died while it answered: this request may have killed
    it, or another one of the same batch.
    """


def error_of(event: Event) -> EngineError:
    """The error that ended a request."""
    return (EngineDiedError if event.get("died") else EngineError)(event["error"])


class Supervised:
    """A file that a child process has loaded; the child is started again when it dies.

    Args:
        hang_s: Seconds without a sign of life after which the process is killed.

    Attributes:
        name: Name of the process in error sentences.
        purpose: Use of the file in the error of a failed load, such as " as a sentence encoder";
            may be empty.
        stuck_s: Seconds that one piece of work may take.
        info: The first line of the child.
        on_death: Called from another thread, when the process has died.

    Raises:
        EngineError: The file cannot be loaded.
    """

    name: ClassVar[str]
    purpose: ClassVar[str] = ""
    stuck_s: ClassVar[float]
    info: Any

    def __init__(self, file: Path, *, hang_s: float = HANG_S) -> None:
        self.gguf = file
        self._ids = itertools.count()
        self._lock = threading.RLock()
        # each request with the child that answers it: when that child dies, only these requests
        # fail
        self._pending: dict[str, tuple[subprocess.Popen[str], Callable[[Any], None]]] = {}
        self._child: subprocess.Popen[str] | None = None
        self._outbox: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.on_death: Callable[[], None] = lambda: None
        self._listener: threading.Thread | None = None
        # when the child last gave a sign of life
        self._hang_s, self._heard = hang_s, time.monotonic()
        self._start()

    def command(self) -> tuple[str, ...]:
        """The child's module and its arguments."""
        raise NotImplementedError

    def close(self) -> None:
        """End the process."""
        with self._lock:
            child, self._child = self._child, None
        if child is not None:
            assert self._listener is not None
            self._outbox.put(None)
            try:
                child.wait(timeout=5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            self._listener.join(timeout=5)

    @property
    def build(self) -> str:
        """The build of llama.cpp."""
        return str(self.info["build"])

    @property
    def alive(self) -> bool:
        """True while the process runs."""
        return self._child is not None and self._child.poll() is None

    @property
    def state(self) -> State:
        """`ready`, `hung` while the process runs and gives no sign of life, or `dead`."""
        if not self.alive:
            return "dead"
        return (
            "hung" if time.monotonic() - self._heard > min(DOUBT_S, self._hang_s / 2) else "ready"
        )

    @property
    def pid(self) -> int:
        """The id of the process; 0 without one."""
        child = self._child
        return child.pid if child is not None else 0

    def held_bytes(self) -> int:
        """Memory of the process and its children; 0 without one."""
        return process_bytes(pid) if (pid := self.pid) else 0

    def revive(self) -> None:
        """Start the process again if it has died.

        Raises:
            EngineError: The file cannot be loaded any more, or the system has no room for a process
                now.
        """
        with self._lock:
            if not self.alive:
                self._start()

    def send(self, message: Message, on_event: Callable[[Any], None]) -> str:
        """Send a message to the child, a fresh one when it has died; returns the message's id."""
        id = str(next(self._ids))
        with self._lock:
            self.revive()
            assert self._child is not None
            self._pending[id] = self._child, on_event
            self._outbox.put(json.dumps({"id": id, **message}) + "\n")
        return id

    def cancel(self, id: str) -> None:
        """Have a message forgotten; no event follows."""
        with self._lock:
            if self._pending.pop(id, None) is not None:
                self.tell({"cancel": id})

    def tell(self, message: Message) -> None:
        """Send a message that has no reply, where there is a child."""
        with self._lock:
            if self._child is not None:
                self._outbox.put(json.dumps(message) + "\n")

    def reply(self, message: Message) -> Message:
        """The child's only reply to a message.

        Raises:
            EngineError: The child refused it, or died.
        """
        return self.replies([message])[0]

    def replies(self, messages: Iterable[Message]) -> list[Message]:
        """The child's only reply to each message; raises as `reply` does."""
        inboxes = list[queue.SimpleQueue[Any]]()
        for message in messages:
            inboxes.append(queue.SimpleQueue())
            self.send(message, inboxes[-1].put)
        replies = [inbox.get() for inbox in inboxes]
        if error := next((reply for reply in replies if "error" in reply), None):
            raise error_of(error)
        return replies

    def _start(self) -> None:
        try:
            self._launch()
        except (
            OSError,
            RuntimeError,
        ) as error:  # no file descriptor, memory or thread left: later there may be
            raise EngineError(f"{self.name} cannot be started: {error}") from None

    def _launch(self) -> None:
        with contextlib.ExitStack() as undo:
            log = undo.enter_context(tempfile.TemporaryFile())
            child = start(
                *self.command(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                # half a character at the end of a killed child's output
                encoding="utf-8",
                errors="replace",
            )
            undo.callback(_end, child)
            info = self._loaded(child, log)
            outbox: queue.SimpleQueue[str | None] = queue.SimpleQueue()
            threading.Thread(target=_feed, args=(child, outbox), daemon=True).start()
            # text written at loading does not explain a later death
            loaded = log.seek(0, os.SEEK_END)
            listener = threading.Thread(
                target=self._listen, args=(child, outbox, log, loaded), daemon=True
            )
            listener.start()
            undo.pop_all()  # the listener ends them, when it has read why the child died
        self.info, self._heard = info, time.monotonic()
        self._child = child
        self._outbox = outbox
        self._listener = listener
        # without a thread left it is not watched, and answers all the same
        with contextlib.suppress(RuntimeError):
            threading.Thread(target=self._watch, args=(child, outbox), daemon=True).start()

    def _loaded(self, child: subprocess.Popen[str], log: IO[bytes]) -> Any:
        """The first line of a child, which it writes when it has loaded the file."""
        assert child.stdout is not None
        late = threading.Timer(LOAD_S, child.kill)
        late.daemon = True
        late.start()
        line = child.stdout.readline()
        late.cancel()
        if line.endswith("\n"):
            return json.loads(line)
        child.communicate()
        raise EngineError(
            f"{self.gguf.name} cannot be loaded{self.purpose}: {DiedError(1, _text(log)).words}"
        )

    def _listen(
        self,
        child: subprocess.Popen[str],
        outbox: queue.SimpleQueue[str | None],
        log: IO[bytes],
        loaded: int,
    ) -> None:
        assert child.stdout is not None
        try:
            self._relay(child.stdout)
        finally:  # whatever ended it, no request waits for a process that nobody hears
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(DOUBT_S)  # it may be about to say why it ends
            child.kill()
            self._mourn(child, outbox, log, loaded)

    def _relay(self, lines: Iterable[str]) -> None:
        """Hand on events until the first line that is not an event:
        the child was writing it when it died.
        """
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                return
            if not isinstance(event, dict):
                return
            self._heard = time.monotonic()
            if "pong" in event:
                if event["stuck_s"] > self.stuck_s:
                    return
                continue
            id = event.pop("id", None)
            with self._lock:
                _, on_event = self._pending.get(id, (None, None))
                if "piece" not in event:
                    self._pending.pop(id, None)
            if on_event is not None:
                on_event(event)

    def _mourn(
        self,
        child: subprocess.Popen[str],
        outbox: queue.SimpleQueue[str | None],
        log: IO[bytes],
        loaded: int,
    ) -> None:
        """Tell every request of a child that it has died."""
        assert child.stdout is not None
        code = child.wait()
        with log:
            death = DiedError(code, _text(log, loaded))
        killed = code == -signal.SIGKILL
        reason = (
            f"exit {code}: "
            f"{'killed, as the kernel does when memory runs out' if killed else death.words}"
        )
        with self._lock:
            child.stdout.close()
            outbox.put(None)
            unexpected = child is self._child
            lost = {
                id: on_event for id, (owner, on_event) in self._pending.items() if owner is child
            }
            for id in lost:
                del self._pending[id]
        for id, on_event in lost.items():
            on_event(
                {
                    "error": f"{self.name} died ({reason}) while it answered request {id}",
                    "died": True,
                }
            )
        if unexpected:
            self.on_death()

    def _watch(self, child: subprocess.Popen[str], outbox: queue.SimpleQueue[str | None]) -> None:
        """Ask the child for a sign of life all the time, and kill
        one that has given none for long.
        """
        while True:
            outbox.put('{"ping": true}\n')
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(HEARTBEAT_S)
                return
            if child is self._child and time.monotonic() - self._heard > self._hang_s:
                # SIGKILL ends a process that is stopped, too; the listener tells its requests
                child.kill()


def _end(child: subprocess.Popen[str]) -> None:
    child.kill()
    with contextlib.suppress(ValueError, OSError):  # its pipes may be closed
        child.communicate()


def _feed(child: subprocess.Popen[str], outbox: queue.SimpleQueue[str | None]) -> None:
    """Write messages to the child, in a separate thread: a child that
    does not read blocks no other thread.
    """
    assert child.stdin is not None
    # an OSError: the child has died; the listening thread says so to every request
    with contextlib.suppress(OSError), child.stdin as pipe:
        while (line := outbox.get()) is not None:
            pipe.write(line)
            pipe.flush()


def _text(log: IO[bytes], start: int = 0) -> str:
    log.seek(start)
    return log.read().decode(errors="replace")


class Parent:
    """The child's connection to its parent; a thread reads the messages and answers pings.

    Attributes:
        inbox: The messages. The process ends with its parent.
    """

    def __init__(self) -> None:
        self.inbox: queue.Queue[Message] = queue.Queue()
        self._events, self._lock = private_stdout(), threading.Lock()
        self._began: float | None = None  # when the work in hand began; None without any
        # else a failed assertion starts a debugger, which hides its text
        os.environ["GGML_NO_BACKTRACE"] = "1"
        sys.excepthook = _die
        threading.excepthook = lambda args: _die(args.exc_type, args.exc_value, args.exc_traceback)
        threading.Thread(target=self._read, daemon=True).start()

    def ready(self, **info: Any) -> None:
        """Describe the loaded file; from now on the parent alone decides when to end."""
        for number in (signal.SIGINT, signal.SIGTERM):  # they reach a whole group
            signal.signal(number, signal.SIG_IGN)
        self.send(**info)

    def send(self, **event: Any) -> None:
        line = json.dumps(event, ensure_ascii=False) + "\n"
        with self._lock:
            self._events.write(line)
            self._events.flush()

    def works(self, busy: bool) -> None:
        """Say that a piece of work begins, or that there is none."""
        self._began = time.monotonic() if busy else None

    def _read(self) -> None:
        for line in sys.stdin:
            message = json.loads(line)
            if "ping" in message:
                began = self._began
                self.send(
                    pong=message["ping"], stuck_s=0.0 if began is None else time.monotonic() - began
                )
            else:
                self.inbox.put(message)
        os._exit(0)  # the parent has gone; unloading is the kernel's work


def _die(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    """Exit at once: without its reading thread a child would live on and take no request."""
    try:
        sys.__excepthook__(kind, error or kind(), trace)
    finally:
        os._exit(1)
