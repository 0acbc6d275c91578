"""The last message of a row -> its answer as kept: from its tool calls,
or from a call in its text or cell.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from typing import Any

from slmctl.errors import DataError
from slmctl.task import declared, tool_calls
from slmctl.task.records import Message, RowRejectedError
from slmctl.task.tool_calls import Tool

_SPELLED = ("", tool_calls.NO_CALL, "null", "None", "{}")  # cells that mean that no tool fits
_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|$)", re.DOTALL)  # of Hermes, Qwen and others
_LISTED = "[TOOL_CALLS]"  # of Mistral
_MARKS = (
    "<tool_call",
    "</tool_call",
    _LISTED,
    "<|tool_call",
    "<|python_tag|>",
    "<function=",
    "<function_call",
    "functools[",
)
_CALL_KEYS = {"name", "arguments", "parameters", "id", "type"}


def answer_in(message: Message, conversation_format: str) -> str:
    """The answer of an assistant's message as it is kept: one call as JSON, or NO_CALL.

    In a chat, a text without a call means that no tool was called. A cell of a table must hold a
    call as JSON, or one of _SPELLED. A call that stands in the text, as JSON or between a model's
    control tokens, is read too.

    Raises:
        RowRejectedError: There are several calls, or one that cannot be read.
    """
    made, text = message.get("tool_calls") or [], message["content"]
    if made:
        _require_one(made)
        function = made[0]["function"]
        return _kept(function["name"], function["arguments"])
    if text.strip() in _SPELLED:
        return tool_calls.NO_CALL
    written = _written(text)
    if written:
        _require_one(written)
        return _answer_of_written(written[0], text)
    if conversation_format in ("messages", "sharegpt", "prompt-completion"):
        return tool_calls.NO_CALL
    raise _no_call(text)


def _written(text: str) -> list[Any]:
    """The calls in a text as JSON values that are not checked yet; empty for a text without one.

    Raises:
        RowRejectedError: The text has the marks of a call, and no call can be read.
    """
    if "<tool_call>" in text:
        return [_parsed(part) for part in _TAGGED.findall(text)]
    value = _parsed(text.strip().removeprefix(_LISTED))
    if isinstance(value, dict) and isinstance(value.get("tool_calls"), list):
        value = value["tool_calls"]
    values = value if isinstance(value, list) else [value]
    if values and all(map(_is_like_a_call, values)):
        return values
    if any(mark in text for mark in _MARKS):
        raise _no_call(text)
    return []


def _is_like_a_call(value: Any) -> bool:
    return isinstance(value, dict) and (isinstance(value.get("function"), dict) or "name" in value)


def _answer_of_written(value: Any, text: str) -> str:
    # an entry of OpenAI's `tool_calls`
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or "name" not in value or not value.keys() <= _CALL_KEYS:
        raise _no_call(text)
    return _kept(value["name"], value.get("arguments", value.get("parameters", {})))


def _require_one(made: Sequence[Any]) -> None:
    if len(made) > 1:
        raise RowRejectedError(
            "several calls", f"the answer has {len(made)} calls, and at most one is learned"
        )


def _no_call(text: str) -> RowRejectedError:
    return RowRejectedError(
        "not a call", f"'{text[:60]}' is neither a call with 'name' and 'arguments' nor 'none'"
    )


def require_grammar(tools: Sequence[Tool]) -> None:
    """Refuse tools of a row that no grammar can be made of, as is done for those of `task.tools`.

    Raises:
        RowRejectedError: There is such a tool.
    """
    for tool in tools:
        if fault := _fault_of(tool_calls.OWN.rules([tool])):
            raise RowRejectedError("bad tools", f"the tool '{tool.name}': {fault}")


# cached, since rows share most of their tools
_fault_of = functools.lru_cache(maxsize=4096)(declared.grammar_fault)


def _kept(name: Any, arguments: Any) -> str:
    if arguments is None or arguments == "":
        arguments = {}
    if isinstance(arguments, str):  # OpenAI's form has them as JSON in a text
        arguments = _parsed(arguments)
    try:
        text = json.dumps({"arguments": arguments, "name": name}, allow_nan=False)
        return tool_calls.answer_of(tool_calls.read_answer(text))
    except (DataError, ValueError, RecursionError) as error:
        raise RowRejectedError("not a call", f"the call cannot be read: {error}") from None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
