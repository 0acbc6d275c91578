"""Requests of OpenAI's Responses API as chat requests: from there on both go one way.

Nothing is kept between requests, so a conversation comes whole, as `input`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.sensitive.conversation_veto import unread_fields
from slmctl.server.request_errors import RequestError

ROLES = ("user", "assistant", "system", "developer")
TOKENS = "message.output_text.logprobs"  # the value of `include` that asks for the tokens of the answer
TEXTS = ("input_text", "output_text", "text")  # types of parts that hold a text
NAMES = {  # of chat options: their names here, for errors
    "messages": "input", "max_tokens": "max_output_tokens", "response_format": "text.format",
    "logprobs": "include",
}  # fmt: skip
SAME = ("model", "stream", "temperature", "top_p", "top_logprobs")
# Options that an answer repeats, and those that it repeats where a function may be called.
REPEATED = ("instructions", "max_output_tokens", "metadata", "temperature", "top_p", "top_logprobs", "text",
            "safety_identifier", "prompt_cache_key", "user", "max_tool_calls")  # fmt: skip
REPEATED_OF_CALLS = (*REPEATED, "tools", "tool_choice")


def as_chat(body: JsonObject, *, calls: bool = False) -> JsonObject:
    """The chat request that asks the same as the options of a response that are read.

    Args:
        calls: The model calls functions: tools, calls and their results are read.

    Raises:
        RequestError: It has no conversation of texts, or an option of another form.
    """
    chat = {name: body[name] for name in SAME if name in body}
    if "max_output_tokens" in body:
        chat["max_tokens"] = body["max_output_tokens"]
    if "stream_options" in body and not _is_within(body["stream_options"], {"include_obfuscation"}):
        raise RequestError("'stream_options' may hold include_obfuscation alone", "stream_options")
    include = body.get("include", [])
    if not isinstance(include, list) or not all(isinstance(value, str) for value in include):
        raise RequestError("'include' must be a list of texts", "include")
    if TOKENS in include or "top_logprobs" in body:
        chat["logprobs"] = True
    chat |= _form(body.get("text", {}))
    instructions = body.get("instructions", "")
    if not isinstance(instructions, str):
        raise RequestError("'instructions' must be a text", "instructions")
    system = [{"role": "system", "content": instructions}] if instructions else []
    if calls:
        chat |= {name: body[name] for name in ("parallel_tool_calls",) if name in body}
        chat |= {name: make(body[name]) for name, make in (("tools", _tools), ("tool_choice", _choice)) if name in body}
    return chat | {"messages": [*system, *messages_of(body.get("input"), calls=calls)]}


def _tools(tools: Any) -> Any:
    """A list of functions in the form of a chat; what is no function is left to be refused."""
    return [_nested(tool) for tool in tools] if isinstance(tools, list) else tools


def _nested(tool: Any) -> Any:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        return tool
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _choice(choice: Any) -> Any:
    """A choice of tools in the form of a chat."""
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        part = {"mode": choice.get("mode"), "tools": _tools(choice.get("tools"))}
        return {"type": "allowed_tools", "allowed_tools": part}
    return _nested(choice)


def _form(text: Any) -> JsonObject:
    """The form of the answer, as chat requests name it."""
    if not _is_within(text, {"format", "verbosity"}):
        raise RequestError("'text' may hold format and verbosity alone", "text")
    if text.get("verbosity") not in (None, "medium"):
        raise RequestError("option 'text.verbosity' is not supported", "text.verbosity")
    form = text.get("format")
    if not isinstance(form, dict) or form.get("type") != "json_schema":
        return {} if form is None else {"response_format": form}
    return {"response_format": {"type": "json_schema", "json_schema": form}}


def messages_of(conversation: Any, *, calls: bool = False) -> list[JsonObject]:
    """The conversation in `input`: a text of the user's, or a list of messages, with calls and results between them."""
    if isinstance(conversation, str):
        return [{"role": "user", "content": conversation}]
    if not isinstance(conversation, list) or not conversation:
        raise RequestError("'input' must be a text, or a list of messages that is not empty", "input")
    messages: list[JsonObject] = []
    for k, item in enumerate(conversation):
        kind = item.get("type") if calls and isinstance(item, dict) else None
        if kind == "function_call":
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""})
            before = messages[-1].get("tool_calls", [])
            if not isinstance(before, list):
                raise RequestError(f"the message before input[{k}] has tool_calls that are no list", "input")
            messages[-1]["tool_calls"] = [*before, _call(item)]
        elif kind == "function_call_output":
            content = _content(item.get("output"), f"input[{k}]", "output")
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
        else:
            messages.append(_message(item, f"input[{k}]"))
    return messages


def _call(item: JsonObject) -> JsonObject:
    function = {name: item.get(name) for name in ("name", "arguments")}
    return {"id": item.get("call_id"), "type": "function", "function": function}


def _message(item: Any, where: str) -> JsonObject:
    kind = item.get("type", "message") if isinstance(item, dict) else None
    if kind == "item_reference":
        raise RequestError(f"{where} refers to an item, but none is kept here: send the item itself", "input")
    if kind != "message":
        named = f", not '{kind[:100]}'" if isinstance(kind, str) else ""
        raise RequestError(f"{where} must be a message{named}", "input")
    role = item.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise RequestError(f"{where} needs a role: user, assistant, system or developer", "input")
    content = _content(item.get("content"), where, "content")
    unread = {name: item[name] for name in unread_fields(item)}  # the search for sensitive data must know of them
    return {**unread, "role": role, "content": content}


def _content(content: Any, where: str, name: str) -> str:
    text = text_of(content, TEXTS)
    if text is None:
        raise RequestError(f"{where} needs {name}: a text, or parts of type input_text or output_text", "input")
    return text


def text_of(content: Any, types: Sequence[str]) -> str | None:
    """A content that is a text, or parts of these types that hold one; None for any other."""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) and part.get("type") in types else None for part in content]
        content = "".join(map(str, parts)) if all(isinstance(part, str) for part in parts) else None
    return content if isinstance(content, str) else None


def _is_within(value: Any, names: set[str]) -> bool:
    return isinstance(value, dict) and set(value) <= names


def in_own_names(error: RequestError, names: Mapping[str, str] = NAMES) -> RequestError:
    """An error about a chat option by the option's name here."""
    name = names.get(error.param, error.param)
    message = error.message.replace(f"'{error.param}'", f"'{name}'") if error.param else error.message
    return RequestError(message, name, status=error.status, code=error.code)
