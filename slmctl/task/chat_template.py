"""A chat template is code of a model's author: it is rendered where it can run nothing and take little.

jinja2's sandbox gives it no files, no imports and nothing of Python's insides. That leaves time and memory. A
template that is plain takes of both no more than the square of what its messages hold, and is rendered here. Any
other (macros, arithmetic, texts built up in loops) is rendered by a child process that has LIMIT_S seconds and
LIMIT_BYTES of memory, no secrets in its environment, and no way to write a file:

    python -m slmctl.task.chat_template     requests as JSON lines in, texts out
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import resource
import selectors
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import LoopControlExtension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from slmctl import child_environment
from slmctl.errors import DataError

LIMIT_S = 20.0  # for one rendering in the child; the longest template known takes some milliseconds
LIMIT_BYTES = 1 << 30  # of address space in the child
LONGEST = 16 << 20  # characters that a rendered conversation may have
LONGEST_SOURCE = 1 << 18  # characters of a template; the longest of a known model has some 16,000
_READY = 10 * LIMIT_S  # seconds for the child to start, on a machine that is busy

_REFUSALS = (jinja2.TemplateError, ArithmeticError, LookupError, AttributeError, RecursionError, TypeError, ValueError,
             AssertionError, SyntaxError, MemoryError)  # fmt: skip


class TemplateRefusedError(DataError):
    """A chat template is not valid, or refuses the messages, such as two turns of a user in a row."""


def render(source: str, values: Mapping[str, Any]) -> str:
    """Render a template with values that are JSON.

    Raises:
        TemplateRefusedError: The template refuses them, or is not valid.
        DataError: It takes more time or memory than it may.
    """
    if is_plain(source):
        try:
            return _render(source, values)
        except _REFUSALS as error:
            raise TemplateRefusedError(f"the chat template refuses the messages: {_said(error)}") from None
    return _child().render(source, values)


def _render(source: str, values: Mapping[str, Any]) -> str:
    parts, length = [], 0
    for part in _compile(source).generate(**values):
        length += len(part)
        if length > LONGEST:
            raise ValueError(f"it writes more than {LONGEST} characters")
        parts.append(part)
    return "".join(parts)


@functools.lru_cache(maxsize=8)
def _compile(source: str) -> jinja2.Template:
    return _environment().from_string(source)


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    """The sandbox, with what chat templates expect to find there."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[LoopControlExtension])
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = _refuse
    return environment


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _said(error: BaseException) -> str:
    return str(error)[:300] or type(error).__name__


# What is plain

_HARMLESS = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.Const, nodes.Name, nodes.NSRef, nodes.Getattr,
    nodes.Getitem, nodes.Slice, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Test,
    nodes.CondExpr, nodes.Concat, nodes.Add, nodes.Sub, nodes.Keyword, nodes.Break, nodes.Continue,
)  # fmt: skip
_FILTERS = {"trim", "tojson", "length", "count", "join", "upper", "lower", "string", "first", "last", "default", "d",
            "safe", "list", "items", "title", "capitalize"}  # fmt: skip
_FUNCTIONS = {"raise_exception", "namespace"}
_METHODS = {"strip", "lstrip", "rstrip", "startswith", "endswith", "split", "get", "items", "keys", "values", "upper",
            "lower", "title", "capitalize"}  # fmt: skip
_JOINED, _NAMES = 3, 8  # assignments that put texts together, outside of loops, and names in each of them


@functools.lru_cache(maxsize=64)
def is_plain(source: str) -> bool:
    """Whether a template can take no more time and memory than the square of what it is given.

    It walks each list once, a list in a list within that, puts no texts together in a loop that a later round
    could put together again, and calls nothing that multiplies.
    """
    if len(source) > LONGEST_SOURCE:
        raise DataError(f"the chat template has more than {LONGEST_SOURCE} characters")
    try:
        tree = _environment().parse(source)
        joined = [one for one in tree.find_all(nodes.Assign) if _joins(one)]
        return len(joined) <= _JOINED and _is_plain(tree, ())
    except (jinja2.TemplateError, RecursionError):
        return False  # whoever renders it says why


