"""The child process of `chat_template`: renders Jinja templates under limits of memory and without
files.

python -m slmctl.task.chat_template_child     requests as JSON lines in, an answer a line out
"""

from __future__ import annotations

import functools
import json
import os
import resource
import sys
import time
from collections.abc import Mapping
from typing import Any, Literal, TypedDict

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from slmctl.child import bound

LIMIT_BYTES = 1 << 29  # of address space
# bytes of memory after which the process ends: Python gives little back to the system
LARGE = 1 << 27
FLUSH_S = 0.05  # longest time that an answer stays in the buffer
ROW_TEMPLATE = "{# row #}"  # a template over the columns of a row begins with this comment
LONGEST = 16 << 20  # characters of a rendered conversation

_REFUSALS = (
    jinja2.TemplateError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
    TypeError,
    ValueError,
    AssertionError,
    SyntaxError,
)


class RenderReply(TypedDict, total=False):
    """The answer to one request: the text, or a fault and its kind;
    `last` if the process ends after it.
    """

    text: str
    fault: str
    kind: Literal["refused", "memory"]
    last: bool


def render(source: str, values: Mapping[str, Any]) -> str:
    """Render a template, with a limit of length only.

    Raises:
        ValueError: The text is longer than LONGEST.
    """
    parts, length = [], 0
    for part in _compile(source).generate(**values):
        length += len(part)
        if length > LONGEST:
            raise ValueError(f"it writes more than {LONGEST} characters")
        parts.append(part)
    return "".join(parts)


@functools.lru_cache(maxsize=8)
def _compile(source: str) -> jinja2.Template:
    return (_row_environment() if source.startswith(ROW_TEMPLATE) else _environment()).from_string(
        source
    )


@functools.cache
def _row_environment() -> ImmutableSandboxedEnvironment:
    """The sandbox for a template over the columns of a row: blanks
    stay, and a missing value is a fault.
    """
    environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
    # jinja's own is for HTML
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    """The sandbox with transformers' filters and globals for chat templates
    but `strftime_now`, see `template_date`.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, LoopControlExtension]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "namespace": _Namespace}
    return environment


class _Generation(Extension):
    """`{% generation %}` marks the text that a model learns to write, and leaves it unchanged."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # a scope, as in transformers
        return nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

    def _text(self, caller: Macro) -> str:
        return str(caller())


class _Namespace(Namespace):
    """Jinja's namespace without names that begin with an underscore, which transformers refuses."""

    def __init__(*args: Any, **fields: Any) -> None:  # `self` can be a field
        for name in dict(*args[1:], **fields):
            _require_public(name)
        Namespace.__init__(*args, **fields)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_public(name)
        super().__setitem__(name, value)


def _require_public(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.TemplateError(f"a namespace has no names such as '{name}'")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def reply(source: str, request: bytes) -> tuple[str, RenderReply]:
    """Returns (template of the request, or else of the one before it; the text, or its fault)."""
    try:
        fields = json.loads(request)
        source = fields.get("source", source)
        return source, {"text": render(source, fields["values"])}
    except MemoryError:
        return source, {"fault": "", "kind": "memory", "last": True}
    except _REFUSALS as error:
        return source, {"fault": str(error)[:300] or type(error).__name__, "kind": "refused"}


def main() -> None:
    """Answer requests from stdin until it ends."""
    _compile("").render()
    # getrusage's peak begins with that of the parent
    memory = os.open("/proc/self/statm", os.O_RDONLY)
    bound(memory=LIMIT_BYTES, file_bytes=0)
    source, out = "", sys.stdout
    flushed = time.monotonic()
    out.write('{"text": ""}\n')
    out.flush()
    for line in sys.stdin.buffer:
        # the end of a batch: to flush each answer would wake the parent each time
        if line == b"\n":
            out.flush()
            continue
        source, answer = reply(source, line)
        if int(os.pread(memory, 64, 0).split()[1]) * resource.getpagesize() > LARGE:
            answer["last"] = True
        out.write(json.dumps(answer) + "\n")
        if answer.get("last"):
            return
        if time.monotonic() - flushed > FLUSH_S:
            out.flush()
            flushed = time.monotonic()


if __name__ == "__main__":
    main()
