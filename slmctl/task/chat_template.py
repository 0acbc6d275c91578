"""Render chat templates, which are code by a model's author, in a sandbox with limits of time and
memory.

jinja2's sandbox keeps a template from files, imports and Python's internals. Time and memory are
limited by a child process, which has a budget of seconds for each text, a limit of memory, no
secrets in its environment, and no way to write a file. Many renders are sent together, and short
texts are cached.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from slmctl import child
from slmctl.errors import DataError, StageError

LIMIT_S = 20.0  # for one text; the longest template known takes some milliseconds
MEMORY_MB = 512  # of address space in the child, which sets it
LONGEST_SOURCE = 1 << 18  # characters of a template; the longest of a known model has some 16,000
CHILDREN = 4  # processes at most: a slow text holds up one of them
START_S = 200.0  # seconds for a child to start, on a machine that is busy
REMEMBERED, SHORT = 256, 1 << 13  # texts that are cached, and bytes of one with its request


class TemplateRefusedError(DataError):
    """A chat template is not valid, or refuses the messages, such
    as two turns of a user in a row.
    """


class TemplateLimitError(DataError):
    """A chat template takes more time or memory than it may have."""


def render(source: str, values: Mapping[str, Any], *, budget_s: float = LIMIT_S) -> str:
    """The text of a template, filled with JSON values. Blocks: an event loop calls it in a thread.

    Raises:
        TemplateRefusedError: The template refuses the values, or is not valid.
        TemplateLimitError: It takes longer than `budget_s` seconds, or more memory than it may
            have.
        StageError: The process that renders it cannot run here.
    """
    (text,) = render_all(source, [values], budget_s=budget_s)
    return text


def render_all(
    source: str, values: Sequence[Mapping[str, Any]], *, budget_s: float = LIMIT_S
) -> list[str]:
    """The texts of many values, in order, each within `budget_s`
    seconds; raises as `render` does.
    """
    if len(source) > LONGEST_SOURCE:
        raise TemplateLimitError(f"the chat template has more than {LONGEST_SOURCE} characters")
    requests = [json.dumps(value).encode() for value in values]
    texts = [_remembered(source, request) for request in requests]
    missing = [at for at, text in enumerate(texts) if text is None]
    if missing:
        with _pool.child() as process:
            fresh = process.render(source, [requests[at] for at in missing], budget_s)
        for at, text in zip(missing, fresh, strict=True):
            texts[at] = text
            _remember(source, requests[at], text)
    return [text for text in texts if text is not None]


# Cache of short texts, the last used one at the end: every prompt needs the opening that all
# prompts of its task share. No lock, which another thread may hold at a fork: the worst of a race
# is a text that is rendered again.
_memory: dict[tuple[str, bytes], str] = {}


def _remembered(source: str, request: bytes) -> str | None:
    text = _memory.pop((source, request), None)
    if text is not None:
        _memory[source, request] = text
    return text


def _remember(source: str, request: bytes, text: str) -> None:
    if len(text) + len(request) <= SHORT:
        _memory[source, request] = text
        if len(_memory) > REMEMBERED:
            # another thread has taken one out meanwhile
            with contextlib.suppress(LookupError, RuntimeError):
                del _memory[next(iter(_memory))]


class _Child:
    """One process that renders; it is started by the first request,
    and again by the next after its end.
    """

    def __init__(self) -> None:
        self._process = child.LineChild("slmctl.task.chat_template_child")
        self._source = ""  # the template that the process was sent last

    def render(self, source: str, requests: Sequence[bytes], budget_s: float) -> list[str]:
        """The texts of requests, which are values in JSON."""
        texts: list[str] = []
        try:
            while len(texts) < len(requests):
                if not self._process.alive:
                    self._source = ""
                    self._process.start(START_S)
                texts += self._rendered(source, requests[len(texts) :], budget_s)
        except OSError as error:
            raise StageError(
                f"the process that renders chat templates cannot be started: {error}"
            ) from None
        except child.LateError:
            raise TemplateLimitError(
                f"the chat template takes longer than {budget_s:g} s",
                hint="take a base whose chat template ends",
            ) from None
        except child.DiedError as death:
            if death.out_of_memory:
                raise _out_of_memory() from None
            if death.code < 0:
                raise TemplateLimitError(f"the chat template cannot be rendered: {death}") from None
            raise StageError(
                f"the process that renders chat templates ended with exit code {death.code}: "
                f"{death}"
            ) from None
        return texts

    def _rendered(self, source: str, requests: Sequence[bytes], budget_s: float) -> list[str]:
        """The texts of requests, or of the first ones if the
        process has grown too large and ends.
        """
        lines = [b'{"values": ' + request + b"}\n" for request in requests]
        if source != self._source:
            named = b'{"source": ' + json.dumps(source).encode()
            lines[0] = named + b", " + lines[0].removeprefix(b"{")
        self._source = source
        texts = []
        with contextlib.closing(
            self._process.answers(b"".join([*lines, b"\n"]), len(requests), budget_s)
        ) as answers:
            for answer in map(json.loads, answers):
                if answer.get("last"):
                    self._process.close()
                texts.append(_text(answer))
                if answer.get("last"):
                    break
        return texts

    def close(self) -> None:
        self._process.close()


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
        self._begin()
        os.register_at_fork(after_in_child=self._begin)
        atexit.register(self._end)

    def _begin(self) -> None:
        self._owner = os.getpid()
        # Popen warns of one that is lost
        self._parents, self._all = self._all, [_Child() for _ in range(CHILDREN)]
        # the one used last has started, and comes first
        self._idle: queue.LifoQueue[_Child] = queue.LifoQueue()
        for process in self._all:
            self._idle.put(process)

    @contextlib.contextmanager
    def child(self) -> Iterator[_Child]:
        """A child that is used by nothing else in the block."""
        process = self._idle.get()
        try:
            yield process
        finally:
            self._idle.put(process)

    def _end(self) -> None:
        if self._owner == os.getpid():
            for process in self._all:
                process.close()


_pool = _Pool()