def _is_plain(node: nodes.Node, loops: tuple[str, ...]) -> bool:
    """`loops`: the variables of the loops that stand around a node."""
    if isinstance(node, nodes.For):
        if node.recursive or not isinstance(node.target, nodes.Name) or not _walks_on(node.iter, loops):
            return False
        inside = (*loops, node.target.name)
        rest = [node.iter, *([node.test] if node.test else [])]
        return all(_is_plain(one, inside) for one in [*node.body, *node.else_, *rest])
    if isinstance(node, nodes.Assign):
        names = {one.name for one in (node.target, *node.target.find_all((nodes.Name, nodes.NSRef)))
                 if isinstance(one, nodes.Name | nodes.NSRef)}  # fmt: skip
        fine = not names & set(loops) and not (loops and _joins(node)) and _count(node.node, nodes.Name) <= _NAMES
    elif isinstance(node, nodes.Filter):
        fine = node.name in _FILTERS and all(_is_small(one) for one in (*node.args, *node.kwargs))
    elif isinstance(node, nodes.Call):
        called = node.node
        fine = (isinstance(called, nodes.Name) and called.name in _FUNCTIONS) or (
            isinstance(called, nodes.Getattr) and called.attr in _METHODS
        )
    elif isinstance(node, nodes.Mod):  # `loop.index0 % 2`; a text on the left would be a format
        fine = isinstance(node.left, nodes.Getattr) and _is_name(node.left.node, "loop")
    elif isinstance(node, nodes.List | nodes.Tuple):
        fine = all(isinstance(one, nodes.Const) for one in node.items)
    else:
        fine = isinstance(node, _HARMLESS)
    return fine and all(_is_plain(one, loops) for one in node.iter_child_nodes())


def _walks_on(iterated: nodes.Node, loops: tuple[str, ...]) -> bool:
    """Whether a loop walks what was given, and one in a loop what the outer one has come to: no list twice."""
    node = iterated
    while isinstance(node, nodes.Getattr | nodes.Getitem | nodes.Filter) and node.node is not None:
        node = node.node
    return len(loops) < 3 and isinstance(node, nodes.Name) and (not loops or node.name == loops[-1])


def _joins(node: nodes.Assign) -> bool:
    """Whether an assignment may make a text longer than those that it is made of; a number may be counted up."""
    for one in (node.node, *node.node.find_all((nodes.Concat, nodes.Add))):
        counts = isinstance(one, nodes.Add) and isinstance(one.right, nodes.Const) and type(one.right.value) is int
        if isinstance(one, nodes.Concat | nodes.Add) and not counts:
            return True
    return False


def _count(node: nodes.Node, kind: type[nodes.Node]) -> int:
    return isinstance(node, kind) + sum(1 for _ in node.find_all(kind))


def _is_name(node: nodes.Node, name: str) -> bool:
    return isinstance(node, nodes.Name) and node.name == name


def _is_small(node: nodes.Node) -> bool:
    """Whether an argument of a filter is a short text or a small number."""
    value = node.value if isinstance(node, nodes.Keyword) else node
    if not isinstance(value, nodes.Const):
        return False
    return value.value <= 16 if isinstance(value.value, int) else len(str(value.value)) <= 64


# The child


class _Child:
    """A process that renders what is not plain; one for each process that asks, started again when it was ended."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._source = ""  # what it has compiled last
        atexit.register(self.close)

    def render(self, source: str, values: Mapping[str, Any]) -> str:
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            request = {"values": values} | ({} if source == self._source else {"source": source})
            self._source = source
            answer = self._ask(json.dumps(request).encode() + b"\n", LIMIT_S)
        if "error" in answer:
            raise TemplateRefusedError(f"the chat template refuses the messages: {answer['error']}")
        text: str = answer["text"]
        return text

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None and self.owner == os.getpid():
            process.kill()
            process.communicate()

    def _start(self) -> None:
        self._source = ""
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=child_environment.bare(),
        )  # fmt: skip
        self._ask(b"", _READY)

    def _ask(self, request: bytes, limit_s: float) -> dict[str, Any]:
        """What the child answers within its time; what does not, is ended."""
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        line = b""
        with contextlib.suppress(BrokenPipeError), selectors.DefaultSelector() as ready:
            self._process.stdin.write(request)
            self._process.stdin.flush()
            ready.register(self._process.stdout, selectors.EVENT_READ)
            line = self._process.stdout.readline() if ready.select(limit_s) else b""
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        ended = self._process.poll() is not None
        self.close()
        raise DataError(
            f"the chat template wants more than {LIMIT_BYTES >> 20} MB of memory"
            if ended
            else f"the chat template takes longer than {limit_s:g} s",
            hint="take a base whose chat template ends",
        )


_children: list[_Child] = []
_making = threading.Lock()


def _child() -> _Child:
    """This process's child: a fork has its own."""
    with _making:
        if not _children or _children[0].owner != os.getpid():
            _children[:] = [_Child()]
        return _children[0]


def _serve() -> None:
    """Be the child: render until stdin ends."""
    _compile("").render()
    for kind, limit in ((resource.RLIMIT_AS, LIMIT_BYTES), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(kind, (limit, limit))
    source = ""
    for answer in _answers(source):
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()


def _answers(source: str) -> Iterator[str]:
    yield json.dumps({"ready": True})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        source = request.get("source", source)
        try:
            yield json.dumps({"text": _render(source, request["values"])})
        except _REFUSALS as error:
            yield json.dumps({"error": _said(error)})


if __name__ == "__main__":
    _serve()
