"""Tools in requests to a model that calls them: those that are offered, the choice among them,
calls in the history.

Everything is in the form of chat completions; `responses` brings its own into it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slmctl.artifacts.bounded_json import MAX_DEPTH, JsonObject, is_deeper
from slmctl.errors import DataError
from slmctl.sensitive.conversation_veto import texts_in
from slmctl.server.request_errors import RequestError
from slmctl.task import tool_calls
from slmctl.task.contract import Task
from slmctl.task.records import Message, MessageCall
from slmctl.task.tool_calls import Tool

TOOLS_BYTES = 1 << 16  # of all tools of one request, as JSON
MODES = ("auto", "none", "required")


@dataclass(frozen=True)
class Offer:
    """The functions that an answer may call.

    Attributes:
        listed: All that the prompt lists.
        names: Those of them that may be called.
        must_call: The answer has to be a call.
        is_clients: The client sent them; else they are the task's own.
        is_chosen: The client left less to the model than to call one of them or none.
    """

    listed: tuple[Tool, ...]
    names: tuple[str, ...]
    must_call: bool = False
    is_clients: bool = False
    is_chosen: bool = False

    @property
    def callable(self) -> tuple[Tool, ...]:
        return tuple(tool for tool in self.listed if tool.name in self.names)

    @property
    def tools(self) -> tuple[JsonObject, ...]:
        """All that the prompt lists, in OpenAI's form."""
        return tuple(tool.to_json() for tool in self.listed)

    @property
    def checked_rules(self) -> str:
        """A grammar over all of them, by which it is checked that
        answers can be held to a client's schemas.
        """
        return tool_calls.OWN.rules(self.listed) if self.is_clients else ""


def offer(body: Mapping[str, Any], task: Task) -> Offer:
    """The functions that a request lets an answer call: its own, or else the task's.

    Args:
        body: With `tools` and `tool_choice` where they were sent.
        task: The contract of the model that is asked.

    Raises:
        RequestError: A tool or the choice is not valid, or there are too many.
    """
    listed = _tools(body["tools"]) if "tools" in body else task.rules.offered()
    names = tuple(tool.name for tool in listed)
    allowed, must_call = _chosen(body.get("tool_choice", "auto"), names)
    together = body.get("parallel_tool_calls", False)
    if not isinstance(together, bool):
        raise RequestError("'parallel_tool_calls' must be true or false", "parallel_tool_calls")
    return Offer(listed, allowed, must_call, "tools" in body, must_call or allowed != names)


def _tools(value: Any) -> tuple[Tool, ...]:
    """The tools of a client, within bounds."""
    if not isinstance(value, list) or len(value) > tool_calls.MAX_TOOLS:
        raise RequestError(
            f"'tools' must be a list of at most {tool_calls.MAX_TOOLS} functions", "tools"
        )
    if is_deeper(value, MAX_DEPTH):
        raise RequestError(f"'tools' is nested more than {MAX_DEPTH} deep", "tools")
    if len(json.dumps(value)) > TOOLS_BYTES:
        raise RequestError(f"'tools' has more than {TOOLS_BYTES} bytes", "tools")
    for tool in value:
        kind = tool.get("type") if isinstance(tool, dict) else None
        if isinstance(kind, str) and kind != "function":
            raise RequestError(
                f"a tool of type '{kind[:100]}' is not supported: only functions are called here",
                "tools",
            )
    try:
        return tool_calls.read_tools(value)
    except DataError as error:
        raise RequestError(
            f"'tools': {error.message}" + (error.hint and f" ({error.hint})"), "tools"
        ) from None


def _chosen(choice: Any, names: Sequence[str]) -> tuple[tuple[str, ...], bool]:
    """The names that may be called, and whether one has to be."""
    mode, chosen = _mode_of(choice, names)
    if not isinstance(mode, str) or mode not in MODES:
        raise RequestError(
            "'tool_choice' must be auto, none, required, or name a function", "tool_choice"
        )
    for name in chosen:
        if name not in names:
            raise RequestError(
                f"'tool_choice' names '{str(name)[:100]}', which is none of the tools",
                "tool_choice",
            )
    if mode == "required" and not chosen:
        raise RequestError("'tool_choice' is required, and there are no tools", "tool_choice")
    return () if mode == "none" else tuple(
        name for name in names if name in chosen
    ), mode == "required"


def _mode_of(choice: Any, names: Sequence[str]) -> tuple[Any, list[Any]]:
    """The mode of a choice, of MODES where it is valid, and the names that it is among."""
    if not isinstance(choice, dict):
        return choice, list(names)
    if choice.get("type") == "function":
        return "required", [_name_in(choice)]
    part = choice.get("allowed_tools") if choice.get("type") == "allowed_tools" else None
    listed = part.get("tools") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(listed, list):
        return None, []
    return part.get("mode"), [_name_in(tool) for tool in listed]


def _name_in(tool: Any) -> Any:
    function = tool.get("function") if isinstance(tool, dict) else None
    return function.get("name") if isinstance(function, dict) else None


def calls_in(message: JsonObject, where: str) -> list[MessageCall]:
    """The calls in an assistant's message of the history, arguments as values.

    Raises:
        RequestError: One has no name of a function, or no arguments that are an object.
    """
    listed = message.get("tool_calls") or []
    if not isinstance(listed, list) or len(listed) > tool_calls.MAX_TOOLS:
        raise RequestError(
            f"{where} has more than {tool_calls.MAX_TOOLS} tool_calls, or no list of them",
            "messages",
        )
    return [_call(call, f"{where}.tool_calls[{k}]") for k, call in enumerate(listed)]


def _call(call: Any, where: str) -> MessageCall:
    function = (
        call.get("function")
        if isinstance(call, dict) and call.get("type", "function") == "function"
        else None
    )
    try:
        read = tool_calls.from_function(function)
    except DataError as error:
        raise RequestError(f"{where}: {error.message}", "messages") from None
    return {"type": "function", "function": {"name": read.name, "arguments": read.arguments}}


def ids_in(message: JsonObject) -> dict[str, str]:
    """By the id of each call in a message that was read by `calls_in`, the name of its function."""
    calls = message.get("tool_calls") or []
    return {
        call["id"]: call["function"]["name"] for call in calls if isinstance(call.get("id"), str)
    }


def name_of_result(message: JsonObject, names: Mapping[str, str], where: str) -> str:
    """Returns the name of the function that a message of role tool has the result of.

    Args:
        names: By the id of each call before it, the name of its function.

    Raises:
        RequestError: No call before it has its id.
    """
    id, name = message.get("tool_call_id"), message.get("name")
    if id is None and isinstance(name, str) and tool_calls.NAME.fullmatch(name):
        return name
    if not isinstance(id, str) or id not in names:
        raise RequestError(f"{where} needs a tool_call_id: that of a call before it", "messages")
    return names[id]


def texts(turns: Sequence[Message], offered: Offer) -> Iterator[str]:
    """Texts of a request outside of its messages: values in arguments of
    calls, and all texts in the client's tools.
    """
    for turn in turns:
        for call in turn.get("tool_calls", ()):
            yield from texts_in(call["function"]["arguments"])
    if offered.is_clients:
        yield from texts_in(offered.tools)
