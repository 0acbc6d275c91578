"""The call in a row's last message as answers are kept: of a message's tool calls, or of a cell in a table."""

from __future__ import annotations

import json
from typing import Any

from slmctl.errors import DataError
from slmctl.task import tool_calls
from slmctl.task.records import Message, RowRejectedError

_SPELLED = ("", tool_calls.NO_CALL, "null", "None", "{}")  # cells that say that no tool fits


def answered(message: Message, conversation_format: str) -> Message:
    """An assistant's message with its answer as it is kept; see `answer_in`."""
    reply = message.copy()
    reply.pop("tool_calls", None)
    reply["content"] = answer_in(message, conversation_format)
    return reply


def answer_in(message: Message, conversation_format: str) -> str:
    """The answer in an assistant's message, as it is kept.

    A message of a chat with text and no call says that no tool was called. A cell of a table must hold a call as JSON,
    or say that there is none.

    Raises:
        RowRejectedError: There are several calls, or what is there is no call.
    """
    made, text = message.get("tool_calls") or [], message["content"]
    if len(made) > 1:
        raise RowRejectedError("several calls", f"the answer has {len(made)} calls, and at most one is learned")
    if made:
        function = made[0]["function"]
        return _kept(function["name"], function["arguments"])
    if text.strip() in _SPELLED:
        return tool_calls.NO_CALL
    value = _parsed(text)
    if isinstance(value, dict) and isinstance(value.get("function"), dict):  # an entry of OpenAI's `tool_calls`
        value = value["function"]
    if isinstance(value, dict) and "name" in value and value.keys() <= {"name", "arguments"}:
        return _kept(value["name"], value.get("arguments", {}))
    if conversation_format in ("messages", "sharegpt", "prompt-completion"):
        return tool_calls.NO_CALL
    raise RowRejectedError("not a call", f"'{text[:60]}' is neither a call with 'name' and 'arguments' nor 'none'")


def _kept(name: Any, arguments: Any) -> str:
    if arguments is None or arguments == "":
        arguments = {}
    if isinstance(arguments, str):  # OpenAI's form has them as JSON in a text
        arguments = _parsed(arguments)
    try:
        text = json.dumps({"arguments": arguments, "name": name}, allow_nan=False)
        return tool_calls.answer_of(tool_calls.read_answer(text))
    except (DataError, ValueError, RecursionError) as error:
        raise RowRejectedError("not a call", f"the call is not one: {error}") from None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
